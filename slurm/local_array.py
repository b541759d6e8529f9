"""Runs the jobs of an array on this machine, all at once, and restarts those that fail as Slurm would (requeue.py)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attributegan import commands
from attributegan.cli import BAD_INPUT, STOP_SIGNALS
from attributegan.utils.child import end_with_parent
from data_shards import worker_pool
from slurm import requeue
from slurm.exit_records import ExitRecord
from tools.arrays import state
from tools.arrays.state import Array
from tools.progress import TileProgress

POLL_S, READ_S = 0.2, 2.0  # interval of checking the processes, and of reading the records of all tasks
STOP_S = 60.0  # for the jobs to stop after a signal
TAIL = 15  # lines of a log that an error message has


def run(folder: Path, array: Array, submission: Path) -> int:
    """Run the jobs and print the report; returns the exit status: 0, 1 if jobs failed, 2 if something was left out.

    Raises:
        KeyboardInterrupt: stopped by a signal; the jobs have stopped too.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, worker_pool.available() // array.jobs)))
    running = {job: _start(folder, job, submission) for job in range(array.jobs)}
    codes: dict[int, int] = {}
    read_at = 0.0
    try:
        with _stop_signals(), TileProgress(len(array.tasks), "tasks") as progress:
            while running:
                time.sleep(POLL_S)
                for job, process in list(running.items()):
                    if process.poll() is not None:
                        codes[job] = process.returncode
                        del running[job]
                        if _restarts(folder, submission, job, process.returncode):
                            running[job] = _start(folder, job, submission)
                if not running or time.monotonic() - read_at > READ_S:
                    progress(state.progress(array, list(state.all_records(folder, array).values())).done)
                    read_at = time.monotonic()
    finally:
        _stop(running)
    report = folder / state.REPORT
    if not report.exists():
        print(f"error: jobs failed; see the logs in {submission}", file=sys.stderr)
        return 1
    print(report.read_text(), end="")
    return BAD_INPUT if BAD_INPUT in codes.values() else 0


def _restarts(folder: Path, submission: Path, job: int, code: int) -> bool:
    """Update the status of a job that has exited; returns whether to start it again."""
    if code == BAD_INPUT and (folder / state.REPORT).exists():
        return False
    record = ExitRecord(0, 1, socket.gethostname(), code, time.time_ns(), _tail(submission, job))
    return requeue.conclude(submission, job, [record], max(0, code)) == "requeue"


def _start(folder: Path, job: int, submission: Path) -> subprocess.Popen[bytes]:
    command, variables = commands.module_process("slurm.array", str(folder), str(job))
    with _log(submission, job).open("ab") as log:
        return subprocess.Popen(
            command, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, preexec_fn=end_with_parent
        )


def _log(submission: Path, job: int) -> Path:
    return submission / f"{job}_log.out"


def _tail(submission: Path, job: int) -> str:
    return "\n".join(_log(submission, job).read_text(errors="replace").splitlines()[-TAIL:])


@contextmanager
def _stop_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt on every stop signal, so that the jobs are stopped."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(running: dict[int, subprocess.Popen[bytes]]) -> None:
    """Stop the jobs, as Ctrl-C would."""
    for process in running.values():
        process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + STOP_S
    for process in running.values():
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
