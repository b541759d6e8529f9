"""Runs calls that may hang (a collective, an unresponsive disk) with a time limit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
THREAD_NAME = "run_with_timeout"


def run_with_timeout(work: Callable[[], T], seconds: float) -> tuple[T | None, str]:
    """Run ``work`` in a daemon thread and wait at most ``seconds`` for it; it is not cancelled after that.

    Returns:
        the result and "", or None and the error.
    """
    results: list[T] = []
    problems: list[str] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:
            problems.append(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")

    thread = threading.Thread(target=run, name=THREAD_NAME, daemon=True)
    thread.start()
    thread.join(seconds)
    if results:
        return results[0], ""
    return None, problems[0] if problems else f"timed out after {seconds:.0f} s"


def is_stuck() -> bool:
    """Returns whether a timed-out call is still running; its thread could keep the process from exiting."""
    return any(thread.name == THREAD_NAME for thread in threading.enumerate())
