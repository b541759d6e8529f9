"""Control metrics: whether generated tiles have the requested levels, by scores of one ordinal attribute and by sweeps.

Pure functions of arrays. Only assessable levels are scored: "not assessable" is not on the scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from attributegan.metrics.quality import Estimate, bounds


@dataclass(frozen=True)
class Scores:
    """Agreement of predicted with requested levels; every requested level has the same total weight."""

    accuracy: float
    mae: float  # mean absolute error of the predicted level, in levels
    kappa: float  # Cohen's kappa with quadratic weights (Cohen 1968): 1 perfect, 0 chance
    spearman: float  # rank correlation of the continuous prediction, over `spearman_ceiling`

    @staticmethod
    def names() -> tuple[str, ...]:
        """The names of the scores."""
        return ("accuracy", "mae", "kappa", "spearman")


def scores(requested_N: np.ndarray, predicted_N: np.ndarray, levels: Sequence[int]) -> Scores:
    """Scores one attribute.

    Args:
        requested_N: assessable levels.
        predicted_N: real numbers on the same scale; the predicted level is the nearest of ``levels``.
        levels: the levels to score, lowest first, two or more; rows with another requested level are ignored.
    """
    counted_N = np.isin(requested_N, levels)
    requested_N, predicted_N = np.asarray(requested_N)[counted_N], np.asarray(predicted_N, float)[counted_N]
    weight_N = _balanced_weights(requested_N, levels)
    shares_LL = confusion(requested_N, predicted_N, levels, weight_N)
    levels_L = np.asarray(levels, float)
    distance_LL = np.abs(levels_L[:, None] - levels_L)
    correlation = spearman(requested_N, predicted_N, weight_N) / spearman_ceiling(len(np.unique(requested_N)))
    return Scores(
        accuracy=float(np.trace(shares_LL)),
        mae=float((shares_LL * distance_LL).sum()),
        kappa=_kappa(shares_LL, distance_LL**2),
        spearman=float(np.clip(correlation, -1, 1)),  # above 1 only if predictions have ties
    )


def interval(
    requested_N: np.ndarray, predicted_N: np.ndarray, levels: Sequence[int], group_N: np.ndarray, replicates: int, seed: int = 0
) -> dict[str, Estimate]:
    """Returns `scores` with cluster-bootstrap intervals: tiles of one group (a latent, a slide) are resampled together."""
    estimate = scores(requested_N, predicted_N, levels)
    members = [np.flatnonzero(group_N == group) for group in np.unique(group_N)]
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(replicates):
        sample = np.concatenate([members[index] for index in rng.integers(len(members), size=len(members))])
        if len(np.unique(requested_N[sample][np.isin(requested_N[sample], levels)])) > 1:
            replicate = scores(requested_N[sample], predicted_N[sample], levels)
            rows.append([getattr(replicate, name) for name in Scores.names()])
    intervals = [bounds(column) for column in np.array(rows).T] if rows else [(math.nan, math.nan)] * len(Scores.names())
    return {name: Estimate(getattr(estimate, name), *ends) for name, ends in zip(Scores.names(), intervals, strict=True)}


def confusion(requested_N: np.ndarray, predicted_N: np.ndarray, levels: Sequence[int], weight_N: np.ndarray | None = None) -> np.ndarray:
    """Returns the confusion matrix: weights (default: counts) by requested level (rows) and level nearest to the prediction (columns)."""
    levels_L = np.asarray(levels, float)
    row_N = np.searchsorted(levels_L, requested_N)
    column_N = np.abs(np.asarray(predicted_N, float)[:, None] - levels_L).argmin(axis=1)
    table_LL = np.zeros((len(levels), len(levels)))
    np.add.at(table_LL, (row_N, column_N), 1.0 if weight_N is None else weight_N)
    return table_LL


def _balanced_weights(requested_N: np.ndarray, levels: Sequence[int]) -> np.ndarray:
    """Returns weights that sum to 1, and to the same for every level that occurs."""
    counts_L = np.array([(requested_N == level).sum() for level in levels])
    return 1.0 / (counts_L[np.searchsorted(levels, requested_N)] * (counts_L > 0).sum())


def _kappa(shares_LL: np.ndarray, penalty_LL: np.ndarray) -> float:
    chance_LL = np.outer(shares_LL.sum(axis=1), shares_LL.sum(axis=0))
    expected = (penalty_LL * chance_LL).sum()
    return float(1 - (penalty_LL * shares_LL).sum() / expected) if expected else 0.0


def spearman(x_N: np.ndarray, y_N: np.ndarray, weight_N: np.ndarray | None = None) -> float:
    """Returns the rank correlation with mean ranks for ties; 0 if one side is constant. Weights act as (fractional) repeat counts."""
    weight_N = np.ones(len(x_N)) if weight_N is None else weight_N
    ranks = [_ranks(np.asarray(values), weight_N) for values in (x_N, y_N)]
    centred = [rank_N - np.average(rank_N, weights=weight_N) for rank_N in ranks]
    scale = math.sqrt(math.prod(float(weight_N @ values**2) for values in centred))
    return float(weight_N @ (centred[0] * centred[1]) / scale) if scale > 1e-12 else 0.0


def _ranks(values_N: np.ndarray, weight_N: np.ndarray) -> np.ndarray:
    """Returns weighted mean ranks: the weight below each value plus half of the weight at it."""
    _, index_N = np.unique(values_N, return_inverse=True)
    weight_U = np.bincount(index_N, weight_N)
    return (np.cumsum(weight_U) - weight_U / 2)[index_N]


def spearman_ceiling(levels: int) -> float:
    """Returns the largest possible rank correlation of a continuous number with L equally frequent levels: sqrt(1 - 1/L^2).

    The levels have ties and the number has none, so even a perfect order stays below 1.
    """
    return math.sqrt(1 - 1 / levels**2) if levels > 1 else 1.0


@dataclass(frozen=True)
class Sweeps:
    """Predictions along sweeps: one attribute steps through its levels while all else, including the latent, is fixed.

    Attributes:
        predicted: for each swept attribute a, (latents, levels of a, attributes): the predictions of all attributes.
        spans_A: highest minus lowest swept level of each attribute.
    """

    predicted: Sequence[np.ndarray]
    spans_A: np.ndarray

    def leak_AA(self) -> np.ndarray:
        """Returns the leakage matrix: row a, column b is the mean absolute change of b between the lowest and highest level of a.

        As a fraction of b's span. Ideally 1 on the diagonal and 0 elsewhere; 0 everywhere for a generator that ignores its labels.
        """
        changes = [np.abs(swept[:, -1] - swept[:, 0]).mean(axis=0) for swept in self.predicted]
        return np.stack(changes) / self.spans_A

    def monotone_A(self) -> np.ndarray:
        """Returns the share of level steps at which the prediction rises; ties count half, so 0.5 means no control."""
        rises = [np.diff(swept[:, :, a], axis=1) for a, swept in enumerate(self.predicted)]
        return np.array([((rise > 0) + 0.5 * (rise == 0)).mean() for rise in rises])


def mean_leak(leak_AA: np.ndarray) -> float:
    """Returns the mean off the diagonal. Meaningful only together with the control scores."""
    off_diagonal = ~np.eye(len(leak_AA), dtype=bool)
    return float(leak_AA[off_diagonal].mean()) if off_diagonal.any() else 0.0


@dataclass(frozen=True)
class LevelPath:
    """How evenly features change along a path from the lowest to the highest level."""

    length: float  # perceptual path length (Karras et al., CVPR 2019): mean squared distance of neighbours over the squared step
    largest: float  # longest step over the whole path, mean over latents; 1 / steps if even, 1 if a single jump


def path(features_PSD: np.ndarray) -> LevelPath:
    """Measures P paths of S points, evenly spaced in the level from 0 to 1, in D features."""
    step_PS = np.linalg.norm(np.diff(np.asarray(features_PSD, float), axis=1), axis=2)
    steps = step_PS.shape[1]
    total_P = step_PS.sum(axis=1)
    moving_P = total_P > 0
    largest = (step_PS.max(axis=1)[moving_P] / total_P[moving_P]).mean() if moving_P.any() else 1 / steps
    return LevelPath(float((step_PS**2).mean() * steps**2), float(largest))


def diversity(tiles_NHWC: np.ndarray, levels_NA: np.ndarray) -> float | None:
    """Returns the mean absolute pixel difference of tiles with the same label (all levels equal), or None if no two share a label.

    Compares each tile with the next one of its label. 0 if a generator makes one tile per label; divide by the value of real tiles.
    """
    _, label_N = np.unique(levels_NA, axis=0, return_inverse=True)
    order_N = np.argsort(label_N, kind="stable")
    pairs = [(a, b) for a, b in zip(order_N, order_N[1:], strict=False) if label_N[a] == label_N[b]]
    return pixel_distance((tiles_NHWC[a], tiles_NHWC[b]) for a, b in pairs) if pairs else None


def pixel_distance(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """Returns the mean absolute pixel difference over pairs of uint8 tiles; 0 without pairs."""
    differences = [np.abs(first.astype(float) - second).mean() for first, second in pairs]
    return float(np.mean(differences)) if differences else 0.0


def shuffle(requested_NA: np.ndarray, seed: int = 0) -> np.ndarray:
    """Permutes the requested levels among tiles: the baseline score of a generator that ignores its labels."""
    return requested_NA[np.random.default_rng(seed).permutation(len(requested_NA))]
