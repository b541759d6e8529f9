"""How the training processes of a job ended, each in a file of its own that the others can see; and whose error was first.

The files lie in ``endings/{job}-{start}`` of the submission. A file is there from the start of its process on, so that one which
ended without a word is missed.
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

FAILED = "failed"  # made by the first process that fails


@dataclass(frozen=True)
class ExitRecord:
    rank: int
    processes: int
    host: str
    status: int | None = None  # exit status, or minus a signal; None while the process runs
    when: int = 0  # nanoseconds, by the clock of the disk's server: the same for all nodes
    output_tail: str = ""  # traceback, or the last lines on stderr

    @property
    def stopped(self) -> bool:
        """Told to stop by a signal, and did."""
        return self.status is not None and (self.status - 128 in STOP_SIGNALS or -self.status in STOP_SIGNALS)

    @property
    def failed(self) -> bool:
        return self.status not in (None, 0) and not self.stopped

    @property
    def is_permanent(self) -> bool:
        """Whether it would end so again."""
        return self.status in (BAD_INPUT, PERMANENT_ERROR)

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.processes}, on {self.host}, {self._how()}" + (
            f":\n{self.output_tail}" if self.output_tail else ""
        )

    def _how(self) -> str:
        if self.status is None:
            return "is gone without a word: killed with what started it, or its node failed"
        if self.status < 0:
            return f"was killed by signal {-self.status} ({signal.Signals(-self.status).name})"
        return f"ended with status {self.status}"


def folder(submission: Path, job: str, start: int) -> Path:
    return submission / "endings" / f"{job}-{start}"


def write(where: Path, record: ExitRecord) -> None:
    with atomic_write(where / f"rank-{record.rank:05d}.json", fsync=False) as stream:
        stream.write(json.dumps(dataclasses.asdict(record)).encode())


def read(where: Path) -> list[ExitRecord]:
    """In the order of the ranks; those that never started are not there."""
    return [ExitRecord(**json.loads(path.read_text())) for path in sorted(where.glob("rank-*.json"))]


def first_failure(records: Sequence[ExitRecord]) -> ExitRecord | None:
    """The process whose end made the others end: the first that failed, or else one that is gone without a word."""
    gone = [record for record in records if record.status is None]
    failed = sorted((record for record in records if record.failed), key=lambda record: record.when)
    if failed and gone:  # its peers noticed; what they say is that it is gone
        return gone[0]
    return next(iter(failed or gone), None)
