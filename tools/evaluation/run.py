"""Runs an evaluation: loads checkpoints and shards, computes the scores, writes the report."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # slow to import; --help must be fast
    import numpy as np

    from attributegan.checkpoint.loading import Loaded
    from attributegan.distributed.process_group import Processes
    from attributegan.evaluation.reference import ReferenceSet
    from attributegan.evaluation.scores import Row
    from tools.evaluation.tiles import TileSource
from tools.evaluation.options import EvaluationSettings
from tools.options import resolve_precision
from tools.progress import StageProgress

RESULT, PAGE = "result.json", "report.html"


def evaluate(settings: EvaluationSettings) -> dict[str, Any] | None:
    """Evaluate and write the report; every process of a launch calls this.

    Returns:
        The contents of result.json on the main process, None on others.

    Raises:
        ValueError: a model, tile set, shard set or feature network that can't be used, or that don't fit each other.
    """
    from attributegan.checkpoint.loading import load_for_sampling
    from attributegan.distributed.process_group import Processes
    from attributegan.evaluation.reference import FeatureCache
    from attributegan.utils.files import require_writable
    from data_shards.storage.cache import Cache
    from tools.evaluation.tiles import is_tiles, open_tiles
    from tools.two_afc import results

    reader_study = results.read(settings.reader_study) if settings.reader_study else None
    require_writable(settings.out, "--out")
    require_writable(FeatureCache.at(settings.cache).folder, "--cache")
    paths = [settings.model, *settings.baseline]
    cache = Cache.of(settings.shards_cache, settings.shards_cache_gb)
    subjects: dict[str, Loaded | TileSource] = {
        name: open_tiles(path, cache) if is_tiles(path) else load_for_sampling(path, ema=not settings.no_ema)
        for name, path in zip(names_of(paths), paths, strict=True)
    }
    processes = Processes()
    try:
        return Evaluation(settings, subjects, processes, reader_study).run()
    finally:
        processes.shutdown()


def names_of(paths: Sequence[str | Path]) -> list[str]:
    """Return the display names of models: the run folder, with the number of images for a checkpoint; the full path if names clash.

    Raises:
        ValueError: the same model twice.
    """
    resolved = [Path(path).resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        raise ValueError("--baseline: the same model is given twice")
    short = [_name(path) for path in resolved]
    return [name if short.count(name) == 1 else str(path) for name, path in zip(short, resolved, strict=True)]


def _name(path: Path) -> str:
    if not path.name.startswith("images-"):
        return _folder_name(path)
    run = next(folder for folder in path.parents if folder.name not in ("checkpoints", "evaluation", ".held"))
    return f"{_folder_name(run)} at {int(path.name.removeprefix('images-')):,}"


def _folder_name(path: Path) -> str:
    """Return the name of a folder; for STUDY/seed-K/run of `attributegan-study`, "STUDY, seed K"."""
    if path.name == "run" and path.parent.name.startswith("seed-"):
        return f"{path.parent.parent.name}, {path.parent.name.replace('-', ' ')}"
    return path.name


class Evaluation:
    """An evaluation of one or more models or tile sets against one set of real tiles."""

    def __init__(
        self,
        settings: EvaluationSettings,
        subjects: dict[str, Loaded | TileSource],
        processes: Processes,
        reader_study: dict[str, Any] | None = None,
    ) -> None:
        from attributegan.checkpoint.loading import Loaded
        from attributegan.utils.html_page import require_jinja2
        from tools.evaluation import data, feature_networks

        require_jinja2()  # for the report, written at the end
        self.settings, self.processes, self.subjects, self.reader_study = settings, processes, list(subjects), reader_study
        self.models = {name: subject for name, subject in subjects.items() if isinstance(subject, Loaded)}
        self.sources = {name: subject for name, subject in subjects.items() if not isinstance(subject, Loaded)}
        sizes = {
            name: subject.config.model.image_size if isinstance(subject, Loaded) else subject.image_size
            for name, subject in subjects.items()
        }
        self.size = data.common_size(sizes)
        self.data = data.open_data(settings, self.size)
        for name, loaded in self.models.items():
            data.check_model(name, loaded, self.data)
        self.tiles = {name: source.open(self.data.schema, settings.count, self.size) for name, source in self.sources.items()}
        self.trained_on = {name: feature_networks.trained_on(loaded.config) for name, loaded in self.models.items()}
        self.network = feature_networks.choose(settings.features, self.trained_on, settings.allow_trained_features)
        if processes.is_main and settings.features == feature_networks.AUTO and any(self.trained_on.values()):
            trained = ", ".join(f"{name} was trained on features of {network}" for name, network in self.trained_on.items() if network)
            print(f"features: {self.network}, because {trained}", file=sys.stderr)
        self.features = feature_networks.load(self.network, settings.feature_size).to(processes.device)
        self.precision = processes.broadcast_object(resolve_precision(settings.precision) if processes.is_main else "")
        self.progress = StageProgress(processes.is_main)

    def run(self) -> dict[str, Any] | None:
        """Compute all scores and write the report; returns what `evaluate` returns."""
        from attributegan.evaluation import reference, samples, scores, tile_sets

        settings, processes = self.settings, self.processes
        cache = reference.FeatureCache.at(settings.cache)
        self.features = reference.standardised(self.features, self.data.train, processes, cache, self.progress)
        reference_set = reference.analyze_reference(
            self.data.schema,
            self.data.train,
            self.data.held_out,
            self.features,
            processes,
            cache,
            kind=settings.predictor,
            seed=settings.seed,
            steps=settings.predictor_steps,
            progress=self.progress,
            same_slides=self.data.same_slides,
        )
        plan = samples.make_plan(reference_set, self.data.schema, processes, settings.count, settings.sweeps, settings.seed)
        equal = min(len(self.data.train), len(self.data.held_out), settings.count, *map(len, self.tiles.values()))
        rows = [scores.real_data_row(reference_set, equal, self.data.measure_held_out)] if reference_set else []
        generated: dict[str, np.ndarray] = {}
        for name in self.subjects:
            if name in self.tiles:
                features_ND = reference.features_of(self.tiles[name], name, self.features, processes, cache, self.progress)
                if reference_set and features_ND is not None:
                    tile_set = tile_sets.TileSet(name, self.tiles[name], features_ND)
                    generated[name] = tile_set.tiles.thumbs()
                    rows += tile_sets.rows(reference_set, tile_set, equal, self.data.measure, settings.seed)
                continue
            loaded = self.models[name]
            loaded.generator.to(processes.device)
            tiles = samples.make(
                loaded.generator,
                loaded.config.model.latent_dim,
                plan,
                self.features,
                processes,
                settings.batch,
                partial(self._show_progress, name),
                self.precision,
                self.data.measure if self.data.measured_by else None,
            )
            if reference_set and tiles:
                generated[name] = tiles.tiles
                rows += scores.generator_rows(reference_set, plan, tiles, name, equal, self.data.measure)
        self.progress.close()
        if reference_set is None:
            return None
        summary = self._summary(reference_set, rows, equal)
        self._write(reference_set, rows, generated, summary)
        return summary

    def _show_progress(self, name: str, stage: str, done: int, total: int) -> None:
        self.progress(f"{name}: {stage}", done, total)

    def _summary(self, reference_set: ReferenceSet, rows: Sequence[Row], equal: int) -> dict[str, Any]:
        from attributegan.evaluation import scores
        from attributegan.metrics.features import weights_hash

        settings = self.settings
        return {
            "format": scores.FORMAT,
            "features": self.features.identity,
            "data": {
                "shards": self.data.location,
                "identity": [reference_set.train.identity, reference_set.held_out.identity],
                "splits": [settings.train, settings.held_out],
                "groups_apart": self.data.groups_apart,
                **scores.data_notes(reference_set),
            },
            "settings": {
                "count": settings.count,
                "sweeps": settings.sweeps,
                "most": settings.max_real,
                "seed": settings.seed,
                "raw": settings.no_ema,
                "assessable_only": settings.assessable_only,
                "equal": equal,
            },
            "precision": self.precision,
            **({"trained_on_features": trained} if (trained := self._trained_on_features()) else {}),
            **({"measured_by": self.data.measured_by} if self.data.measured_by else {}),
            "models": {
                name: {"images": loaded.images, "image_size": loaded.config.model.image_size, "identity": weights_hash(loaded.generator)}
                for name, loaded in self.models.items()
            },
            **(
                {
                    "tile_sets": {
                        name: {"location": self.sources[name].location, "tiles": len(tiles), "identity": tiles.identity}
                        for name, tiles in self.tiles.items()
                    }
                }
                if self.tiles
                else {}
            ),
            **({"reader_study": self.reader_study} if self.reader_study else {}),
            "rows": [row.numbers for row in rows],
        }

    def _trained_on_features(self) -> list[str]:
        """Return the models that were trained on the features of the network that scores them."""
        return [name for name, network in self.trained_on.items() if network == self.network]

    def _write(self, reference_set: ReferenceSet, rows: Sequence[Row], generated: dict[str, np.ndarray], summary: dict[str, Any]) -> None:
        """Write the report. result.json is written last: its presence means that the report is complete."""
        from attributegan.utils.files import atomic_write
        from tools.evaluation import figures, report

        out = self.settings.out
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"--out {out}: can't create the folder: {error}") from error
        pictures = figures.draw(self.models, reference_set, rows, generated, [self.settings.model, *self.settings.baseline])
        with atomic_write(out / PAGE) as stream:
            stream.write(report.page(summary, pictures).encode())
        first = self.models.get(self.subjects[0])
        report.write_tensorboard(out / "tensorboard", first.images if first else 0, summary)
        with atomic_write(out / RESULT) as stream:
            stream.write(json.dumps(summary, indent=1, allow_nan=False).encode())
        print(report.as_text(summary))
        print(f"\n{out / PAGE}")
