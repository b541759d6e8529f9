"""What comes after the training processes of a job: the run's state, and whether the job starts again.

The batch script of a submission calls it when srun has ended (``python -m slurm.requeue SUBMISSION STATUS``): it outlives whatever
befell the processes. A job that was told to stop starts again; so does one that failed, a bounded number of times in a row without a
new checkpoint, unless the error would come again. A lost node ends the batch script too; then Slurm starts the job again by itself.
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
from slurm import exit_records
from slurm.exit_records import ExitRecord
from slurm.submission import Plan

TRIES = 5  # at reaching Slurm's controller


def main() -> int:
    for number in STOP_SIGNALS:  # this ends soon, and must not end sooner
        signal.signal(number, signal.SIG_IGN)
    submission, srun_status = Path(sys.argv[1]), int(sys.argv[2])
    job, index = status.slurm_job(), int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
    folder = Path(Plan.load(submission).runs[index].folder)
    if (fate := _fate(job)) != "running":
        if (now := status.read(folder)) and now.state != "finished":
            status.update(folder, state="queued" if fate == "requeued" else "stopped", error="")
        return srun_status
    ended = exit_records.read(exit_records.folder(submission, job, status.slurm_restarts()))
    if not any(e.status is not None for e in ended) and srun_status - 128 in STOP_SIGNALS:
        ended = [ExitRecord(0, 1, "", srun_status)]  # told to stop before it could even start
    if conclude(submission, index, ended, srun_status) == "requeue":
        _requeue(job, folder)
    first = exit_records.first_failure(ended)
    return (first.status if first and first.status and first.status > 0 else 0) or srun_status


def conclude(submission: Path, index: int, ended: Sequence[ExitRecord], srun_status: int = 0) -> Literal["requeue", "end"]:
    """Write the run's state and say whether it is to be started again."""
    plan = Plan.load(submission)
    folder = Path(plan.runs[index].folder)
    first = exit_records.first_failure(ended)
    if first is None and not srun_status and all(record.status == 0 for record in ended):
        return "end"
    if first is None and any(record.stopped for record in ended):
        now = status.read(folder)
        if now and now.state in ("stopped", "finished"):
            return "end"
        status.update(folder, state="queued")
        return "requeue"
    error = str(first) if first else f"srun ended with status {srun_status} before any training process began; see the log in {submission}"
    print(f"error: {error}", file=sys.stderr, flush=True)
    count = _errors_in_a_row(submission, index, folder)
    if (first and first.is_permanent) or count > plan.max_requeues:
        status.update(folder, state="failed", error=error)
        return "end"
    print(f"starting again, {count} of at most {plan.max_requeues} times in a row without a new checkpoint", file=sys.stderr, flush=True)
    status.update(folder, state="queued", error=error)
    return "requeue"


def _errors_in_a_row(submission: Path, index: int, folder: Path) -> int:
    """Counts this error; from 1 again when there is a checkpoint that was not there at the last one."""
    newest = max((path.name for path in list_checkpoints(folder)), default="")
    path = submission / f"errors-{index}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    count = before["count"] + 1 if before.get("newest") == newest else 1
    path.write_text(json.dumps({"count": count, "newest": newest}))
    return count


def _fate(job: str) -> Literal["running", "requeued", "cancelled"]:
    """What Slurm or a person has done to the job already; while it runs it is for us to decide."""
    answer = _scontrol("show", "job", "-o", job)
    fields = dict(re.findall(r"(JobState|Restarts)=(\S+)", answer.stdout))
    if fields.get("JobState", "RUNNING") == "RUNNING":
        return "running"
    return "requeued" if int(fields.get("Restarts", "0")) > status.slurm_restarts() else "cancelled"


def _requeue(job: str, folder: Path) -> None:
    for wait_s in [2.0**k for k in range(TRIES)]:
        answer = _scontrol("requeue", job)
        if answer.returncode == 0:
            return
        time.sleep(wait_s)
    error = f"Slurm does not start job {job} again: {answer.stderr.strip()}; submit the run once more"
    print(f"error: {error}", file=sys.stderr)
    status.update(folder, state="failed", error=error)


def _scontrol(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(arguments, 1, "", str(error))


if __name__ == "__main__":
    sys.exit(main())
