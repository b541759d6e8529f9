"""Reads objects exported from QuPath: GeoJSON and measurement tables (TSV or CSV), of QuPath 0.2 to 0.6.

Owns the two file formats. GeoJSON has pixels at full resolution (https://qupath.readthedocs.io, "Exporting annotations"); tables have
centroids in micrometres, or in pixels if the image has no pixel size. Conversion to levels is in qupath_levels.py.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ANNOTATION, DETECTION, POINT, UNKNOWN_KIND = "annotation", "detection", "point", ""

# By objectType (0.3 and later), and by `id` (0.2). TMA cores and the root object are ignored.
KINDS = {"annotation": ANNOTATION, "detection": DETECTION, "cell": DETECTION, "tile": DETECTION, "tmacore": None, "root": None}
OLD_KINDS = {
    "PathAnnotationObject": ANNOTATION,
    "PathDetectionObject": DETECTION,
    "PathCellObject": DETECTION,
    "PathTileObject": DETECTION,
    "TMACoreObject": None,
    "PathRootObject": None,
}
TABLE_KINDS = {
    "annotation": ANNOTATION,
    "detection": DETECTION,
    "cell": DETECTION,
    "tile": DETECTION,
    "tma core": None,
    "root": None,
    "root object (image)": None,
    "image": None,
}


@dataclass(frozen=True)
class QuPathObject:
    """An annotation or detection.

    Args:
        kind: `ANNOTATION`, `DETECTION` (cells and tiles too), `POINT` (of an annotation made of points), or `UNKNOWN_KIND` (older tables).
        classes: names, such as ("Tumor", "Positive"); () for none.
        shape: a shapely geometry in pixels at full resolution; None from a table.
        x, y: centroid; None if missing in a table.
        in_um: whether the centroid is in micrometres instead of pixels.
        values: the requested measurements that exist.
    """

    kind: str
    classes: tuple[str, ...]
    shape: Any
    x: float | None
    y: float | None
    in_um: bool
    values: Mapping[str, float]


@dataclass
class Exported:
    """The objects of an export by image name, and unreadable objects, one line each."""

    name: str
    objects: dict[str, list[QuPathObject]] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)


def read_export(path: Path, measurements: frozenset[str], decimal_comma: bool = False) -> Exported:
    """Read a GeoJSON file (also in .zip or .gz), or a table by any other extension.

    Args:
        measurements: names of measurements to keep.
        decimal_comma: whether the table writes 12.3 as "12,3", as QuPath does in some locales.

    Raises:
        ValueError: not such a file. Invalid objects are reported in the result instead.
    """
    name = path.name.lower()
    for packed in (".zip", ".gz"):
        name = name.removesuffix(packed)
    if name.endswith((".geojson", ".json")):
        return _read_geojson(path, path.name[: name.rindex(".")], measurements)
    return _read_table(path, measurements, decimal_comma)


def _read_geojson(path: Path, image: str, measurements: frozenset[str]) -> Exported:
    try:
        tree = json.loads(_unpacked(path))
    except (OSError, EOFError, ValueError, RecursionError, zlib.error, zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"{path}: not a readable GeoJSON file: {error}") from error
    features = tree.get("features", [tree] if tree.get("type") == "Feature" else None) if isinstance(tree, dict) else tree
    if not isinstance(features, list):
        raise ValueError(f"{path}: no features; export it from QuPath with File > Export objects as GeoJSON")
    found = Exported(path.name, {image: []})
    for number, feature in enumerate(_with_children(features)):
        try:
            found.objects[image] += _of_feature(feature, measurements)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            found.bad.append(f"{path.name}: object {number + 1}: {error or type(error).__name__}")
    return found


def _unpacked(path: Path) -> bytes:
    if path.suffix.lower() == ".gz":
        with gzip.open(path) as stream:
            return stream.read()
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as archive:
            names = [
                name for name in archive.namelist() if name.lower().endswith((".geojson", ".json")) and not name.startswith("__MACOSX")
            ]
            if len(names) != 1:
                raise ValueError(f"has {len(names)} GeoJSON files, expected one")
            return archive.read(names[0])
    return path.read_bytes()


def _with_children(features: list[Any]) -> Iterator[Any]:
    """Yields every feature, including nested ones."""
    stack = list(reversed(features))
    while stack:
        feature = stack.pop()
        yield feature
        properties = feature.get("properties") if isinstance(feature, dict) else None
        if isinstance(properties, dict):
            children = properties.get("childObjects", properties.get("children"))
            stack += reversed(children) if isinstance(children, list) else ()


def _of_feature(feature: Any, measurements: frozenset[str]) -> list[QuPathObject]:
    from shapely import make_valid
    from shapely.errors import ShapelyError
    from shapely.geometry import shape

    properties = feature.get("properties") or {}
    kind_name = properties.get("objectType", properties.get("object_type"))
    kind = (
        OLD_KINDS.get(str(feature.get("id")), ANNOTATION)
        if kind_name is None
        else KINDS.get(str(kind_name).lower().replace("_", ""), ANNOTATION)
    )
    if kind is None:
        return []
    classes = classes_of(properties.get("classification"))
    values = _values(properties.get("measurements"), measurements)
    try:
        geometry = shape(feature["geometry"])
        geometry = make_valid(geometry) if kind == ANNOTATION else geometry  # only the centroid of detections is used
    except ShapelyError as error:
        raise ValueError(f"invalid outline: {error}") from error
    if geometry.is_empty or not all(math.isfinite(edge) for edge in geometry.bounds):
        raise ValueError("empty or non-finite outline")
    if kind == ANNOTATION and geometry.geom_type in ("Point", "MultiPoint"):
        points = getattr(geometry, "geoms", [geometry])
        return [QuPathObject(POINT, classes, point, point.x, point.y, False, values) for point in points]
    centre = geometry.centroid
    return [QuPathObject(kind, classes, geometry, centre.x, centre.y, False, values)]


def classes_of(classification: Any) -> tuple[str, ...]:
    """Returns the names of a classification: a text, {name}, {names} (0.4 and later), or {name, parentClass} (before)."""
    if classification is None:
        return ()
    if isinstance(classification, str):
        return tuple(name.strip() for name in classification.split(":") if name.strip())
    if not isinstance(classification, dict):
        raise ValueError(f"invalid classification {classification!r}")
    names = classification.get("names")
    if isinstance(names, list):
        return tuple(name for one in names for name in classes_of(str(one)))
    own = classification.get("name")
    return (*classes_of(classification.get("parentClass")), *classes_of(None if own is None else str(own)))


def _values(found: Any, measurements: frozenset[str]) -> dict[str, float]:
    """Returns the requested finite values of {name: value} (0.4 and later) or [{name, value}] (before)."""
    if isinstance(found, list):
        found = {one["name"]: one.get("value") for one in found}
    if not isinstance(found, dict):
        return {}
    values = {name: float(found[name]) for name in measurements if found.get(name) is not None}
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _read_table(path: Path, measurements: frozenset[str], decimal_comma: bool) -> Exported:
    try:
        data = path.read_bytes()
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:  # QuPath on Windows before Java 18
            text = data.decode("cp1252")
        first = text.partition("\n")[0]
        separator = max("\t;,", key=first.count)
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        header = [name.strip().replace("μ", "µ") for name in next(rows, [])]  # Greek mu instead of the micro sign
        table = _Table(path, header, measurements, decimal_comma)
        for row in rows:
            if any(row):
                table.add(row, rows.line_num)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a readable table: {error}") from error
    return table.found


class _Table:
    """Parser of the rows of one table."""

    def __init__(self, path: Path, header: list[str], measurements: frozenset[str], decimal_comma: bool) -> None:
        self.path, self.decimal_comma, self.found = path, decimal_comma, Exported(path.name)
        self.column_of = {name: column for column, name in enumerate(header)}
        self.class_column = next((name for name in ("Classification", "Class") if name in self.column_of), None)  # renamed in 0.5
        self.unit = next((unit for unit in ("px", "µm") if f"Centroid X {unit}" in self.column_of), None)
        if "Image" not in self.column_of and self.class_column is None and self.unit is None:
            raise ValueError(f"{path}: not a measurement table of QuPath: none of the columns Image, Class, Classification, Centroid X")
        self.measurements = {name: name.replace("μ", "µ") for name in measurements}
        if missing := [name for name, column in self.measurements.items() if column not in self.column_of]:
            self.found.bad.append(f"{path.name}: no column {', '.join(sorted(missing))}")

    def add(self, row: list[str], line: int) -> None:
        """Append the object of a row to ``found``."""
        image = self._text(row, "Image") or self.path.stem
        objects = self.found.objects.setdefault(image, [])
        kind = TABLE_KINDS.get(self._text(row, "Object type").lower(), UNKNOWN_KIND)
        if kind is None or self._text(row, "Name") == "PathRootObject":
            return
        try:
            x, y = (None, None) if self.unit is None else (self._number(row, f"Centroid {axis} {self.unit}") for axis in "XY")
            values = {name: value for name, column in self.measurements.items() if (value := self._number(row, column)) is not None}
        except ValueError as error:
            self.found.bad.append(f"{self.path.name}:{line}: {error}")
            return
        classes = classes_of(self._text(row, self.class_column)) if self.class_column else ()
        objects.append(QuPathObject(kind, classes, None, x, y, self.unit == "µm", values))

    def _text(self, row: list[str], column: str) -> str:
        index = self.column_of.get(column, len(row))
        return row[index].strip() if index < len(row) else ""

    def _number(self, row: list[str], column: str) -> float | None:
        text = self._text(row, column)
        if self.decimal_comma:
            text = text.replace(",", ".")
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            hint = "; use --decimal-comma if the table has decimal commas" if "," in text else ""
            raise ValueError(f"{column} is {text!r}, not a number{hint}") from None
        return value if math.isfinite(value) else None
