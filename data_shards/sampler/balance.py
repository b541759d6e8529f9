"""How often each tile should come so that every attribute's levels come equally often, or part of the way there.

Owns the weights. Which tile comes when is in global_order.py.
"""

from __future__ import annotations

import numpy as np

SWEEPS = 50
# Unbounded, a level with few tiles would fill its whole share of a pass with them, and the tiles that share no rare level would vanish:
# on the 4,061 published tiles, balance=1 is then a training set of 115. Every tile comes between once in ten passes and ten times a pass.
LEAST, MOST = 0.1, 10.0


def weights(levels_UA: np.ndarray, counts_U: np.ndarray, balance: float) -> np.ndarray:
    """How many times a pass each tile of each combination of levels should come: LEAST to MOST, with a mean over the tiles of 1.

    Every attribute's distribution over the levels that occur is tempered towards uniform, target ~ frequency^(1 - balance), and the
    combinations are raked to all targets in turn (iterative proportional fitting, Deming & Stephan 1940) within bounds (as in
    calibration with bounded weights, Deville & Sarndal 1992). Combinations that don't occur stay out. So targets that contradict each
    other, or would need weights beyond the bounds, are met as nearly as a fixed number of sweeps gets. Deterministic. Tiles of which an
    attribute's level is not known (-1) keep their share of it: it is no level that would have to come as often as others.

    Args:
        levels_UA: the combinations of levels that occur.
        counts_U: how many tiles each has.
        balance: 0 leaves every tile its equal share, 1 asks for uniform levels.
    """
    share_U = counts_U / counts_U.sum()
    places_UA = levels_UA.astype(np.int64) + 1  # the first is "not known"
    targets = [_target(places_U, share_U, balance) for places_U in places_UA.T]
    weights_U = np.ones(len(share_U))
    for _ in range(SWEEPS if balance else 0):
        for places_U, target_L in zip(places_UA.T, targets, strict=True):
            marginal_L = np.bincount(places_U, weights_U * share_U)
            weights_U = weights_U * np.divide(target_L, marginal_L, out=np.zeros_like(target_L), where=marginal_L > 0)[places_U]
        weights_U = _bounded(weights_U, share_U)
    return weights_U


def _target(places_U: np.ndarray, share_U: np.ndarray, balance: float) -> np.ndarray:
    """Shares of "not known" and of every level."""
    target_L = np.bincount(places_U, share_U)
    known_L = target_L[1:]
    tempered_L = np.where(known_L > 0, known_L ** (1 - balance), 0.0)
    target_L[1:] = tempered_L / max(tempered_L.sum(), 1e-300) * known_L.sum()
    return target_L


def _bounded(weights_U: np.ndarray, share_U: np.ndarray) -> np.ndarray:
    """Scale the weights by the one factor with which, clipped to LEAST and MOST, their mean is 1 (bisection on its logarithm)."""
    low, high = -40.0, 40.0
    for _ in range(60):
        middle = (low + high) / 2
        too_much = np.clip(weights_U * np.exp(middle), LEAST, MOST) @ share_U > 1
        low, high = (low, middle) if too_much else (middle, high)
    return np.clip(weights_U * np.exp(low), LEAST, MOST)
