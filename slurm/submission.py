"""The plan of a submission, a JSON file in its folder that the job reads: runs, processes, limits."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

FILE = "plan.json"


@dataclass(frozen=True)
class Run:
    """A training run, or a job of an array."""

    folder: str  # the run folder
    config: str = ""  # path of the resolved configuration
    command: list[str] = field(default_factory=list)  # arguments of Python instead of those of a training


@dataclass(frozen=True)
class Plan:
    processes: int
    max_requeues: int  # consecutive, without a new checkpoint
    environment: dict[str, str]  # of the training processes
    runs: list[Run]  # one per task of the job array; one without an array

    def save(self, submission: Path) -> None:
        (submission / FILE).write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, submission: Path) -> Plan:
        tree = json.loads((submission / FILE).read_text())
        return cls(**{**tree, "runs": [Run(**run) for run in tree["runs"]]})


def new_folder(home: Path) -> Path:
    """Create the folder of the next submission in ``home``."""
    parent = home / "submissions"
    parent.mkdir(parents=True, exist_ok=True)
    submission = parent / f"{1 + max((int(path.name) for path in parent.glob('[0-9]*')), default=0):04d}"
    submission.mkdir()
    return submission
