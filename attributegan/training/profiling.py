"""Traces of training steps for TensorBoard's profiler page, by torch.profiler."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

WAIT, WARM_UP = 2, 1  # first steps, which are slower because they allocate and compile


@contextlib.contextmanager
def profile_steps(folder: Path, steps: int) -> Iterator[Callable[[], None]]:
    """Writes a trace of ``steps`` training steps, from the fourth on, to ``folder``; 0 disables it.

    Yields:
        a function to call after every step.
    """
    if not steps:
        yield lambda: None
        return
    from torch.profiler import profile, schedule, tensorboard_trace_handler

    timing = schedule(wait=WAIT, warmup=WARM_UP, active=steps, repeat=1)
    with profile(schedule=timing, on_trace_ready=tensorboard_trace_handler(str(folder)), record_shapes=True) as profiler:
        yield profiler.step
