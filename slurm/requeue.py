"""Updates the status of the run after its training processes have exited, and requeues the job if needed.

The batch script of a submission calls it after srun (``python -m slurm.requeue SUBMISSION STATUS``), so it survives crashes of the
training processes. A job stopped by a signal is requeued. A failed job is requeued up to ``max_requeues`` consecutive times without a new
checkpoint, unless the error is permanent. A job of an array (array.py) makes progress with every finished task; after too many errors in
a row, its current task is given up, and the job continues with the next. If a node fails, the batch script dies too, and Slurm requeues
the job by itself.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from attributegan.cli import STOP_SIGNALS
from attributegan.run_dir import status
from attributegan.run_dir.checkpoint_dirs import list_checkpoints
from launch.notify import Event
from slurm import exit_records, missed_events
from slurm.exit_records import ExitRecord
from slurm.submission import Plan
from tools.arrays import state as array_state

RETRIES = 5  # of scontrol requeue


def main() -> int:
    for number in STOP_SIGNALS:  # must not be interrupted; exits soon anyway
        signal.signal(number, signal.SIG_IGN)
    submission, srun_status = Path(sys.argv[1]), int(sys.argv[2])
    job, index = status.slurm_job(), int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
    folder = Path(Plan.load(submission).runs[index].folder)
    where = exit_records.folder(submission, job, status.slurm_restarts())
    if (state := job_state(job)) != "running":
        if (now := status.read(folder)) and now.state != "finished":
            status.update(folder, state="queued" if state == "requeued" else "stopped", error="")
            event: tuple[Event, str] = ("failed", missed_events.LOST) if state == "requeued" else ("stopped", "the job was cancelled")
            missed_events.send(submission, index, where, *event)
        return srun_status
    records = exit_records.read(where)
    if not any(record.status is not None for record in records) and srun_status - 128 in STOP_SIGNALS:
        records = [ExitRecord(0, 1, "", srun_status)]  # stopped by a signal before any process started
    decision = conclude(submission, index, records, srun_status)
    if end := missed_events.event_of(records, srun_status):
        missed_events.send(submission, index, where, *end)
    if decision == "requeue" and (error := requeue(job)):
        error = f"{error}; submit the run again"
        print(f"error: {error}", file=sys.stderr)
        status.update(folder, state="failed", error=error)
    first = exit_records.first_failure(records)
    return (first.status if first and first.status and first.status > 0 else 0) or srun_status


def conclude(submission: Path, index: int, records: Sequence[ExitRecord], srun_status: int = 0) -> Literal["requeue", "end"]:
    """Update the status of the run; returns whether to requeue its job."""
    plan = Plan.load(submission)
    folder = Path(plan.runs[index].folder)
    first = exit_records.first_failure(records)
    if first is None and not srun_status and all(record.status == 0 for record in records):
        return "end"
    if first is None and any(record.stopped for record in records):
        now = status.read(folder)
        if now and now.state in ("stopped", "finished"):
            return "end"
        status.update(folder, state="queued")
        return "requeue"
    error = (
        str(first) if first else f"srun exited with status {srun_status} before any training process started; see the log in {submission}"
    )
    print(f"error: {error}", file=sys.stderr, flush=True)
    is_permanent = bool(first and first.is_permanent)
    count = _count_consecutive_errors(submission, index, folder)
    if count > plan.max_requeues and not is_permanent and array_state.give_up(folder, error):
        print("giving up the task; requeueing the job for its other tasks", file=sys.stderr, flush=True)
        status.update(folder, state="queued", error=error)
        return "requeue"
    if is_permanent or count > plan.max_requeues:
        status.update(folder, state="failed", error=error)
        return "end"
    progress = "finished task" if plan.runs[index].command else "new checkpoint"
    print(f"requeueing the job, {count} of at most {plan.max_requeues} consecutive times without a {progress}", file=sys.stderr, flush=True)
    status.update(folder, state="queued", error=error)
    return "requeue"


def _count_consecutive_errors(submission: Path, index: int, folder: Path) -> int:
    """Count this error; returns the number of consecutive errors, which restarts at 1 after progress: a checkpoint or a finished task."""
    newest = max((path.name for path in list_checkpoints(folder)), default="") or str(array_state.finished(folder) or "")
    path = submission / f"errors-{index}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    count = before["count"] + 1 if before.get("newest") == newest else 1
    path.write_text(json.dumps({"count": count, "newest": newest}))
    return count


def job_state(job: str) -> Literal["running", "requeued", "cancelled"]:
    """Returns what Slurm or a user has done with the job already; "running" if it is still to be decided."""
    result = _scontrol("show", "job", "-o", job)
    fields = dict(re.findall(r"(JobState|Restarts)=(\S+)", result.stdout))
    if fields.get("JobState", "RUNNING") == "RUNNING":
        return "running"
    return "requeued" if int(fields.get("Restarts", "0")) > status.slurm_restarts() else "cancelled"


def requeue(job: str) -> str:
    """Requeue the job, with retries and exponential backoff; returns the error, or ""."""
    for wait_s in [2.0**k for k in range(RETRIES)]:
        result = _scontrol("requeue", job)
        if result.returncode == 0:
            return ""
        time.sleep(wait_s)
    return f"scontrol requeue {job} failed: {result.stderr.strip()}"


def _scontrol(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(arguments, 1, "", str(error))


if __name__ == "__main__":
    sys.exit(main())
