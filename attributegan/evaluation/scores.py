"""Computes the results of an evaluation: one row each for the real held-out tiles, every generator, and shuffled labels.

Results are plain JSON; their presentation is in `tools.evaluation.report`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np

from attributegan.attributes import AttributeSchema
from attributegan.evaluation.reference import ReferenceSet
from attributegan.evaluation.samples import POINTS, GeneratedSet, SamplingPlan
from attributegan.evaluation.small_sets import privacy, quality_problem
from attributegan.metrics import control, quality
from attributegan.metrics.quality import NEIGHBOURS, REPLICATES, Estimate

FORMAT = 1
MIN_LEVEL_KID = 10  # tiles of a level in each set that are needed for its KID
LEVEL_REPLICATES = 200
PAIRS = 256  # of real tiles; their mean pixel difference is the unit for changes in generated ones
REAL_DATA, SHUFFLED_LABELS = "real held-out tiles", "shuffled labels"

Measure = Callable[[np.ndarray], np.ndarray]  # tiles_NHWC -> (N, A), numbers that increase with the levels


@dataclass(frozen=True)
class Row:
    """The numbers of one row, and the nearest neighbours that figures show."""

    numbers: dict[str, Any]
    memory: quality.Memorisation | None = None


def real_data_row(real: ReferenceSet, equal: int, measure: Measure | None) -> Row:
    """Scores the real held-out tiles as if they were generated.

    Args:
        real: the reference set.
        equal: number of tiles per set for the metrics that depend on it.
        measure: measures attributes on pixels, if available.
    """
    kernels = quality.Kernels.of(real.held_out_ND, real.train_ND)
    numbers = {
        "name": REAL_DATA,
        "kind": "ceiling",
        "tiles": len(real.held_out),
        "quality": quality_of(real, real.held_out_ND, kernels, equal),
        "level_kid": level_kid(real, kernels, real.held_out.levels_NA),
        "control": {real.schema.names[a]: plain(real.held_out_scores[real.schema.names[a]]) for a in real.assessed_columns},
        "confusion": confusions(
            real,
            {a: (real.held_out_predictions.levels_NA[:, a], real.held_out_predictions.predicted_NA[:, a]) for a in real.assessed_columns},
        ),
    }
    if measure:
        numbers["measured"] = measured(real.schema, real.held_out.levels_NA, measure(real.thumbs))
    return Row(with_control_score(numbers))


def generator_rows(
    real: ReferenceSet, plan: SamplingPlan, generated: GeneratedSet, name: str, equal: int, measure: Measure | None
) -> list[Row]:
    """Scores a generator; returns its row and the baseline of the same tiles with shuffled labels.

    Args:
        real: the reference set.
        plan: the plan of the generated tiles.
        generated: the generated tiles.
        name: of the generator.
        equal: number of tiles per set for the metrics that depend on it.
        measure: measures attributes on pixels, if available.
    """
    predicted = np.zeros((0, 0))
    if len(generated.sweep_tiles):
        predicted = real.attribute_predictor.predict(generated.sweep_tiles, generated.sweep_features)
    sweeps = _by_attribute(plan, plan.sweep_rows(), predicted)
    kernels = quality.Kernels.of(generated.features_ND, real.train_ND)
    memory, privacy_numbers = privacy(real, generated.features_ND)
    numbers = {
        "name": name,
        "kind": "generator",
        "tiles": len(generated.tiles),
        "quality": quality_of(real, generated.features_ND, kernels, equal),
        **privacy_numbers,
        "level_kid": level_kid(real, kernels, plan.levels_NA),
        "control": {
            plan.schema.names[a]: plain(control.interval(level_N, predicted_N, plan.sweep_levels[a], latent_N, REPLICATES, plan.seed))
            for a, (level_N, predicted_N, latent_N) in sweeps.items()
        },
        "confusion": confusions(real, {a: (level_N, predicted_N) for a, (level_N, predicted_N, _) in sweeps.items()}),
        "paths": _paths(real, plan, generated),
        **_sweeps(plan, predicted),
    }
    diversities = control.diversity(generated.tiles, plan.levels_NA), control.diversity(real.thumbs, real.held_out.levels_NA)
    if diversities[0] is not None and diversities[1]:
        numbers["diversity"] = diversities[0] / diversities[1]
    shuffled_NA = control.shuffle(plan.levels_NA, plan.seed)
    shuffled_baseline = {
        "name": f"{name}, {SHUFFLED_LABELS}",
        "kind": "floor",
        "tiles": len(generated.tiles),
        "level_kid": level_kid(real, kernels, shuffled_NA),
        "control": {
            plan.schema.names[a]: plain(
                control.interval(control.shuffle(level_N, plan.seed), predicted_N, plan.sweep_levels[a], latent_N, REPLICATES, plan.seed)
            )
            for a, (level_N, predicted_N, latent_N) in sweeps.items()
        },
    }
    if measure:
        measured_NA = measure(generated.tiles) if generated.measured_NA is None else generated.measured_NA
        numbers["measured"] = measured(real.schema, plan.levels_NA, measured_NA)
        shuffled_baseline["measured"] = measured(real.schema, shuffled_NA, measured_NA)
    return [Row(with_control_score(numbers), memory), Row(with_control_score(shuffled_baseline))]


def quality_of(real: ReferenceSet, x_ND: np.ndarray, kernels: quality.Kernels, equal: int) -> dict[str, Any]:
    """Scores features against the training tiles.

    KID uses all tiles. The other metrics depend on the set size and use the first ``equal`` tiles of both sets, a fair sample, because
    packing shuffles the tiles of a split.
    """
    if quality_problem(real):
        return {}
    reference_ND = real.train_ND[:equal]
    estimates = {"kid": kernels.distance(REPLICATES), "fid": Estimate(quality.frechet_distance(x_ND[:equal], reference_ND))}
    if equal > NEIGHBOURS:
        estimates |= quality.manifolds(reference_ND, x_ND[:equal]).estimates(REPLICATES)
    return plain(estimates)


def level_kid(real: ReferenceSet, kernels: quality.Kernels, levels_NA: np.ndarray) -> dict[str, dict[str, Any]]:
    """Computes KID between the tiles of each level in both sets; omits levels with too few tiles."""
    kids: dict[str, dict[str, Any]] = {}
    for a, attribute in enumerate(real.schema.attributes):
        for level in attribute.assessable:
            scored_N, real_N = levels_NA[:, a] == level, real.train.levels_NA[:, a] == level
            if min(scored_N.sum(), real_N.sum()) >= MIN_LEVEL_KID:
                estimate = kernels.subset(scored_N, real_N).distance(LEVEL_REPLICATES)
                kids.setdefault(attribute.name, {})[str(level)] = [estimate.value, estimate.low, estimate.high]
    return kids


def _by_attribute(plan: SamplingPlan, rows: np.ndarray, predicted_NA: np.ndarray) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Returns requested levels, predicted levels and latents of each assessed attribute's own sweeps."""
    sweeps, first = {}, 0
    for a, levels in plan.sweep_levels.items():
        part = slice(first, first + len(levels) * len(plan.starts_SA))
        sweeps[a] = (rows[part, a], predicted_NA[part, a], rows[part, -1])
        first = part.stop
    return sweeps


def _sweeps(plan: SamplingPlan, predicted_NA: np.ndarray) -> dict[str, Any]:
    """Computes the leakage matrix of the assessed attributes and the monotonicity of their sweeps."""
    assessed = list(plan.sweep_levels)
    if not assessed:
        return {}
    predicted, first = [], 0
    for levels in plan.sweep_levels.values():
        count = len(levels) * len(plan.starts_SA)
        predicted.append(predicted_NA[first : first + count, assessed].reshape(len(plan.starts_SA), len(levels), len(assessed)))
        first += count
    spans_A = np.array([levels[-1] - levels[0] for levels in plan.sweep_levels.values()], float)
    sweeps = control.Sweeps(predicted, spans_A)
    leak_AA = sweeps.leak_AA()
    names = [plan.schema.names[a] for a in assessed]
    return {
        "leak": {"attributes": names, "matrix": leak_AA.tolist(), "mean": control.mean_leak(leak_AA)},
        "monotone": dict(zip(names, sweeps.monotone_A().tolist(), strict=True)),
    }


def _paths(real: ReferenceSet, plan: SamplingPlan, generated: GeneratedSet) -> dict[str, Any]:
    """Scores the paths of each attribute.

    Returns:
        by attribute: ``length``, the path length in units of the mean squared distance of two real tiles; ``largest``, the share of
        the longest step; ``changed``, the mean pixel difference between both ends over that of two real tiles of any levels; for assessed
        attributes ``order``, the rank correlation of requested levels, including fractional ones, with the mean predicted level.
    """
    shape = generated.path_features.shape[:3]
    features_ND = generated.path_features.reshape(len(generated.path_tiles), -1)
    predicted_APSA = real.attribute_predictor.predict(generated.path_tiles, features_ND).reshape(*shape, -1)
    real_squared_distance = 2 * float(real.train_ND.var(axis=0, dtype=np.float64).sum())
    tiles_APSHWC = generated.path_tiles.reshape(*shape, *generated.path_tiles.shape[1:])
    real_pixel_distance = control.pixel_distance(islice(pairwise(real.thumbs), PAIRS))
    paths = {}
    for a, (name, features_PSD) in enumerate(zip(plan.schema.names, generated.path_features, strict=True)):
        path = control.path(features_PSD)
        changed = control.pixel_distance((tiles_SHWC[0], tiles_SHWC[-1]) for tiles_SHWC in tiles_APSHWC[a])
        paths[name] = {"largest": path.largest}
        ratios = (("length", path.length, real_squared_distance), ("changed", changed, real_pixel_distance))
        paths[name] |= {key: value / unit for key, value, unit in ratios if unit > 1e-6}
        if a in plan.sweep_levels:
            paths[name]["order"] = control.spearman(np.arange(POINTS), predicted_APSA[a, :, :, a].mean(axis=0))
    return paths


def measured(schema: AttributeSchema, levels_NA: np.ndarray, values_NA: np.ndarray) -> dict[str, float]:
    """Returns the Spearman score of values measured on pixels, without any network, by attribute."""
    correlations = {}
    for a, attribute in enumerate(schema.attributes):
        valid_N = np.isin(levels_NA[:, a], attribute.assessable) & ~np.isnan(values_NA[:, a])  # not every tile can be measured
        if len(np.unique(levels_NA[valid_N, a])) > 1:
            correlations[attribute.name] = control.scores(levels_NA[valid_N, a], values_NA[valid_N, a], attribute.assessable).spearman
    return correlations


def confusions(real: ReferenceSet, pairs: dict[int, tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Counts requested by predicted level, for the assessed levels."""
    tables = {}
    for a, (level_N, predicted_N) in pairs.items():
        levels = real.assessments[a].levels
        counted_N = np.isin(level_N, levels)
        counts_LL = control.confusion(level_N[counted_N], predicted_N[counted_N], levels)
        tables[real.schema.names[a]] = {"levels": list(levels), "counts": counts_LL.astype(int).tolist()}
    return tables


def with_control_score(numbers: dict[str, Any]) -> dict[str, Any]:
    """Adds the control score, the mean Spearman over the assessed attributes; its key in result files is "obeys"."""
    correlations = [scores["spearman"][0] for scores in numbers["control"].values()]
    return numbers | ({"obeys": float(np.mean(correlations))} if correlations else {})


def plain(estimates: dict[str, Estimate]) -> dict[str, list[float | None]]:
    """Converts estimates to ``{name: [value, low, high]}``; None for bounds that were not computed."""
    return {
        name: [None if np.isnan(value) else float(value) for value in (estimate.value, estimate.low, estimate.high)]
        for name, estimate in estimates.items()
    }


def data_notes(real: ReferenceSet) -> dict[str, Any]:
    """Describes the real tiles: their counts, the predictor, and which attributes and levels are assessed."""
    return {
        "train_tiles": len(real.train),
        "held_out_tiles": len(real.held_out),
        "train_groups": len(np.unique(real.train.group_N)),
        "held_out_groups": len(np.unique(real.held_out.group_N)),
        "judge": real.note,
        "quality": quality_problem(real),
        "exam": {
            "tiles": len(real.held_out_predictions.group_N),
            "groups": len(np.unique(real.held_out_predictions.group_N)),
            "crossed": real.held_out_predictions.crossed,
        },
        "attributes": {
            name: {
                "judged": assessed.is_assessed,
                "why": assessed.reason,
                "judge": plain(real.held_out_scores.get(name, {})),
                "levels": [
                    {"level": level, "name": attribute.levels[level], "train": train, "exam": held_out, "judged": level in assessed.levels}
                    for level, (train, held_out) in assessed.tiles.items()
                ],
            }
            for name, attribute, assessed in zip(real.schema.names, real.schema.attributes, real.assessments, strict=True)
        },
    }
