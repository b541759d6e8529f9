"""Work with a time limit, for what may never return: a collective, a disk that does not answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
NAME = "bounded"  # of the threads


def bounded(work: Callable[[], T], seconds: float) -> tuple[T | None, str]:
    """What ``work`` returns, or None and what went wrong; never takes longer than ``seconds``, though ``work`` may go on in its thread."""
    results: list[T] = []
    problems: list[str] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:
            problems.append(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")

    thread = threading.Thread(target=run, name=NAME, daemon=True)
    thread.start()
    thread.join(seconds)
    if results:
        return results[0], ""
    return None, problems[0] if problems else f"nothing came of it in {seconds:.0f} s"


def is_stuck() -> bool:
    """Whether work is going on beyond its limit; it would keep the process from ending."""
    return any(thread.name == NAME for thread in threading.enumerate())
