"""The training loop: steps, logging, grids, checkpoints and stop signals."""

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
from attributegan.run_dir.reporter import MetricLogger
from attributegan.run_dir.trackers import Trackers
from attributegan.sampling import grids, latents
from attributegan.training.profiling import profile_steps
from attributegan.training.trainer import Batch, Trainer

log = logging.getLogger("attributegan")


class StopSignal:
    """Catches stop signals, so that the current step finishes and a checkpoint is saved.

    Repeating SIGINT or SIGTERM after `REPEATS` seconds kills the process. A different second signal does not, since Slurm may send SIGUSR2
    first and SIGTERM while the checkpoint is being written.
    """

    REPEATS = 5.0  # seconds in which one request may arrive twice: from the terminal and through the launcher

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> StopSignal:
        self._before = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        if hasattr(signal, "pthread_sigmask"):  # a launcher may have started this process with these signals blocked
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


def train(trainer: Trainer, open_data: Callable[[int], Generator[Batch, None, None]], stop: StopSignal, trackers: Trackers) -> bool:
    """Trains until ``train.images`` images have been seen or a stop signal arrives.

    Args:
        trainer: the training state, new or resumed.
        open_data: opens an endless iterator over this process's micro-batches, from a number of images seen.
        stop: requests an early stop.
        trackers: receive scalars and grids.

    Returns:
        True if the run is finished, False if it was stopped.
    """
    config, runtime = trainer.config, trainer.runtime
    metrics = MetricLogger(Path(config.run.dir), trainer.images, config.train.images, runtime.is_main, trackers)
    stopped, save_pending = runtime.any_rank(stop.signal != 0), False
    terms: dict[str, Tensor] = {}  # the latest value of each term; a step need not compute all of them

    def due(every: int) -> bool:
        """Returns whether the last step passed a multiple of ``every`` images or was the last one."""
        images = trainer.images
        return images // every > (images - config.train.batch) // every or images >= config.train.images

    traces = Path(config.run.dir) / "tensorboard"
    with (
        closing(open_data(trainer.images)) as data,  # stops the worker processes however the loop ends
        profile_steps(traces, config.run.trace if runtime.is_main else 0) as step_profiled,
    ):
        while trainer.images < config.train.images and not stopped:
            terms |= trainer.step(list(islice(data, config.train.grad_accumulation)))
            images, stopped = trainer.images, runtime.any_rank(stop.signal != 0)
            step_profiled()
            metrics.progress(images)
            if due(config.run.log_every):
                skipped = {f"skipped/{network}": float(count) for network, count in trainer.skipped.items()}
                metrics.scalars(images, runtime.mean(terms) | skipped)
            if due(config.run.grid_every):
                with trainer.ema.whole() as generator:
                    if runtime.is_main:
                        metrics.grid(images, "attributes", _sweep(trainer, generator))
            save_pending = save_pending or due(config.run.save_every)
            is_last = stopped or images >= config.train.images
            # After a skipped step training may be diverging: don't let its weights rotate good checkpoints out.
            if is_last or (save_pending and not trainer.skipped_in_a_row):
                trainer.save()
                save_pending = False
    trainer.wait_for_checkpoint()
    metrics.close()
    return not stopped or trainer.images >= config.train.images


def _sweep(trainer: Trainer, generator: nn.Module) -> np.ndarray:
    """Renders a sweep of every attribute; all grids of a run use the same latents."""
    latents_BL = latents.latents_for(trainer.config.train.seed, range(2), trainer.config.model.latent_dim)
    return grids.sweep_grid(generator, trainer.schema, latents_BL)
