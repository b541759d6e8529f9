"""``attributegan-submit measure``: a task for each range of tiles."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from data_shards.measure import table
from tools import shard
from tools.arrays import state
from tools.arrays.workload import Merged, not_merged
from tools.options import settings_of, worker_count
from tools.shards import measure
from tools.shards.measure import Inputs, MeasureSettings

TASK_TILES = 2048


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the options of ``attributegan-shard measure``."""
    return shard.parse(["measure", *arguments])


class MeasureWorkload:
    """Measures ranges of tiles, each into its own file of rows; the merge runs the command with all of these rows."""

    def __init__(self, settings: MeasureSettings) -> None:
        self.settings, self.out = settings, settings.out
        self.rows = state.folder_of(settings.out) / "rows"

    @cached_property
    def inputs(self) -> Inputs:
        """The tiles, listed once in a job. An existing table was checked when the array was submitted."""
        return measure.inputs(dataclasses.replace(self.settings, overwrite=True))

    def decided(self) -> dict[str, Any]:
        return {}

    def tasks(self, jobs: int) -> list[str]:
        count = len(measure.inputs(self.settings).source.tiles)
        length = max(1, min(TASK_TILES, -(-count // jobs)))
        return [f"{first}-{min(first + length, count)}" for first in range(0, count, length)]

    def prepare(self, folder: Path) -> None:
        self.rows.mkdir(exist_ok=True)

    def run(self, task: str) -> None:
        first, last = map(int, task.split("-"))
        tiles, workers = table.TileRange(self.inputs.source, first, last), worker_count(self.settings.workers)
        table.measure(tiles, self.inputs.settings, self.rows / f"{task}.jsonl", workers)

    def merge(self, done: Sequence[str], failed: Sequence[str]) -> Merged:
        if failed:
            raise not_merged(failed, f"--out: {self.out}")
        table.join_partials([self.rows / f"{task}.jsonl" for task in done], self.inputs.settings, self.inputs.partial)
        lines, bad = measure.measure_tiles(dataclasses.replace(self.settings, overwrite=True))
        return Merged(lines, bad, status=2 if bad else 0)


def workload(options: argparse.Namespace) -> MeasureWorkload:
    """Returns the workload of parsed options."""
    return MeasureWorkload(settings_of(MeasureSettings, options))
