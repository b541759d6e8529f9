"""The plan of a submission, a JSON file in its folder that the job reads: runs, processes, limits."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

FILE = "plan.json"


@dataclass(frozen=True)
class Run:
    folder: str  # the run folder
    config: str  # path of the resolved configuration


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
