"""Options of the commands that read a set at a URL: where its shards are kept, and how many."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from attributegan.config import DataConfig

if TYPE_CHECKING:  # imports slowly
    from data_shards.cache import Cache


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options to those of a command."""
    parser.add_argument("--cache", default="", metavar="DIR", help="folder for shards of a remote set (~/.cache/attributegan)")
    parser.add_argument(
        "--cache-gb", type=float, default=DataConfig.cache_gb, metavar="GB", help="most GB of shards in that folder (%(default)s)"
    )


def cache_of(arguments: argparse.Namespace) -> Cache:
    from data_shards.cache import Cache

    if arguments.cache_gb <= 0:
        raise ValueError(f"--cache-gb: {arguments.cache_gb} must be above 0")
    return Cache.of(arguments.cache, arguments.cache_gb)
