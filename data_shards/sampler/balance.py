"""Sampling weights of tiles that balance the levels of every attribute, fully or partially.

Owns the weights: how often a tile is drawn. The order of the draws is in global_order.py and windowed_order.py.
"""

from __future__ import annotations

import numpy as np

SWEEPS = 50
# Without bounds, the few tiles of a rare level would fill its share of a pass and tiles without a rare level would vanish: balance=1 on
# the 4,061 published tiles would train on 115 of them. With bounds, every tile is drawn between once in ten passes and ten times a pass.
MIN_WEIGHT, MAX_WEIGHT = 0.1, 10.0


def weights(levels_UA: np.ndarray, counts_U: np.ndarray, balance: float) -> np.ndarray:
    """Returns the expected draws per pass of a tile of each combination of levels: MIN_WEIGHT to MAX_WEIGHT, with mean 1 over the tiles.

    Every attribute's distribution over its occurring levels is tempered towards uniform, target ~ frequency^(1 - balance), and the
    combinations are raked to each target in turn (iterative proportional fitting, Deming & Stephan 1940) within bounds (as in
    calibration with bounded weights, Deville & Sarndal 1992). Combinations that do not occur keep weight 0. Conflicting targets, and
    targets that need weights beyond the bounds, are approximated in a fixed number of sweeps. Deterministic. Tiles with an unknown level
    (-1) keep their share: unknown is not balanced as if it were a level.

    Args:
        levels_UA: the combinations of levels that occur.
        counts_U: number of tiles of each combination.
        balance: 0 weights all tiles equally, 1 targets uniform levels.
    """
    share_U = counts_U / counts_U.sum()
    bins_UA = levels_UA.astype(np.int64) + 1  # bin 0 is "unknown"
    targets = [_target(bins_U, share_U, balance) for bins_U in bins_UA.T]
    weights_U = np.ones(len(share_U))
    for _ in range(SWEEPS if balance else 0):
        for bins_U, target_L in zip(bins_UA.T, targets, strict=True):
            marginal_L = np.bincount(bins_U, weights_U * share_U)
            weights_U = weights_U * np.divide(target_L, marginal_L, out=np.zeros_like(target_L), where=marginal_L > 0)[bins_U]
        weights_U = _bounded(weights_U, share_U)
    return weights_U


def _target(bins_U: np.ndarray, share_U: np.ndarray, balance: float) -> np.ndarray:
    """Returns the target shares of "unknown" and of every level."""
    target_L = np.bincount(bins_U, share_U)
    occurring_L = target_L[1:]
    tempered_L = np.where(occurring_L > 0, occurring_L ** (1 - balance), 0.0)
    target_L[1:] = tempered_L / max(tempered_L.sum(), 1e-300) * occurring_L.sum()
    return target_L


def _bounded(weights_U: np.ndarray, share_U: np.ndarray) -> np.ndarray:
    """Scale the weights so that, clipped to MIN_WEIGHT and MAX_WEIGHT, their mean is 1 (bisection on the logarithm of the factor)."""
    low, high = -40.0, 40.0
    for _ in range(60):
        middle = (low + high) / 2
        too_large = np.clip(weights_U * np.exp(middle), MIN_WEIGHT, MAX_WEIGHT) @ share_U > 1
        low, high = (low, middle) if too_large else (middle, high)
    return np.clip(weights_U * np.exp(low), MIN_WEIGHT, MAX_WEIGHT)
