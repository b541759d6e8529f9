"""One task of a job: starts its process, forwards signals, and writes an exit record for the other tasks.

The process is a training process, the same `launch/train.py` that `accelerate launch` starts, or a job of an array (array.py). It is a
subprocess, so that any exit (a signal, a crash in a library) is recorded. The signal handling of submitit is replaced, because its limit on
time-outs would stop long runs. requeue.py requeues the job.
"""

from __future__ import annotations

import collections
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
from attributegan.utils.child import end_with_parent
from launch.notify import SENT
from slurm import exit_records, missed_events, task_env
from slurm.exit_records import ExitRecord
from slurm.submission import Plan, Run

EXIT_S = 3.0  # for the other processes to exit by themselves after one has failed, before SIGKILL
RECORD_S = 6.0  # for the other tasks to write their exit records after a failure


def train(submission: str, index: int) -> int:
    """Run one process of a run; see `slurm.job.TrainJob`."""
    job, plan = JobEnvironment(), Plan.load(Path(submission))
    run, where = plan.runs[index], exit_records.folder(Path(submission), job.job_id, slurm_restarts())
    where.mkdir(parents=True, exist_ok=True)
    me = ExitRecord(job.global_rank, job.num_tasks, socket.gethostname())
    exit_records.write(where, me)
    if me.rank == 0:
        _report_lost_start(Path(submission), index, job.job_id)
    record = _run(job, plan, run, where, me)
    exit_records.write(where, record)
    if record.failed:
        (where / exit_records.FAILED).touch()
        error = str(exit_records.first_failure(_wait_for_others(where, me.processes)))
        if job.cluster == "local" and me.rank == 0:  # no batch script that sets it
            status.update(Path(run.folder), state="failed", error=error)
            if end := missed_events.event_of(exit_records.read(where), 0):
                missed_events.send(Path(submission), index, where, *end)
        raise RuntimeError(error)
    assert record.status is not None
    return record.status


def _report_lost_start(submission: Path, index: int, job: str) -> None:
    """Send the event of the previous start of the job if nothing of it was left to do so."""
    previous = exit_records.folder(submission, job, slurm_restarts() - 1)
    if previous.is_dir():
        missed_events.send(submission, index, previous, "failed", missed_events.LOST)


def _run(job: JobEnvironment, plan: Plan, run: Run, where: Path, me: ExitRecord) -> ExitRecord:
    error_file = where / f"error-{me.rank:05d}.json"
    error_file.unlink(missing_ok=True)
    try:
        process_group = task_env.environment(job, plan.processes)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return _record(me, BAD_INPUT, error_file, f"error: {error}")
    # The network settings of the plan override detected ones. launch/train.py writes errors to TORCHELASTIC_ERROR_FILE.
    variables = (
        os.environ
        | process_group
        | plan.environment
        | {
            "TORCHELASTIC_ERROR_FILE": str(error_file),
            SENT: str(where / missed_events.SENT),
        }
    )
    arguments = run.command or [str(Path(__file__).parent.parent / "launch" / "train.py"), "--config", run.config]
    command = [sys.executable, "-u", *arguments]
    with _signals_blocked(), subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, preexec_fn=end_with_parent) as process:
        assert process.stderr
        output_tail = _StderrTail(process.stderr)
        with _signals_forwarded(process):
            code = _wait(process, where)
        process.stderr = None  # data workers may keep it open
    return _record(me, code, error_file, output_tail.last())


def _record(me: ExitRecord, code: int, error_file: Path, output_tail: str) -> ExitRecord:
    if not error_file.exists():
        error_file.write_text("{}")
    traceback = _traceback(error_file)
    if traceback and code == -signal.SIGKILL:  # by `_wait`, while it was exiting with this error
        code = 1
    return ExitRecord(
        me.rank, me.processes, me.host, code, error_file.stat().st_mtime_ns, (traceback or output_tail).strip() if code else ""
    )


def _traceback(error_file: Path) -> str:
    """Returns the traceback in the error file of torch.distributed.elastic, or ""."""
    try:
        return str(json.loads(error_file.read_text())["message"]["extraInfo"]["py_callstack"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _wait(process: subprocess.Popen[bytes], where: Path) -> int:
    """Returns the exit status of ``process``; kills it `EXIT_S` after another process has failed."""
    failed_at = None
    while True:
        try:
            return process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            if failed_at is None and (where / exit_records.FAILED).exists():
                failed_at = time.monotonic()
            if failed_at is not None and time.monotonic() - failed_at > EXIT_S:
                process.kill()


def _wait_for_others(where: Path, processes: int) -> list[ExitRecord]:
    """Wait up to `RECORD_S` for the exit status of all processes; returns the records."""
    deadline = time.monotonic() + RECORD_S
    while True:
        records = exit_records.read(where)
        if len([record for record in records if record.status is not None]) == processes or time.monotonic() > deadline:
            return records
        time.sleep(0.2)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block stop signals; they stay pending in the child process until it handles them (`attributegan.training.loop.StopSignal`)."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _signals_forwarded(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Forward stop signals to ``process``: Slurm signals both processes, others only this one."""

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
            signal.signal(number, signal.SIG_IGN)  # training has exited


class _StderrTail:
    """Copies the stderr of a process to this one's and keeps the last lines."""

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
        """Returns the last traceback, or the last 15 lines."""
        self._thread.join(timeout=1)
        lines = list(self._lines)
        starts = [k for k, line in enumerate(lines) if line.startswith(("Traceback", "Fatal Python error", "error:"))]
        return "".join(lines[starts[-1] :] if starts else lines[-15:])
