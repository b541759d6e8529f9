"""``attributegan-submit evaluate``: a task for each run, and a page that compares them."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attributegan.checkpoint.store import resolve
from attributegan.utils.files import atomic_write
from data_shards.storage.stores import redact
from tools.arrays import state
from tools.arrays.workload import Merged
from tools.evaluation import compare
from tools.evaluation.options import EvaluationSettings, add_common
from tools.evaluation.run import RESULT, evaluate, names_of
from tools.evaluation.tiles import is_tiles
from tools.options import settings_of

PAGE = "comparison.html"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the options of ``attributegan-evaluate report``, with any number of models."""
    parser = argparse.ArgumentParser(prog="attributegan-submit evaluate", allow_abbrev=False)
    parser.add_argument("models", metavar="RUN|CHECKPOINT|TILES", nargs="+")
    parser.add_argument("--out", metavar="DIR", required=True, type=Path)
    add_common(parser)
    return parser.parse_args(arguments)


class EvaluateWorkload:
    """Writes a report on each model to its own folder; the merge compares them on a page."""

    def __init__(self, settings: EvaluationSettings, models: Sequence[str]) -> None:
        self.settings, self.models, self.out = settings, list(models), settings.out
        self.evaluated = state.folder_of(settings.out) / "evaluated"  # what each report is of, to evaluate it once

    def decided(self) -> dict[str, Any]:
        return {}

    def tasks(self, jobs: int) -> list[str]:
        for model in self.models:
            is_tiles(model) or resolve(model)
        return self._names()

    def _names(self) -> list[str]:
        """Returns the names of the report folders."""
        return [name.strip("/").replace("/", "_").replace(" at ", "-").replace(",", "") for name in names_of(self.models)]

    def prepare(self, folder: Path) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        self.evaluated.mkdir(parents=True, exist_ok=True)

    def run(self, task: str) -> None:
        model = self.models[self._names().index(task)]
        settings = dataclasses.replace(self.settings, model=model, out=self.out / task)
        identity = f"{dataclasses.replace(settings, shards=redact(settings.shards))} {model if is_tiles(model) else resolve(model)}"
        stamp = self.evaluated / task
        if (settings.out / RESULT).exists() and stamp.exists() and stamp.read_text() == identity:
            return
        evaluate(settings)
        with atomic_write(stamp) as stream:
            stream.write(identity.encode())

    def merge(self, done: Sequence[str], failed: Sequence[str]) -> Merged:
        reports = [self.out / name for name in done if (self.out / name / RESULT).exists()]
        if reports:
            compare.compare(reports, self.out / PAGE)
        return Merged([*map(str, reports), str(self.out / PAGE)])


def workload(options: argparse.Namespace) -> EvaluateWorkload:
    """Returns the workload of parsed options."""
    return EvaluateWorkload(settings_of(EvaluationSettings, options, model=options.models[0]), options.models)
