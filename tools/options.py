"""Options that several commands have: the cache for shards of a remote set, and the precision of generated tiles."""

from __future__ import annotations

import argparse
import sys
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


def add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        default="auto",
        help="of generated tiles; auto: bf16 where the hardware has it, else fp32 (CPU) or fp16 (GPU)",
    )


def precision_of(asked: str) -> str:
    """``--precision`` with "auto" decided for the device that this process generates on; says so on stderr, and warns when it is slow."""
    import torch

    from attributegan.utils import precision

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen, reason = precision.choose(device) if asked == "auto" else (asked, "")
    message = f"--precision: {chosen} ({reason})" if reason else precision.warning(chosen, device, "--precision ")
    if message:
        print(message, file=sys.stderr, flush=True)
    return chosen


def _gigabytes(text: str) -> float:
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be above 0")
    return float(text)


def cache_of(arguments: argparse.Namespace) -> Cache:
    from data_shards.storage.cache import Cache

    return Cache.of(arguments.shards_cache, arguments.shards_cache_gb)
