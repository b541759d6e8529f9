"""Benchmarks of shards: ``read``, ``pack`` and ``start`` of ``attributegan-bench``."""

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
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attributegan.commands import child

if TYPE_CHECKING:  # these import slowly
    from tools.benchmarks.harness import Result

DIFFERENT = 60  # images that are drawn or read; the others are the same with another comment inside
HEADER = "file,slide,cell_crowding,cell_polarity,mitosis,nucleoli,pleomorphism\n"


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser) -> None:
    """Add the benchmarks to those of ``attributegan-bench``."""
    read = commands.add_parser("read", parents=[common], help="reading 512 px tiles: ours, plain webdataset, PNGs one by one")
    read.add_argument("--workers", type=int, default=2, metavar="N", help="reading processes of every side (%(default)s)")
    read.add_argument("--count", type=int, default=1000, metavar="N", help="images a turn (%(default)s)")
    _images_option(read)
    read.set_defaults(measure=_read)
    pack = commands.add_parser("pack", parents=[common], help="packing JPEGs as they are: ours, tar, tar and sync")
    pack.add_argument("--count", type=int, default=3000, metavar="N", help="files (%(default)s)")
    pack.add_argument("--workers", type=int, metavar="N", help="processes (one for each core)")
    _images_option(pack)
    pack.set_defaults(measure=_pack)
    start = commands.add_parser("start", parents=[common], help="opening a large index, the first batch, resuming far on")
    start.add_argument("--rows", type=int, default=1_000_000, metavar="N", help="tiles of the index (%(default)s)")
    start.set_defaults(measure=_start)


def _images_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=Path, metavar="DIR", help="tiles to take instead of drawn ones")


# What is measured on


def _pictures(images: Path | None) -> Iterator[Any]:
    """Pillow images: some of a folder, or phantoms."""
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
    """``count`` JPEGs of 512 px and a CSV with levels; returns the CSV."""
    import io

    from PIL import Image

    folder.mkdir()
    encoded = []
    for picture in _pictures(images):
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
    """PNGs of 500 px, as the published data set has them."""
    from PIL import Image

    folder.mkdir()
    paths = []
    for number, picture in enumerate(_pictures(images)):
        paths.append(folder / f"t{number:06d}.png")
        picture.resize((500, 500), Image.Resampling.LANCZOS).save(paths[-1])
    return paths


# Benchmarks


def _read(arguments: argparse.Namespace) -> Result:
    from data_shards.loader.loader import batches
    from data_shards.loader.shard_set import ShardSet
    from data_shards.sampler.global_order import GlobalShuffle
    from tools.benchmarks import baselines
    from tools.benchmarks.harness import Result, interleaved
    from tools.shard import main as shard

    batch, workers = 32, arguments.workers
    if arguments.count < 2 * batch:
        raise ValueError(f"--count: {arguments.count} is less than two batches of {batch}")
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        table = _jpegs(here / "jpegs", 2000, arguments.images)
        pngs = _pngs(here / "pngs", arguments.images)
        pngs *= -(-1000 // len(pngs))  # processes start anew with each pass over them
        words = ["--images", str(here / "jpegs"), "--labels", str(table), "--val-fraction", "0", "--shard-count", "250"]
        if shard(["pack", *words, "--out", str(here / "set")]):
            raise ValueError("packing failed")
        shards = ShardSet.open(here / "set")
        tars = sorted((here / "set").glob("*.tar"))

        def ours() -> float:
            options = {"micro_batches": 1, "rank": 0, "world": 1, "workers": workers, "flips": True, "image_size": 512}
            order = GlobalShuffle(shards.levels_NA, 0, 1.0)
            with closing(batches(shards, order, start=0, batch=batch, **options)) as data:
                return _rate(data, batch, arguments.count)

        contenders = {
            "shards": ours,
            "webdataset": lambda: _rate(baselines.webdataset_batches(tars, batch, workers, 0), batch, arguments.count),
            "single PNGs": lambda: _rate(baselines.single_image_batches(pngs, 512, batch, workers), batch, arguments.count // 4),
        }
        values = interleaved(contenders, arguments.repeats)
    against = [("shards", "webdataset"), ("shards", "single PNGs")]
    return Result("read", "images/s", values, against, {"workers": workers, "tiles": "512 px JPEG against 500 px PNG resized to 512"})


def _rate(batches: Iterator[Any], batch: int, count: int) -> float:
    """Images a second behind the first batch, which waits for processes to start."""
    next(batches)
    started, wanted = time.perf_counter(), max(1, count // batch - 1)
    done = sum(1 for _ in islice(batches, wanted))
    return done * batch / (time.perf_counter() - started)


def _pack(arguments: argparse.Namespace) -> Result:
    from tools.benchmarks.harness import Result, interleaved

    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        table = _jpegs(here / "jpegs", arguments.count, arguments.images)
        megabytes = sum(path.stat().st_size for path in (here / "jpegs").iterdir()) / 1e6
        command = child("shard", "pack", "--quick", "--images", str(here / "jpegs"), "--labels", str(table))
        command += ["--group", "slide", "--out", str(here / "set"), *(["--workers", str(arguments.workers)] if arguments.workers else [])]
        tar = ["tar", "cf", str(here / "plain.tar"), "-C", folder, "jpegs"]
        used: dict[str, list[float]] = {}

        def timed(name: str, *commands: Sequence[str]) -> float:
            (here / "plain.tar").unlink(missing_ok=True)
            shutil.rmtree(here / "set", ignore_errors=True)
            before, started = _processor_seconds(), time.perf_counter()
            for words in commands:
                subprocess.run(words, check=True, capture_output=True)
            seconds = time.perf_counter() - started
            used.setdefault(name, []).append(round(_processor_seconds() - before, 2))
            return megabytes / seconds

        contenders = {
            "pack": lambda: timed("pack", command),
            "tar": lambda: timed("tar", tar),
            "tar and sync": lambda: timed("tar and sync", tar, ["sync", str(here / "plain.tar")]),
        }
        values = interleaved(contenders, arguments.repeats)
    facts = {
        "files": arguments.count,
        "MB": round(megabytes, 1),
        "processor seconds, least": {name: min(seconds) for name, seconds in used.items()},
        "note": "pack ends with its bytes on the disk (fsync), as tar and sync does; its time has the start of Python in it",
    }
    return Result("pack", "MB/s", values, [("pack", "tar"), ("pack", "tar and sync")], facts)


def _processor_seconds() -> float:
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


def _start(arguments: argparse.Namespace) -> Result:
    import json

    from tools.benchmarks.harness import Result, interleaved

    if arguments.rows < 10_000:
        raise ValueError(f"--rows: {arguments.rows} is below 10,000")
    told: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        large = _large_set(Path(folder), arguments.rows)

        def first_batch(position: int) -> float:
            words = [sys.executable, "-c", FIRST_BATCH, str(large), str(position)]
            answer = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
            told.setdefault(str(position), []).append(answer)
            return float(answer["first"])

        contenders = {"first batch": lambda: first_batch(0), "first batch at image 10^8": lambda: first_batch(10**8)}
        values = interleaved(contenders, arguments.repeats)
    worst = {name: max(answer[name] for answers in told.values() for answer in answers[1:]) for name in ("open", "all", "MiB")}
    facts = {
        "rows": arguments.rows,
        "opening, slowest, s": round(worst["open"], 2),
        "imports too, slowest, s": round(worst["all"], 2),
        "memory, most, MiB": round(worst["MiB"]),
    }
    facts |= {f"order of a batch of 64 of {size:,} tiles, us": _order_cost(size) for size in (10**4, 10**5, 10**6, arguments.rows)}
    return Result("start", "s", values, [("first batch at image 10^8", "first batch")], facts)


def _large_set(folder: Path, rows: int) -> Path:
    """A set with an index of ``rows`` tiles, all of them places of a few that are there."""
    import pyarrow as pa

    from data_shards.format import checksums, index
    from tools.shard import main as shard

    if shard(["phantom", "--count", "64", "--size", "64", "--val-fraction", "0", "--out", str(folder / "set")]):
        raise ValueError("packing failed")
    path = folder / "set" / index.FILE
    header, table = index.read_header(path), index.read_table(path)

    def tables() -> Iterator[pa.Table]:
        for first in range(0, rows, 1 << 17):
            place_N = [number % len(table) for number in range(first, min(first + (1 << 17), rows))]
            keys = pa.array([f"tile-{first + number:09d}" for number in range(len(place_N))])
            some = table.take(pa.array(place_N))
            yield some.set_column(some.column_names.index("key"), "key", keys)

    index.write(path, header, tables())
    checksums.write(folder / "set", header)
    return folder / "set"


def _order_cost(size: int) -> dict[str, float]:
    """Microseconds to ask for a batch of 64 anywhere: fully random order, and windows of shards."""
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
