"""``attributegan-submit sample``: a task for each shard of generated tiles."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from attributegan.checkpoint.store import resolve
from attributegan.distributed.process_group import Processes
from attributegan.utils.files import atomic_write, require_writable
from data_shards.format import checksums, index
from data_shards.packing import parts, shard_writer
from tools import sample
from tools.arrays import state
from tools.arrays.workload import Merged, not_merged
from tools.options import resolve_precision, settings_of
from tools.sampling.options import SamplingSettings
from tools.sampling.writer import ShardSetWriter

PRECISION = "precision.txt"  # in the folder of the array


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the options of ``attributegan-sample``."""
    return sample.parse(arguments)


class SampleWorkload:
    """Samples into the shards of a set; the merge publishes it. The first job chooses the precision, if it is "auto"."""

    def __init__(self, settings: SamplingSettings) -> None:
        if not settings.to_shards:
            raise ValueError("--format: an array writes shards; add --format shards")
        if settings.workers > 1:
            raise ValueError(f"--workers {settings.workers}: each job of an array is one process; use more jobs")
        self.settings, self.out = settings, settings.out

    @cached_property
    def writer(self) -> ShardSetWriter:
        """The model, loaded once in a job, and the shards to write."""
        precision = (state.folder_of(self.out) / PRECISION).read_text()
        settings = dataclasses.replace(self.settings, precision=precision)
        loaded = sample.load(settings)
        loaded.generator.to(Processes().device)
        recipe = sample.make_recipe(loaded, settings)
        if settings.filter_copies:
            recipe = dataclasses.replace(recipe, copies=sample.open_copy_filter(loaded, settings, Processes()))
        return ShardSetWriter(recipe, settings.out, settings.count, settings.shard_count, sample.digest_of(settings))

    def decided(self) -> dict[str, Any]:
        return {"model": str(resolve(self.settings.model).resolve())}

    def tasks(self, jobs: int) -> list[str]:
        require_writable(self.out, "--out")
        if not self.settings.overwrite and not state.folder_of(self.out).exists():  # the set of an earlier array may be the same
            parts.check_output(self.out, "", overwrite=False)
        return shard_writer.names(self.settings.count, self.settings.shard_count)

    def prepare(self, folder: Path) -> None:
        precision = folder / PRECISION
        if self.settings.precision != "auto" or not precision.exists():
            with atomic_write(precision) as stream:
                stream.write(resolve_precision(self.settings.precision).encode())
        if not self._is_published():
            self.writer.begin(self.settings.overwrite)

    def run(self, task: str) -> None:
        if not self._is_published():
            self.writer.write(self.writer.names.index(task))

    def merge(self, done: Sequence[str], failed: Sequence[str]) -> Merged:
        if failed:
            raise not_merged(failed, f"--out: {self.out}")
        if not self._is_published():
            self.writer.end()
        images = self.writer.recipe.loaded.images
        lines = [f"{self.settings.count} tiles, a shard set in {self.out} (model after {images:,} images)"]
        if self.settings.filter_copies:
            lines.append(sample.dropped_line(self.settings))
        return Merged(lines)

    def _is_published(self) -> bool:
        """Returns whether the set exists: by an earlier array, or by this one, whose job was killed before it wrote the report."""
        return (self.out / index.FILE).is_file() and checksums.check_index(self.out).source == self.writer.fingerprint


def workload(options: argparse.Namespace) -> SampleWorkload:
    """Returns the workload of parsed options."""
    return SampleWorkload(settings_of(SamplingSettings, options))
