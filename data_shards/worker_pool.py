"""Jobs for worker processes: results in order, progress in tiles, and no process that outlives its parent."""

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

# A forked worker starts in milliseconds and shares the parent's memory. Other systems have no safe fork.
START_METHOD = "fork" if sys.platform == "linux" else "spawn"

Job = TypeVar("Job")
Result = TypeVar("Result")
Progress = Callable[[int], None]  # tiles done

_counter: Any = None  # of tiles, shared by all workers; a worker gets it when it starts


def count_tiles(tiles: int) -> None:
    """Called by a job, for every tile or for several."""
    with _counter.get_lock():
        _counter.value += tiles


def run(work: Callable[[Job], Result], jobs: Iterable[Job], workers: int, progress: Progress) -> Iterator[Result]:
    """``work`` on every job, in ``workers`` processes, 1 being this one; results in the order of the jobs.

    Jobs are drawn from the iterable as processes come free, so it may be long. An exception of a job or here ends all processes.
    """
    global _counter
    context = multiprocessing.get_context(START_METHOD)
    _counter = counter = context.Value("q", 0)
    if workers == 1:
        for job in jobs:
            yield work(job)
            progress(counter.value)
        return
    waiting = iter(jobs)
    with ProcessPoolExecutor(workers, context, _start, (counter,)) as pool:
        try:
            running: deque[Future[Result]] = deque(pool.submit(work, job) for job in islice(waiting, 2 * workers))
            while running:
                wait([running[0]], timeout=0.5)
                progress(counter.value)
                if running[0].done():
                    yield running.popleft().result()
                    running.extend(pool.submit(work, job) for job in islice(waiting, 1))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def available() -> int:
    """CPU cores that this process may use."""
    with suppress(AttributeError):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _start(counter: Any) -> None:
    global _counter
    _counter = counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    end_with_parent()


def end_with_parent() -> None:
    """In a new worker: end when the parent is gone, whatever ended it, and remove the temporary folder that multiprocessing made."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        shutil.rmtree(multiprocessing.util.get_temp_dir(), ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
