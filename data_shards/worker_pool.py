"""Runs jobs in worker processes: results in order, progress in tiles, no process outlives its parent."""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import shutil
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import suppress
from itertools import islice
from typing import Any, TypeVar

from attributegan.cli import STOP_SIGNALS

# A forked worker starts in milliseconds and shares the parent's memory. Other systems have no safe fork.
START_METHOD = "fork" if sys.platform == "linux" else "spawn"

Job = TypeVar("Job")
Result = TypeVar("Result")
Progress = Callable[[int], None]  # tiles done

_counter: Any = None  # of tiles, shared by all workers; a worker gets it when it starts


def count_tiles(tiles: int) -> None:
    """Add to the count of finished tiles; called by jobs."""
    with _counter.get_lock():
        _counter.value += tiles


def run(work: Callable[[Job], Result], jobs: Iterable[Job], workers: int, progress: Progress) -> Iterator[Result]:
    """Run ``work`` on every job and yield the results in the order of the jobs.

    Jobs are taken from the iterable as workers become free, so it may be long. An exception in a job or in the caller ends all workers.

    Args:
        workers: number of processes; 1 runs the jobs in the current process.
    """
    global _counter
    context = multiprocessing.get_context(START_METHOD)
    _counter = counter = context.Value("q", 0)
    if workers == 1:
        for job in jobs:
            yield work(job)
            progress(counter.value)
        return
    pending = iter(jobs)
    with ProcessPoolExecutor(workers, context, _start, (counter,)) as pool:
        try:
            running: deque[Future[Result]] = deque(pool.submit(work, job) for job in islice(pending, 2 * workers))
            while running:
                wait([running[0]], timeout=0.5)
                progress(counter.value)
                if running[0].done():
                    yield running.popleft().result()
                    running.extend(pool.submit(work, job) for job in islice(pending, 1))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def available() -> int:
    """Returns the number of CPU cores that this process may use."""
    with suppress(AttributeError):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _start(counter: Any) -> None:
    global _counter
    _counter = counter
    for number in STOP_SIGNALS:  # handlers of the parent are inherited; it stops its workers with SIGTERM
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """Make this worker exit when its parent has died, even by SIGKILL, and remove multiprocessing's temporary folder."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        folder = multiprocessing.util.get_temp_dir()
        for _ in range(100):  # this worker's main thread may still add files
            shutil.rmtree(folder, ignore_errors=True)
            if not os.path.exists(folder):
                break
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
