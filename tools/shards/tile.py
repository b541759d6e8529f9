"""``attributegan-shard tile``: command line of `data_shards.ingest.tiling`, which cuts whole-slide images into tiles."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_shards.format.litter import is_litter
from tools.options import add_workers, with_settings, worker_count

if TYPE_CHECKING:  # slow to import
    from data_shards.ingest.tiling import Options

EXAMPLES = """\
Writes the tiles to DIR/{slide}/ and DIR/tiles.csv with the columns file, slide, x and y (corner in pixels at the slide's full resolution),
mpp, size, tissue (fraction) and sharpness. To label the tiles, add a column per attribute to a copy of it, then pack:
  attributegan-shard pack --images DIR --labels labelled.csv --group slide --out shards

Rerun the same command to resume after an interruption or to add slides; finished slides are skipped.
Requires openslide: pip install 'attributegan[slides]'

examples:
  attributegan-shard tile slides/*.svs --out tiles --mpp 0.5 --size 512
  attributegan-shard tile slides/*.ndpi --out tiles --mpp 0.25 --size 512 --overlap 64 --tissue 0.7 --jpeg 95
  attributegan-shard tile scan.tif --slide-mpp 0.25 --out tiles --mpp 0.5 --size 256"""


@dataclass(frozen=True)
class TileSettings:
    """Options of ``tile``."""

    slides: tuple[Path, ...]
    out: Path
    mpp: float
    size: int
    overlap: int
    tissue: float
    sharpness: float | None
    slide_mpp: float | None
    jpeg: int | None
    skip_bad: bool
    workers: int | None


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of ``attributegan-shard``."""
    parser = commands.add_parser(
        "tile",
        help="cut tissue tiles from whole-slide images",
        description="Cut tissue tiles from whole-slide images.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "slides",
        nargs="+",
        type=Path,
        metavar="SLIDE",
        help="whole-slide images (SVS, NDPI, MRXS, SCN, DICOM, TIFF, Deep Zoom, JPEG, PNG, …)",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="output folder of the tiles")
    parser.add_argument(
        "--mpp", required=True, type=float, metavar="UM", help="resolution of the tiles in micrometres per pixel; 0.5 is about 20x"
    )
    parser.add_argument("--size", required=True, type=int, metavar="PIXELS", help="width and height of the tiles in pixels")
    parser.add_argument(
        "--overlap", type=int, default=0, metavar="PIXELS", help="overlap of adjacent tiles in pixels (default: %(default)s)"
    )
    parser.add_argument(
        "--tissue", type=float, default=0.5, metavar="X", help="minimum fraction of tissue in a tile, 0 to 1 (default: %(default)s)"
    )
    parser.add_argument(
        "--sharpness",
        type=float,
        metavar="X",
        help="minimum sharpness, the variance of the Laplacian; 0 keeps all tiles. At 0.5 um/pixel, tissue in focus is above 100, "
        "tissue blurred by 2 pixels below 26 (default: 30)",
    )
    parser.add_argument("--slide-mpp", type=float, metavar="UM", help="micrometres per pixel of slides without this metadata")
    parser.add_argument("--jpeg", type=int, metavar="QUALITY", help="write JPEGs of this quality, 1 to 100 (default: lossless PNGs)")
    parser.add_argument("--skip-bad", action="store_true", help="skip invalid slides with a message (default: fail)")
    add_workers(parser)
    parser.set_defaults(run=with_settings(run, TileSettings))


def run(settings: TileSettings) -> int:
    """Cut the tiles; returns the exit status.

    Raises:
        ValueError: lists all invalid slides, or names the option that is wrong.
    """
    from data_shards.ingest.tiling import tiling
    from tools.progress import TileProgress

    processes = worker_count(settings.workers)
    options = tiling_options(settings)
    slides, skipped = find_slides(settings.slides)
    if skipped:
        print(f"skipped, not a slide: {', '.join(map(str, skipped))}", file=sys.stderr)
    if not slides:
        raise ValueError("SLIDE: none of the files given is a slide")
    try:
        with tiling(slides, settings.out, options, settings.slide_mpp) as work:
            bad = work.survey(processes)
            if bad and not settings.skip_bad:
                raise ValueError(_report(bad, "nothing was cut"))
            with TileProgress(work.positions) as progress:
                records, damaged = work.cut(processes, progress)
            if damaged and not settings.skip_bad:
                raise ValueError(_report(damaged, f"the {len(records):,} others are finished"))
            count = work.write_table()
    except OSError as error:  # no space, no permission
        raise ValueError(f"--out: {error}; finished slides are kept, rerun the same command to resume") from error
    lines = [*map(describe, records), *(f"{slide}: already there" for slide in work.done), *(f"left out: {line}" for line in bad + damaged)]
    print("\n".join([*lines, f"{settings.out / 'tiles.csv'}: {count:,} tiles"]))
    return 0


def tiling_options(settings: TileSettings) -> Options:
    """Returns how to cut the tiles; ValueError names the option that is wrong."""
    from data_shards.ingest.tiling import SHARPNESS, Options

    sharpness = SHARPNESS if settings.sharpness is None else settings.sharpness
    return Options(settings.mpp, settings.size, settings.overlap, settings.tissue, sharpness, settings.jpeg)


def find_slides(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Split ``paths`` into slides and other files: data folders that belong to a slide, such as an MRXS, and system files."""
    slides, skipped = [], []
    for path in dict.fromkeys(paths):
        deep_zoom = path.with_name(f"{path.name.removesuffix('_files')}.dzi")
        if is_litter(path.name) or (
            path.is_dir() and any(path.with_name(f"{path.name}{end}").is_file() for end in (".mrxs", ".MRXS", ".vms"))
        ):
            skipped.append(path)
        elif path.is_dir() and path.name.endswith("_files") and deep_zoom.is_file():
            skipped.append(path) if deep_zoom in paths else slides.append(deep_zoom)
        else:
            slides.append(path)
    return slides, skipped


def _report(bad: list[str], rest: str) -> str:
    lines = "".join(f"\n  {line}" for line in bad)
    return f"{len(bad):,} slides can't be cut; {rest}. Fix them, or skip them with --skip-bad:{lines}"


def describe(record: Mapping[str, Any]) -> str:
    """Returns a line about a slide that has been cut, from its record."""
    empty, blurred = record["places"] - record["with_tissue"], record["with_tissue"] - record["tiles"]
    kept = f"{record['file']}: {record['tiles']:,} tiles of {record['places']:,} positions"
    return f"{kept}; {empty:,} with too little tissue, {blurred:,} blurred"
