"""``attributegan-bench measure``: how far measurements of nuclei agree with outlines drawn by hand, and how fast they are."""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tools.benchmarks.harness import Result


SHOWN = (
    "nuclei_count", "area_fraction", "median_area", "area_spread", "elongation", "orientation_disorder", "local_disorder",
    "hyperchromasia", "stain_spread",
)  # fmt: skip


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser) -> None:
    """Add the benchmark."""
    parser = commands.add_parser(
        "measure", parents=[common], help="measurements of nuclei against outlines drawn by hand", description=__doc__
    )
    parser.add_argument("--images", required=True, type=Path, metavar="DIR", help="images with outlined nuclei")
    parser.add_argument("--masks", required=True, type=Path, metavar="DIR", help="NAME.png for each, k in the pixels of the k-th nucleus")
    parser.add_argument("--crop", type=int, default=256, metavar="PIXELS", help="images are cut into squares of this size (%(default)s)")
    parser.add_argument(
        "--split",
        choices=("development", "held-out", "all"),
        default="held-out",
        help="images by the hash of their name: those that settings were chosen on, the others, or all (%(default)s)",
    )
    parser.add_argument("--segment", metavar="MODULE:FUNCTION", help="your segmentation instead of the one built in")
    parser.add_argument("--tiles", type=Path, metavar="DIR", help="tiles with levels of cell crowding as well")
    parser.add_argument("--labels", type=Path, metavar="CSV", help="their levels: file, cell_crowding (0: not assessable)")
    parser.set_defaults(measure=run)


def run(arguments: argparse.Namespace) -> Result:
    """Measure on the outlines and on the segmentation."""
    from data_shards import measure
    from data_shards.measure import agreement, features, segment
    from tools.benchmarks.harness import Result

    measure.require()
    if (arguments.tiles is None) != (arguments.labels is None):
        raise ValueError("--tiles and --labels go together")
    outlines = segment.load(arguments.segment) if arguments.segment else segment.segment
    crops = list(agreement.crops(arguments.images, arguments.masks, arguments.crop, None if arguments.split == "all" else arguments.split))
    if not crops:
        raise ValueError(f"--crop: no image of split {arguments.split} has {arguments.crop} pixels a side")
    true = [features.measure(crop.image_HWC, crop.labels_HW) for crop in crops]
    found, speeds, counts = [], [], np.zeros(3, int)
    for crop in crops:
        started = time.process_time()
        labels_HW = outlines(crop.image_HWC)
        found.append(features.measure(crop.image_HWC, labels_HW))
        speeds.append(1 / max(time.process_time() - started, 1e-6))
        counts += agreement.matched(crop.labels_HW, labels_HW)
    agreed = agreement.by_measurement(true, found)
    facts: dict[str, Any] = {"images": len({crop.file for crop in crops}), "crops": len(crops), "nuclei drawn": int(counts[1]),
                             "nuclei outlined": int(counts[2])}  # fmt: skip
    facts |= {f"Spearman, {name}": round(agreed[name], 2) for name in SHOWN}
    facts |= {"precision at IoU 0.5": round(counts[0] / counts[2], 3), "recall": round(counts[0] / counts[1], 3),
              "F1": round(2 * counts[0] / (counts[1] + counts[2]), 3)}  # fmt: skip
    if arguments.tiles:
        facts |= _crowding(arguments.tiles, arguments.labels, outlines)
    return Result(f"measure, {arguments.split}", "tiles/s of one core", {"segment and measure": speeds}, facts=facts)


def _crowding(tiles: Path, labels: Path, outlines: Any) -> dict[str, Any]:
    """Spearman of the count of nuclei, and of their area fraction, with the level of crowding."""
    from data_shards.measure import agreement, features, table

    with labels.open(newline="") as stream:
        level = {row["file"]: int(row["cell_crowding"]) for row in csv.DictReader(stream) if int(row["cell_crowding"]) > 0}
    source = table.FolderTiles(tiles)
    pairs = []
    for number, tile in enumerate(source.tiles):
        if tile.file in level:
            image_HWC = source.read(number)
            pairs.append((level[tile.file], features.measure(image_HWC, outlines(image_HWC))))
    known = [float(row) for row, _ in pairs]
    return {"tiles with a level of crowding": len(pairs)} | {
        f"Spearman of crowding with {name}": round(agreement.spearman(known, [row[name] for _, row in pairs]), 2)
        for name in ("nuclei_count", "area_fraction")
    }
