"""Locations of tiles in the images of a QuPath project: tiles cut from slides, or images that are tiles themselves."""

from __future__ import annotations

import csv
import json
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from data_shards.format.tile import DECODING_ERRORS
from data_shards.ingest.importers import IMAGES, Row

LOCATION_COLUMNS = ("file", "slide", "x", "y", "mpp", "size")


@dataclass(frozen=True)
class Box:
    """Location of a tile in its image, in pixels at full resolution; ``um_XY`` are micrometres per pixel, None if unknown."""

    file: str
    left: float
    top: float
    width: float
    height: float
    um_XY: tuple[float, float] | None = None


@dataclass(frozen=True)
class TileLocations:
    """Tiles by image name, image names by alias, and rows of the table by file."""

    boxes: Mapping[str, list[Box]]
    names: Mapping[str, list[str]]
    columns: tuple[str, ...]
    rows: Mapping[str, Row]

    def image(self, name: str) -> str | None:
        """Returns the image that an export's name refers to; None if there is none, or several."""
        for key in (name, os.path.splitext(name)[0]):
            if len(found := self.names.get(key, [])) > 1:
                return None
            if key in self.boxes or found:
                return found[0] if found else key
        return None


def images_as_tiles(folder: Path) -> TileLocations:
    """Use every image of a folder, an image in the QuPath project, as a tile.

    Raises:
        ValueError: not a folder, or an unreadable image.
    """
    if not folder.is_dir():
        raise ValueError(f"--images: {folder} is not a folder")
    boxes: dict[str, list[Box]] = {}
    names: dict[str, list[str]] = defaultdict(list)
    for parent, _, files in os.walk(folder):
        for name in files:
            if os.path.splitext(name)[1].lower() not in IMAGES or name.startswith("."):
                continue
            file = Path(parent, name).relative_to(folder).as_posix()
            try:
                with Image.open(Path(parent, name)) as image:
                    boxes[file] = [Box(file, 0, 0, *image.size)]
            except DECODING_ERRORS as error:
                raise ValueError(f"--images: {file}: not a readable image: {error}") from error
            for key in {name, os.path.splitext(name)[0]}:
                names[key].append(file)
    if not boxes:
        raise ValueError(f"--images: no images in {folder}")
    return TileLocations(boxes, names, ("file",), {file: {"file": file} for file in boxes})


def tiles_of_slides(table: Path, slide_mpp: float | None) -> TileLocations:
    """Read the tiles cut by ``attributegan-shard tile`` from its ``tiles.csv``.

    Args:
        slide_mpp: micrometres per pixel of the slides; defaults to ``slide.json`` beside the tiles.

    Raises:
        ValueError: no such table, or a slide of unknown resolution.
    """
    boxes: dict[str, list[Box]] = defaultdict(list)
    rows: dict[str, Row] = {}
    grids: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {}
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, restval="", strict=True)
            columns = tuple(name for name in reader.fieldnames or () if name)
            if missing := [name for name in LOCATION_COLUMNS if name not in columns]:
                raise ValueError(f"{table}: no column {', '.join(missing)}; pass the tiles.csv of `attributegan-shard tile`")
            for row in reader:
                slide, file = row["slide"], row["file"]
                if slide not in grids:
                    grids[slide] = _grid(table.parent / slide / "slide.json", slide_mpp)
                um_XY, origin_XY = grids[slide]
                try:
                    x, y, length = float(row["x"]), float(row["y"]), float(row["size"]) * float(row["mpp"])
                except ValueError:
                    raise ValueError(f"{table}:{reader.line_num}: x, y, size and mpp must be numbers") from None
                boxes[slide].append(Box(file, x - origin_XY[0], y - origin_XY[1], length / um_XY[0], length / um_XY[1], um_XY))
                rows[file] = {name: row[name] for name in columns}
    except OSError as error:
        raise ValueError(f"{error.filename or table}: can't be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{table}: not a readable CSV in UTF-8: {error}") from error
    return TileLocations(boxes, {}, columns, rows)


def _grid(record: Path, slide_mpp: float | None) -> tuple[tuple[float, float], tuple[float, float]]:
    """Returns micrometres per pixel and the corner of the scanned area, QuPath's origin; openslide's origin is the corner of the file."""
    try:
        slide = json.loads(record.read_text(encoding="utf-8"))
        mpp, origin = slide["mpp"], slide["origin"]
        um_XY, origin_XY = (float(mpp[0]), float(mpp[1])), (float(origin[0]), float(origin[1]))
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        if slide_mpp is None:
            raise ValueError(
                f"{record}: does not contain the slide's resolution (written by an earlier version, or moved); set it with --slide-mpp"
            ) from None
        return (slide_mpp, slide_mpp), (0.0, 0.0)
    return ((slide_mpp, slide_mpp) if slide_mpp is not None else um_XY), origin_XY
