"""Chooses held-out tiles: whole groups, stratified by level as far as the groups allow."""

from __future__ import annotations

import numpy as np

from data_shards.sampler import permutation

CANDIDATES = 1_000


def hold_out(levels_NA: np.ndarray, group_N: np.ndarray | None, fraction: float, seed: int) -> np.ndarray:
    """Returns the mask of the validation split, bool [N].

    Args:
        group_N: int, tiles of one group stay together; None for tiles without groups.
        fraction: share of held-out tiles, in [0, 1).

    Raises:
        ValueError: fewer than two groups.
    """
    count = len(levels_NA)
    if fraction == 0 or count == 0:
        return np.zeros(count, bool)
    if count < 2 or (group_N is not None and len(np.unique(group_N)) < 2):
        raise ValueError("--val-fraction: only one group, so nothing can be held out; use --val-fraction 0")
    held_out_N = _tiles(levels_NA, fraction, seed) if group_N is None else _groups(levels_NA, group_N, fraction, seed)[group_N]
    assert held_out_N.any() and not held_out_N.all()
    return held_out_N


def _tiles(levels_NA: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Hold out every (1/fraction)-th tile of a list sorted by combination of levels and shuffled within each."""
    count = len(levels_NA)
    shuffled_N = permutation.shuffle(count, permutation.stream(seed, permutation.Purpose.HELD_OUT_TILES))
    sorted_N = np.lexsort((shuffled_N, *levels_NA.T))
    held_out_N = np.zeros(count, bool)
    target = min(max(round(fraction * count), 1), count - 1)
    held_out_N[sorted_N[(np.arange(target) * count + count // 2) // target]] = True
    return held_out_N


def _groups(levels_NA: np.ndarray, group_N: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Greedily hold out the group that brings the level counts closest to their targets, until no group improves them.

    The distance is the sum over levels of (held out - target)^2 / total. At least one group is held out, and at least one is not.
    """
    counts_GL = _level_counts(levels_NA, group_N)
    total_L = counts_GL.sum(axis=0)
    keep_L = total_L > 0
    counts_GL, total_L = counts_GL[:, keep_L], total_L[keep_L]
    groups = len(counts_GL)
    remaining_G = permutation.shuffle(groups, permutation.stream(seed, permutation.Purpose.HELD_OUT_GROUPS))
    held_out_G = np.zeros(groups, bool)
    missing_L = fraction * total_L
    while len(remaining_G) > 1:
        candidates_G = remaining_G[:CANDIDATES]  # bounds the cost of a step
        distance_G = ((missing_L - counts_GL[candidates_G]) ** 2 / total_L).sum(axis=1)
        best = int(distance_G.argmin())
        if held_out_G.any() and distance_G[best] >= (missing_L**2 / total_L).sum():
            break
        held_out_G[candidates_G[best]] = True
        missing_L = missing_L - counts_GL[candidates_G[best]]
        remaining_G = np.delete(remaining_G, best)
    return held_out_G


def _level_counts(levels_NA: np.ndarray, group_N: np.ndarray) -> np.ndarray:
    """Count the tiles of each group with each level of each attribute, counts_GL; the first column counts all tiles."""
    groups = int(group_N.max()) + 1
    columns = [np.bincount(group_N, minlength=groups)]
    for levels_N in levels_NA.T:
        columns += [np.bincount(group_N[levels_N == level], minlength=groups) for level in range(int(levels_N.max()) + 1)]
    return np.stack(columns, axis=1).astype(np.float64)
