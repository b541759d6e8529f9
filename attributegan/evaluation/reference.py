"""The real tiles of an evaluation: features of both splits, the attribute predictor, and the attributes that it can assess.

Expensive results are cached by content: nothing is recomputed for the same tiles, features and settings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from attributegan.attributes import AttributeSchema
from attributegan.distributed.process_group import Processes
from attributegan.metrics import control, predictor
from attributegan.metrics.efficientnet import SIZES
from attributegan.metrics.features import Features, resize, spread
from attributegan.metrics.features import load as load_features
from attributegan.metrics.quality import REPLICATES, Estimate
from attributegan.utils.files import atomic_write, user_cache

MIN_TRAIN, MIN_HELD_OUT = 20, 10  # tiles of a level that are needed to assess it
CROSS_TILES, CROSS_FOLDS = 1_000, 10  # sets of at most so many tiles also use cross-validated predictions of training tiles
MIN_CLUSTERS = 5  # slides needed to bootstrap over slides; fewer give no useful interval
CNN_TILES = 1_000  # training tiles needed to train a CNN from scratch
CACHE_FORMAT = 3  # increment when cached values would change
CHUNK = 32  # tiles in one batch of the feature network

Progress = Callable[[str, int, int], None]  # description, tiles done, total


@dataclass(frozen=True)
class Split:
    """A split of a dataset."""

    levels_NA: np.ndarray  # int64
    group_N: np.ndarray  # int64, the slide or patient of each tile; one group per tile if unknown
    read: Callable[[np.ndarray], np.ndarray]  # rows -> tiles_NHWC uint8, of the generator's image size
    identity: str  # hash of the tiles
    slides: tuple[str, ...] = ()  # name of each group, if known

    def __len__(self) -> int:
        return len(self.levels_NA)

    def thumbs(self) -> np.ndarray:
        """Returns all tiles, resized for the predictor."""
        rows = np.arange(len(self))
        return np.concatenate([thumbs(self.read(rows[first : first + CHUNK])) for first in range(0, len(self), CHUNK)])


def thumbs(tiles_NHWC: np.ndarray) -> np.ndarray:
    """Resizes uint8 tiles to at most the predictor's input size, `predictor.CNN_SIZE` pixels."""
    if tiles_NHWC.shape[1] <= predictor.CNN_SIZE:
        return tiles_NHWC
    return resize(tiles_NHWC, predictor.CNN_SIZE).round().byte().permute(0, 2, 3, 1).numpy()


@dataclass(frozen=True)
class AssessedAttribute:
    """Whether an attribute is assessed, and on which levels; decided by rule from the real tiles only."""

    is_assessed: bool
    reason: str  # why it is not assessed; "" if it is
    levels: tuple[int, ...]  # those with enough tiles
    tiles: dict[int, tuple[int, int]]  # of each assessable level: (training, held-out) tiles


@dataclass(frozen=True)
class HeldOutPredictions:
    """Predicted levels of real tiles from slides that the predictor was not trained on."""

    levels_NA: np.ndarray
    predicted_NA: np.ndarray
    group_N: np.ndarray
    crossed: bool  # includes cross-validated predictions of the training tiles

    @property
    def cluster_N(self) -> np.ndarray:
        """The clusters of a bootstrap: slides if there are at least `MIN_CLUSTERS`, else single tiles."""
        return self.group_N if len(np.unique(self.group_N)) >= MIN_CLUSTERS else np.arange(len(self.group_N))


@dataclass(frozen=True)
class ReferenceSet:
    """The analysed real tiles; exists on rank 0 only."""

    schema: AttributeSchema
    train: Split
    held_out: Split
    train_ND: np.ndarray  # features
    held_out_ND: np.ndarray
    attribute_predictor: predictor.AttributePredictor
    note: dict[str, Any]  # how the predictor was trained
    thumbs: np.ndarray  # held-out tiles, resized for the predictor
    held_out_predictions: HeldOutPredictions
    assessments: tuple[AssessedAttribute, ...]  # by attribute
    held_out_scores: dict[str, dict[str, Estimate]]  # of the predictor, for attributes with enough tiles of two levels
    same_slides: Split | None = None  # tiles of training slides that the model was not trained on; groups numbered as those of ``train``
    same_slides_ND: np.ndarray | None = None  # their features

    @property
    def assessed_columns(self) -> list[int]:
        """Columns of the assessed attributes."""
        return [a for a, assessed in enumerate(self.assessments) if assessed.is_assessed]

    @property
    def predictor_needs_features(self) -> bool:
        """Whether the predictor works on features rather than pixels alone."""
        return isinstance(self.attribute_predictor, predictor.Head)


@dataclass(frozen=True)
class FeatureCache:
    """A cache of arrays and predictors, addressed by the content that they were computed from."""

    folder: Path

    @classmethod
    def at(cls, folder: Path | None) -> FeatureCache:
        """Returns the cache in ``folder``; by default in the user's cache folder."""
        return cls(folder or user_cache() / "evaluation")

    def path(self, kind: str, *content: Any) -> Path:
        """Returns the path of an entry, without suffix, from JSON-like content."""
        digest = hashlib.sha256(json.dumps([CACHE_FORMAT, *content], sort_keys=True).encode()).hexdigest()
        return self.folder / f"{kind}-{digest[:24]}"

    def load(self, path: Path) -> np.ndarray | None:
        """Loads an array; returns None if it is missing or unreadable."""
        try:
            found: np.ndarray = np.load(path.with_suffix(".npy"), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return found

    def save(self, path: Path, array: np.ndarray) -> None:
        """Saves an array."""
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
    progress: Progress = lambda description, done, total: None,
    same_slides: Split | None = None,
) -> ReferenceSet | None:
    """Computes features, trains the predictor and decides which attributes are assessed. Every process must call it.

    Args:
        schema: the attributes.
        train: the training split.
        held_out: the held-out split.
        features: the feature extractor.
        processes: of this launch.
        cache: for features and predictors.
        kind: of the predictor: "cnn", "features", or "auto" for the better of the two on left-out training groups.
        seed: of the training of a CNN.
        steps: of the training of a CNN.
        progress: called with a description, tiles done and the total.
        same_slides: tiles of the training slides that the model was not trained on, for the membership test; groups are numbered as
            those of ``train``. None where there are too few.

    Returns:
        the reference set on rank 0; None on other ranks.
    """
    train_ND, held_out_ND = (
        features_of(split, name, features, processes, cache, progress)
        for split, name in ((train, "training tiles"), (held_out, "held-out tiles"))
    )
    same_slides_ND = None
    if same_slides is not None:
        same_slides_ND = features_of(same_slides, "held-out tiles of training slides", features, processes, cache, progress)
    if not processes.is_main:
        return None
    assert train_ND is not None and held_out_ND is not None
    attribute_predictor, note = _fit_predictor(schema, train, train_ND, features, processes, cache, kind, seed, steps, progress)
    thumbs_NHWC = held_out.thumbs()
    held_out_predictions = _predict_held_out(
        schema,
        train,
        train_ND,
        held_out,
        attribute_predictor.predict(thumbs_NHWC, held_out_ND),
        attribute_predictor,
        cache,
        features,
        processes,
        progress,
    )
    assessments, scores = [], {}
    for a, name in enumerate(schema.names):
        assessed, estimates = _assess(schema, a, train.levels_NA[:, a], held_out_predictions)
        assessments.append(assessed)
        if estimates:
            scores[name] = estimates
    return ReferenceSet(
        schema=schema,
        train=train,
        held_out=held_out,
        train_ND=train_ND,
        held_out_ND=held_out_ND,
        attribute_predictor=attribute_predictor,
        note=note,
        thumbs=thumbs_NHWC,
        held_out_predictions=held_out_predictions,
        assessments=tuple(assessments),
        held_out_scores=scores,
        same_slides=same_slides,
        same_slides_ND=same_slides_ND,
    )


def standardised(
    features: Features,
    train: Split,
    processes: Processes,
    cache: FeatureCache,
    progress: Progress = lambda description, done, total: None,
) -> Features:
    """Returns the extractor standardised by the real training tiles if it needs that, else unchanged. Every process must call it."""
    if not features.standardise or features.scaling is not None:
        return features
    train_ND = features_of(train, "training tiles", features.unscaled, processes, cache, progress)
    scaling = processes.broadcast_object(None if train_ND is None else spread(train_ND))
    return replace(features, scaling=scaling, scaled_by=train.identity)


def features_of(
    split: Split, name: str, features: Features, processes: Processes, cache: FeatureCache, progress: Progress
) -> np.ndarray | None:
    """Returns the features of all tiles, cached, on rank 0 and None on other ranks. Every process must call it."""
    unscaled = features.unscaled
    path = cache.path("features", split.identity, unscaled.identity)
    cached = cache.load(path) if processes.is_main else None
    if processes.broadcast_object(cached is not None):
        return None if cached is None else features.scale(cached)
    arrays = processes.map(
        len(split),
        CHUNK,
        lambda chunk: [unscaled(split.read(np.arange(chunk.start, chunk.stop)), processes.device)],
        lambda done: progress(f"features of {name}", done, len(split)),
    )
    if not processes.is_main:
        return None
    cache.save(path, arrays[0])
    return features.scale(arrays[0])


def predictor_cache(
    schema: AttributeSchema,
    train: Split,
    features: Features,
    cache: FeatureCache,
    kind: str = "auto",
    seed: int = 0,
    steps: int = predictor.CNN_STEPS,
) -> predictor.PredictorCache:
    """Returns the cache entry of the predictor that `analyze_reference` trains with these settings."""
    return predictor.PredictorCache(cache.path("judge", train.identity, features.identity, schema.to_dict(), kind, seed, steps))


def predictor_network(attribute_predictor: predictor.AttributePredictor, note: dict[str, Any], folder: Path) -> Features | None:
    """Returns the feature network that a stored predictor was trained on; None for a predictor of pixels.

    Args:
        note: the note saved with the predictor, by `PredictorCache.load`.
        folder: folder of the predictor, for messages.

    Raises:
        ValueError: the network is not recorded, is not an EfficientNet (others may run code that the note names), or has changed.
    """
    if not isinstance(attribute_predictor, predictor.Head):
        return None
    identity = note.get("features")
    if not isinstance(identity, dict) or not {"name", "version", "size"} <= identity.keys():
        raise ValueError(
            f"--predictor {folder}: does not record the feature network that it was trained on; remove the folder and run "
            "attributegan-evaluate again"
        )
    if identity["name"] not in SIZES:
        raise ValueError(
            f"--predictor {folder}: was trained on features of {identity['name']}; only EfficientNets can be loaded here. Run "
            "attributegan-evaluate with --predictor cnn or without --features, and give that predictor"
        )
    network = load_features(identity["name"], identity["size"])
    if network.identity != identity:
        raise ValueError(
            f"--predictor {folder}: was trained on features of another version of {identity['name']} ({identity['version']}, installed is "
            f"{network.version}); run attributegan-evaluate again"
        )
    return network


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
    entry = predictor_cache(schema, train, features, cache, kind, seed, steps)
    if cached := entry.load(schema):
        return cached[0].to(processes.device), cached[1]
    thumbs_NHWC = train.thumbs()
    fold_N = predictor.folds(train.group_N)

    def fit(kind: str, rows_N: np.ndarray, stage: str) -> predictor.AttributePredictor:
        if kind == "features":
            return predictor.fit_head(
                thumbs_NHWC[rows_N], train_ND[rows_N], train.levels_NA[rows_N], train.group_N[rows_N], schema, processes.device
            )
        return predictor.fit_cnn(
            thumbs_NHWC[rows_N],
            train.levels_NA[rows_N],
            schema,
            seed,
            steps,
            processes.device,
            progress=lambda step: progress(f"predictor ({stage})", step, steps),
        )

    note: dict[str, Any] = {
        "asked": kind,
        "training_tiles": len(train),
        "tile_size": int(train.read(np.zeros(1, int)).shape[1]),
        "features": features.identity,
    }
    if kind == "auto":
        kind = "features"
        if len(train) >= CNN_TILES and len(np.unique(fold_N)) > 1:
            left_out_N = fold_N == 0  # of the training tiles: model selection must not use the held-out ones
            note["choice"] = {}
            for candidate in ("features", "cnn"):
                attribute_predictor = fit(candidate, ~left_out_N, "model selection")
                predicted_NA = attribute_predictor.predict(thumbs_NHWC[left_out_N], train_ND[left_out_N])
                note["choice"][candidate] = predictor.mean_spearman(schema, train.levels_NA[left_out_N], predicted_NA)
            kind = max(note["choice"], key=note["choice"].__getitem__)
    attribute_predictor = fit(kind, np.ones(len(train), bool), "on all training tiles")
    entry.save(attribute_predictor, note)
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
    """Returns predictions of the held-out tiles; for small sets, with few held-out slides, also cross-validated ones of training tiles."""
    fold_N = predictor.folds(train.group_N, CROSS_FOLDS)
    if not isinstance(attribute_predictor, predictor.Head) or len(train) + len(held_out) > CROSS_TILES or not fold_N.any():
        return HeldOutPredictions(held_out.levels_NA, predicted_NA, held_out.group_N, crossed=False)
    path = cache.path("exam", train.identity, features.identity, schema.to_dict())
    crossed_NA = cache.load(path)
    if crossed_NA is None:
        thumbs_NHWC, crossed_NA = train.thumbs(), np.zeros(train.levels_NA.shape)
        for fold in np.unique(fold_N):
            fit_N, left_out_N = fold_N != fold, fold_N == fold
            fold_predictor = predictor.fit_head(
                thumbs_NHWC[fit_N],
                train_ND[fit_N],
                train.levels_NA[fit_N],
                train.group_N[fit_N],
                schema,
                processes.device,
                float(attribute_predictor.decay),
            )
            crossed_NA[left_out_N] = fold_predictor.predict(thumbs_NHWC[left_out_N], train_ND[left_out_N])
            progress("cross-validation", int(fold) + 1, int(fold_N.max()) + 1)
        cache.save(path, crossed_NA)
    groups = np.concatenate([held_out.group_N, train.group_N + held_out.group_N.max() + 1])
    return HeldOutPredictions(
        np.concatenate([held_out.levels_NA, train.levels_NA]), np.concatenate([predicted_NA, crossed_NA]), groups, crossed=True
    )


def _assess(
    schema: AttributeSchema, a: int, train_N: np.ndarray, held_out_predictions: HeldOutPredictions
) -> tuple[AssessedAttribute, dict[str, Estimate]]:
    """Decides whether attribute ``a`` is assessed; also returns the predictor's scores on real tiles, if two levels have enough tiles."""
    attribute, level_N = schema.attributes[a], held_out_predictions.levels_NA[:, a]
    tiles = {level: (int((train_N == level).sum()), int((level_N == level).sum())) for level in attribute.assessable}
    levels = tuple(level for level, (train, held_out) in tiles.items() if train >= MIN_TRAIN and held_out >= MIN_HELD_OUT)
    if len(levels) < 2:
        few = ", ".join(f"level {level}: {t}/{h}" for level, (t, h) in tiles.items() if level not in levels)
        reason = f"too few tiles (training/held-out): {few}; two levels with {MIN_TRAIN}/{MIN_HELD_OUT} are needed, {len(levels)} found"
        return AssessedAttribute(False, reason, levels, tiles), {}
    estimates = control.interval(level_N, held_out_predictions.predicted_NA[:, a], levels, held_out_predictions.cluster_N, REPLICATES)
    rho = estimates["spearman"]
    if not rho.low > 0:
        reason = f"the predictor can't order real tiles of unseen slides: Spearman {rho.value:.2f} ({rho.low:.2f} to {rho.high:.2f})"
        return AssessedAttribute(False, reason, levels, tiles), estimates
    return AssessedAttribute(True, "", levels, tiles), estimates
