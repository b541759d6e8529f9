"""Logging of a run: progress lines, scalars and grids for the trackers, and metrics as JSON lines.

Owns train.log, metrics.jsonl and grids/ in the run folder; status.json is in status.py, TensorBoard and other trackers in trackers.py.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image
from tqdm import tqdm

from attributegan.run_dir import status
from attributegan.run_dir.trackers import Trackers
from attributegan.utils.files import WRITING, atomic_write

log = logging.getLogger("attributegan")


def init_logging(folder: Path, is_main: bool) -> None:
    """Sends log lines of rank 0 to stdout and train.log, and warnings of the other ranks to stderr."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout if is_main else sys.stderr)]
    if is_main:
        folder.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(folder / "train.log"))
    for handler in handlers:
        handler.setLevel(logging.INFO if is_main else logging.WARNING)
    logging.getLogger("attributegan").setLevel(logging.INFO)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", handlers=handlers, force=True)


class MetricLogger:
    """Logs metrics, grids and progress on rank 0; on other ranks every call does nothing.

    Args:
        folder: the run folder.
        images: images seen before this start. Older entries are kept; later ones are dropped, since training repeats them.
        total: length of the run in images.
        is_main: whether this is rank 0.
        trackers: receive scalars and grids.
    """

    def __init__(self, folder: Path, images: int, total: int, is_main: bool, trackers: Trackers) -> None:
        self.folder, self.total, self.is_main, self.trackers = folder, total, is_main, trackers
        self.started, self.first = time.monotonic(), images
        self.bar: tqdm[NoReturn] | None = None
        if not is_main:
            return
        for leftover in [*folder.glob(f"{WRITING}*"), *folder.glob(f"grids/{WRITING}*")]:  # of a start that was killed
            leftover.unlink()
        _drop_lines_after(folder / "metrics.jsonl", images)
        self.metrics = (folder / "metrics.jsonl").open("a")
        if sys.stdout.isatty():
            self.bar = tqdm(total=total, initial=images, unit="img", unit_scale=True, dynamic_ncols=True)

    def progress(self, images: int) -> None:
        """Updates the progress bar, if there is one."""
        if self.bar is not None:
            self.bar.update(images - self.bar.n)

    def scalars(self, images: int, values: dict[str, float]) -> None:
        """Writes scalars to the trackers, metrics.jsonl and status.json, and a progress line to the log."""
        if not self.is_main:
            return
        rate = (images - self.first) / max(time.monotonic() - self.started, 1e-9)
        values = values | {"images_per_second": rate}
        self.trackers.scalars(images, values)
        self.metrics.write(json.dumps({"images": images, **values}) + "\n")
        self.metrics.flush()
        status.update(self.folder, images=images, images_per_second=rate, losses=_losses(values))
        left = timedelta(seconds=round((self.total - images) / max(rate, 1e-9)))
        scores = "  ".join(f"{name.split('/')[-1]} {values[name]:.3f}" for name in ("real_score", "fake_score") if name in values)
        line = f"{images:,} of {self.total:,} images ({images / self.total:.0%})  {rate:.1f} img/s  {left} left  {scores}"
        if self.bar is not None:
            self.bar.set_postfix_str(scores)
        else:
            log.info(line)

    def grid(self, images: int, name: str, image_HWC: np.ndarray) -> None:
        """Writes a uint8 image to ``grids/{name}-{images}.png`` and to the trackers."""
        if not self.is_main:
            return
        path = self.folder / "grids" / f"{name}-{images:012d}.png"
        path.parent.mkdir(exist_ok=True)
        with atomic_write(path, fsync=False) as stream:
            Image.fromarray(image_HWC).save(stream, format="PNG")
        self.trackers.image(images, name, image_HWC, path)

    def close(self) -> None:
        """Closes all files."""
        if self.is_main:
            self.metrics.close()
        if self.bar is not None:
            self.bar.close()


def _losses(values: dict[str, float]) -> dict[str, float]:
    """Returns the adversarial loss of each network, summed over its heads."""
    return {
        network: sum(value for name, value in values.items() if name.startswith(f"{network}/adversarial"))
        for network in ("discriminator", "generator")
    }


def _drop_lines_after(path: Path, images: int) -> None:
    """Keeps complete lines up to ``images``: training repeats what a killed run logged after its last checkpoint."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["images"] <= images:
                kept.append(line)
        except (ValueError, KeyError):  # truncated by a kill
            continue
    with atomic_write(path, fsync=False) as stream:
        stream.write("".join(f"{line}\n" for line in kept).encode())
