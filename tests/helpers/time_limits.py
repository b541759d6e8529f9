"""Time limits that scale with the machine: `seconds` of a limit that suits the reference machine.

The session measures its machine once, in about a second (`calibrate`), and hands the factor to xdist's workers and to child processes by an
environment variable. The reference is one core of an AMD EPYC (Zen 4, AVX-512) with nothing else to do.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

VARIABLE = "ATTRIBUTEGAN_TEST_TIME_FACTOR"
LARGEST = 10.0  # a test that hangs must end within hours
CONVOLUTIONS, ADDITIONS, STARTS = 8, 3_000_000, 3
REFERENCE_S = {  # CPU seconds there
    "convolution": 0.27,
    "loop": 0.32,
    "start": 0.085,
}


def seconds(limit: float) -> float:
    """``limit``, in seconds on the reference machine, for this one."""
    return limit * factor()


def factor() -> float:
    """How many times longer than on the reference machine a test may take here: 1 to 20, and 1 before the calibration."""
    return float(os.environ.get(VARIABLE, "1"))


def calibrate(workers: int = 1) -> float:
    """Measure this machine, and put the factor into the environment unless it is there.

    Args:
        workers: how many pytest-xdist workers run at once; with more than one, limits double, since they share the cores.
    """
    if VARIABLE not in os.environ:
        slower = max(measured / REFERENCE_S[name] for name, measured in _measure().items())
        os.environ[VARIABLE] = f"{combined(slower, workers):.2f}"
    return factor()


def combined(slower: float, workers: int) -> float:
    """The factor of a machine that is ``slower`` times slower than the reference."""
    return min(max(slower, 1.0), LARGEST) * (2 if workers > 1 else 1)


def _measure() -> dict[str, float]:
    """Seconds by the clock, since other work on the machine counts: a convolution with gradients, a loop of Python, a start of Python."""
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
    torch.set_num_threads(1)  # as in the processes that tests start
    convolutions(1)  # builds the kernels
    measured = {
        "convolution": _clocked(lambda: convolutions(CONVOLUTIONS)),
        "loop": _clocked(additions),
        "start": _clocked(starts),
    }
    torch.set_num_threads(threads)
    return measured


def _clocked(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
