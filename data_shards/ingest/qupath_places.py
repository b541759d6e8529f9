"""Where tiles lie in the images of a QuPath project: in slides that were cut, or each tile its own image."""

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

PLACE_COLUMNS = ("file", "slide", "x", "y", "mpp", "size")


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
