"""Small shard sets for tests, built in code; the pixels of a tile encode its number."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from attributegan.attributes import Attribute, AttributeSchema
from data_shards.format import index
from data_shards.packing.labels import read_labels
from data_shards.packing.packer import pack
from data_shards.packing.plan import Options
from data_shards.packing.sources import Folder

TWO = AttributeSchema((Attribute("grade", ("none", "low", "high"), 0), Attribute("size", ("small", "large"))))
TWO_YAML = "grade:\n  levels: [none, low, high]\n  not_assessable: 0\nsize:\n  levels: [small, large]\n"


def pixels_of(number: int, size: int = 16) -> np.ndarray:
    """Returns tile ``number``: red and green encode the number, blue is noise, so every flip or rotation differs."""
    pixels_HWC = np.random.default_rng(number).integers(0, 255, (size, size, 3), np.uint8)
    pixels_HWC[..., 0] = number % 256
    pixels_HWC[..., 1] = number // 256
    return pixels_HWC


def levels_of(number: int) -> tuple[int, int]:
    """Returns the levels of a tile in `TWO`; the highest grade is rare."""
    return (2 if number % 7 == 0 else number % 2, number // 3 % 2)


def write_tiles(folder: Path, numbers: Sequence[int], size: int = 16, suffix: str = "png", group: int = 5) -> Path:
    """Write image files and a CSV, with ``group`` tiles per slide; returns the CSV."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in numbers:
        Image.fromarray(pixels_of(number, size)).save(images / f"t{number:04d}.{suffix}")
        rows.append([f"t{number:04d}.{suffix}", f"s{number // group}", *levels_of(number)])
    return write_csv(folder / "labels.csv", ["file", "slide", "grade", "size"], rows)


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([columns, *rows])
    return path


def make_set(folder: Path, count: int, *, shard_count: int = 16, val_fraction: float = 0.0, size: int = 16, processes: int = 1) -> Path:
    """Pack tiles 0 to ``count`` - 1; returns the shard set."""
    table = write_tiles(folder, range(count), size)
    out = folder / "set"
    labels = read_labels([table], TWO, group="slide")
    pack(labels, Folder(str(folder / "images")), out, Options(val_fraction, 0, 1 << 30, shard_count), processes=processes)
    return out


def number_of(key: str) -> int:
    return int(key[-4:])


def rows_of(out: Path) -> list[dict]:
    """Returns the rows of the index of a set."""
    return index.read_table(out / index.FILE).to_pylist()
