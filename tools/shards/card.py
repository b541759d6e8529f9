"""``attributegan-shard card``: writes a one-page summary of a shard set."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from tools import options
from tools.options import with_settings

EXAMPLES = """\
The page has counts of levels and their combinations, correlations between attributes, groups, stain statistics, example tiles and
checksums. It is a single file that loads nothing from the network. It contains real tiles: share it only as you would share the tiles.
HTML requires: pip install 'attributegan[explore]'

examples:
  attributegan-shard card shards
  attributegan-shard card shards --out card.md --sample 1000"""


@dataclass(frozen=True)
class CardSettings:
    """Options of ``card``.

    Raises:
        ValueError: names the option that is wrong.
    """

    set: str
    out: Path | None
    sample: int
    seed: int
    shards_cache: str
    shards_cache_gb: float

    def __post_init__(self) -> None:
        if self.sample < 1:
            raise ValueError(f"--sample: {self.sample} must be above 0")
        if self.seed < 0:
            raise ValueError(f"--seed: {self.seed} must not be below 0")


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of ``attributegan-shard``."""
    parser = commands.add_parser(
        "card",
        help="write a one-page summary of a shard set (HTML or Markdown)",
        description="Write a one-page summary of a shard set as HTML or Markdown.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
    )
    parser.add_argument("set", metavar="DIR", help="folder or URL of the shard set; a URL requires --out")
    parser.add_argument("--out", type=Path, metavar="FILE", help="page to write, .html or .md (default: DIR/card.html)")
    parser.add_argument(
        "--sample", type=int, default=200, metavar="N", help="tiles per split used for stain statistics (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of the sampled tiles (default: %(default)s)")
    options.add_cache(parser)
    parser.set_defaults(run=with_settings(_card, CardSettings))


def _card(settings: CardSettings) -> int:
    from attributegan.utils import files
    from data_shards import dataset_card
    from data_shards.format import index
    from data_shards.storage import stores

    if not settings.out and stores.is_remote(settings.set):
        raise ValueError("--out: is required for a remote shard set")
    out = settings.out or Path(settings.set, index.CARD)
    if settings.out or out.parent.is_dir():
        files.require_writable(out.parent, "--out")
    dataset_card.write(settings.set, out, settings.sample, settings.seed, options.open_cache(settings))
    print(f"{out}: {out.stat().st_size:,} bytes")
    return 0
