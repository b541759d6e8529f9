"""Exit records: one JSON file per training process of a job, visible to all ranks; finds the rank that failed first.

The files are in ``endings/{job}-{start}`` of the submission. Each process writes its file when it starts, so that a process that died
silently is detected.
"""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attributegan.cli import BAD_INPUT, PERMANENT_ERROR, STOP_SIGNALS
from attributegan.utils.files import atomic_write

FAILED = "failed"  # created by the first process that fails


@dataclass(frozen=True)
class ExitRecord:
    """How a training process ended, or that it has not."""

    rank: int
    processes: int
    host: str
    status: int | None = None  # exit status, or minus the signal number; None while the process runs
    when: int = 0  # nanoseconds, a file time: the clock of the file server is the same for all nodes
    output_tail: str = ""  # traceback, or the last lines on stderr

    @property
    def stopped(self) -> bool:
        """Whether the process stopped on a stop signal."""
        return self.status is not None and (self.status - 128 in STOP_SIGNALS or -self.status in STOP_SIGNALS)

    @property
    def failed(self) -> bool:
        return self.status not in (None, 0) and not self.stopped

    @property
    def is_permanent(self) -> bool:
        """Whether retrying would fail again."""
        return self.status in (BAD_INPUT, PERMANENT_ERROR)

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.processes}, on {self.host}, {self._describe_exit()}" + (
            f":\n{self.output_tail}" if self.output_tail else ""
        )

    def _describe_exit(self) -> str:
        if self.status is None:
            return "died without an exit status: killed together with its parent process, or its node failed"
        if self.status < 0:
            return f"was killed by signal {-self.status} ({signal.Signals(-self.status).name})"
        return f"exited with status {self.status}"


def folder(submission: Path, job: str, start: int) -> Path:
    """Returns the folder of the exit records; ``start`` counts how often Slurm has restarted the job."""
    return submission / "endings" / f"{job}-{start}"


def write(where: Path, record: ExitRecord) -> None:
    """Write ``record`` to its file in ``where``."""
    with atomic_write(where / f"rank-{record.rank:05d}.json", fsync=False) as stream:
        stream.write(json.dumps(dataclasses.asdict(record)).encode())


def read(where: Path) -> list[ExitRecord]:
    """Returns the records in ``where`` by rank, without those of processes that never started."""
    return [ExitRecord(**json.loads(path.read_text())) for path in sorted(where.glob("rank-*.json"))]


def first_failure(records: Sequence[ExitRecord]) -> ExitRecord | None:
    """Returns the record of the process that caused the others to exit: a silent death, else the first that failed."""
    silent = [record for record in records if record.status is None]
    failed = sorted((record for record in records if record.failed), key=lambda record: record.when)
    if failed and silent:  # the failures are of peers that noticed the death
        return silent[0]
    return next(iter(failed or silent), None)
