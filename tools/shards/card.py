"""``attributegan-shard card``: one page about a shard set."""

from __future__ import annotations

import argparse
from pathlib import Path

from tools import options

EXAMPLES = """\
The page has the counts of levels and combinations, which levels come together, groups, stain, example tiles and checksums. It is
self-contained. It shows real tiles: share it as you would share them. HTML requires: pip install 'attributegan[explore]'

examples:
  attributegan-shard card shards
  attributegan-shard card shards --out card.md --sample 1000"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of ``attributegan-shard``."""
    parser = commands.add_parser(
        "card", help="one page about a set, HTML or Markdown", formatter_class=argparse.RawDescriptionHelpFormatter, epilog=EXAMPLES
    )
    parser.add_argument("set", metavar="DIR", help="folder or URL of the set; a remote one needs --out")
    parser.add_argument("--out", type=Path, metavar="FILE", help="page to write, .html or .md (DIR/card.html)")
    parser.add_argument("--sample", type=int, default=200, metavar="N", help="tiles of each split to measure the stain on (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the tiles that are drawn (%(default)s)")
    options.add(parser)
    parser.set_defaults(run=_card)


def _card(arguments: argparse.Namespace) -> int:
    from attributegan.utils import files
    from data_shards import dataset_card
    from data_shards.format import index
    from data_shards.storage import stores

    if arguments.sample < 1:
        raise ValueError(f"--sample: {arguments.sample} must be above 0")
    if arguments.seed < 0:
        raise ValueError(f"--seed: {arguments.seed} must not be below 0")
    if not arguments.out and stores.is_remote(arguments.set):
        raise ValueError("--out: say where to write the page about a remote set")
    out = arguments.out or Path(arguments.set, index.CARD)
    if arguments.out or out.parent.is_dir():
        files.require_writable(out.parent, "--out")
    dataset_card.write(arguments.set, out, arguments.sample, arguments.seed, options.cache_of(arguments))
    print(f"{out}: {out.stat().st_size:,} bytes")
    return 0
