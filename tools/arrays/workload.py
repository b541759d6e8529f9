"""What a command must provide to run as an array, and which commands do."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

COMMANDS = ("tile", "measure", "pack", "sample", "evaluate", "study")


@dataclass(frozen=True)
class Merged:
    """The result of an array: what the command prints, what it left out, and its exit status."""

    lines: Sequence[str]
    left_out: Sequence[str] = field(default=())
    status: int = 0


class Workload(Protocol):
    """A command as tasks that can run in any order, on any machine, and any number of times with the same result."""

    @property
    def out(self) -> Path:
        """The file or folder that the command writes."""

    def decided(self) -> dict[str, Any]:
        """Returns options that all jobs must agree on, such as the checkpoint that is the latest when the array is submitted."""

    def tasks(self, jobs: int) -> list[str]:
        """Returns the names of the tasks.

        Args:
            jobs: number of jobs that will run them.

        Raises:
            ValueError: the options are invalid; nothing has been written.
        """

    def prepare(self, folder: Path) -> None:
        """Do what must be done before the first task; called in every job, in one at a time. ``folder`` is that of the array."""

    def run(self, task: str) -> None:
        """Run a task, unless its result exists.

        Raises:
            ValueError: invalid input, which costs only this task; the message names it.
        """

    def merge(self, done: Sequence[str], failed: Sequence[str]) -> Merged:
        """Publish the results of the tasks that are done; called in one job when no task is left, and again if that job was killed.

        Raises:
            ValueError: nothing can be published.
        """


def load(command: str, arguments: Sequence[str], overrides: Mapping[str, Any]) -> Workload:
    """Parse the arguments of a command.

    Args:
        overrides: options that replace those of the arguments; ``workers`` is a default.

    Raises:
        ValueError: names the option that is wrong.
    """
    module: Any = importlib.import_module(f"tools.arrays.{command}")
    options = module.parse(arguments)
    for name, value in overrides.items():
        if name != "workers" or getattr(options, name, 0) is None:
            setattr(options, name, value)
    make: Callable[[Any], Workload] = module.workload
    return make(options)


def not_merged(failed: Sequence[str], what: str) -> ValueError:
    """Returns the error of a merge that needs all tasks."""
    return ValueError(f"{what}: {len(failed):,} tasks failed, so nothing was written; correct them and run the same command again")
