"""Held-out tiles and groups, compared with a slow reference implementation."""

from __future__ import annotations

import numpy as np
import pytest

from data_shards.packing import splits
from data_shards.packing.splits import hold_out
from data_shards.sampler import permutation


def levels_of(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, 3, count), rng.choice([-1, 0, 3], count)], axis=1).astype(np.int8)


@pytest.mark.parametrize(("count", "fraction"), [(0, 0.5), (1, 0.0), (7, 0.0)])
def test_nothing_to_hold_out(count: int, fraction: float) -> None:
    for group_N in (None, np.zeros(count, int)):
        found = hold_out(levels_of(count), group_N, fraction, 0)
        assert found.dtype == bool and found.tolist() == [False] * count


@pytest.mark.parametrize("group_N", [None, np.zeros(1, int)])
def test_one_tile_can_not_be_split(group_N: np.ndarray | None) -> None:
    with pytest.raises(ValueError, match="only one group"):
        hold_out(levels_of(1), group_N, 0.5, 0)


def test_one_group_can_not_be_split() -> None:
    with pytest.raises(ValueError, match="only one group"):
        hold_out(levels_of(5), np.zeros(5, int), 0.5, 0)
    assert hold_out(levels_of(2), np.arange(2), 0.5, 0).sum() == 1


@pytest.mark.parametrize(
    ("count", "fraction", "held_out"), [(2, 0.01, 1), (2, 0.99, 1), (9, 0.01, 1), (9, 0.99, 8), (10, 0.34, 3), (10, 0.36, 4)]
)
def test_at_least_one_tile_is_in_each_split(count: int, fraction: float, held_out: int) -> None:
    assert hold_out(levels_of(count), None, fraction, 0).sum() == held_out


def test_tiles_are_taken_at_equal_distances() -> None:
    levels_NA = levels_of(50)
    place_N = permutation.shuffle(50, permutation.stream(4, "held-out tiles"))
    by_label = sorted(range(50), key=lambda n: (*levels_NA[n, ::-1].tolist(), place_N[n]))
    expected = {by_label[k * 5 + 2] for k in range(10)}
    assert set(np.flatnonzero(hold_out(levels_NA, None, 0.2, 4)).tolist()) == expected


def greedy(levels_NA: np.ndarray, group_N: np.ndarray, fraction: float, seed: int, candidates: int) -> set[int]:
    """Reference: repeatedly add the group that brings all counts closest to their targets, weighted by frequency."""
    columns = [np.ones(len(levels_NA), bool)]
    columns += [levels_N == level for levels_N in levels_NA.T for level in np.unique(levels_N) if level >= 0]
    totals = [column.sum() for column in columns]

    def distance(chosen: set[int]) -> float:
        inside = np.isin(group_N, list(chosen))
        return sum((fraction * total - (column & inside).sum()) ** 2 / total for column, total in zip(columns, totals, strict=True))

    waiting = permutation.shuffle(group_N.max() + 1, permutation.stream(seed, "held-out groups")).tolist()
    chosen: set[int] = set()
    while len(waiting) > 1:
        best = min(waiting[:candidates], key=lambda group: distance(chosen | {group}))
        if chosen and distance(chosen | {best}) >= distance(chosen):
            break
        chosen.add(best)
        waiting.remove(best)
    return chosen


@pytest.mark.parametrize("fraction", [0.02, 0.2, 0.5, 0.95])
@pytest.mark.parametrize("candidates", [4, 1000])
def test_groups_equal_the_reference(fraction: float, candidates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert splits.CANDIDATES == 1000
    monkeypatch.setattr(splits, "CANDIDATES", candidates)
    for seed in range(3):
        levels_NA, group_N = levels_of(90, seed), np.random.default_rng(seed).permutation(np.repeat(np.arange(12), 90 // 12 + 1)[:90])
        found = hold_out(levels_NA, group_N, fraction, seed)
        expected = greedy(levels_NA, group_N, fraction, seed, candidates)
        assert found.tolist() == np.isin(group_N, list(expected)).tolist()


def test_a_group_of_the_target_size_is_sufficient() -> None:
    group_N = np.repeat(np.arange(3), [2, 3, 5])
    assert hold_out(np.zeros((10, 1), np.int8), group_N, 0.5, 0).tolist() == [False] * 5 + [True] * 5
    assert hold_out(np.zeros((10, 1), np.int8), group_N, 0.99, 0).sum() in (7, 8, 5)  # one group remains


def test_groups_that_do_not_improve_the_distance_are_not_held_out() -> None:
    """The target is three of six tiles; two are as close as four."""
    assert hold_out(np.zeros((6, 1), np.int8), np.repeat(np.arange(3), 2), 0.5, 0).sum() == 2


def test_the_split_of_a_seed_never_changes() -> None:
    """Sets packed by older versions must get the same split again: do not edit this test."""
    levels_NA = np.stack([np.arange(20) % 3, np.arange(20) % 7 % 2], axis=1).astype(np.int8)
    assert np.flatnonzero(hold_out(levels_NA, None, 0.2, 3)).tolist() == [6, 7, 8, 15]
    assert np.flatnonzero(hold_out(levels_NA, np.arange(20) // 3, 0.2, 3)).tolist() == [9, 10, 11]


def test_tiles_are_taken_from_the_middle_of_their_stretches() -> None:
    """Seven tiles in the order of their levels, two of them held out: the middle one of each half."""
    held_out_N = hold_out(np.arange(7, dtype=np.int8)[:, None], None, 2 / 7, seed=0)
    assert np.flatnonzero(held_out_N).tolist() == [1, 5]


@pytest.mark.parametrize("group_N", [None, np.arange(7) // 2])
def test_splits_are_masks(group_N: np.ndarray | None) -> None:
    assert hold_out(np.arange(7, dtype=np.int8)[:, None], group_N, 0.3, seed=0).dtype == bool
