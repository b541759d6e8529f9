"""``attributegan-shard tile``: options and report of cutting slides into tiles, which is in data_shards.ingest.tiling."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_shards.format.litter import is_litter

EXAMPLES = """\
Tiles go into DIR/{slide} as images, and DIR/tiles.csv says for each: file, slide, x and y (corner, in pixels of the slide's full
resolution), mpp, size, tissue (share) and sharpness. Add a column for each attribute to a copy of it, and pack:
  attributegan-shard pack --images DIR --labels labelled.csv --group slide --out shards

A stopped command goes on with the slides that aren't whole when it is given again, and slides can be added the same way.
Needs openslide: pip install 'attributegan[slides]'

examples:
  attributegan-shard tile slides/*.svs --out tiles --mpp 0.5 --size 512
  attributegan-shard tile slides/*.ndpi --out tiles --mpp 0.25 --size 512 --overlap 64 --tissue 0.7 --jpeg 95
  attributegan-shard tile scan.tif --slide-mpp 0.25 --out tiles --mpp 0.5 --size 256"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``tile``."""
    parser = commands.add_parser(
        "tile", help="cut tissue tiles from whole-slide images", formatter_class=argparse.RawDescriptionHelpFormatter, epilog=EXAMPLES
    )
    parser.add_argument(
        "slides", nargs="+", type=Path, metavar="SLIDE", help="slides (SVS, NDPI, MRXS, SCN, DICOM, TIFF, Deep Zoom, JPEG, PNG, …)"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the tiles")
    parser.add_argument("--mpp", required=True, type=float, metavar="UM", help="micrometres per pixel of the tiles; 0.5 is about 20x")
    parser.add_argument("--size", required=True, type=int, metavar="PIXELS", help="width and height of the tiles")
    parser.add_argument("--overlap", type=int, default=0, metavar="PIXELS", help="of neighbouring tiles (%(default)s)")
    parser.add_argument("--tissue", type=float, default=0.5, metavar="X", help="least share of tissue in a tile, 0 to 1 (%(default)s)")
    parser.add_argument(
        "--sharpness",
        type=float,
        metavar="X",
        help="least variance of the Laplacian (30: tissue in focus has above 100 at 0.5 um, blurred by 2 pixels below 26); 0 keeps all",
    )
    parser.add_argument("--slide-mpp", type=float, metavar="UM", help="micrometres per pixel of slides that don't say it")
    parser.add_argument("--jpeg", type=int, metavar="QUALITY", help="write JPEGs; without it PNGs, which lose nothing")
    parser.add_argument("--skip-bad", action="store_true", help="leave out slides with something wrong, instead of refusing all")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (one for each core)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Cut the tiles; ValueError has all slides that are bad."""
    from data_shards import worker_pool
    from data_shards.ingest.tiling import SHARPNESS, Options, tiling
    from tools.progress import TileProgress

    if arguments.workers is not None and arguments.workers < 1:
        raise ValueError(f"--workers: {arguments.workers} must be above 0")
    processes = arguments.workers or worker_pool.available()
    least = SHARPNESS if arguments.sharpness is None else arguments.sharpness
    options = Options(arguments.mpp, arguments.size, arguments.overlap, arguments.tissue, least, arguments.jpeg)
    slides, passed = to_cut(arguments.slides)
    if passed:
        print(f"passed over: {', '.join(map(str, passed))}", file=sys.stderr)
    if not slides:
        raise ValueError("no slide is among the files given")
    try:
        with tiling(slides, arguments.out, options, arguments.slide_mpp) as work:
            bad = work.survey(processes)
            if bad and not arguments.skip_bad:
                raise ValueError(_report(bad, "nothing was cut"))
            with TileProgress(work.positions) as progress:
                records, damaged = work.cut(processes, progress)
            if damaged and not arguments.skip_bad:
                raise ValueError(_report(damaged, f"the {len(records):,} others are whole"))
            count = work.write_table()
    except OSError as error:  # no space, no permission
        raise ValueError(f"--out: {error}; slides that are whole are kept, for the same command to go on") from error
    lines = [*map(_line, records), *(f"{slide}: already there" for slide in work.done), *(f"left out: {line}" for line in bad + damaged)]
    print("\n".join([*lines, f"{arguments.out / 'tiles.csv'}: {count:,} tiles"]))
    return 0


def to_cut(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The slides among ``paths``, and what is none: the folders that belong to a slide, such as an MRXS, and files that are no data."""
    slides, passed = [], []
    for path in dict.fromkeys(paths):
        deep_zoom = path.with_name(f"{path.name.removesuffix('_files')}.dzi")
        if is_litter(path.name) or (
            path.is_dir() and any(path.with_name(f"{path.name}{end}").is_file() for end in (".mrxs", ".MRXS", ".vms"))
        ):
            passed.append(path)
        elif path.is_dir() and path.name.endswith("_files") and deep_zoom.is_file():
            passed.append(path) if deep_zoom in paths else slides.append(deep_zoom)
        else:
            slides.append(path)
    return slides, passed


def _report(bad: list[str], rest: str) -> str:
    lines = "".join(f"\n  {line}" for line in bad)
    return f"{len(bad):,} slides can't be cut; {rest}. Correct them, or leave them out with --skip-bad:{lines}"


def _line(record: Mapping[str, Any]) -> str:
    empty, blurred = record["places"] - record["with_tissue"], record["with_tissue"] - record["tiles"]
    return (
        f"{record['file']}: {record['tiles']:,} tiles of {record['places']:,} places; {empty:,} with too little tissue, {blurred:,} blurred"
    )
