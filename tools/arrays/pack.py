"""``attributegan-submit pack``: a task for each part of the shards, as ``attributegan-shard pack --part``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from data_shards.packing import packer, parts
from data_shards.packing.labels import Labels
from data_shards.packing.parts import Part, PlanFile
from data_shards.packing.plan import Options
from data_shards.packing.sources import Source
from tools import shard
from tools.arrays.workload import Merged, not_merged
from tools.options import settings_of, worker_count
from tools.shards.pack import PackSettings, pack_input, pack_options
from tools.shards.written import summary_lines


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the options of ``attributegan-shard pack``."""
    return shard.parse(["pack", *arguments])


class PackWorkload:
    """Packs parts of a shard set; the merge publishes the set."""

    def __init__(self, settings: PackSettings) -> None:
        if settings.part != PackSettings.part:
            raise ValueError("--part: an array packs all parts; remove the option")
        self.settings, self.out = settings, settings.out

    @cached_property
    def input(self) -> tuple[Labels, Source]:
        """The labels and the source of the tiles; the table is read once in a job."""
        return pack_input(self.settings)

    @cached_property
    def options(self) -> Options:
        return pack_options(self.settings)

    def decided(self) -> dict[str, Any]:
        return {}

    def tasks(self, jobs: int) -> list[str]:
        assert self.options and self.input  # raises for invalid options and tables
        before = PlanFile.read(parts.parts_folder(self.out))
        count = before.parts if before else jobs  # parts of an earlier submission are kept
        return [str(Part(number, count)) for number in range(1, count + 1)]

    def prepare(self, folder: Path) -> None:
        pass

    def run(self, task: str) -> None:
        labels, source = self.input
        packer.pack(
            labels,
            source,
            self.out,
            self.options,
            part=Part.parse(task),
            processes=worker_count(self.settings.workers),
            skip_bad=self.settings.skip_bad,
            overwrite=self.settings.overwrite,
        )

    def merge(self, done: Sequence[str], failed: Sequence[str]) -> Merged:
        if failed:
            raise not_merged(failed, f"--out: {self.out}")
        header = parts.merge(self.out, self.settings.overwrite)
        return Merged(summary_lines(self.out, header), header.left_out)


def workload(options: argparse.Namespace) -> PackWorkload:
    """Returns the workload of parsed options."""
    return PackWorkload(settings_of(PackSettings, options))
