"""``attributegan-submit study``: a task for each row of the table, a study with one seed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tools import study
from tools.arrays.workload import Merged
from tools.options import settings_of
from tools.study import StudySettings


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the options of ``attributegan-study``."""
    return study.parse(arguments)


class StudyWorkload:
    """Trains and evaluates each row; the merge writes the table of the finished ones."""

    def __init__(self, settings: StudySettings) -> None:
        if settings.table:
            raise ValueError("--table: only writes the table; run attributegan-study for it")
        self.settings, self.out = settings, settings.out

    @cached_property
    def studies(self) -> dict[str, dict[str, Any]]:
        return study.read_suite(self.settings.suite)

    @cached_property
    def scored(self) -> StudySettings:
        """The settings with the feature network that scores the rows."""
        return study.with_features(self.settings, self.studies)

    @cached_property
    def shards(self) -> str:
        """The shard set of the suite; phantoms are made if they do not exist."""
        return study.find_shards(self.settings, self.studies)

    def decided(self) -> dict[str, Any]:
        return {}

    def tasks(self, jobs: int) -> list[str]:
        return [f"{name} {seed}" for name, seed in study.rows(self.settings, self.studies)]

    def prepare(self, folder: Path) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        assert self.shards

    def run(self, task: str) -> None:
        name, seed = task.split(" ")
        if row := study.open_row(self.scored, self.studies, self.shards, name, int(seed)):
            study.train_and_evaluate(row, self.shards, self.scored)

    def merge(self, done: Sequence[str], failed: Sequence[str]) -> Merged:
        study.write_table(self.scored, self.studies)
        return Merged((self.out / "table.md").read_text().splitlines())


def workload(options: argparse.Namespace) -> StudyWorkload:
    """Returns the workload of parsed options."""
    return StudyWorkload(settings_of(StudySettings, options))
