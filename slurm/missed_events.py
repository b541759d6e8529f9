"""Sends the event of ``run.notify`` that a training process could not send, because it was killed or its node failed.

A training process that ends by itself sends its event and leaves a file in the folder of the exit records (`launch.notify.SENT`). Where
the file is missing, the batch script sends the event (requeue.py), or the next start of the job, if the batch script was killed as well
(task.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attributegan import config
from attributegan.run_dir import status
from launch.notify import Event, Notifier
from slurm import exit_records
from slurm.exit_records import ExitRecord
from slurm.submission import Plan

SENT = "notified"  # in the folder of the exit records
LOST = "the job was requeued by Slurm: its node failed, or scontrol requeue"


def event_of(records: Sequence[ExitRecord], srun_status: int) -> tuple[Event, str] | None:
    """Returns event and message for the end of a start of the job; None if all processes have finished."""
    if first := exit_records.first_failure(records):
        lines = str(first).splitlines()
        return "failed", " ".join(dict.fromkeys([lines[0], lines[-1].strip()]))
    if any(record.stopped for record in records):
        return "stopped", "stopped by a signal"
    return ("failed", f"srun exited with status {srun_status}") if srun_status else None


def send(submission: Path, index: int, where: Path, event: Event, message: str) -> None:
    """Run the command of ``run.notify``, unless an event for this end was sent already.

    Args:
        index: of the run in the submission.
        where: folder of the exit records of this start.
    """
    run, sent = Plan.load(submission).runs[index], where / SENT
    if sent.exists() or not run.config:  # a job of an array has no configuration
        return
    try:
        command = config.load(run.config).run.notify
    except ValueError:  # the training has reported it
        return
    if not command:
        return
    where.mkdir(parents=True, exist_ok=True)
    sent.touch()
    now = status.read(Path(run.folder))
    notifier = Notifier(command, Path(run.folder))
    notifier.send(event, now.images if now else 0, message)
    notifier.close()
