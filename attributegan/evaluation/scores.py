"""The result of an evaluation: a row of numbers for the real held-out tiles, for every generator and for shuffled labels.

Owns which number is computed from what. A result is plain JSON; its look is in `tools.evaluation.report`.
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
from attributegan.evaluation.small_sets import memory_of, why_quality_is_not_judged
from attributegan.metrics import control, quality
from attributegan.metrics.quality import NEIGHBOURS, REPLICATES, Estimate

FORMAT = 1
MIN_LEVEL_KID = 10  # tiles of a level on each side, below which its KID is not computed
LEVEL_REPLICATES = 200
PAIRS = 256  # of real tiles, whose differences what changes in generated ones is told in
CEILING, FLOOR = "real held-out tiles", "shuffled labels"

Measure = Callable[[np.ndarray], np.ndarray]  # tiles_NHWC -> (N, A), numbers that grow with the levels


@dataclass(frozen=True)
class Row:
    """The numbers of one subject, and what pictures of it need."""

    numbers: dict[str, Any]
    memory: quality.Memory | None = None


def real_data_row(real: ReferenceSet, equal: int, measure: Measure | None) -> Row:
    """The real held-out tiles, scored as if they had been generated."""
    kernels = quality.Kernels.of(real.held_out_ND, real.train_ND)
    numbers = {
        "name": CEILING,
        "kind": "ceiling",
        "tiles": len(real.held_out),
        "quality": _quality(real, real.held_out_ND, kernels, equal),
        "level_kid": _level_kid(real, kernels, real.held_out.levels_NA),
        "control": {real.schema.names[a]: _plain(real.held_out_scores[real.schema.names[a]]) for a in real.assessed_columns},
        "confusion": _confusions(
            real,
            {a: (real.held_out_predictions.levels_NA[:, a], real.held_out_predictions.predicted_NA[:, a]) for a in real.assessed_columns},
        ),
    }
    if measure:
        numbers["measured"] = _measured(real.schema, real.held_out.levels_NA, measure(real.thumbs))
    return Row(_summed(numbers))


def generator(real: ReferenceSet, plan: SamplingPlan, made: GeneratedSet, name: str, equal: int, measure: Measure | None) -> list[Row]:
    """A generator's row, and that of its own tiles with shuffled labels."""
    predicted = real.attribute_predictor.predict(made.sweep_tiles, made.sweep_features) if len(made.sweep_tiles) else np.zeros((0, 0))
    rows = plan.sweep_rows()
    asked = _by_attribute(plan, rows, predicted)
    kernels = quality.Kernels.of(made.features_ND, real.train_ND)
    memory = memory_of(real, made.features_ND)
    numbers = {
        "name": name,
        "kind": "generator",
        "tiles": len(made.tiles),
        "quality": _quality(real, made.features_ND, kernels, equal),
        **({"memory": {"ratio": memory.ratio, "nearer": memory.nearer}} if memory else {}),
        "level_kid": _level_kid(real, kernels, plan.levels_NA),
        "control": {
            plan.schema.names[a]: _plain(control.interval(level_N, said_N, plan.sweep_levels[a], latent_N, REPLICATES, plan.seed))
            for a, (level_N, said_N, latent_N) in asked.items()
        },
        "confusion": _confusions(real, {a: (level_N, said_N) for a, (level_N, said_N, _) in asked.items()}),
        "paths": _paths(real, plan, made),
        **_sweeps(real, plan, predicted),
    }
    spreads = control.spread(made.tiles, plan.levels_NA), control.spread(real.thumbs, real.held_out.levels_NA)
    if spreads[0] is not None and spreads[1]:
        numbers["diversity"] = spreads[0] / spreads[1]
    shuffled_NA = control.shuffled(plan.levels_NA, plan.seed)
    shuffled_baseline = {
        "name": f"{name}, {FLOOR}",
        "kind": "floor",
        "tiles": len(made.tiles),
        "level_kid": _level_kid(real, kernels, shuffled_NA),
        "control": {
            plan.schema.names[a]: _plain(
                control.interval(control.shuffled(level_N, plan.seed), said_N, plan.sweep_levels[a], latent_N, REPLICATES, plan.seed)
            )
            for a, (level_N, said_N, latent_N) in asked.items()
        },
    }
    if measure:
        measured_NA = measure(made.tiles) if made.measured_NA is None else made.measured_NA
        numbers["measured"] = _measured(real.schema, plan.levels_NA, measured_NA)
        shuffled_baseline["measured"] = _measured(real.schema, shuffled_NA, measured_NA)
    return [Row(_summed(numbers), memory), Row(_summed(shuffled_baseline))]


def _quality(real: ReferenceSet, x_ND: np.ndarray, kernels: quality.Kernels, equal: int) -> dict[str, Any]:
    """Against the training tiles. KID has all tiles; the others, which depend on the count, the first ``equal`` of both sides.

    Split order is shuffled when a set is packed, so the first tiles are a fair draw.
    """
    if why_quality_is_not_judged(real):
        return {}
    reference_ND = real.train_ND[:equal]
    found = {"kid": kernels.distance(REPLICATES), "fid": Estimate(quality.frechet_distance(x_ND[:equal], reference_ND))}
    if equal > NEIGHBOURS:
        found |= quality.manifolds(reference_ND, x_ND[:equal]).estimates(REPLICATES)
    return _plain(found)


def _level_kid(real: ReferenceSet, kernels: quality.Kernels, levels_NA: np.ndarray) -> dict[str, dict[str, Any]]:
    """KID between the tiles of one level on both sides; levels with too few tiles are left out."""
    found: dict[str, dict[str, Any]] = {}
    for a, attribute in enumerate(real.schema.attributes):
        for level in attribute.assessable:
            mine_N, real_N = levels_NA[:, a] == level, real.train.levels_NA[:, a] == level
            if min(mine_N.sum(), real_N.sum()) >= MIN_LEVEL_KID:
                estimate = kernels.part(mine_N, real_N).distance(LEVEL_REPLICATES)
                found.setdefault(attribute.name, {})[str(level)] = [estimate.value, estimate.low, estimate.high]
    return found


def _by_attribute(plan: SamplingPlan, rows: np.ndarray, predicted_NA: np.ndarray) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of each judged attribute's own sweeps: levels asked for, its predictions, latents."""
    found, first = {}, 0
    for a, levels in plan.sweep_levels.items():
        part = slice(first, first + len(levels) * len(plan.starts_SA))
        found[a] = (rows[part, a], predicted_NA[part, a], rows[part, -1])
        first = part.stop
    return found


def _sweeps(real: ReferenceSet, plan: SamplingPlan, predicted_NA: np.ndarray) -> dict[str, Any]:
    """The leak matrix over the judged attributes, and how monotone their sweeps are."""
    judged = list(plan.sweep_levels)
    if not judged:
        return {}
    of_each, first = [], 0
    for levels in plan.sweep_levels.values():
        count = len(levels) * len(plan.starts_SA)
        of_each.append(predicted_NA[first : first + count, judged].reshape(len(plan.starts_SA), len(levels), len(judged)))
        first += count
    spans_A = np.array([levels[-1] - levels[0] for levels in plan.sweep_levels.values()], float)
    sweeps = control.Sweeps(of_each, spans_A)
    leak_AA = sweeps.leak_AA()
    names = [plan.schema.names[a] for a in judged]
    return {
        "leak": {"attributes": names, "matrix": leak_AA.tolist(), "mean": control.mean_leak(leak_AA)},
        "monotone": dict(zip(names, sweeps.monotone_A().tolist(), strict=True)),
    }


def _paths(real: ReferenceSet, plan: SamplingPlan, made: GeneratedSet) -> dict[str, Any]:
    """Path length in units of the mean squared distance of two real tiles, the share of the longest step, and the mean change of a pixel
    from end to end, over that between two real tiles of any levels. For judged attributes also the rank correlation of the levels asked
    for, those in between too, with the mean of what the judge reads: 1 when it rises at every point.
    """
    shape = made.path_features.shape[:3]
    said_APS = real.attribute_predictor.predict(made.path_tiles, made.path_features.reshape(len(made.path_tiles), -1)).reshape(*shape, -1)
    usual = 2 * float(real.train_ND.var(axis=0, dtype=np.float64).sum())
    tiles_APSHWC = made.path_tiles.reshape(*shape, *made.path_tiles.shape[1:])
    apart = control.pixel_distance(islice(pairwise(real.thumbs), PAIRS))
    found = {}
    for a, (name, of_attribute) in enumerate(zip(plan.schema.names, made.path_features, strict=True)):
        way = control.path(of_attribute)
        changed = control.pixel_distance((tiles_SHWC[0], tiles_SHWC[-1]) for tiles_SHWC in tiles_APSHWC[a])
        found[name] = {"largest": way.largest}
        found[name] |= {
            key: value / unit for key, value, unit in (("length", way.length, usual), ("changed", changed, apart)) if unit > 1e-6
        }
        if a in plan.sweep_levels:
            found[name]["order"] = control.spearman(np.arange(POINTS), said_APS[a, :, :, a].mean(axis=0))
    return found


def _measured(schema: AttributeSchema, levels_NA: np.ndarray, values_NA: np.ndarray) -> dict[str, float]:
    """Spearman over its ceiling between levels and what is measured on the pixels, without any network."""
    found = {}
    for a, attribute in enumerate(schema.attributes):
        known_N = np.isin(levels_NA[:, a], attribute.assessable) & ~np.isnan(values_NA[:, a])  # not every tile can be measured
        if len(np.unique(levels_NA[known_N, a])) > 1:
            found[attribute.name] = control.scores(levels_NA[known_N, a], values_NA[known_N, a], attribute.assessable).spearman
    return found


def _confusions(real: ReferenceSet, pairs: dict[int, tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Counts by level asked for and level predicted, of the levels that are judged."""
    found = {}
    for a, (level_N, said_N) in pairs.items():
        levels = real.assessments[a].levels
        counted_N = np.isin(level_N, levels)
        counts_LL = control.confusion(level_N[counted_N], said_N[counted_N], levels)
        found[real.schema.names[a]] = {"levels": list(levels), "counts": counts_LL.astype(int).tolist()}
    return found


def _summed(numbers: dict[str, Any]) -> dict[str, Any]:
    """With the mean Spearman over the judged attributes: the one number for "obeys"."""
    orders = [scores["spearman"][0] for scores in numbers["control"].values()]
    return numbers | ({"obeys": float(np.mean(orders))} if orders else {})


def _plain(estimates: dict[str, Estimate]) -> dict[str, list[float | None]]:
    """``{name: [value, low, high]}``; null for a bound that was not computed."""
    return {
        name: [None if np.isnan(value) else float(value) for value in (estimate.value, estimate.low, estimate.high)]
        for name, estimate in estimates.items()
    }


def data_notes(real: ReferenceSet) -> dict[str, Any]:
    """What is judged, by rule, and on how many tiles."""
    return {
        "train_tiles": len(real.train),
        "held_out_tiles": len(real.held_out),
        "train_groups": len(np.unique(real.train.group_N)),
        "held_out_groups": len(np.unique(real.held_out.group_N)),
        "judge": real.note,
        "quality": why_quality_is_not_judged(real),
        "exam": {
            "tiles": len(real.held_out_predictions.group_N),
            "groups": len(np.unique(real.held_out_predictions.group_N)),
            "crossed": real.held_out_predictions.crossed,
        },
        "attributes": {
            name: {
                "judged": assessed.is_assessed,
                "why": assessed.why,
                "judge": _plain(real.held_out_scores.get(name, {})),
                "levels": [
                    {"level": level, "name": attribute.levels[level], "train": train, "exam": asked, "judged": level in assessed.levels}
                    for level, (train, asked) in assessed.tiles.items()
                ],
            }
            for name, attribute, assessed in zip(real.schema.names, real.schema.attributes, real.assessments, strict=True)
        },
    }
