"""Benchmark of merging the parts of a pack: ``attributegan-bench merge``, its time and its peak memory at two numbers of rows."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attributegan.commands import child
from tools.options import add_command, with_settings

if TYPE_CHECKING:  # these import slowly
    from tools.benchmarks.harness import Result

TILE_BYTES = 100_000  # of an image; the tars are sparse files
FACTOR = 4  # between the two numbers of rows
# Prints the peak memory of a command in KiB. A process of its own, since Linux counts the memory of the parent at the fork as the child's.
PEAK_MEMORY = """\
import resource, subprocess, sys
status = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""


@dataclass(frozen=True)
class MergeSettings:
    """Options of ``merge``; ``rows`` is the smaller number of tiles."""

    repeats: int
    rows: int = 500_000
    shard_count: int = 1000
    once: bool = False


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser) -> None:
    """Add the benchmark to those of ``attributegan-bench``."""
    merge = add_command(
        commands,
        "merge",
        f"measure the peak memory of merging the parts of a pack in MiB, with N rows and with {FACTOR} N",
        ["attributegan-bench merge", "attributegan-bench merge --rows 20000000 --once"],
        parents=[common],
    )
    merge.add_argument("--rows", type=int, default=500_000, metavar="N", help="tiles of the set (default: %(default)s)")
    merge.add_argument(
        "--shard-count", type=int, default=1000, metavar="N", help="tiles per shard, as in `attributegan-shard pack` (default: %(default)s)"
    )
    merge.add_argument("--once", action="store_true", help=f"merge N rows once, without warm-up and without the comparison with {FACTOR} N")
    merge.set_defaults(measure=with_settings(_merge, MergeSettings))


def _merge(settings: MergeSettings) -> Result:
    """Measure the peak memory of ``attributegan-shard merge``."""
    from tools.benchmarks.harness import Result, interleaved

    if not 0 < settings.shard_count <= settings.rows:
        raise ValueError(f"--rows: {settings.rows} is below --shard-count, {settings.shard_count}")
    seconds: dict[str, list[float]] = {}
    sizes = [settings.rows] if settings.once else [settings.rows, FACTOR * settings.rows]
    with tempfile.TemporaryDirectory() as folder:

        def merged(rows: int) -> float:
            out = Path(folder) / "set"
            write_parts(out, rows, settings.shard_count)
            took, mebibytes = _timed(child("shard", "merge", str(out)))
            shutil.rmtree(out)
            seconds.setdefault(_name(rows), []).append(round(took, 1))
            return mebibytes

        if settings.once:
            values = {_name(settings.rows): [merged(settings.rows)]}
        else:
            values = interleaved({_name(rows): partial(merged, rows) for rows in sizes}, settings.repeats)
    against = [] if settings.once else [(_name(sizes[1]), _name(sizes[0]))]
    facts: dict[str, Any] = {
        "seconds of the last turn, with the start of Python": {name: of[-1] for name, of in seconds.items()},
        "shards": {_name(rows): -(-rows // settings.shard_count) for rows in sizes},
    }
    return Result("merge, peak memory", "MiB", values, against, facts)


def _name(rows: int) -> str:
    return f"{rows:,} rows"


def _timed(command: list[str]) -> tuple[float, float]:
    """Run a command; returns its seconds and its peak resident memory in MiB."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", PEAK_MEMORY, *command], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise ValueError(f"{' '.join(command[3:])} failed with status {done.returncode}")
    return time.perf_counter() - started, int(done.stdout) / 1024


def write_parts(out: Path, rows: int, shard_count: int) -> None:
    """Write the packed parts of a set of ``rows`` tiles, ready to merge: real indexes, and tars of zeros that take no space on the disk."""
    import numpy as np
    import pyarrow as pa

    from attributegan.attributes import PUBLISHED
    from data_shards.format import index
    from data_shards.packing import parts

    folder, rng = parts.parts_folder(out), np.random.default_rng(0)
    folder.mkdir()
    names = [f"train-{number:06d}.tar" for number in range(-(-rows // shard_count))]
    parts.PlanFile("synthetic", 2, names, []).write(folder)
    for number, name in enumerate(names):
        first = number * shard_count
        count = min(shard_count, rows - first)
        columns: dict[str, Any] = {
            "shard": [name] * count,
            "split": ["train"] * count,
            "offset": np.arange(count) * TILE_BYTES,
            "length": rng.integers(TILE_BYTES // 2, TILE_BYTES, count, np.int32),
            "key": [f"TCGA-{(first + row) % 10_000:05d}-{first + row:09d}" for row in range(count)],
            "group": [f"TCGA-{(first + row) % 10_000:05d}" for row in range(count)],
            **{attribute.name: rng.integers(0, len(attribute.levels), count, np.int8) for attribute in PUBLISHED.attributes},
            "checksum": rng.integers(0, 1 << 32, count, np.uint32),
        }
        (folder / name).touch()
        os.truncate(folder / name, count * TILE_BYTES)
        entry = index.Shard(name, "train", count * TILE_BYTES, count, f"{number:064x}")
        index.write(
            parts.index_of(folder, name),
            index.Header(PUBLISHED, (entry,), 512, "synthetic"),
            [pa.table(columns, schema=index.arrow_schema(PUBLISHED))],
        )
