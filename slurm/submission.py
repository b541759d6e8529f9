"""What a submission is to do, as its job reads it: runs, processes, limits. A JSON file in the folder of the submission."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

FILE = "plan.json"


@dataclass(frozen=True)
class Run:
    folder: str  # the run folder
    config: str  # file with all its options


@dataclass(frozen=True)
class Plan:
    processes: int
    max_requeues: int
    environment: dict[str, str]  # of the training processes
    runs: list[Run]  # one for each job of the array; one

    def save(self, submission: Path) -> None:
        (submission / FILE).write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, submission: Path) -> Plan:
        tree = json.loads((submission / FILE).read_text())
        return cls(**{**tree, "runs": [Run(**run) for run in tree["runs"]]})
