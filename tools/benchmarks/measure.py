"""``attributegan-bench measure``: compares measurements of nuclei with manual outlines and measures their speed."""

from __future__ import annotations

import argparse
import csv
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tools.options import add_command, with_settings

if TYPE_CHECKING:
    from tools.benchmarks.harness import Result


SHOWN = (
    "nuclei_count", "area_fraction", "median_area", "area_spread", "elongation", "orientation_disorder", "local_disorder",
    "hyperchromasia", "stain_spread",
)  # fmt: skip


@dataclass(frozen=True)
class MeasureSettings:
    """Options of ``measure``.

    Raises:
        ValueError: only one of ``tiles`` and ``labels`` is given.
    """

    images: Path
    masks: Path
    crop: int = 256
    split: str = "held-out"
    segment: str | None = None
    tiles: Path | None = None
    labels: Path | None = None

    def __post_init__(self) -> None:
        if (self.tiles is None) != (self.labels is None):
            raise ValueError("--tiles and --labels must be given together")


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser) -> None:
    """Add the benchmark to those of ``attributegan-bench``."""
    parser = add_command(
        commands,
        "measure",
        "compare measurements of nuclei with manual outlines, and measure their speed",
        [
            "attributegan-bench measure --images glioma/images --masks glioma/nuclei",
            "attributegan-bench measure --images glioma/images --masks glioma/nuclei --split all --segment my_stardist:outlines",
        ],
        parents=[common],
    )
    parser.add_argument("--images", required=True, type=Path, metavar="DIR", help="images with outlined nuclei")
    parser.add_argument(
        "--masks",
        required=True,
        type=Path,
        metavar="DIR",
        help="instance masks, NAME.png for each image: value k in the pixels of nucleus k",
    )
    parser.add_argument(
        "--crop", type=int, default=256, metavar="PIXELS", help="crop images into squares of this size (default: %(default)s)"
    )
    parser.add_argument(
        "--split",
        choices=("development", "held-out", "all"),
        default="held-out",
        help="images to use, split by a hash of their name; settings were chosen on development (default: %(default)s)",
    )
    parser.add_argument("--segment", metavar="MODULE:FUNCTION", help="segmentation function to use instead of the built-in one")
    parser.add_argument("--tiles", type=Path, metavar="DIR", help="also measure these tiles, which have levels of cell crowding")
    parser.add_argument("--labels", type=Path, metavar="CSV", help="levels of --tiles: columns file and cell_crowding (0: not assessable)")
    parser.set_defaults(measure=with_settings(run, MeasureSettings))


def run(settings: MeasureSettings) -> Result:
    """Measure nuclei on the manual outlines and on the segmentation, and report their agreement."""
    from data_shards import measure
    from data_shards.measure import agreement, features, segment
    from tools.benchmarks.harness import Result

    measure.require()
    outlines = segment.load(settings.segment) if settings.segment else segment.segment
    crops = list(agreement.crops(settings.images, settings.masks, settings.crop, None if settings.split == "all" else settings.split))
    if not crops:
        raise ValueError(f"--crop: no image of split {settings.split} is at least {settings.crop} x {settings.crop} pixels")
    true = [features.measure(crop.image_HWC, crop.labels_HW) for crop in crops]
    found, speeds, counts = [], [], np.zeros(3, int)
    for crop in crops:
        started = time.process_time()
        labels_HW = outlines(crop.image_HWC)
        found.append(features.measure(crop.image_HWC, labels_HW))
        speeds.append(1 / max(time.process_time() - started, 1e-6))
        counts += agreement.matched(crop.labels_HW, labels_HW)
    agreed = agreement.by_measurement(true, found)
    facts: dict[str, Any] = {"images": len({crop.file for crop in crops}), "crops": len(crops), "manual nuclei": int(counts[1]),
                             "segmented nuclei": int(counts[2])}  # fmt: skip
    facts |= {f"Spearman, {name}": round(agreed[name], 2) for name in SHOWN}
    facts |= {"precision at IoU 0.5": round(counts[0] / counts[2], 3), "recall": round(counts[0] / counts[1], 3),
              "F1": round(2 * counts[0] / (counts[1] + counts[2]), 3)}  # fmt: skip
    if settings.tiles and settings.labels:
        facts |= _crowding(settings.tiles, settings.labels, outlines)
    return Result(f"measure, {settings.split}", "tiles/s of one core", {"segment and measure": speeds}, facts=facts)


def _crowding(tiles: Path, labels: Path, outlines: Any) -> dict[str, Any]:
    """Return the Spearman correlation of nuclei count and area fraction with the level of cell crowding."""
    from data_shards.measure import agreement, features, table

    with labels.open(newline="") as stream:
        level = {row["file"]: int(row["cell_crowding"]) for row in csv.DictReader(stream) if int(row["cell_crowding"]) > 0}
    source = table.FolderTiles(tiles)
    pairs = []
    for number, tile in enumerate(source.tiles):
        if tile.file in level:
            image_HWC = source.read(number)
            pairs.append((level[tile.file], features.measure(image_HWC, outlines(image_HWC))))
    levels = [float(row) for row, _ in pairs]
    return {"tiles with a level of crowding": len(pairs)} | {
        f"Spearman of crowding with {name}": round(agreement.spearman(levels, [row[name] for _, row in pairs]), 2)
        for name in ("nuclei_count", "area_fraction")
    }
