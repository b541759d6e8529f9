"""The status of a run, for people and for the commands that list runs: what it does, where, how far it is, why it ended.

Owns ``status.json`` in the run folder, which is always whole. One writer at a time: the submission, then the main process of the
training, then what comes after the job. Who may work on a run folder at all is in lock.py.
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
    state: State = "queued"
    images: int = 0
    total: int = 0  # images of the whole run
    images_per_second: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)  # of the last line of metrics
    nodes: str = ""  # as Slurm writes them: node[1-4]
    processes: int = 0
    host: str = ""  # of the main process
    pid: int = 0
    job: str = ""  # Slurm's id, 45 or 45_3; empty outside of Slurm
    requeues: int = 0
    shards: str = ""  # fingerprint of the shard set
    updated_at: float = 0.0  # seconds since 1970, of this word
    error: str = ""


def read(folder: Path) -> Status | None:
    """The status in a run folder; None when there is none to read."""
    try:
        tree = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if "told" in tree:  # the name of earlier versions, read in this one
            tree.setdefault("updated_at", tree["told"])
        known = {f.name for f in dataclasses.fields(Status)}
        return Status(**{key: value for key, value in tree.items() if key in known})
    except (OSError, ValueError, AttributeError):
        return None


def update(folder: Path, **changes: Any) -> None:
    """Write the status in ``folder`` anew, with ``changes`` and the time."""
    status = dataclasses.replace(read(folder) or Status(), updated_at=time.time(), **changes)
    with atomic_write(folder / FILE, fsync=False, shared=True) as stream:
        stream.write((json.dumps(dataclasses.asdict(status), indent=1) + "\n").encode())


def restore(folder: Path, before: Status | None) -> None:
    """Undo updates for something that did not come about."""
    if before is None:
        (folder / FILE).unlink(missing_ok=True)
    else:
        update(folder, **{name: value for name, value in dataclasses.asdict(before).items() if name != "updated_at"})


def process_location() -> dict[str, Any]:
    """Where this process runs, as fields of `Status`."""
    host = socket.gethostname()
    nodes = os.environ.get("SLURM_JOB_NODELIST", host)
    return {"host": host, "nodes": nodes, "pid": os.getpid(), "job": slurm_job(), "requeues": slurm_restarts()}


def slurm_job() -> str:
    """Slurm's id of the job that this process belongs to; "" outside of Slurm."""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID", "")


def slurm_restarts() -> int:
    """How often Slurm has started the job of this process again."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))
