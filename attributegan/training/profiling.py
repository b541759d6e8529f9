"""Traces of training steps for TensorBoard's profiler page, by torch.profiler."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

WAIT, WARM_UP = 2, 1  # first steps, which build what later ones have


@contextlib.contextmanager
def profile_steps(folder: Path, steps: int) -> Iterator[Callable[[], None]]:
    """What is to be called after every step; a trace of ``steps`` of them, from the fourth on, goes into ``folder``. 0 traces nothing."""
    if not steps:
        yield lambda: None
        return
    from torch.profiler import profile, schedule, tensorboard_trace_handler

    timing = schedule(wait=WAIT, warmup=WARM_UP, active=steps, repeat=1)
    with profile(schedule=timing, on_trace_ready=tensorboard_trace_handler(str(folder)), record_shapes=True) as profiler:
        yield profiler.step
