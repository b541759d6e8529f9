"""``attributegan-submit tile``: a task for each slide."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_shards.ingest import tiling
from tools import shard
from tools.arrays.workload import Merged
from tools.options import settings_of, worker_count
from tools.shards import tile
from tools.shards.tile import TileSettings


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the options of ``attributegan-shard tile``."""
    return shard.parse(["tile", *arguments])


class TileWorkload:
    """Cuts each slide into its own folder; the merge writes the table of all of them."""

    def __init__(self, settings: TileSettings) -> None:
        self.settings, self.out, self.options = settings, settings.out, tile.tiling_options(settings)
        self.slides = {str(path): path for path in tile.find_slides(settings.slides)[0]}

    def decided(self) -> dict[str, Any]:
        return {}

    def tasks(self, jobs: int) -> list[str]:
        if not self.slides:
            raise ValueError("SLIDE: none of the files given is a slide")
        tiling.check_slides(list(self.slides.values()), self.settings.slide_mpp)
        tiling.Tiling(list(self.slides.values()), self.out, self.options, self.settings.slide_mpp)  # checks --out
        return list(self.slides)

    def prepare(self, folder: Path) -> None:
        pass

    def run(self, task: str) -> None:
        with tiling.tiling_of_one(self.slides[task], self.out, self.options, self.settings.slide_mpp) as work:
            bad = work.survey() or work.cut(worker_count(self.settings.workers))[1]
        if bad:
            raise ValueError(bad[0])

    def merge(self, done: Sequence[str], failed: Sequence[str]) -> Merged:
        slides = [self.slides[task] for task in done]
        with tiling.tiling(slides, self.out, self.options, self.settings.slide_mpp) as work:
            if missing := sorted({*slides} - {*work.done}):
                raise ValueError(f"--out: the tiles of {missing[0]} are missing from {self.out}; run the same command again")
            for left in self.out.glob(f"{tiling.TMP_FOLDER}-*"):  # by tasks that were killed and failed
                shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
            count = work.write_table()
            lines = [tile.describe(work.record(slide)) for slide in slides]
        return Merged([*lines, f"{self.out / tiling.TABLE}: {count:,} tiles"])


def workload(options: argparse.Namespace) -> TileWorkload:
    """Returns the workload of parsed options."""
    return TileWorkload(settings_of(TileSettings, options))
