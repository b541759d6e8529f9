"""Cuts square crops at regular positions from images, and from outlines of their nuclei alike.

For images of some hundred pixels that are too few to train on: overlapping crops show each place in several contexts. Tiles of whole slides
are cut in tiling.py.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from data_shards.format import groups, intact, rgb, tables, tile
from data_shards.ingest.outlines import Outlines

IMAGES, OUTLINES, TABLE = "images", "outlines", "crops.csv"  # in the output folder
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True)
class CroppedImage:
    """An image to cut: ``file`` relative to the folder, and the slide or patient of its crops."""

    file: str
    slide: str


def find(root: Path, table: Path | None = None, column: str = "") -> list[CroppedImage]:
    """Returns the images of a table with the columns ``file`` and ``column``; without a table, of a folder, whose subfolders are slides.

    Raises:
        ValueError: no images, or images whose crops would have the same names; lists the rows of a table that can't be used.
    """
    if not root.is_dir():
        raise ValueError(f"--images: {root} is not a folder")
    found = _of_folder(root) if table is None else _of_table(root, table, column)
    if not found:
        raise ValueError(f"--images: no images in {root} ({', '.join(SUFFIXES)})")
    counts = Counter(map(_name, found))
    if same := [image.file for image in found if counts[_name(image)] > 1]:
        raise ValueError(f"--images: {same[0]} and {same[1]} would have crops of the same names; rename one")
    return found


def _of_folder(root: Path) -> list[CroppedImage]:
    paths = sorted(Path(parent, name) for parent, _, names in os.walk(root) for name in names if name.lower().endswith(SUFFIXES))
    files = [path.relative_to(root) for path in paths]
    return [CroppedImage(file.as_posix(), file.parent.as_posix() if file.parent.name else "") for file in files]


def _of_table(root: Path, table: Path, column: str) -> list[CroppedImage]:
    found, bad = [], []
    for row in tables.rows(table, ["file", column], "--group names the column with the slide or patient"):
        file, slide = row.values[0], groups.name_of(row.values[1])
        if row.problem or not slide or "/" in slide or slide.startswith("."):
            bad.append(f"{row.where}: {row.problem or f'{column} is {row.values[1]!r}; give the name of a slide or patient'}")
        elif not (root / file).is_file():
            bad.append(f"{row.where}: no image {file} in {root}")
        else:
            found.append(CroppedImage(file, slide))
    if bad:
        raise ValueError(f"--labels: {len(bad):,} invalid rows:" + "".join(f"\n  {line}" for line in bad[:20]))
    return found


def _name(image: CroppedImage) -> str:
    """Returns the path of the crops of an image, without position and suffix."""
    return str(PurePosixPath(image.slide) / PurePosixPath(image.file).stem.replace(".", "_"))


def cut(
    root: Path,
    images: Sequence[CroppedImage],
    outlines: Outlines | None,
    size: int,
    stride: int,
    out: Path,
    progress: Callable[[int], None] = lambda done: None,
) -> Mapping[str, int]:
    """Write ``images/``, ``outlines/`` and ``crops.csv`` to a new folder; returns the number of crops of each image.

    Raises:
        ValueError: an image or instance map that is damaged, or smaller than a crop.
    """
    rows: list[list[str | int]] = []
    counts: dict[str, int] = {}
    for image in images:
        image_HWC = _read(root / image.file)
        height, width = image_HWC.shape[:2]
        if min(height, width) < size:
            raise ValueError(f"{image.file}: has {width} x {height} pixels, less than --size {size}")
        labels_HW = outlines.read(image.file, image_HWC.shape) if outlines else None
        positions = [(x, y) for y in range(0, height - size + 1, stride) for x in range(0, width - size + 1, stride)]
        for x, y in positions:
            file = f"{_name(image)}_x{x}_y{y}.png"
            part = np.s_[y : y + size, x : x + size]
            _write(out / IMAGES / file, image_HWC[part])
            if labels_HW is not None:
                _write(out / OUTLINES / file, _renumbered(labels_HW[part]))
            rows.append([file, image.slide, image.file, x, y])
        counts[image.file] = len(positions)
        progress(len(rows))
    with (out / TABLE).open("w", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["file", "slide", "image", "x", "y"])
        table.writerows(rows)
    return counts


def _read(path: Path) -> np.ndarray:
    try:
        data = path.read_bytes()
        intact.check(data)
        with rgb.opened(data) as image:
            rgb.check_one_picture(image)
            return np.asarray(rgb.to_rgb(image))
    except tile.DECODING_ERRORS as error:
        raise ValueError(f"{path}: not a readable image: {error}") from error


def _renumbered(labels_HW: np.ndarray) -> np.ndarray:
    """Numbers the nuclei of a crop 1, 2, … as 16-bit."""
    used = np.bincount(labels_HW.ravel()) > 0
    used[0] = False  # the background
    number_N: np.ndarray = np.where(used, np.cumsum(used), 0).astype(np.uint16)
    return np.asarray(number_N[labels_HW])


def _write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, compress_level=1)  # four times as fast as the default, 10 % larger
