"""Levels of tiles from the objects that QuPath exported: by class name, or by a count, a share or a measurement and its edges.

Owns where tiles lie (in slides, or each its own image), the rules, and how objects make a level.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from attributegan.attributes import UNKNOWN, YAML_ERRORS, Attribute, AttributeSchema
from data_shards.format import DECODING_ERRORS
from data_shards.importers import IMAGES, Imported, Row
from data_shards.qupath import ANNOTATION, DETECTION, POINT, UNKNOWN_KIND, Exported, QuPathObject

ALL = "*"  # as a class: every object
QUANTILES = "quantiles"
STATISTICS: Mapping[str, Callable[[Sequence[float]], float]] = {
    "mean": statistics.fmean,
    "median": statistics.median,
    "min": min,
    "max": max,
    "sum": sum,
    "sd": statistics.pstdev,
}
KNOWN_KEYS = {"classes", "count", "share", "measurement", "statistic", "class", "objects", "edges", "min_objects"}
PLACE_COLUMNS = ("file", "slide", "x", "y", "mpp", "size")
TIE = 1e-9


@dataclass(frozen=True)
class Rule:
    """How one attribute gets its level.

    Args:
        classes: a level for each set of class names, for annotations that cover the tile; None for a rule of numbers.
        value: "count", "share" or "measurement".
        of: the class that is counted (`ALL`: every object), or the measurement.
        only: the class of the objects measured.
        edges: ascending; a value from ``edges[k]`` on is above the k-th assessable level. None: quantiles of the tiles' values.
        min_objects: tiles with fewer objects have no level.
    """

    classes: Mapping[frozenset[str], int] | None = None
    value: str = ""
    of: str = ALL
    statistic: str = "mean"
    only: str = ALL
    annotations: bool = False
    edges: tuple[float, ...] | None = None
    min_objects: int = 1


Rules = Mapping[str, Rule]  # by attribute


@dataclass(frozen=True)
class Box:
    """Where a tile lies in its image, in pixels of the full resolution; ``um_XY`` are micrometres per pixel, None where not known."""

    file: str
    left: float
    top: float
    width: float
    height: float
    um_XY: tuple[float, float] | None = None


@dataclass(frozen=True)
class Places:
    """The tiles of each image by its name, images by other names, and the rows of the table by file."""

    boxes: Mapping[str, list[Box]]
    names: Mapping[str, list[str]]
    columns: tuple[str, ...]
    rows: Mapping[str, Row]

    def image(self, name: str) -> str | None:
        """The image that an export's name means; None for none, or for several."""
        for key in (name, os.path.splitext(name)[0]):
            if len(found := self.names.get(key, [])) > 1:
                return None
            if key in self.boxes or found:
                return found[0] if found else key
        return None


def class_key(name: str) -> str:
    """A name without what people write in different ways: case, spaces, hyphens, underscores."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def by_name(schema: AttributeSchema) -> dict[str, Rule]:
    """Rules from names alone: the classes ``attribute: level`` or ``attribute level``, or ``level`` where one attribute alone has it."""
    having = Counter(class_key(level) for attribute in schema.attributes for level in attribute.levels)
    rules = {}
    for attribute in schema.attributes:
        classes = {}
        for level, name in enumerate(attribute.levels):
            own, key = class_key(attribute.name), class_key(name)
            classes[frozenset((f"{own} {key}",))] = classes[frozenset((f"{own}={key}",))] = level  # the first: two names in turn, too
            if having[key] == 1:
                classes[frozenset((key,))] = level
        rules[attribute.name] = Rule(classes)
    return rules


def read_rules(path: Path, schema: AttributeSchema) -> dict[str, Rule]:
    """Read a YAML file of rules; see docs/labels.md for its form.

    Raises:
        ValueError: names the file, the attribute, the key and the fix.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, *YAML_ERRORS) as error:
        raise ValueError(f"{path}: not a readable YAML file: {error}") from error
    if not isinstance(tree, dict) or not tree:
        raise ValueError(f"{path}: has no rules; write `attribute: {{classes: {{class name: level}}}}`")
    if unknown := [str(name) for name in tree if name not in schema.names]:
        raise ValueError(f"{path}: {', '.join(unknown)}: not an attribute; those are {', '.join(schema.names)}")
    rules = {}
    for attribute in schema.attributes:
        if attribute.name in tree:
            try:
                rules[attribute.name] = _rule(attribute, tree[attribute.name])
            except ValueError as error:
                raise ValueError(f"{path}: {attribute.name}: {error}") from None
    return rules


def _rule(attribute: Attribute, entry: Any) -> Rule:
    kinds = ("classes", "count", "share", "measurement")
    if not isinstance(entry, dict) or sum(kind in entry for kind in kinds) != 1:
        raise ValueError(f"give exactly one of {', '.join(kinds)}")
    if unknown := set(map(str, entry)) - KNOWN_KEYS:
        raise ValueError(f"unknown keys {', '.join(sorted(unknown))}; known are {', '.join(sorted(KNOWN_KEYS))}")
    if "classes" in entry:
        return Rule(_class_levels(attribute, entry))
    value = next(kind for kind in kinds if kind in entry)
    statistic, objects, least = entry.get("statistic", "mean"), entry.get("objects", "detections"), entry.get("min_objects", 1)
    if statistic not in STATISTICS:
        raise ValueError(f"statistic: {statistic!r} is none of {', '.join(STATISTICS)}")
    if objects not in ("detections", "annotations"):
        raise ValueError(f"objects: {objects!r} is neither detections nor annotations")
    if type(least) is not int or least < (0 if value == "count" else 1):
        raise ValueError(f"min_objects: {least!r} is not a whole number from {0 if value == 'count' else 1} on")
    return Rule(
        None, value, str(entry[value]), statistic, str(entry.get("class", ALL)), objects == "annotations", _edges(attribute, entry), least
    )


def _class_levels(attribute: Attribute, entry: Mapping[str, Any]) -> dict[frozenset[str], int]:
    if len(entry) > 1 or not isinstance(entry["classes"], dict) or not entry["classes"]:
        raise ValueError("classes: write {class name: level}, and nothing else beside it")
    return {_names(str(name)): _level(attribute, level) for name, level in entry["classes"].items()}


def _level(attribute: Attribute, level: Any) -> int:
    if type(level) is int and 0 <= level < len(attribute.levels):
        return level
    if str(level) in attribute.levels:
        return attribute.levels.index(str(level))
    raise ValueError(f"{level!r} is not a level; those are {', '.join(f'{n} ({name})' for n, name in enumerate(attribute.levels))}")


def _edges(attribute: Attribute, entry: Mapping[str, Any]) -> tuple[float, ...] | None:
    edges, needed = entry.get("edges"), len(attribute.assessable) - 1
    if edges == QUANTILES:
        return None
    if not isinstance(edges, list) or not all(isinstance(edge, int | float) and not isinstance(edge, bool) for edge in edges):
        edges = []
    if len(edges) != needed or any(low >= high for low, high in zip(edges, edges[1:], strict=False)):
        raise ValueError(f"edges: give {needed} ascending numbers between the {needed + 1} levels, or `{QUANTILES}`")
    return tuple(float(edge) for edge in edges)


def _names(text: str) -> frozenset[str]:
    return frozenset(class_key(part) for part in text.split(":") if part.strip())


def measurements_of(rules: Rules) -> frozenset[str]:
    """The measurements that rules need."""
    return frozenset(rule.of for rule in rules.values() if rule.value == "measurement")


def images_as_tiles(folder: Path) -> Places:
    """Every image of a folder is an image in QuPath and a tile.

    Raises:
        ValueError: no folder, or an image that can't be read.
    """
    if not folder.is_dir():
        raise ValueError(f"--images: {folder} is not a folder")
    boxes: dict[str, list[Box]] = {}
    names: dict[str, list[str]] = defaultdict(list)
    for at, _, files in os.walk(folder):
        for name in files:
            if os.path.splitext(name)[1].lower() not in IMAGES or name.startswith("."):
                continue
            file = Path(at, name).relative_to(folder).as_posix()
            try:
                with Image.open(Path(at, name)) as image:
                    boxes[file] = [Box(file, 0, 0, *image.size)]
            except DECODING_ERRORS as error:
                raise ValueError(f"--images: {file}: not a readable image: {error}") from error
            for key in {name, os.path.splitext(name)[0]}:
                names[key].append(file)
    if not boxes:
        raise ValueError(f"--images: {folder} has no images")
    return Places(boxes, names, ("file",), {file: {"file": file} for file in boxes})


def tiles_of_slides(table: Path, slide_mpp: float | None) -> Places:
    """Tiles that ``attributegan-shard tile`` cut, by its ``tiles.csv``.

    Args:
        slide_mpp: micrometres per pixel of the slides; by default what ``slide.json`` beside the tiles says.

    Raises:
        ValueError: no such table, or a slide whose resolution is not known.
    """
    boxes: dict[str, list[Box]] = defaultdict(list)
    rows: dict[str, Row] = {}
    grids: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {}
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, restval="", strict=True)
            columns = tuple(name for name in reader.fieldnames or () if name)
            if missing := [name for name in PLACE_COLUMNS if name not in columns]:
                raise ValueError(f"{table}: has no column {', '.join(missing)}; give the tiles.csv of `attributegan-shard tile`")
            for row in reader:
                slide, file = row["slide"], row["file"]
                if slide not in grids:
                    grids[slide] = _grid(table.parent / slide / "slide.json", slide_mpp)
                um_XY, origin_XY = grids[slide]
                try:
                    x, y, length = float(row["x"]), float(row["y"]), float(row["size"]) * float(row["mpp"])
                except ValueError:
                    raise ValueError(f"{table}:{reader.line_num}: x, y, size and mpp are not all numbers") from None
                boxes[slide].append(Box(file, x - origin_XY[0], y - origin_XY[1], length / um_XY[0], length / um_XY[1], um_XY))
                rows[file] = {name: row[name] for name in columns}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{table}: not a readable CSV in UTF-8: {error}") from error
    return Places(boxes, {}, columns, rows)


def _grid(record: Path, slide_mpp: float | None) -> tuple[tuple[float, float], tuple[float, float]]:
    """Micrometres per pixel, and the corner of what was scanned: QuPath counts pixels from there, openslide from the file's corner."""
    try:
        said = json.loads(record.read_text(encoding="utf-8"))
        mpp, origin = said["mpp"], said["origin"]
        um_XY, origin_XY = (float(mpp[0]), float(mpp[1])), (float(origin[0]), float(origin[1]))
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        if slide_mpp is None:
            raise ValueError(
                f"{record}: does not say the slide's resolution (tiles of an earlier version, or moved); give it with --slide-mpp"
            ) from None
        return (slide_mpp, slide_mpp), (0.0, 0.0)
    return ((slide_mpp, slide_mpp) if slide_mpp is not None else um_XY), origin_XY


def levels_from(
    exports: Iterable[Exported], places: Places, schema: AttributeSchema, rules: Rules, cover: float = 0.5
) -> tuple[Imported, list[str]]:
    """Levels of all tiles of the images that were exported.

    Args:
        cover: least share of a tile that annotations of a class must cover.

    Raises:
        ValueError: quantiles of too few values, or detections of one image in two exports.

    Returns:
        The table, of tiles with at least one level; and notes: edges that were computed, classes that no rule knows.
    """
    bad: list[str] = []
    objects: dict[str, list[QuPathObject]] = defaultdict(list)
    counted: dict[str, str] = {}
    for export in exports:
        bad += export.bad
        for name, found in export.objects.items():
            image = places.image(name)
            if image is None:
                bad.append(_no_image(name, places))
                continue
            objects[image] += found
            if any(one.kind in (DETECTION, UNKNOWN_KIND) for one in found) and counted.setdefault(image, export.name) != export.name:
                raise ValueError(
                    f"{image}: {counted[image]} and {export.name} both have its objects, which would count twice; give one of them"
                )
    boxes = [box for image in sorted(objects) for box in places.boxes[image]]
    inside = _Inside(objects, places, any(rule.classes is not None for rule in rules.values()), bad)
    levels: dict[str, dict[str, int]] = {box.file: {} for box in boxes}
    notes = []
    for attribute in schema.attributes:
        rule = rules.get(attribute.name)
        if rule is None:
            continue
        if rule.classes is not None:
            found_levels = _by_class(rule, attribute, boxes, inside, cover, bad)
        else:
            found_levels, note = _by_value(rule, attribute, boxes, inside)
            notes += note
        for file, level in found_levels.items():
            levels[file][attribute.name] = level
    rows = [
        {name: entry for name, entry in places.rows[file].items() if name not in schema.names}
        | {name: found.get(name, UNKNOWN) for name in schema.names}
        for file, found in levels.items()
        if any(level != UNKNOWN for level in found.values())
    ]
    columns = (*(name for name in places.columns if name not in schema.names), *schema.names)
    return Imported(columns, rows, bad, len(levels) - len(rows)), notes + _unused(rules, objects)


def _no_image(name: str, places: Places) -> str:
    several = places.names.get(name) or places.names.get(os.path.splitext(name)[0]) or []
    if len(several) > 1:
        return f"{name}: {len(several)} tiles have that name ({', '.join(sorted(several)[:3])}); rename them"
    return f"{name}: no slide or tile of that name; an export must be called after its image, such as {sorted(places.boxes)[0]}.geojson"


class _Inside:
    """Which objects lie in each tile, and which annotations with an outline touch it."""

    def __init__(self, objects: Mapping[str, list[QuPathObject]], places: Places, by_class: bool, bad: list[str]) -> None:
        from shapely import STRtree, box

        self.centred: dict[str, list[QuPathObject]] = defaultdict(list)
        self.touching: dict[str, list[tuple[QuPathObject, Any]]] = defaultdict(list)  # with the part of the tile; None: all of it
        for image, found in objects.items():
            tiles = places.boxes[image]
            shapes = [box(tile.left, tile.top, tile.left + tile.width, tile.top + tile.height) for tile in tiles]
            tree, unplaced, flat = STRtree(shapes), 0, 0
            whole_image = len(tiles) == 1 and tiles[0].file == image
            for one in found:
                if whole_image and one.shape is None:
                    self.centred[image].append(one)
                    self.touching[image].append((one, None))
                elif one.x is None or one.y is None or (one.in_um and tiles[0].um_XY is None):
                    unplaced += 1
                else:
                    self._place(one, tiles, shapes, tree)
                    flat += one.shape is None and one.kind == ANNOTATION
            if flat and by_class:
                bad.append(f"{image}: {flat:,} annotations of a table have no outline, so no class; export them as GeoJSON too")
            if unplaced:
                bad.append(f"{image}: {unplaced:,} objects have no centroid, so no tile")

    def _place(self, one: QuPathObject, tiles: Sequence[Box], shapes: Sequence[Any], tree: Any) -> None:
        from shapely import Point

        assert one.x is not None and one.y is not None
        um_XY = tiles[0].um_XY if one.in_um else None
        x, y = (one.x / um_XY[0], one.y / um_XY[1]) if um_XY else (one.x, one.y)
        for place in tree.query(Point(x, y)):
            tile = tiles[place]
            if tile.left <= x < tile.left + tile.width and tile.top <= y < tile.top + tile.height:
                self.centred[tile.file].append(one)
        if one.shape is not None and one.kind == ANNOTATION:
            for place in tree.query(one.shape):
                part = one.shape.intersection(shapes[place])
                if part.area > 0:
                    self.touching[tiles[place].file].append((one, part))


def _by_class(rule: Rule, attribute: Attribute, boxes: Sequence[Box], inside: _Inside, cover: float, bad: list[str]) -> dict[str, int]:
    """The level whose annotations cover most of a tile, at least ``cover`` of it."""
    levels = {}
    for box in boxes:
        parts_of: dict[int, list[Any]] = defaultdict(list)
        for one, part in inside.touching.get(box.file, ()):
            if one.kind in (ANNOTATION, UNKNOWN_KIND):
                for level in _levels_of(rule, one.classes):
                    parts_of[level].append(part)
        share_of = {level: _share(parts, box) for level, parts in parts_of.items()}
        best = max(share_of.values(), default=0.0)
        first = [level for level, share in share_of.items() if share >= best - TIE]
        if best >= cover - TIE and len(first) > 1:
            names = " and ".join(attribute.levels[level] for level in sorted(first))
            bad.append(f"{box.file}: {attribute.name} is {names} by annotations of the same size; not known")
        levels[box.file] = first[0] if best >= cover - TIE and len(first) == 1 else UNKNOWN
    return levels


def _share(parts: Sequence[Any], box: Box) -> float:
    """The share of a tile that its parts cover together."""
    from shapely import union_all

    return 1.0 if None in parts else union_all(parts).area / (box.width * box.height)


def _levels_of(rule: Rule, classes: Sequence[str]) -> set[int]:
    """The levels that the names of an object mean; the rule with most names decides, so that "Tumor: Positive" goes before "Tumor"."""
    assert rule.classes is not None
    keys = [class_key(name) for name in classes]
    names = {*keys, *(f"{first} {second}" for first, second in itertools.pairwise(keys))}
    known = [(len(key), level) for key, level in rule.classes.items() if key <= names]
    most = max((size for size, _ in known), default=0)
    return {level for size, level in known if size == most}


def _by_value(rule: Rule, attribute: Attribute, boxes: Sequence[Box], inside: _Inside) -> tuple[dict[str, int], list[str]]:
    values = {box.file: value for box in boxes if (value := _value(rule, inside.centred.get(box.file, ()))) is not None}
    edges, notes = rule.edges, []
    if edges is None:
        edges = _quantiles(attribute, list(values.values()))
        notes.append(
            f"{attribute.name}: edges [{', '.join(f'{edge:.6g}' for edge in edges)}]; write them into the rules for the next slides"
        )
    level_of = attribute.assessable
    found = {file: level_of[int(np.searchsorted(edges, value, side="right"))] for file, value in values.items()}
    return {box.file: found.get(box.file, UNKNOWN) for box in boxes}, notes


def _value(rule: Rule, objects: Sequence[QuPathObject]) -> float | None:
    """The number of a tile; None where too few objects lie in it."""
    kinds = (ANNOTATION, UNKNOWN_KIND) if rule.annotations else (DETECTION, POINT, UNKNOWN_KIND)
    counted = [one for one in objects if one.kind in kinds and _has(one, rule.only)]
    if rule.value == "measurement":
        values = [one.values[rule.of] for one in counted if rule.of in one.values]
        return float(STATISTICS[rule.statistic](values)) if len(values) >= rule.min_objects else None
    if len(counted) < rule.min_objects:
        return None
    having = sum(_has(one, rule.of) for one in counted)
    return float(having) if rule.value == "count" else having / len(counted)


def _has(one: QuPathObject, wanted: str) -> bool:
    return wanted == ALL or _names(wanted) <= {class_key(name) for name in one.classes}


def _quantiles(attribute: Attribute, values: Sequence[float]) -> tuple[float, ...]:
    """Edges that part the tiles into levels of equal size."""
    count = len(attribute.assessable)
    edges = np.quantile(values, np.arange(1, count) / count).tolist() if values else []
    if len(set(edges)) < count - 1 or edges[0] <= min(values):
        raise ValueError(
            f"{attribute.name}: too few different values in {len(values):,} tiles for {count} quantiles; give edges in the rules"
        )
    return tuple(edges)


def _unused(rules: Rules, objects: Mapping[str, list[QuPathObject]]) -> list[str]:
    """Classes of annotations that no rule knows, a line each."""
    if not any(rule.classes is not None for rule in rules.values()):
        return []
    counts = Counter(
        ": ".join(one.classes) or "(no class)"
        for found in objects.values()
        for one in found
        if one.kind == ANNOTATION and not any(rule.classes is not None and _levels_of(rule, one.classes) for rule in rules.values())
    )
    return [f"class {name}: {count:,} annotations, not a level of any attribute" for name, count in sorted(counts.items())]
