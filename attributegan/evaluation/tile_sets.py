"""Scores tiles whose generator is not available, made by any model: all that needs no sampling of the generator.

Control is read from the tiles themselves and the levels that they were requested with, as for real held-out tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from attributegan.distributed.process_group import Processes
from attributegan.evaluation import scores
from attributegan.evaluation.reference import MIN_HELD_OUT, FeatureCache, HeldOutPredictions, ReferenceSet, Split, features_of
from attributegan.evaluation.scores import SHUFFLED_LABELS, Measure, Row
from attributegan.evaluation.small_sets import privacy
from attributegan.metrics import control, quality
from attributegan.metrics.features import Features
from attributegan.metrics.quality import REPLICATES

NEED_GENERATOR = ("sweeps", "leakage", "monotonicity", "paths between levels", "pixel change")


@dataclass(frozen=True)
class TileSet:
    """Generated tiles with the levels that they were requested with."""

    name: str
    tiles: Split
    features_ND: np.ndarray


def evaluate(
    tiles: Split,
    reference: ReferenceSet,
    features: Features,
    *,
    name: str = "tiles",
    cache: FeatureCache | None = None,
    measure: Measure | None = None,
    seed: int = 0,
) -> list[Row]:
    """Evaluates tiles of any generator, in one process.

    Args:
        tiles: generated tiles and their levels.
        reference: real tiles, from `reference.analyze_reference`.
        features: the network that ``reference`` was analysed with.
        name: of the generator, for the rows.
        cache: of features.
        measure: measures attributes on pixels, if available.
        seed: of the shuffled labels.

    Returns:
        the rows of the real held-out tiles, of ``tiles``, and of ``tiles`` with shuffled labels; ``row.numbers`` is plain JSON.
    """
    cache = cache or FeatureCache.at(None)
    features_ND = features_of(tiles, name, features, Processes(), cache, lambda description, done, total: None)
    assert features_ND is not None
    equal = min(len(reference.train), len(reference.held_out), len(tiles))
    real_data = scores.real_data_row(reference, equal, measure)
    return [real_data, *rows(reference, TileSet(name, tiles, features_ND), equal, measure, seed)]


def rows(real: ReferenceSet, generated: TileSet, equal: int, measure: Measure | None, seed: int = 0) -> list[Row]:
    """Scores a tile set; returns its row and the baseline of the same tiles with shuffled labels. Arguments as `scores.generator_rows`."""
    levels_NA, thumbs_NHWC = generated.tiles.levels_NA, generated.tiles.thumbs()
    shuffled_NA = control.shuffle(levels_NA, seed)
    predicted_NA = real.attribute_predictor.predict(thumbs_NHWC, generated.features_ND)
    kernels = quality.Kernels.of(generated.features_ND, real.train_ND)
    memory, privacy_numbers = privacy(real, generated.features_ND)
    numbers: dict[str, Any] = {
        "name": generated.name,
        "kind": "generator",
        "tiles": len(generated.tiles),
        "left_out": list(NEED_GENERATOR),
        "quality": scores.quality_of(real, generated.features_ND, kernels, equal),
        **privacy_numbers,
        "level_kid": scores.level_kid(real, kernels, levels_NA),
        "control": _control(real, generated.tiles, levels_NA, predicted_NA),
        "confusion": scores.confusions(real, {a: (levels_NA[:, a], predicted_NA[:, a]) for a in _scored(real, levels_NA)}),
    }
    diversities = control.diversity(thumbs_NHWC, levels_NA), control.diversity(real.thumbs, real.held_out.levels_NA)
    if diversities[0] is not None and diversities[1]:
        numbers["diversity"] = diversities[0] / diversities[1]
    floor: dict[str, Any] = {
        "name": f"{generated.name}, {SHUFFLED_LABELS}",
        "kind": "floor",
        "tiles": len(generated.tiles),
        "level_kid": scores.level_kid(real, kernels, shuffled_NA),
        "control": _control(real, generated.tiles, shuffled_NA, predicted_NA),
    }
    if measure:
        rows_N = np.arange(len(generated.tiles))
        parts = [measure(generated.tiles.read(rows_N[first : first + 64])) for first in range(0, len(rows_N), 64)]
        numbers["measured"] = scores.measured(real.schema, levels_NA, np.concatenate(parts))
        floor["measured"] = scores.measured(real.schema, shuffled_NA, np.concatenate(parts))
    return [Row(scores.with_control_score(numbers), memory), Row(scores.with_control_score(floor))]


def _scored(real: ReferenceSet, levels_NA: np.ndarray) -> dict[int, tuple[int, ...]]:
    """Returns the assessed levels with `MIN_HELD_OUT` tiles, like real levels, by column; attributes with fewer than two are left out."""
    found = {
        a: tuple(level for level in real.assessments[a].levels if (levels_NA[:, a] == level).sum() >= MIN_HELD_OUT)
        for a in real.assessed_columns
    }
    return {a: levels for a, levels in found.items() if len(levels) > 1}


def _control(real: ReferenceSet, tiles: Split, levels_NA: np.ndarray, predicted_NA: np.ndarray) -> dict[str, Any]:
    clusters = HeldOutPredictions(levels_NA, predicted_NA, tiles.group_N, crossed=False).cluster_N
    return {
        real.schema.names[a]: scores.plain(control.interval(levels_NA[:, a], predicted_NA[:, a], levels, clusters, REPLICATES))
        for a, levels in _scored(real, levels_NA).items()
    }
