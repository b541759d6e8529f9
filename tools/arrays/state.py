"""The state of an array on disk: its command, its tasks, and what became of each.

Owns ``array.json`` and ``jobs/NNNN/tasks.jsonl`` in the folder of the array, ``OUT.array``. A job appends only to its own file, so that
no file has two writers. The report is written last, by the job that merges.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from attributegan.utils.files import atomic_write

FILE, REPORT, JOBS, TASKS = "array.json", "report.txt", "jobs", "tasks.jsonl"
State = Literal["started", "stopped", "error", "done", "bad", "failed"]
FINAL = ("done", "bad", "failed")  # bad: invalid input; failed: given up after errors


@dataclass(frozen=True)
class Array:
    """The content of ``array.json``.

    Args:
        arguments: of the command, without those of ``attributegan-submit``.
        overrides: options that were decided when the array was submitted, such as the checkpoint.
        folder: working directory of the command.
        jobs: number of jobs among which the tasks are divided.
    """

    command: str
    arguments: list[str]
    overrides: dict[str, Any]
    folder: str
    tasks: list[str]
    jobs: int

    def share(self, job: int) -> list[str]:
        """Returns the tasks of a job."""
        return self.tasks[job :: self.jobs]

    def save(self, folder: Path) -> None:
        """Write the file, readable by its owner only, since URLs of shards may contain secrets."""
        with atomic_write(folder / FILE) as stream:
            os.fchmod(stream.fileno(), 0o600)
            stream.write((json.dumps(dataclasses.asdict(self), indent=1) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> Array:
        """Read the file of an array's folder."""
        return cls(**json.loads((folder / FILE).read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Record:
    """A change of a task's state: a line of ``tasks.jsonl``."""

    task: str
    state: State
    seconds: float = 0.0  # that a finished task took
    error: str = ""

    @property
    def is_final(self) -> bool:
        return self.state in FINAL


def folder_of(out: Path) -> Path:
    """Returns the folder of the array that writes ``out``."""
    return out.absolute().with_name(f"{out.absolute().name}.array")


def job_folder(folder: Path, job: int) -> Path:
    """Returns the folder of a job, with its status and its records."""
    return folder / JOBS / f"{job:04d}"


def append(job: Path, record: Record) -> None:
    """Append a record to the file of a job."""
    line = json.dumps(dataclasses.asdict(record)).encode() + b"\n"
    with (job / TASKS).open("ab+") as stream:
        size = stream.seek(0, os.SEEK_END)
        if size:  # the last line of a killed process may be incomplete
            stream.seek(size - 1)
            line = line if stream.read(1) == b"\n" else b"\n" + line
        stream.write(line)


def records(job: Path) -> dict[str, Record]:
    """Returns the last record of each task of a job, in the order in which the tasks were started."""
    found: dict[str, Record] = {}
    try:
        lines = (job / TASKS).read_bytes().splitlines()
    except FileNotFoundError:
        return found
    for line in lines:
        try:
            record = Record(**json.loads(line))
        except (ValueError, TypeError):  # incomplete, of a killed process
            continue
        found[record.task] = record
    return found


def all_records(folder: Path, array: Array) -> dict[str, Record]:
    """Returns the last record of each task of the array."""
    return {task: record for job in range(array.jobs) for task, record in records(job_folder(folder, job)).items()}


def finished(job: Path) -> int:
    """Returns how many tasks of a job are finished; 0 for a folder that is not that of a job."""
    return sum(record.is_final for record in records(job).values())


def give_up(job: Path, error: str) -> bool:
    """Record the tasks of a job that were started or had errors as failed; returns whether there were any."""
    tasks = [record for record in records(job).values() if record.state in ("started", "error")]
    for record in tasks:
        append(job, Record(record.task, "failed", error=record.error or error))
    return bool(tasks)


@dataclass(frozen=True)
class Progress:
    """How far an array is."""

    total: int
    done: int
    problems: dict[str, str] = field(default_factory=dict)  # errors of finished tasks, by task
    mean_s: float = 0.0  # of a finished task

    @property
    def remaining(self) -> int:
        return self.total - self.done

    def seconds_left(self, running: int) -> float | None:
        """Returns the estimated time to the end with so many running jobs; None if it is not known."""
        return self.remaining * self.mean_s / running if self.done and running else None


def progress(array: Array, found: Sequence[Record]) -> Progress:
    """Returns the progress of an array from the records of its tasks."""
    final = [record for record in found if record.is_final]
    seconds = [record.seconds for record in final if record.state == "done"]
    problems = {record.task: record.error for record in final if record.state != "done"}
    return Progress(len(array.tasks), len(final), problems, sum(seconds) / len(seconds) if seconds else 0.0)


def write_report(folder: Path, lines: Sequence[str]) -> None:
    """Write the report; its presence means that the array has ended."""
    with atomic_write(folder / REPORT, shared=True) as stream:
        stream.write(("\n".join(lines) + "\n").encode())


def seconds_since(began: float) -> float:
    """Returns the seconds since ``began`` (`time.monotonic`), rounded for a record."""
    return round(time.monotonic() - began, 3)
