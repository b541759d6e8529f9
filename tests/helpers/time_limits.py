"""Time limits that scale with the machine: `seconds` converts a limit of the reference machine.

The pytest session measures the machine once, in about a second (`calibrate`), and passes the factor to xdist workers and child processes in
an environment variable. The reference is one core of an idle AMD EPYC (Zen 4, AVX-512).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

VARIABLE = "ATTRIBUTEGAN_TEST_TIME_FACTOR"
LARGEST = 10.0  # so that a test that hangs ends within hours
CONVOLUTIONS, ADDITIONS, STARTS = 8, 3_000_000, 3
REFERENCE_S = {  # CPU seconds on the reference machine
    "convolution": 0.27,
    "loop": 0.32,
    "start": 0.085,
}


def seconds(limit: float) -> float:
    """Returns the limit for this machine, given that of the reference machine in seconds."""
    return limit * factor()


def factor() -> float:
    """Returns how many times longer than on the reference machine a test may take: 1 to 20; 1 before the calibration."""
    return float(os.environ.get(VARIABLE, "1"))


def calibrate(workers: int = 1) -> float:
    """Measure this machine and set the factor in the environment, unless it is set.

    Args:
        workers: number of pytest-xdist workers; with more than one, limits double, because they share the cores.
    """
    if VARIABLE not in os.environ:
        slower = max(measured / REFERENCE_S[name] for name, measured in _measure().items())
        os.environ[VARIABLE] = f"{combined(slower, workers):.2f}"
    return factor()


def combined(slower: float, workers: int) -> float:
    """Returns the factor of a machine ``slower`` times slower than the reference."""
    return min(max(slower, 1.0), LARGEST) * (2 if workers > 1 else 1)


def _measure() -> dict[str, float]:
    """Measure wall-clock seconds (other work on the machine counts): convolutions with gradients, a Python loop, starts of Python."""
    import torch

    image, weight = (torch.ones(shape, requires_grad=True) for shape in ((8, 32, 64, 64), (32, 32, 3, 3)))

    def convolutions(count: int) -> None:
        for _ in range(count):
            answer = torch.nn.functional.conv2d(image, weight, padding=1)
            torch.autograd.grad(answer, (image, weight), torch.ones_like(answer))

    def additions() -> None:
        total = 0
        for number in range(ADDITIONS):
            total += number * number % 7

    def starts() -> None:
        for _ in range(STARTS):
            subprocess.run([sys.executable, "-c", "pass"], check=True)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes started by tests
    convolutions(1)  # warm-up
    measured = {
        "convolution": _elapsed(lambda: convolutions(CONVOLUTIONS)),
        "loop": _elapsed(additions),
        "start": _elapsed(starts),
    }
    torch.set_num_threads(threads)
    return measured


def _elapsed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
