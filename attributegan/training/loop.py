"""The training loop: one screen."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Generator
from contextlib import closing
from itertools import islice
from pathlib import Path
from types import FrameType

import numpy as np
from torch import Tensor, nn

from attributegan.cli import STOP_SIGNALS
from attributegan.config import Config, dump
from attributegan.run_dir.reporter import Reporter
from attributegan.sampling import grids
from attributegan.training.profiling import traced
from attributegan.training.trainer import Batch, Training

log = logging.getLogger("attributegan")


class Stop:
    """Set by a signal, so that the step at hand ends and a checkpoint is saved.

    A second SIGINT or SIGTERM of the same kind, seconds later, kills; one of another kind does not, since Slurm may send SIGUSR2 first and
    SIGTERM while the checkpoint is being written.
    """

    REPEATS = 5.0  # seconds in which the same wish may arrive twice: from the terminal and through the launcher

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> Stop:
        self._before = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        if hasattr(signal, "pthread_sigmask"):  # a launcher may have started us with the signals held back until now
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.signal:
            self.signal, self.since = number, time.monotonic()
        elif number == self.signal and number in (signal.SIGINT, signal.SIGTERM) and time.monotonic() - self.since > self.REPEATS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


def train(training: Training, open_data: Callable[[int], Generator[Batch, None, None]], stop: Stop) -> bool:
    """Train up to ``train.images``, from wherever ``training`` is.

    Args:
        training: the state, resumed or new.
        open_data: the endless micro-batches of this process from a number of images seen on.
        stop: asks for an early end.

    Returns:
        whether the run reached its end; False when it was stopped.
    """
    config, runtime = training.config, training.runtime
    report = Reporter(Path(config.run.dir), training.images, config.train.images, runtime.is_main)
    stopped, owed = runtime.any(stop.signal != 0), False
    terms: dict[str, Tensor] = {}  # the newest of each: not every step has all

    def due(every: int) -> bool:
        """Whether the last step went past a multiple of ``every`` images, or was the last one."""
        images = training.images
        return images // every > (images - config.train.batch) // every or images >= config.train.images

    traces = Path(config.run.dir) / "tensorboard"
    with (
        closing(open_data(training.images)) as data,  # on every way out: the reading processes end with it
        traced(traces, config.run.trace if runtime.is_main else 0) as stepped,
    ):
        while training.images < config.train.images and not stopped:
            terms |= training.step(list(islice(data, config.train.accumulation)))
            images, stopped = training.images, runtime.any(stop.signal != 0)
            stepped()
            report.progress(images)
            if due(config.run.log_every):
                skipped = {f"skipped/{network}": float(count) for network, count in training.skipped.items()}
                report.scalars(images, runtime.mean(terms) | skipped)
            if due(config.run.grid_every):
                with training.ema.whole() as generator:
                    if runtime.is_main:
                        report.grid(images, "attributes", _sweep(training, generator))
            owed = owed or due(config.run.save_every)
            ending = stopped or images >= config.train.images
            if ending or (owed and not training.skipped_in_a_row):  # weights that may be about to diverge replace no good ones
                training.save()
                owed = False
    training.saved()
    report.close()
    return not stopped or training.images >= config.train.images


def _sweep(training: Training, generator: nn.Module) -> np.ndarray:
    """Every attribute through its levels, each row of one latent; the same latents in every grid of a run."""
    latents_BL = grids.latents_for(training.config.train.seed, range(2), training.config.model.latent_dim)
    return grids.sweep_grid(generator, training.schema, latents_BL)


def write_config(config: Config) -> None:
    """Put the resolved configuration beside the run."""
    folder = Path(config.run.dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(dump(config))
