"""Benchmarks of shards: ``attributegan-bench read``, ``pack`` and ``start``."""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attributegan.commands import child
from tools.options import add_command, add_workers, with_settings

if TYPE_CHECKING:  # these import slowly
    from tools.benchmarks.harness import Result

DIFFERENT = 60  # distinct images; the others are copies with a different JPEG comment
HEADER = "file,slide,cell_crowding,cell_polarity,mitosis,nucleoli,pleomorphism\n"


@dataclass(frozen=True)
class ReadSettings:
    """Options of ``read``; ``count`` is in images per turn."""

    repeats: int
    workers: int = 2
    count: int = 1000
    images: Path | None = None


@dataclass(frozen=True)
class PackSettings:
    """Options of ``pack``; ``count`` is in files."""

    repeats: int
    count: int = 3000
    workers: int | None = None
    images: Path | None = None


@dataclass(frozen=True)
class StartSettings:
    """Options of ``start``; ``rows`` is the number of tiles in the index."""

    repeats: int
    rows: int = 1_000_000


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser) -> None:
    """Add the benchmarks to those of ``attributegan-bench``."""
    read = add_command(
        commands,
        "read",
        "measure reading 512 px tiles in images/s, against plain WebDataset and single PNGs",
        ["attributegan-bench read --workers 2", "attributegan-bench read --images tiles --json read.json"],
        parents=[common],
    )
    read.add_argument("--workers", type=int, default=2, metavar="N", help="reader processes of each contender (default: %(default)s)")
    read.add_argument("--count", type=int, default=1000, metavar="N", help="images per turn (default: %(default)s)")
    _images_option(read)
    read.set_defaults(measure=with_settings(_read, ReadSettings))
    pack = add_command(
        commands,
        "pack",
        "measure packing JPEGs without re-encoding in MB/s, against tar",
        ["attributegan-bench pack", "attributegan-bench pack --count 10000 --repeats 7 --json pack.json"],
        parents=[common],
    )
    pack.add_argument("--count", type=int, default=3000, metavar="N", help="number of files (default: %(default)s)")
    add_workers(pack)
    _images_option(pack)
    pack.set_defaults(measure=with_settings(_pack, PackSettings))
    start = add_command(
        commands,
        "start",
        "measure seconds to open a large index and read the first batch, from the start and resumed",
        ["attributegan-bench start", "attributegan-bench start --rows 10000000"],
        parents=[common],
    )
    start.add_argument("--rows", type=int, default=1_000_000, metavar="N", help="tiles in the index (default: %(default)s)")
    start.set_defaults(measure=with_settings(_start, StartSettings))


def _images_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=Path, metavar="DIR", help="use images of this folder instead of phantoms")


# Test data


def pictures(images: Path | None) -> Iterator[Any]:
    """Yield Pillow images: the first of a folder, or phantoms.

    Raises:
        ValueError: the folder has no images.
    """
    from PIL import Image

    from data_shards.phantoms import render

    if images is None:
        for number, levels_A in enumerate(render.draw_levels(DIFFERENT, 0)):
            yield Image.fromarray(render.render(levels_A.tolist(), 512, 0, number))
        return
    files = [path for path in sorted(images.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp", ".tif")]
    if not files:
        raise ValueError(f"--images: {images} has no images")
    for path in files[:DIFFERENT]:
        with Image.open(path) as image:
            yield image.convert("RGB")


def _jpegs(folder: Path, count: int, images: Path | None) -> Path:
    """Write ``count`` JPEGs of 512 px and a CSV with their levels; returns the path of the CSV."""
    import io

    from PIL import Image

    folder.mkdir()
    encoded = []
    for picture in pictures(images):
        buffer = io.BytesIO()
        picture.resize((512, 512), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=95)
        encoded.append(buffer.getvalue())
    lines = [HEADER]
    for number in range(count):
        data = encoded[number % len(encoded)]
        (folder / f"t{number:06d}.jpg").write_bytes(data[:2] + b"\xff\xfe\x00\x06" + number.to_bytes(4, "big") + data[2:])
        lines.append(f"t{number:06d}.jpg,s{number % 20},{number % 5},{number % 4},{number % 4},{number % 3},{number % 5}\n")
    table = folder.with_suffix(".csv")
    table.write_text("".join(lines))
    return table


def _pngs(folder: Path, images: Path | None) -> list[Path]:
    """Write PNGs of 500 px, the format of the published data set, and return their paths."""
    from PIL import Image

    folder.mkdir()
    paths = []
    for number, picture in enumerate(pictures(images)):
        paths.append(folder / f"t{number:06d}.png")
        picture.resize((500, 500), Image.Resampling.LANCZOS).save(paths[-1])
    return paths


# Benchmarks


def _read(settings: ReadSettings) -> Result:
    """Measure reading in images/s."""
    from data_shards.loader.loader import batches
    from data_shards.loader.shard_set import ShardSet
    from data_shards.sampler.global_order import GlobalShuffle
    from tools.benchmarks import baselines
    from tools.benchmarks.harness import Result, interleaved
    from tools.shard import main as shard

    batch, workers = 32, settings.workers
    if settings.count < 2 * batch:
        raise ValueError(f"--count: {settings.count} is less than two batches of {batch}")
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        table = _jpegs(here / "jpegs", 2000, settings.images)
        pngs = _pngs(here / "pngs", settings.images)
        pngs *= -(-1000 // len(pngs))  # the loader restarts its workers after each pass
        options = ["--images", str(here / "jpegs"), "--labels", str(table), "--val-fraction", "0", "--shard-count", "250"]
        if shard(["pack", *options, "--out", str(here / "set")]):
            raise ValueError("packing failed")
        shards = ShardSet.open(here / "set")
        tars = sorted((here / "set").glob("*.tar"))

        def ours() -> float:
            options: dict[str, Any] = {"micro_batches": 1, "rank": 0, "world": 1, "workers": workers, "flips": True, "image_size": 512}
            order = GlobalShuffle(shards.levels_NA, 0, 1.0)
            with closing(batches(shards, order, start=0, batch=batch, **options)) as data:
                return _rate(data, batch, settings.count)

        contenders = {
            "shards": ours,
            "webdataset": lambda: _rate(baselines.webdataset_batches(tars, batch, workers, 0), batch, settings.count),
            "single PNGs": lambda: _rate(baselines.single_image_batches(pngs, 512, batch, workers), batch, settings.count // 4),
        }
        values = interleaved(contenders, settings.repeats)
    against = [("shards", "webdataset"), ("shards", "single PNGs")]
    return Result("read", "images/s", values, against, {"workers": workers, "tiles": "512 px JPEG against 500 px PNG resized to 512"})


def _rate(batches: Iterator[Any], batch: int, count: int) -> float:
    """Return images/s after the first batch, which includes the start of the workers."""
    next(batches)
    started, batches_left = time.perf_counter(), max(1, count // batch - 1)
    done = sum(1 for _ in islice(batches, batches_left))
    return done * batch / (time.perf_counter() - started)


def _pack(settings: PackSettings) -> Result:
    """Measure packing in MB/s."""
    from tools.benchmarks.harness import Result, interleaved

    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        table = _jpegs(here / "jpegs", settings.count, settings.images)
        megabytes = sum(path.stat().st_size for path in (here / "jpegs").iterdir()) / 1e6
        command = child("shard", "pack", "--quick", "--images", str(here / "jpegs"), "--labels", str(table))
        command += ["--group", "slide", "--out", str(here / "set"), *(["--workers", str(settings.workers)] if settings.workers else [])]
        tar = ["tar", "cf", str(here / "plain.tar"), "-C", folder, "jpegs"]
        used: dict[str, list[float]] = {}

        def timed(name: str, *commands: Sequence[str]) -> float:
            (here / "plain.tar").unlink(missing_ok=True)
            shutil.rmtree(here / "set", ignore_errors=True)
            before, started = cpu_seconds(), time.perf_counter()
            for command in commands:
                subprocess.run(command, check=True, capture_output=True)
            seconds = time.perf_counter() - started
            used.setdefault(name, []).append(round(cpu_seconds() - before, 2))
            return megabytes / seconds

        contenders = {
            "pack": lambda: timed("pack", command),
            "tar": lambda: timed("tar", tar),
            "tar and sync": lambda: timed("tar and sync", tar, ["sync", str(here / "plain.tar")]),
        }
        values = interleaved(contenders, settings.repeats)
    facts = {
        "files": settings.count,
        "MB": round(megabytes, 1),
        "CPU seconds, minimum": {name: min(seconds) for name, seconds in used.items()},
        "note": "pack ends with fsync, like tar and sync; its time includes the start of Python",
    }
    return Result("pack", "MB/s", values, [("pack", "tar"), ("pack", "tar and sync")], facts)


def cpu_seconds() -> float:
    """Return the CPU seconds of all child processes that have exited."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


FIRST_BATCH = """
import json, resource, sys, time
began = time.perf_counter()
from data_shards.sampler.global_order import GlobalShuffle
from data_shards.loader.loader import ShardSet, batches
imported = time.perf_counter()
shards = ShardSet.open(sys.argv[1])
opened = time.perf_counter()
options = dict(batch=64, micro_batches=1, rank=0, world=1, workers=2, flips=True, image_size=64)
data = batches(shards, GlobalShuffle(shards.levels_NA, 0, 1.0), start=int(sys.argv[2]), **options)
next(data)
first = time.perf_counter()
data.close()
print(json.dumps({"open": opened - imported, "first": first - imported, "all": first - began,
                  "MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def _start(settings: StartSettings) -> Result:
    """Measure seconds until the first batch of a large set."""
    import json

    from tools.benchmarks.harness import Result, interleaved

    if settings.rows < 10_000:
        raise ValueError(f"--rows: {settings.rows} is below 10,000")
    timings: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        large = _large_set(Path(folder), settings.rows)

        def first_batch(position: int) -> float:
            command = [sys.executable, "-c", FIRST_BATCH, str(large), str(position)]
            answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            timings.setdefault(str(position), []).append(answer)
            return float(answer["first"])

        contenders = {"first batch": lambda: first_batch(0), "first batch at image 10^8": lambda: first_batch(10**8)}
        values = interleaved(contenders, settings.repeats)
    worst = {name: max(answer[name] for answers in timings.values() for answer in answers[1:]) for name in ("open", "all", "MiB")}
    facts: dict[str, Any] = {
        "rows": settings.rows,
        "opening, maximum, s": round(worst["open"], 2),
        "including imports, maximum, s": round(worst["all"], 2),
        "memory, maximum, MiB": round(worst["MiB"]),
    }
    facts |= {f"order of a batch of 64 of {size:,} tiles, us": _order_cost(size) for size in (10**4, 10**5, 10**6, settings.rows)}
    return Result("start", "s", values, [("first batch at image 10^8", "first batch")], facts)


def _large_set(folder: Path, rows: int) -> Path:
    """Write a shard set whose index has ``rows`` tiles that all refer to the same few images."""
    import pyarrow as pa

    from data_shards.format import checksums, index
    from tools.shard import main as shard

    if shard(["phantom", "--count", "64", "--size", "64", "--val-fraction", "0", "--out", str(folder / "set")]):
        raise ValueError("packing failed")
    path = folder / "set" / index.FILE
    header, table = index.read_header(path), index.read_table(path)

    def tables() -> Iterator[pa.Table]:
        for first in range(0, rows, 1 << 17):
            index_N = [number % len(table) for number in range(first, min(first + (1 << 17), rows))]
            keys = pa.array([f"tile-{first + number:09d}" for number in range(len(index_N))])
            some = table.take(pa.array(index_N))
            yield some.set_column(some.column_names.index("key"), "key", keys)

    index.write(path, header, tables())
    checksums.write(folder / "set", header)
    return folder / "set"


def _order_cost(size: int) -> dict[str, float]:
    """Return the microseconds to compute the order of a batch of 64, for `GlobalShuffle` and `WindowedShuffle`."""
    import numpy as np

    from data_shards.sampler import permutation
    from data_shards.sampler.global_order import GlobalShuffle
    from data_shards.sampler.windowed_order import WindowedShuffle

    number_N = permutation.hashes(np.uint64(0), np.arange(size))
    levels_NA = np.stack([number_N % count for count in (5, 4, 4, 3, 5)], axis=1).astype(np.int8)
    orders = {"random": GlobalShuffle(levels_NA, 0, 1.0), "windows": WindowedShuffle(levels_NA, np.arange(size) // 1000, 0, 1.0, 8)}
    return {name: _batch_cost(order) for name, order in orders.items()}


def _batch_cost(order: Any) -> float:
    import numpy as np

    costs: list[float] = []
    for turn in range(201):
        position_B = np.arange(turn * 64, turn * 64 + 64)
        started = time.perf_counter()
        order[position_B]
        costs.append(1e6 * (time.perf_counter() - started))
    return round(float(np.median(costs[1:])), 1)
