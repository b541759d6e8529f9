"""One training process of a job: started, told of signals, watched, its end written down where the others see it.

The training runs in a process of its own, the same `launch/train.py` that `accelerate launch` starts, so that whatever ends it (a
signal, a crash in a library) leaves someone who knows. submitit's own handling of signals is replaced: its count of time-outs would give
up on long runs. Who starts the job again is in requeue.py.
"""

from __future__ import annotations

import collections
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from submitit import JobEnvironment

from attributegan.cli import BAD_INPUT, STOP_SIGNALS
from attributegan.run_dir import status
from attributegan.run_dir.status import slurm_restarts
from slurm import exit_records, task_env
from slurm.exit_records import ExitRecord
from slurm.submission import Plan

TOGETHER_S = 3.0  # once one has failed, the others have so long to end by themselves
SPOKEN_S = 6.0  # and so long to write down how they ended


def train(submission: str, index: int) -> int:
    """See `slurm.job.TrainJob`."""
    job, plan = JobEnvironment(), Plan.load(Path(submission))
    run, where = plan.runs[index], exit_records.folder(Path(submission), job.job_id, slurm_restarts())
    where.mkdir(parents=True, exist_ok=True)
    me = ExitRecord(job.global_rank, job.num_tasks, socket.gethostname())
    exit_records.write(where, me)
    record = _train(job, plan, run.config, where, me)
    exit_records.write(where, record)
    if record.failed:
        (where / exit_records.FAILED).touch()
        error = str(exit_records.first_failure(_wait_for_others(where, me.processes)))
        if job.cluster == "local" and me.rank == 0:  # no batch script that would
            status.update(Path(run.folder), state="failed", error=error)
        raise RuntimeError(error)
    assert record.status is not None
    return record.status


def _train(job: JobEnvironment, plan: Plan, config: str, where: Path, me: ExitRecord) -> ExitRecord:
    error_file = where / f"error-{me.rank:05d}.json"
    error_file.unlink(missing_ok=True)
    try:
        met = task_env.environment(job, plan.processes)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return _ended(me, BAD_INPUT, error_file, f"error: {error}")
    # What the plan says of the network wins over what was found out; ``TORCHELASTIC_ERROR_FILE``: see launch/train.py.
    variables = os.environ | met | plan.environment | {"TORCHELASTIC_ERROR_FILE": str(error_file)}
    command = [sys.executable, "-u", str(Path(__file__).parent.parent / "launch" / "train.py"), "--config", config]
    with _held_back(), subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, preexec_fn=_end_with_parent) as process:
        assert process.stderr
        output_tail = _StderrTail(process.stderr)
        with _forwarded(process):
            code = _wait(process, where)
        process.stderr = None  # reading processes may hold it open
    return _ended(me, code, error_file, output_tail.last())


def _ended(me: ExitRecord, code: int, error_file: Path, output_tail: str) -> ExitRecord:
    if not error_file.exists():
        error_file.write_text("{}")
    traceback = _traceback(error_file)
    return ExitRecord(
        me.rank, me.processes, me.host, code, error_file.stat().st_mtime_ns, (traceback or output_tail).strip() if code else ""
    )


def _traceback(error_file: Path) -> str:
    try:
        return str(json.loads(error_file.read_text())["message"]["extraInfo"]["py_callstack"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _wait(process: subprocess.Popen[bytes], where: Path) -> int:
    """The exit status of ``process``; it is killed when another one failed and it does not end by itself."""
    failed_at = None
    while True:
        try:
            return process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            if failed_at is None and (where / exit_records.FAILED).exists():
                failed_at = time.monotonic()
            if failed_at is not None and time.monotonic() - failed_at > TOGETHER_S:
                process.kill()


def _wait_for_others(where: Path, processes: int) -> list[ExitRecord]:
    deadline = time.monotonic() + SPOKEN_S
    while True:
        everyone = exit_records.read(where)
        if len([e for e in everyone if e.status is not None]) == processes or time.monotonic() > deadline:
            return everyone
        time.sleep(0.2)


@contextmanager
def _held_back() -> Iterator[None]:
    """Signals stay pending for the process that is started here, until it is ready for them (`attributegan.training.loop.StopSignal`)."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _forwarded(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Signals to this process go on to ``process``: Slurm tells both, others only this one."""

    def forward(number: int, frame: Any) -> None:
        if process.poll() is None:
            process.send_signal(number)

    for number in STOP_SIGNALS:
        signal.signal(number, forward)
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # from here on there is nothing to stop


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def _end_with_parent() -> None:
    """In the new process: die when this one is killed."""
    if _LIBC:
        _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class _StderrTail:
    """Passes the lines of a process's stderr on and remembers the last ones."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._lines: collections.deque[str] = collections.deque(maxlen=200)
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def _read(self, stream: IO[bytes]) -> None:
        for line in stream:
            sys.stderr.buffer.write(line)
            sys.stderr.flush()
            self._lines.append(line.decode(errors="replace"))

    def last(self) -> str:
        """The last traceback, or the last few lines."""
        self._thread.join(timeout=1)
        lines = list(self._lines)
        starts = [k for k, line in enumerate(lines) if line.startswith(("Traceback", "Fatal Python error", "error:"))]
        return "".join(lines[starts[-1] :] if starts else lines[-15:])
