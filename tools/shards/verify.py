"""``attributegan-shard verify``: checks every byte of a shard set."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from tools import options
from tools.options import with_settings


@dataclass(frozen=True)
class VerifySettings:
    """Options of ``verify``."""

    set: str
    workers: int | None
    shards_cache: str
    shards_cache_gb: float


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of ``attributegan-shard``."""
    parser = commands.add_parser(
        "verify",
        help="check every byte of a shard set",
        description="Check every byte of a shard set. Exit status: 0 if it is clean, 1 if not.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  attributegan-shard verify shards\n  attributegan-shard verify s3://bucket/shards --workers 8",
    )
    parser.add_argument("set", metavar="DIR", help="folder or URL of the shard set")
    options.add_workers(parser)
    options.add_cache(parser)
    parser.set_defaults(run=with_settings(_verify, VerifySettings))


def _verify(settings: VerifySettings) -> int:
    from data_shards.verify import verify
    from tools.progress import TileProgress

    processes, problems = options.worker_count(settings.workers), 0
    with TileProgress() as progress:
        for problem in verify(settings.set, processes, progress, options.open_cache(settings)):
            problems += 1
            progress.print(problem)
    from data_shards.storage.stores import redact

    print(f"{redact(settings.set)}: {f'not clean, {problems:,} problems' if problems else f'clean, {progress.done:,} tiles'}")
    return 1 if problems else 0
