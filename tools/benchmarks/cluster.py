"""Benchmark of cutting slides on several nodes: ``attributegan-bench cluster``, processes that each cut their share of the slides.

A slide is a pyramidal TIFF of JPEG tiles, as scanners write them, made from a few pictures in another order, so that each slide is
different and none is encoded for itself. The processes share nothing but the disk, like the tasks of a job array.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import struct
import subprocess
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attributegan.commands import child
from tools.benchmarks.data import cpu_seconds
from tools.options import add_command, with_settings

if TYPE_CHECKING:  # these import slowly
    from PIL import Image

    from tools.benchmarks.harness import Result

COLUMNS, ROWS = 5, 4  # of a slide, in pictures
SIZE, SHRINK = 512, 4  # pixels of a picture, and the downsampling of the second level
MPP = 0.5


@dataclass(frozen=True)
class ClusterSettings:
    """Options of ``cluster``; ``processes`` is the larger number of processes."""

    repeats: int
    slides: int = 200
    processes: int = 2
    images: Path | None = None


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser) -> None:
    """Add the benchmark to those of ``attributegan-bench``."""
    cluster = add_command(
        commands,
        "cluster",
        "measure cutting slides in tiles/s: several processes that share only the disk, compared with one",
        ["attributegan-bench cluster", "attributegan-bench cluster --slides 1000 --processes 16 --repeats 3"],
        parents=[common],
    )
    cluster.add_argument("--slides", type=int, default=200, metavar="N", help="synthetic slides, of about 2 MB (default: %(default)s)")
    cluster.add_argument("--processes", type=int, default=2, metavar="N", help="processes to compare with one (default: %(default)s)")
    cluster.add_argument("--images", type=Path, metavar="DIR", help="make the slides from images of this folder instead of phantoms")
    cluster.set_defaults(measure=with_settings(_cluster, ClusterSettings))


def _cluster(settings: ClusterSettings) -> Result:
    """Measure ``attributegan-shard tile`` in tiles/s."""
    from tools.benchmarks.harness import Result, interleaved

    if not 2 <= settings.processes <= settings.slides:
        raise ValueError(f"--processes: {settings.processes} is not between 2 and --slides, {settings.slides}")
    with tempfile.TemporaryDirectory() as folder:
        slides = write_slides(Path(folder), settings.slides, settings.images)
        megabytes = sum(slide.stat().st_size for slide in slides) / 1e6
        used: list[float] = []
        contenders = {
            _name(count): partial(_tiles_per_second, slides, count, Path(folder) / "tiles", used) for count in (1, settings.processes)
        }
        values = interleaved(contenders, settings.repeats)
    facts: dict[str, Any] = {
        "slides": len(slides),
        "MB": round(megabytes, 1),
        "tiles": len(slides) * COLUMNS * ROWS,
        "cores": len(os.sched_getaffinity(0)),
    }
    facts |= {"CPU ms per tile, minimum": round(min(used), 1), "note": "the time includes the start of Python"}
    return Result("cluster", "tiles/s", values, [(_name(settings.processes), _name(1))], facts)


def _name(processes: int) -> str:
    return f"{processes} process{'es' * (processes > 1)}"


def _tiles_per_second(slides: list[Path], processes: int, out: Path, used: list[float]) -> float:
    """Cut every n-th slide in each of n processes at once; adds the CPU time per tile in ms to ``used``."""
    options = ["--mpp", str(MPP), "--size", str(SIZE), "--tissue", "0", "--sharpness", "0", "--jpeg", "95", "--workers", "1"]
    before, started = cpu_seconds(), time.perf_counter()
    running = []
    for number in range(processes):
        command = child("shard", "tile", *map(str, slides[number::processes]), "--out", str(out / str(number)), *options)
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        running.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate()[1] for process in running]
    seconds = time.perf_counter() - started
    if failed := [error for process, error in zip(running, errors, strict=True) if process.returncode]:
        raise ValueError(f"attributegan-shard tile failed: {failed[0].strip()}")
    count = sum(1 for _ in out.rglob("*.jpg"))
    used.append(1e3 * (cpu_seconds() - before) / max(1, count))
    shutil.rmtree(out)
    if count != len(slides) * COLUMNS * ROWS:
        raise ValueError(f"attributegan-shard tile cut {count:,} tiles, expected {len(slides) * COLUMNS * ROWS:,}")
    return count / seconds


def write_slides(folder: Path, count: int, images: Path | None = None) -> list[Path]:
    """Write ``count`` slides of `COLUMNS` x `ROWS` pictures of `SIZE` pixels; returns their paths."""
    import numpy as np
    from PIL import Image

    from tools.benchmarks.data import pictures

    rng = np.random.default_rng(0)
    encoded = []
    for picture in pictures(images):
        noise_HWC = rng.normal(0, 6 * (images is None), (SIZE, SIZE, 3))  # as of a camera: a slide then has the size of a real one
        noisy_HWC = np.asarray(picture.convert("RGB").resize((SIZE, SIZE))) + noise_HWC
        noisy = Image.fromarray(noisy_HWC.clip(0, 255).astype(np.uint8))
        encoded.append((_jpeg(noisy, SIZE), _jpeg(noisy, SIZE // SHRINK)))
    slides = []
    for number in range(count):
        slides.append(folder / f"slide-{number:05d}.tif")
        of_slide = [encoded[(number + 7 * place * (1 + number // len(encoded))) % len(encoded)] for place in range(COLUMNS * ROWS)]
        slides[-1].write_bytes(_pyramid({size: [tiles[level] for tiles in of_slide] for level, size in enumerate((SIZE, SIZE // SHRINK))}))
    return slides


def _pyramid(levels: dict[int, list[bytes]]) -> bytes:
    """Returns a TIFF with a directory per level.

    Args:
        levels: JPEGs of `COLUMNS` x `ROWS` tiles by the width and height of a tile in pixels, largest first.
    """
    data, next_directory = bytearray(b"II*\0\0\0\0\0"), 4  # position of the offset of the next directory
    for size, tiles in levels.items():
        starts = []
        for tile in tiles:
            starts.append(len(data))
            data += tile + b"\0" * (len(tile) % 2)
        per_cm = round(1e4 / (MPP * SIZE / size))
        tags = {  # TIFF 6.0: number: (type, values); type 3 is SHORT, 4 LONG, 5 RATIONAL
            254: (4, [int(size < SIZE)]),  # a downsampled level
            256: (4, [COLUMNS * size]),
            257: (4, [ROWS * size]),
            258: (3, [8, 8, 8]),
            259: (3, [7]),  # JPEG
            262: (3, [6]),  # YCbCr
            277: (3, [3]),
            282: (5, [per_cm, 1]),
            283: (5, [per_cm, 1]),
            284: (3, [1]),
            296: (3, [3]),  # pixels per centimetre
            322: (4, [size]),
            323: (4, [size]),
            324: (4, starts),
            325: (4, [len(tile) for tile in tiles]),
            530: (3, [1, 1]),  # chroma is not subsampled
        }
        entries = b""
        for tag, (kind, values) in tags.items():
            packed = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
            if len(packed) > 4:
                packed, where = struct.pack("<I", len(data)), packed
                data += where + b"\0" * (len(where) % 2)
            entries += struct.pack("<HHI", tag, kind, len(values) // 2 if kind == 5 else len(values)) + packed.ljust(4, b"\0")
        data[next_directory : next_directory + 4] = struct.pack("<I", len(data))
        next_directory = len(data) + 2 + len(entries)
        data += struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"
    return bytes(data)


def _jpeg(picture: Image.Image, size: int) -> bytes:
    buffer = io.BytesIO()
    picture.resize((size, size)).save(buffer, "JPEG", quality=90, subsampling=0)
    return buffer.getvalue()
