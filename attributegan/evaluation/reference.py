"""The real side of an evaluation: features of both splits, the judge, and which attributes it can judge at all.

What costs time is kept in a cache, by content: the same tiles, features and settings are never computed twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attributegan.attributes import AttributeSchema
from attributegan.distributed.process_group import Processes
from attributegan.metrics import control, predictor
from attributegan.metrics.features import Features, resized
from attributegan.metrics.quality import REPLICATES, Estimate
from attributegan.utils.files import atomic_write, user_cache

MIN_TRAIN, MIN_HELD_OUT = 20, 10  # tiles of a level, below which it is not judged
CROSS_TILES, CROSS_FOLDS = 1_000, 10  # up to so many tiles, training tiles too are read by judges that have not seen their slide
MIN_CLUSTERS = 5  # slides from which on intervals are over slides; fewer say nothing by resampling
CNN_TILES = 1_000  # fewer are too few to train a CNN from scratch
CACHE_FORMAT = 3  # counts up when what is cached would come out otherwise
CHUNK = 32  # tiles that go through the feature network at a time

Progress = Callable[[str, int, int], None]  # what is being done, tiles done, tiles in all


@dataclass(frozen=True)
class Split:
    """Some tiles of a data set."""

    levels_NA: np.ndarray  # int64
    group_N: np.ndarray  # int64, the slide or patient of each tile; every tile its own when none is known
    read: Callable[[np.ndarray], np.ndarray]  # rows -> tiles_NHWC uint8, in the size that the generator makes
    identity: str  # hash of what the tiles are

    def __len__(self) -> int:
        return len(self.levels_NA)

    def thumbs(self) -> np.ndarray:
        """All tiles, in the size that the judge sees."""
        rows = np.arange(len(self))
        return np.concatenate([thumbs(self.read(rows[first : first + CHUNK])) for first in range(0, len(self), CHUNK)])


def thumbs(tiles_NHWC: np.ndarray) -> np.ndarray:
    """uint8 tiles, no larger than what the judge sees."""
    if tiles_NHWC.shape[1] <= predictor.CNN_SIZE:
        return tiles_NHWC
    return resized(tiles_NHWC, predictor.CNN_SIZE).round().byte().permute(0, 2, 3, 1).numpy()


@dataclass(frozen=True)
class AssessedAttribute:
    """Whether an attribute is judged, and on which of its levels; by rule, from the real tiles alone."""

    is_assessed: bool
    why: str  # not; "" when it is judged
    levels: tuple[int, ...]  # with enough tiles
    tiles: dict[int, tuple[int, int]]  # of each assessable level, (training, exam)


@dataclass(frozen=True)
class HeldOutPredictions:
    """What the judge says of real tiles of slides that it has not seen."""

    levels_NA: np.ndarray
    predicted_NA: np.ndarray
    group_N: np.ndarray
    crossed: bool  # training tiles are among them, each read by a judge that was trained without its group

    @property
    def cluster_N(self) -> np.ndarray:
        """What is drawn together in a bootstrap: slides where there are some, else tiles."""
        return self.group_N if len(np.unique(self.group_N)) >= MIN_CLUSTERS else np.arange(len(self.group_N))


@dataclass(frozen=True)
class ReferenceSet:
    """What is known of the real tiles; on the main process."""

    schema: AttributeSchema
    train: Split
    held_out: Split
    train_ND: np.ndarray  # features
    held_out_ND: np.ndarray
    attribute_predictor: predictor.AttributePredictor
    note: dict[str, Any]  # how the judge came about
    thumbs: np.ndarray  # held-out tiles
    held_out_predictions: HeldOutPredictions
    assessments: tuple[AssessedAttribute, ...]  # by attribute
    held_out_scores: dict[str, dict[str, Estimate]]  # of the judge, where two levels have enough tiles

    @property
    def assessed_columns(self) -> list[int]:
        """Columns of the attributes that are judged."""
        return [a for a, assessed in enumerate(self.assessments) if assessed.is_assessed]

    @property
    def predictor_needs_features(self) -> bool:
        return isinstance(self.attribute_predictor, predictor.Head)


@dataclass(frozen=True)
class FeatureCache:
    """Arrays and judges by the content that they were computed from."""

    folder: Path

    @classmethod
    def at(cls, folder: Path | None) -> FeatureCache:
        """In ``folder``, or in the user's own cache folder."""
        return cls(folder or user_cache() / "evaluation")

    def path(self, kind: str, *content: Any) -> Path:
        digest = hashlib.sha256(json.dumps([CACHE_FORMAT, *content], sort_keys=True).encode()).hexdigest()
        return self.folder / f"{kind}-{digest[:24]}"

    def load(self, path: Path) -> np.ndarray | None:
        try:
            return np.load(path.with_suffix(".npy"), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None

    def save(self, path: Path, array: np.ndarray) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(path.with_suffix(".npy"), fsync=False, shared=True) as stream:
            np.save(stream, array, allow_pickle=False)


def analyze_reference(
    schema: AttributeSchema,
    train: Split,
    held_out: Split,
    features: Features,
    processes: Processes,
    cache: FeatureCache,
    *,
    kind: str = "auto",
    seed: int = 0,
    steps: int = predictor.CNN_STEPS,
    progress: Progress = lambda what, done, total: None,
) -> ReferenceSet | None:
    """Features, judge and verdicts of the real tiles; on the main process, None on the others. Every process must call.

    Args:
        kind: of the judge: cnn, features, or auto for the one that reads left-out training groups better.
        steps: of the training of a CNN.
    """
    train_ND, held_out_ND = (
        features_of(split, name, features, processes, cache, progress)
        for split, name in ((train, "training tiles"), (held_out, "held-out tiles"))
    )
    if not processes.is_main:
        return None
    assert train_ND is not None and held_out_ND is not None
    attribute_predictor, note = _fit_predictor(schema, train, train_ND, features, processes, cache, kind, seed, steps, progress)
    small = held_out.thumbs()
    held_out_predictions = _predict_held_out(
        schema,
        train,
        train_ND,
        held_out,
        attribute_predictor.predict(small, held_out_ND),
        attribute_predictor,
        cache,
        features,
        processes,
        progress,
    )
    assessments, scores = [], {}
    for a, name in enumerate(schema.names):
        assessed, found = _assess(schema, a, train.levels_NA[:, a], held_out_predictions)
        assessments.append(assessed)
        if found:
            scores[name] = found
    return ReferenceSet(
        schema, train, held_out, train_ND, held_out_ND, attribute_predictor, note, small, held_out_predictions, tuple(assessments), scores
    )


def features_of(
    split: Split, name: str, features: Features, processes: Processes, cache: FeatureCache, progress: Progress
) -> np.ndarray | None:
    """Features of all tiles, from the cache or into it; on the main process, None on the others. Every process must call."""
    path = cache.path("features", split.identity, features.identity)
    cached = cache.load(path) if processes.is_main else None
    if processes.broadcast_object(cached is not None):
        return cached
    found = processes.map(
        len(split),
        CHUNK,
        lambda chunk: [features(split.read(np.arange(chunk.start, chunk.stop)), processes.device)],
        lambda done: progress(f"features of {name}", done, len(split)),
    )
    if not processes.is_main:
        return None
    cache.save(path, found[0])
    return found[0]


def predictor_cache(
    schema: AttributeSchema,
    train: Split,
    features: Features,
    cache: FeatureCache,
    kind: str = "auto",
    seed: int = 0,
    steps: int = predictor.CNN_STEPS,
) -> predictor.PredictorCache:
    """The place in the cache of the judge that `study` trains with these settings."""
    return predictor.PredictorCache(cache.path("judge", train.identity, features.identity, schema.to_dict(), kind, seed, steps))


def _fit_predictor(
    schema: AttributeSchema,
    train: Split,
    train_ND: np.ndarray,
    features: Features,
    processes: Processes,
    cache: FeatureCache,
    kind: str,
    seed: int,
    steps: int,
    progress: Progress,
) -> tuple[predictor.AttributePredictor, dict[str, Any]]:
    kept = predictor_cache(schema, train, features, cache, kind, seed, steps)
    if found := kept.load(schema):
        return found[0].to(processes.device), found[1]
    small = train.thumbs()
    fold_N = predictor.folds(train.group_N)

    def fit(kind: str, rows_N: np.ndarray, share: str) -> predictor.AttributePredictor:
        if kind == "features":
            return predictor.fit_head(
                small[rows_N], train_ND[rows_N], train.levels_NA[rows_N], train.group_N[rows_N], schema, processes.device
            )
        return predictor.fit_cnn(
            small[rows_N],
            train.levels_NA[rows_N],
            schema,
            seed,
            steps,
            processes.device,
            progress=lambda step: progress(f"judge ({share})", step, steps),
        )

    note: dict[str, Any] = {"asked": kind, "training_tiles": len(train), "tile_size": int(train.read(np.zeros(1, int)).shape[1])}
    if kind == "auto":
        kind = "features"
        if len(train) >= CNN_TILES and len(np.unique(fold_N)) > 1:
            left_N = fold_N == 0  # of the training tiles: which judge is taken must not be decided on the held-out ones
            note["choice"] = {}
            for one in ("features", "cnn"):
                attribute_predictor = fit(one, ~left_N, "to choose one")
                predicted_NA = attribute_predictor.predict(small[left_N], train_ND[left_N])
                note["choice"][one] = predictor.mean_spearman(schema, train.levels_NA[left_N], predicted_NA)
            kind = max(note["choice"], key=note["choice"].__getitem__)
    attribute_predictor = fit(kind, np.ones(len(train), bool), "on all training tiles")
    kept.save(attribute_predictor, note)
    return attribute_predictor, note | {"kind": kind}


def _predict_held_out(
    schema: AttributeSchema,
    train: Split,
    train_ND: np.ndarray,
    held_out: Split,
    predicted_NA: np.ndarray,
    attribute_predictor: predictor.AttributePredictor,
    cache: FeatureCache,
    features: Features,
    processes: Processes,
    progress: Progress,
) -> HeldOutPredictions:
    """Held-out tiles; of small sets, whose held-out slides are few, the training tiles too, crosswise."""
    fold_N = predictor.folds(train.group_N, CROSS_FOLDS)
    if not isinstance(attribute_predictor, predictor.Head) or len(train) + len(held_out) > CROSS_TILES or not fold_N.any():
        return HeldOutPredictions(held_out.levels_NA, predicted_NA, held_out.group_N, crossed=False)
    path = cache.path("exam", train.identity, features.identity, schema.to_dict())
    crossed_NA = cache.load(path)
    if crossed_NA is None:
        small, crossed_NA = train.thumbs(), np.zeros(train.levels_NA.shape)
        for fold in np.unique(fold_N):
            seen_N, rest_N = fold_N != fold, fold_N == fold
            one = predictor.fit_head(
                small[seen_N],
                train_ND[seen_N],
                train.levels_NA[seen_N],
                train.group_N[seen_N],
                schema,
                processes.device,
                float(attribute_predictor.decay),
            )
            crossed_NA[rest_N] = one.predict(small[rest_N], train_ND[rest_N])
            progress("judges without one part of the slides", int(fold) + 1, int(fold_N.max()) + 1)
        cache.save(path, crossed_NA)
    groups = np.concatenate([held_out.group_N, train.group_N + held_out.group_N.max() + 1])
    return HeldOutPredictions(
        np.concatenate([held_out.levels_NA, train.levels_NA]), np.concatenate([predicted_NA, crossed_NA]), groups, crossed=True
    )


def _assess(
    schema: AttributeSchema, a: int, train_N: np.ndarray, held_out_predictions: HeldOutPredictions
) -> tuple[AssessedAttribute, dict[str, Estimate]]:
    attribute, level_N = schema.attributes[a], held_out_predictions.levels_NA[:, a]
    tiles = {level: (int((train_N == level).sum()), int((level_N == level).sum())) for level in attribute.assessable}
    levels = tuple(level for level, (train, asked) in tiles.items() if train >= MIN_TRAIN and asked >= MIN_HELD_OUT)
    if len(levels) < 2:
        few = ", ".join(f"level {level}: {t}/{h}" for level, (t, h) in tiles.items() if level not in levels)
        why = f"too few tiles (training/exam) of all levels but {len(levels)}: {few}; a level needs {MIN_TRAIN}/{MIN_HELD_OUT}"
        return AssessedAttribute(False, why, levels, tiles), {}
    found = control.interval(level_N, held_out_predictions.predicted_NA[:, a], levels, held_out_predictions.cluster_N, REPLICATES)
    order = found["spearman"]
    if not order.low > 0:
        why = f"the judge can't order real tiles of unseen slides by it: Spearman {order.value:.2f}, {order.low:.2f} to {order.high:.2f}"
        return AssessedAttribute(False, why, levels, tiles), found
    return AssessedAttribute(True, "", levels, tiles), found
