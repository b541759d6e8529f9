"""Whether generated tiles have the levels that were asked for: scores on one ordinal attribute, and what sweeps show.

Pure functions of arrays. Only assessable levels come in here: "not assessable" is no point of a scale and enters no score.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from attributegan.metrics.quality import Estimate, bounds


@dataclass(frozen=True)
class Scores:
    """Agreement of predicted with requested levels, every requested level counting alike."""

    accuracy: float
    mae: float  # mean absolute error of the predicted level, in levels
    kappa: float  # Cohen's, with quadratic weights (Cohen 1968): 1 perfect, 0 chance
    spearman: float  # of the continuous prediction, over its ceiling

    @staticmethod
    def names() -> tuple[str, ...]:
        return ("accuracy", "mae", "kappa", "spearman")


def scores(requested_N: np.ndarray, predicted_N: np.ndarray, levels: Sequence[int]) -> Scores:
    """Score one attribute.

    Args:
        requested_N: assessable levels.
        predicted_N: real numbers on the same scale; the level predicted is the nearest of ``levels``.
        levels: those that count, lowest first, two or more; rows with another requested level are left out.
    """
    counted_N = np.isin(requested_N, levels)
    requested_N, predicted_N = np.asarray(requested_N)[counted_N], np.asarray(predicted_N, float)[counted_N]
    weight_N = _balancing(requested_N, levels)
    shares_LL = confusion(requested_N, predicted_N, levels, weight_N)
    steps_L = np.asarray(levels, float)
    apart_LL = np.abs(steps_L[:, None] - steps_L)
    order = spearman(requested_N, predicted_N, weight_N) / spearman_ceiling(len(np.unique(requested_N)))
    return Scores(
        accuracy=float(np.trace(shares_LL)),
        mae=float((shares_LL * apart_LL).sum()),
        kappa=_kappa(shares_LL, apart_LL**2),
        spearman=float(np.clip(order, -1, 1)),  # over 1 only when predictions have ties of their own
    )


def interval(
    requested_N: np.ndarray, predicted_N: np.ndarray, levels: Sequence[int], group_N: np.ndarray, replicates: int, seed: int = 0
) -> dict[str, Estimate]:
    """`scores` with bootstrap intervals; tiles of one group (a latent, a slide) are drawn together."""
    found = scores(requested_N, predicted_N, levels)
    members = [np.flatnonzero(group_N == group) for group in np.unique(group_N)]
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(replicates):
        drawn = np.concatenate([members[place] for place in rng.integers(len(members), size=len(members))])
        if len(np.unique(requested_N[drawn][np.isin(requested_N[drawn], levels)])) > 1:
            again = scores(requested_N[drawn], predicted_N[drawn], levels)
            rows.append([getattr(again, name) for name in Scores.names()])
    between = [bounds(column) for column in np.array(rows).T] if rows else [(math.nan, math.nan)] * len(Scores.names())
    return {name: Estimate(getattr(found, name), *ends) for name, ends in zip(Scores.names(), between, strict=True)}


def confusion(requested_N: np.ndarray, predicted_N: np.ndarray, levels: Sequence[int], weight_N: np.ndarray | None = None) -> np.ndarray:
    """Weights (counts by default) by requested level (rows) and the level nearest to the prediction (columns)."""
    steps_L = np.asarray(levels, float)
    row_N = np.searchsorted(steps_L, requested_N)
    column_N = np.abs(np.asarray(predicted_N, float)[:, None] - steps_L).argmin(axis=1)
    table_LL = np.zeros((len(levels), len(levels)))
    np.add.at(table_LL, (row_N, column_N), 1.0 if weight_N is None else weight_N)
    return table_LL


def _balancing(requested_N: np.ndarray, levels: Sequence[int]) -> np.ndarray:
    """Weights that add up to 1, and to the same for every level that occurs."""
    counts_L = np.array([(requested_N == level).sum() for level in levels])
    return 1.0 / (counts_L[np.searchsorted(levels, requested_N)] * (counts_L > 0).sum())


def _kappa(shares_LL: np.ndarray, penalty_LL: np.ndarray) -> float:
    by_chance_LL = np.outer(shares_LL.sum(axis=1), shares_LL.sum(axis=0))
    expected = (penalty_LL * by_chance_LL).sum()
    return float(1 - (penalty_LL * shares_LL).sum() / expected) if expected else 0.0


def spearman(x_N: np.ndarray, y_N: np.ndarray, weight_N: np.ndarray | None = None) -> float:
    """Rank correlation with mean ranks for ties; 0 when one side is constant. Weights count a row several times, or in part."""
    weight_N = np.ones(len(x_N)) if weight_N is None else weight_N
    ranks = [_ranks(np.asarray(values), weight_N) for values in (x_N, y_N)]
    centred = [rank_N - np.average(rank_N, weights=weight_N) for rank_N in ranks]
    spread = math.sqrt(math.prod(float(weight_N @ values**2) for values in centred))
    return float(weight_N @ (centred[0] * centred[1]) / spread) if spread > 1e-12 else 0.0


def _ranks(values_N: np.ndarray, weight_N: np.ndarray) -> np.ndarray:
    """The weight below each value plus half of that at it."""
    _, place_N = np.unique(values_N, return_inverse=True)
    weight_U = np.bincount(place_N, weight_N)
    return (np.cumsum(weight_U) - weight_U / 2)[place_N]


def spearman_ceiling(levels: int) -> float:
    """Most that the rank correlation of a continuous number with this many equally frequent levels can be: sqrt(1 - 1/L^2).

    The number has no ties and the levels have, so even a perfect order falls short of 1.
    """
    return math.sqrt(1 - 1 / levels**2) if levels > 1 else 1.0


@dataclass(frozen=True)
class Sweeps:
    """Predictions along sweeps: attribute a goes through its levels, all else, the latent included, is kept.

    Attributes:
        predicted: for each attribute a, (latents, levels of a, attributes): the predictions of every attribute.
        spans_A: highest minus lowest judged level of every attribute.
    """

    predicted: Sequence[np.ndarray]
    spans_A: np.ndarray

    def leak_AA(self) -> np.ndarray:
        """Row a, column b: how far b moves when a goes from its lowest to its highest level, mean over latents of the distance.

        In shares of b's scale. The diagonal should be near 1, all else near 0; a generator that ignores its labels has 0 everywhere.
        """
        moved = [np.abs(of_a[:, -1] - of_a[:, 0]).mean(axis=0) for of_a in self.predicted]
        return np.stack(moved) / self.spans_A

    def monotone_A(self) -> np.ndarray:
        """Share of the steps to the next level at which the prediction rises; no change counts half, so 0.5 is no control."""
        rises = [np.diff(of_a[:, :, a], axis=1) for a, of_a in enumerate(self.predicted)]
        return np.array([((rise > 0) + 0.5 * (rise == 0)).mean() for rise in rises])


def mean_leak(leak_AA: np.ndarray) -> float:
    """Mean off the diagonal. Says nothing alone: read it together with how well the attributes are obeyed."""
    others = ~np.eye(len(leak_AA), dtype=bool)
    return float(leak_AA[others].mean()) if others.any() else 0.0


@dataclass(frozen=True)
class Path:
    """How evenly features move along a path from the lowest to the highest level."""

    length: float  # perceptual path length (Karras et al., CVPR 2019): mean squared distance of neighbours over the squared step
    largest: float  # the longest step over the whole way, mean over latents; 1 / steps when even, 1 when it is one jump


def path(features_PSD: np.ndarray) -> Path:
    """Of P latents, S points each, evenly spaced in the level from 0 to 1; D features."""
    step_PS = np.linalg.norm(np.diff(np.asarray(features_PSD, float), axis=1), axis=2)
    steps = step_PS.shape[1]
    way_P = step_PS.sum(axis=1)
    moving_P = way_P > 0
    largest = (step_PS.max(axis=1)[moving_P] / way_P[moving_P]).mean() if moving_P.any() else 1 / steps
    return Path(float((step_PS**2).mean() * steps**2), float(largest))


def spread(tiles_NHWC: np.ndarray, levels_NA: np.ndarray) -> float | None:
    """How far tiles of one label (all levels the same) are from each other: mean absolute difference of their pixels, over pairs.

    Each tile with the next one of its label. A generator that makes one tile for each label has 0; divide by that of real tiles. None
    when no two tiles have the same label.
    """
    _, label_N = np.unique(levels_NA, axis=0, return_inverse=True)
    order_N = np.argsort(label_N, kind="stable")
    pairs = [(a, b) for a, b in zip(order_N, order_N[1:], strict=False) if label_N[a] == label_N[b]]
    return pixel_distance((tiles_NHWC[a], tiles_NHWC[b]) for a, b in pairs) if pairs else None


def pixel_distance(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """Mean absolute difference of the two tiles, uint8, over pairs; 0 of none."""
    apart = [np.abs(one.astype(float) - other).mean() for one, other in pairs]
    return float(np.mean(apart)) if apart else 0.0


def shuffled(requested_NA: np.ndarray, seed: int = 0) -> np.ndarray:
    """Every tile with the levels of another one: what a generator scores that ignores its labels."""
    return requested_NA[np.random.default_rng(seed).permutation(len(requested_NA))]
