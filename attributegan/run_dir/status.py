"""The status of a run, for people and for the commands that list runs: state, location, progress, error.

Owns ``status.json`` in the run folder, written atomically. One writer at a time: the submission, then rank 0 of the training, then the
code that runs after the job. Exclusive access to the run folder is in lock.py.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from attributegan.utils.files import atomic_write

FILE = "status.json"
State = Literal["queued", "running", "stopped", "preempted", "failed", "finished"]


@dataclass(frozen=True)
class Status:
    """The content of ``status.json``."""

    state: State = "queued"
    images: int = 0
    total: int = 0  # images of the whole run
    images_per_second: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)  # last logged adversarial loss of each network
    nodes: str = ""  # in Slurm's notation: node[1-4]
    processes: int = 0
    host: str = ""  # of rank 0
    pid: int = 0  # of rank 0
    job: str = ""  # Slurm job id, 45 or 45_3; "" outside Slurm
    requeues: int = 0
    shards: str = ""  # fingerprint of the shard set
    init: dict[str, Any] = field(default_factory=dict)  # origin of the initial weights (train.init): path, sha256, images
    updated_at: float = 0.0  # Unix time of this update
    error: str = ""


def read(folder: Path) -> Status | None:
    """Reads the status of a run folder; returns None if it is missing or unreadable."""
    try:
        tree = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if "told" in tree:  # name of the field in earlier versions
            tree.setdefault("updated_at", tree["told"])
        fields = {f.name for f in dataclasses.fields(Status)}
        return Status(**{key: value for key, value in tree.items() if key in fields})
    except (OSError, ValueError, AttributeError):
        return None


def update(folder: Path, **changes: Any) -> None:
    """Updates the status in ``folder`` with ``changes`` and the current time."""
    status = dataclasses.replace(read(folder) or Status(), updated_at=time.time(), **changes)
    with atomic_write(folder / FILE, fsync=False, shared=True) as stream:
        stream.write((json.dumps(dataclasses.asdict(status), indent=1) + "\n").encode())


def restore(folder: Path, before: Status | None) -> None:
    """Restores the status ``before`` an operation that failed; None removes the file."""
    if before is None:
        (folder / FILE).unlink(missing_ok=True)
    else:
        update(folder, **{name: value for name, value in dataclasses.asdict(before).items() if name != "updated_at"})


def process_location() -> dict[str, Any]:
    """Returns where this process runs, as fields of `Status`."""
    host = socket.gethostname()
    nodes = os.environ.get("SLURM_JOB_NODELIST", host)
    return {"host": host, "nodes": nodes, "pid": os.getpid(), "job": slurm_job(), "requeues": slurm_restarts()}


def slurm_job() -> str:
    """Returns the Slurm job id of this process; "" outside Slurm."""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID", "")


def slurm_restarts() -> int:
    """Returns how often Slurm has restarted the job of this process."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))
