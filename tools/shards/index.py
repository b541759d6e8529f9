"""``attributegan-shard index``: writes the index that makes a shard set of existing WebDataset tars."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from tools import options
from tools.options import with_settings
from tools.shards.written import add_skip_bad, report, schema_of

EXAMPLES = """\
A sample needs an image (jpg, png or webp) and its levels: in .json by attribute name, at the top level or under "levels", or in .cls if
there is only one attribute. The tars are not changed; the index is written next to them.

examples:
  attributegan-shard index tars
  attributegan-shard index tars --attributes my_attributes.yaml --val 'holdout-*.tar' --group slide"""


@dataclass(frozen=True)
class IndexSettings:
    """Options of ``index``."""

    tars: Path
    out: Path | None
    val: str
    group: str
    overwrite: bool
    attributes: Path | None
    skip_bad: bool
    workers: int | None


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of ``attributegan-shard``."""
    parser = commands.add_parser(
        "index",
        help="index existing WebDataset tars as a shard set",
        description="Write the index that makes a shard set of existing WebDataset tars.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
    )
    parser.add_argument("tars", type=Path, metavar="DIR", help="folder with the tars")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for the index and links to the tars, if DIR is read-only (default: DIR)"
    )
    parser.add_argument("--val", default="val*.tar", metavar="PATTERN", help="file names of the tars of split `val` (default: %(default)s)")
    parser.add_argument(
        "--group", default="group", metavar="NAME", help="key of the .json with the slide or patient (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing index")
    options.add_attributes(parser)
    add_skip_bad(parser)
    options.add_workers(parser)
    parser.set_defaults(run=with_settings(_index, IndexSettings))


def _index(settings: IndexSettings) -> int:
    from data_shards.packing.index_tars import index_tars
    from tools.progress import TileProgress

    with TileProgress() as progress:
        header = index_tars(
            settings.tars,
            schema_of(settings.attributes),
            processes=options.worker_count(settings.workers),
            progress=progress,
            val=settings.val,
            group=settings.group,
            out=settings.out,
            skip_bad=settings.skip_bad,
            overwrite=settings.overwrite,
        )
    return report(settings.out or settings.tars, header)
