"""Options of ``attributegan-label 2afc``: the command line and the settings dataclass."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from attributegan.cli import parser
from attributegan.config import DataConfig
from tools import options as options_module
from tools.explore import add_address, check_address

EXAMPLES = """\
  attributegan-label 2afc runs/first --shards shards --out study                    prints the address to open
  attributegan-label 2afc stylegan-tiles --shards shards --out study --pairs 200    tiles of any model, with a CSV of levels
  attributegan-label 2afc --out study                                               resume
  attributegan-label 2afc --out study --no-page                                     rewrite the results
  attributegan-evaluate runs/first --shards shards --out report --reader-study study"""


@dataclass(frozen=True)
class StudySettings:
    """Which tiles to compare, and where to listen. Fields are the options of the command.

    Raises:
        ValueError: names the option that is wrong.
    """

    out: Path  # folder of the study
    generated: str | None = None  # run, checkpoint or tile set; None to resume
    shards: str | None = None  # shard set with the real tiles
    split: str = "val"  # split of the real tiles
    pairs: int = 100
    seed: int = 0
    shards_cache: str = ""
    shards_cache_gb: float = DataConfig.cache_gb
    no_ema: bool = False
    precision: str = "auto"
    batch: int = 16
    no_page: bool = False
    host: str = "127.0.0.1"
    port: int = 7862
    token_file: Path | None = None

    def __post_init__(self) -> None:
        options_module.require_at_least(self, pairs=1, batch=1, seed=0)
        if (self.generated is None) != (self.shards is None):
            raise ValueError("a new study needs both the generated tiles (RUN, CHECKPOINT or TILES) and --shards; give neither to resume")
        check_address(self.host, self.port)


def parser_2afc() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    default = StudySettings
    result = parser(
        "Serve a web page on which readers choose the real one of two tiles with the same levels, a real held-out one and a generated one\n"
        "(two-alternative forced choice, 2AFC). Readers see their score after the last pair. Every choice is saved at once; rerun with\n"
        "--out to resume. Listens on localhost unless --host is given; other machines then need a token.",
        EXAMPLES,
    )
    result.prog = "attributegan-label 2afc"
    result.add_argument(
        "generated",
        nargs="?",
        metavar="RUN|CHECKPOINT|TILES",
        help="run folder (uses its latest checkpoint), checkpoint, or generated tiles: a folder of images with one CSV of levels, or a "
        "shard set; omit to resume",
    )
    result.add_argument(
        "--out", metavar="DIR", required=True, type=Path, help="folder of the study: pairs, answers.jsonl, answers.csv and result.json"
    )
    result.add_argument("--shards", metavar="DIR", help="shard set with real tiles, a folder or a URL; omit to resume")
    result.add_argument(
        "--split", metavar="SPLIT", default=default.split, help="split of the real tiles, not used for training (default: %(default)s)"
    )
    result.add_argument("--pairs", metavar="N", type=int, default=default.pairs, help="number of pairs (default: %(default)s)")
    result.add_argument(
        "--seed", metavar="S", type=int, default=default.seed, help="random seed of the tiles, their order and sides (default: %(default)s)"
    )
    result.add_argument("--batch", metavar="B", type=int, default=default.batch, help="tiles generated at a time (default: %(default)s)")
    options_module.add_cache(result, "shards-cache")
    options_module.add_precision(result)
    options_module.add_no_ema(result)
    result.add_argument("--no-page", action="store_true", help="make the study or rewrite its results, and exit")
    add_address(result, default.host, default.port)
    return result
