"""The exit record of a training process."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from slurm import task
from slurm.exit_records import ExitRecord

TRACEBACK = "Traceback (most recent call last): planted"


@pytest.mark.parametrize(
    ("code", "traceback", "status", "tail"),
    [
        (-signal.SIGKILL, True, 1, TRACEBACK),  # failed, and killed because it took long to exit
        (-signal.SIGKILL, False, -signal.SIGKILL, "last line"),
        (1, True, 1, TRACEBACK),
        (3, False, 3, "last line"),
        (0, False, 0, ""),
    ],
)
def test_record_says_how_a_process_failed(tmp_path: Path, code: int, traceback: bool, status: int, tail: str) -> None:
    file = tmp_path / "error.json"
    if traceback:
        file.write_text(json.dumps({"message": {"extraInfo": {"py_callstack": TRACEBACK}}}))
    record = task._record(ExitRecord(1, 2, "node1"), code, file, "last line\n")
    assert (record.status, record.output_tail, record.rank) == (status, tail, 1)
