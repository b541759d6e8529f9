"""Options of the commands that read a set at a URL: where its shards are kept, and how many."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from attributegan.config import DataConfig

if TYPE_CHECKING:  # imports slowly
    from data_shards.storage.cache import Cache


def add(parser: argparse.ArgumentParser, name: str = "cache") -> None:
    """Add the options to those of a command, ``--NAME`` and ``--NAME-gb``."""
    parser.add_argument(
        f"--{name}", dest="shards_cache", default="", metavar="DIR", help="folder for shards of a remote set (~/.cache/attributegan)"
    )
    parser.add_argument(
        f"--{name}-gb",
        dest="shards_cache_gb",
        type=_gigabytes,
        default=DataConfig.cache_gb,
        metavar="GB",
        help="most GB of shards in that folder (%(default)s)",
    )


def _gigabytes(text: str) -> float:
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be above 0")
    return float(text)


def cache_of(arguments: argparse.Namespace) -> Cache:
    from data_shards.storage.cache import Cache

    return Cache.of(arguments.shards_cache, arguments.shards_cache_gb)
