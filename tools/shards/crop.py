"""``attributegan-shard crop``: command line of `data_shards.ingest.crops`, which cuts crops from images and outlines of their nuclei."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from tools.options import add_command, require_at_least, with_settings

EXAMPLES = (
    "attributegan-shard crop --images images --size 256 --stride 64 --out crops",
    "attributegan-shard crop --images images --outlines nuclei --labels images.csv --group case --size 256 --stride 64 --out crops",
    "attributegan-shard measure --images crops/images --outlines crops/outlines --attributes crowding=area_fraction --out measured.csv",
)


@dataclass(frozen=True)
class CropSettings:
    """Options of ``crop``.

    Raises:
        ValueError: names the option that is wrong.
    """

    images: Path
    out: Path
    size: int
    stride: int | None
    outlines: Path | None
    labels: Path | None
    group: str | None

    def __post_init__(self) -> None:
        require_at_least(self, size=8, stride=1)
        if (self.labels is None) != (self.group is None):
            raise ValueError("--labels and --group: give both, a table and its column with the slide or patient, or neither")


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of ``attributegan-shard``."""
    parser = add_command(
        commands,
        "crop",
        "cut crops at regular positions from images, with outlines of nuclei if there are any",
        EXAMPLES,
        description="Cut square crops at regular positions from images, and the same crops from outlines of their nuclei.\n"
        "Writes images/, outlines/ and crops.csv (file, slide, image, x, y) to DIR; the subfolders of images/ are the slides.",
    )
    parser.add_argument("--images", required=True, type=Path, metavar="DIR", help="folder with the images; each subfolder is a slide")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="output folder; must not exist")
    parser.add_argument("--size", required=True, type=int, metavar="PIXELS", help="width and height of the crops in pixels")
    parser.add_argument(
        "--stride", type=int, metavar="PIXELS", help="distance between crops in pixels; less than --size for overlap (default: --size)"
    )
    parser.add_argument(
        "--outlines", type=Path, metavar="DIR", help="folder with the instance map of each image, NAME.png, to cut too (default: none)"
    )
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="CSV file with the images to cut, in the columns file and COLUMN (default: all images; subfolders are slides)",
    )
    parser.add_argument("--group", metavar="COLUMN", help="column of --labels with the slide or patient of each image")
    parser.set_defaults(run=with_settings(run, CropSettings))


def run(settings: CropSettings) -> int:
    """Cut the crops; returns the exit status.

    Raises:
        ValueError: names the option or file that is wrong.
    """
    from attributegan.utils.files import atomic_path, check_new_folder
    from data_shards.ingest import crops
    from data_shards.ingest.outlines import Outlines
    from tools.progress import TileProgress

    check_new_folder(settings.out)
    images = crops.find(settings.images, settings.labels, settings.group or "")
    outlines = Outlines(settings.outlines) if settings.outlines else None
    if outlines:
        for image in images:
            outlines.identity(image.file)  # all exist
    with atomic_path(settings.out) as folder, TileProgress() as progress:
        folder.mkdir()
        counts = crops.cut(settings.images, images, outlines, settings.size, settings.stride or settings.size, folder, progress)
    slides = len({image.slide for image in images})
    print(f"{settings.out}: {sum(counts.values()):,} crops of {len(counts):,} images, {slides:,} slides")
    return 0
