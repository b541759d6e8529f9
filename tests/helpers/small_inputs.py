"""Small inputs of the commands that prepare data: slides, and labelled tiles."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

GRADE = "grade:\n  levels: [none, low, high]\n  not_assessable: 0\n"


def write_slides(folder: Path, count: int, damaged: int, sides: Mapping[int, int] = {}) -> list[Path]:
    """Write tiled TIFFs of textured tissue at 0.5 um per pixel, 256 pixels wide unless ``sides`` has their number; one is truncated."""
    tifffile = pytest.importorskip("tifffile", reason="needs the extra `slides`")
    pytest.importorskip("openslide", reason="needs the extra `slides`")
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        side = sides.get(number, 256)
        pixels_HWC = np.full((side, side, 3), (205, 120, 170), np.uint8) - rng.integers(0, 60, (side, side, 1), np.uint8)
        resolution = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
        tifffile.imwrite(folder / f"slide-{number:02d}.tif", pixels_HWC, tile=(256, 256), photometric="rgb", **resolution)
    path = folder / f"slide-{damaged:02d}.tif"
    path.write_bytes(path.read_bytes()[:-100_000])
    return sorted(folder.iterdir())


def write_labelled_tiles(folder: Path, count: int, damaged: int) -> list[str]:
    """Write tiles and their table; one tile is truncated. Returns the options of ``attributegan-shard pack``."""
    images, rng = folder / "images", np.random.default_rng(0)
    images.mkdir(parents=True)
    with (folder / "levels.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["file", "slide", "grade"])
        for number in range(count):
            name = f"{number:03d}.png"
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(images / name)
            table.writerow([name, f"s{number % 6}", number % 3])
    path = images / f"{damaged:03d}.png"
    path.write_bytes(path.read_bytes()[:-40])
    (folder / "grade.yaml").write_text(GRADE)
    options = ["--images", images, "--labels", folder / "levels.csv", "--attributes", folder / "grade.yaml", "--group", "slide"]
    return [*map(str, options), "--shard-count", "5", "--workers", "1"]


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of all files in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
