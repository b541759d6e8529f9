"""The order of tiles: exact, balanced, reproducible."""

from __future__ import annotations

import numpy as np
import pytest

from data_shards.sampler.balance import MAX_WEIGHT, MIN_WEIGHT, SWEEPS, weights
from data_shards.sampler.global_order import UNIT, GlobalShuffle, SystematicDraws, combinations, lengths
from data_shards.sampler.permutation import GOLDEN, hashes, mix, permute, shuffle, stream
from data_shards.sampler.windowed_order import WindowedShuffle


def skewed_levels(count: int = 2000) -> np.ndarray:
    """Three attributes whose levels differ in frequency by factors of 1 to 20."""
    rng = np.random.default_rng(0)
    chances = ((0.05, 0.65, 0.3), (0.9, 0.1), (0.1, 0.2, 0.3, 0.4))
    return np.stack([rng.choice(len(chance), count, p=chance) for chance in chances], axis=1).astype(np.int8)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 1000, 65537])
def test_permute_is_a_permutation_for_every_key(size: int) -> None:
    for key in (0, 1, 2**64 - 1):
        assert np.array_equal(np.sort(permute(np.arange(size), size, np.full(size, key, np.uint64))), np.arange(size))


def test_permute_is_uniform() -> None:
    size, keys = 7, 21_000
    counts = np.zeros((size, size))
    key_K = hashes(stream(0, "test"), np.arange(keys))
    for location in range(size):
        counts[location] = np.bincount(permute(np.full(keys, location), size, key_K), minlength=size)
    chi_squared = ((counts - keys / size) ** 2 / (keys / size)).sum()
    assert chi_squared < 80  # 36 degrees of freedom: exceeded with probability 4e-5


def test_without_balance_every_pass_contains_every_tile_once() -> None:
    levels_NA = skewed_levels(333)
    order = GlobalShuffle(levels_NA, seed=3, balance=0)
    passes = order[np.arange(5 * 333)].reshape(5, 333)
    by_shards = WindowedShuffle(levels_NA, skewed_shards(333), 3, 0, window=2)[np.arange(5 * 333)].reshape(5, 333)
    assert len({tuple(tiles_N) for tiles_N in by_shards}) == 5
    for tiles_N in [*passes, *by_shards]:
        assert np.array_equal(np.sort(tiles_N), np.arange(333))
    assert len({tuple(tiles_N) for tiles_N in passes}) == 5
    # Consecutive tiles of a pass are uncorrelated in the set: |difference| has a mean of N / 3.
    assert abs(np.abs(np.diff(passes, axis=1)).mean() - 111) < 12


def skewed_shards(count: int = 2000) -> np.ndarray:
    """13 shards of different sizes, with interleaved tiles."""
    return np.random.default_rng(1).choice(13, count, p=np.arange(1, 14) / 91)


def both_orders(levels_NA: np.ndarray, seed: int, balance: float) -> list[GlobalShuffle | WindowedShuffle]:
    return [GlobalShuffle(levels_NA, seed, balance), WindowedShuffle(levels_NA, skewed_shards(len(levels_NA)), seed, balance, window=3)]


@pytest.mark.parametrize("balance", [0.0, 0.4, 1.0])
def test_positions_are_independent_of_each_other(balance: float) -> None:
    levels_NA = skewed_levels()
    position_B = np.arange(10**9, 10**9 + 3000)
    for kind in (0, 1):
        together = both_orders(levels_NA, 0, balance)[kind][position_B]
        for start in range(0, 3000, 500):
            assert both_orders(levels_NA, 0, balance)[kind][position_B[start : start + 1]] == together[start]
        assert (both_orders(levels_NA, 1, balance)[kind][position_B] != together).any()


@pytest.mark.parametrize("balance", [0.3, 1.0])
def test_tiles_are_drawn_floor_or_ceil_of_their_weight_evenly(balance: float) -> None:
    levels_NA = skewed_levels()
    levels_UA, combination_N, counts_U = combinations(levels_NA)
    weight_N = weights(levels_UA, counts_U, balance)[combination_N]
    passes = 30
    for order in both_orders(levels_NA, 0, balance):
        tile_PN = order[np.arange(passes * len(levels_NA))].reshape(passes, -1)
        count_PN = np.stack([np.bincount(tile_N, minlength=len(levels_NA)) for tile_N in tile_PN])
        assert (count_PN >= np.floor(weight_N - 1e-4)).all() and (count_PN <= np.ceil(weight_N + 1e-4)).all()
        if isinstance(order, GlobalShuffle):
            assert np.abs(count_PN.sum(axis=0) - passes * weight_N).max() < 3  # far below the 1.6 * sqrt(30) of independent draws


def test_full_balance_makes_every_attribute_uniform() -> None:
    levels_NA = skewed_levels()
    tile_N = GlobalShuffle(levels_NA, 0, 1.0)[np.arange(20 * len(levels_NA))]
    for levels_N in levels_NA.T:
        share_L = np.bincount(levels_N[tile_N]) / len(tile_N)
        assert np.abs(share_L - 1 / len(share_L)).max() < 0.003


@pytest.mark.parametrize(("balance", "window"), [(0.0, 1), (0.0, 4), (1.0, 4), (0.0, 99)])
def test_few_shards_are_open_at_a_time_and_their_tiles_are_mixed(balance: float, window: int) -> None:
    shard_N = skewed_shards()
    order = WindowedShuffle(skewed_levels(), shard_N, 0, balance, window)
    shard_P = shard_N[order[np.arange(3 * len(order), 4 * len(order))]]
    first = {shard: int(np.flatnonzero(shard_P == shard)[0]) for shard in range(13)}
    last = {shard: int(np.flatnonzero(shard_P == shard)[-1]) for shard in range(13)}
    opened = [sum(first[shard] <= location <= last[shard] for shard in range(13)) for location in range(len(order))]
    assert max(opened) <= min(window, 13)
    if window > 1:
        assert np.mean(np.diff(shard_P) != 0) > 0.5


def test_half_balance_is_between() -> None:
    levels_UA, _, counts_U = combinations(skewed_levels())
    weight_U = weights(levels_UA, counts_U, 0.5)
    before_L, after_L = np.bincount(levels_UA[:, 1], counts_U), np.bincount(levels_UA[:, 1], counts_U * weight_U)
    assert after_L[0] / after_L[1] == pytest.approx((before_L[0] / before_L[1]) ** 0.5, rel=1e-3)


def test_a_level_with_one_tile_is_not_half_of_a_pass() -> None:
    levels_NA = np.zeros((4000, 2), np.int8)
    levels_NA[17, 0] = 1
    levels_NA[:100, 1] = 1
    levels_UA, combination_N, counts_U = combinations(levels_NA)
    weight_N = weights(levels_UA, counts_U, 1.0)[combination_N]
    assert weight_N.max() <= MAX_WEIGHT and weight_N.min() >= MIN_WEIGHT and weight_N.mean() == pytest.approx(1)
    assert weight_N[17] == pytest.approx(MAX_WEIGHT)


def test_conflicting_targets_keep_every_tile_in_the_order() -> None:
    """Levels that only occur together can't be balanced against each other."""
    levels_NA = np.array([[0, 0, 0]] * 900 + [[1, 1, 0]] * 90 + [[1, 1, 1]] * 10, np.int8)
    levels_UA, combination_N, counts_U = combinations(levels_NA)
    weight_N = weights(levels_UA, counts_U, 1.0)[combination_N]
    assert weight_N.min() >= MIN_WEIGHT and weight_N.max() <= MAX_WEIGHT and weight_N.mean() == pytest.approx(1)
    order = GlobalShuffle(levels_NA, 0, 1.0)
    assert set(order[np.arange(10 * len(order))].tolist()) == set(range(1000))


def test_more_combinations_than_64_bits_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"data\.balance"):
        GlobalShuffle(np.full((2, 64), 2, np.int8), 0, 1.0)


def test_the_order_of_a_seed_never_changes() -> None:
    """Runs started with older versions must resume with the same tiles: do not edit this test."""
    number_N = np.arange(100)
    levels_NA = np.stack([number_N % 7 == 0, number_N % 5], axis=1).astype(np.int8)
    assert GlobalShuffle(levels_NA, 7, 0.0)[np.arange(98, 104)].tolist() == [1, 6, 38, 74, 96, 35]
    assert GlobalShuffle(levels_NA, 7, 1.0)[np.arange(98, 104)].tolist() == [20, 65, 83, 42, 49, 53]
    assert WindowedShuffle(levels_NA, number_N // 9, 7, 0.0, window=3)[np.arange(98, 104)].tolist() == [38, 82, 81, 52, 50, 82]
    assert WindowedShuffle(levels_NA, number_N // 9, 7, 1.0, window=3)[np.arange(98, 104)].tolist() == [81, 36, 83, 53, 49, 84]
    assert (UNIT, SWEEPS, MIN_WEIGHT, MAX_WEIGHT) == (1 << 20, 50, 0.1, 10.0)
    assert shuffle(10, stream(7, "test")).tolist() == [0, 2, 8, 3, 5, 7, 1, 6, 9, 4]
    assert hashes(stream(7, "test"), np.arange(2)).tolist() == [3815718566342527626, 16609560037831940967]


def test_combinations_and_their_bounds() -> None:
    levels_UA, combination_N, counts_U = combinations(np.array([[2, 0], [0, -1], [2, 0], [0, 1]], np.int8))
    assert levels_UA.tolist() == [[0, -1], [0, 1], [2, 0]] and combination_N.tolist() == [2, 0, 2, 1] and counts_U.tolist() == [1, 1, 2]
    many_NA = np.stack(np.divmod(np.arange(70_000), 300), axis=1).astype(np.int16)  # more than fit in 16 bits
    assert np.array_equal(combinations(many_NA)[1], np.arange(70_000))
    assert len(combinations(np.zeros((2, 62), np.int8))[2]) == 1  # 2^62 possible combinations
    with pytest.raises(ValueError, match=r"data\.balance"):
        combinations(np.zeros((2, 63), np.int8))


def test_segments_begin_with_the_first_tile_of_a_combination() -> None:
    order = GlobalShuffle(skewed_levels(), 0, 1.0)
    assert order._tile_at(order._start_U).tolist() == order._tiles_N[order._first_U].tolist()
    assert order._tile_at(order._start_U[1:] - 1).tolist() == order._tiles_N[order._first_U[1:] - 1].tolist()


@pytest.mark.parametrize("balance", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("unknown", [0, 700])
def test_weights_of_one_attribute_by_hand(balance: float, unknown: int) -> None:
    """Its levels 0, 2 and 3 have 20, 100 and 180 tiles; unknown levels keep their share."""
    counts_U = np.array([unknown, 20, 100, 180][not unknown :])
    levels_UA = np.array([[-1], [0], [2], [3]][not unknown :], np.int8)
    share_K = np.array([20, 100, 180]) / counts_U.sum()
    expected_K = share_K ** (1 - balance) / (share_K ** (1 - balance)).sum() * share_K.sum() / share_K
    assert weights(levels_UA, counts_U, balance) == pytest.approx([1.0] * bool(unknown) + expected_K.tolist(), rel=1e-9)


def test_weights_at_their_bounds_by_hand() -> None:
    rare = weights(np.array([[0], [1]]), np.array([1, 999]), 1.0)
    assert rare == pytest.approx([10, 990 / 999], rel=1e-9)
    frequent = weights(np.arange(21)[:, None], np.array([180] + [1] * 20), 1.0)
    assert frequent == pytest.approx([0.1] + [(200 - 18) / 20] * 20, rel=1e-9)


@pytest.mark.parametrize("window", [1, 2])
def test_windows_with_one_draw_or_none(window: int) -> None:
    """Shards of one tile each, most with a weight below 1."""
    levels_NA = skewed_levels(300)
    levels_UA, combination_N, counts_U = combinations(levels_NA)
    weight_N = weights(levels_UA, counts_U, 1.0)[combination_N]
    order = WindowedShuffle(levels_NA, np.arange(300), 5, 1.0, window)
    for number in range(4):
        count_N = np.bincount(order[np.arange(number * 300, (number + 1) * 300)], minlength=300)
        assert (count_N >= np.floor(weight_N - 1e-4)).all() and (count_N <= np.ceil(weight_N + 1e-4)).all()


@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_passes_with_offset_zero(balance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws fall exactly on the start of a shard or a combination."""
    monkeypatch.setattr(SystematicDraws, "_offset", lambda self, pass_B: np.zeros(len(pass_B), np.int64))
    levels_NA = skewed_levels(300)
    levels_UA, combination_N, counts_U = combinations(levels_NA)
    weight_N = weights(levels_UA, counts_U, balance)[combination_N]
    for order in both_orders(levels_NA, 0, balance):
        count_N = np.bincount(order[np.arange(300)], minlength=300)
        assert (count_N >= np.floor(weight_N - 1e-4)).all() and (count_N <= np.ceil(weight_N + 1e-4)).all()


def test_shards_have_the_length_of_their_tiles() -> None:
    shard_N = skewed_shards(300)
    order = WindowedShuffle(skewed_levels(300), shard_N, 0, 0.5, window=2)
    expected = np.bincount(shard_N, lengths(skewed_levels(300), 0.5))
    assert order._shard_length_S.tolist() == expected[expected > 0].tolist()


def test_upcoming_shards_begin_with_the_window_of_the_position() -> None:
    shard_N = np.repeat(np.arange(8), 10) * 3  # shard indices with gaps
    order = WindowedShuffle(np.zeros((80, 1), np.int8), shard_N, 1, 0.0, window=2)
    met_P = shard_N[order[np.arange(160)]]
    for position in (0, 1, 19, 20, 21, 60, 79, 80, 100):
        window = position // 20
        expected = [set(met_P[first : first + 20].tolist()) for first in range(window * 20, 80 * (position // 80 + 2), 20) if first < 160]
        coming = list(order.shards_from(position))
        assert [set(coming[k : k + 2]) for k in range(0, len(coming), 2)][: len(expected)] == expected
        assert len(coming) == 8 - 2 * (window % 4) + 8


def test_upcoming_shards_of_one_tile_each_are_those_of_the_tiles() -> None:
    order = WindowedShuffle(np.zeros((6, 1), np.int8), np.arange(6), 1, 0.0, window=1)
    assert list(order.shards_from(2)) == order[np.arange(2, 12)].tolist()


def test_positions_of_any_kind_give_tiles_of_64_bits() -> None:
    for order in both_orders(skewed_levels(), 0, 0.5):
        expected = order[np.arange(5, 9)]
        for positions in ([5, 6, 7, 8], np.arange(5, 9, dtype=np.int32), np.arange(5, 9, dtype=np.uint8)):
            found = order[positions]
            assert found.tolist() == expected.tolist() and found.dtype == np.int64


def test_splitmix_matches_published_values() -> None:
    """The first numbers of SplitMix64 with seed 0, as published with its C code."""
    state_K = GOLDEN * np.arange(1, 4, dtype=np.uint64)
    assert [hex(number) for number in mix(state_K).tolist()] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]


def test_unknown_levels_are_not_balanced() -> None:
    """Tiles with an unknown level keep their share; known levels are balanced."""
    levels_NA = skewed_levels()
    unknown_N = np.random.default_rng(0).random(len(levels_NA)) < 0.25
    levels_NA[unknown_N, 1] = -1
    levels_UA, combination_N, counts_U = combinations(levels_NA)
    assert (levels_UA[combination_N] == levels_NA).all()
    tile_N = GlobalShuffle(levels_NA, 0, 1.0)[np.arange(20 * len(levels_NA))]
    share_L = np.bincount(levels_NA[tile_N, 1] + 1) / len(tile_N)
    assert share_L[0] == pytest.approx(unknown_N.mean(), abs=0.01)
    assert np.abs(share_L[1:] - (1 - share_L[0]) / (len(share_L) - 1)).max() < 0.01


def test_draws_at_the_first_point_of_a_tile_are_of_that_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the offset of a pass, draws fall on the boundaries between tiles, where one step to the left is another tile."""
    monkeypatch.setattr(SystematicDraws, "_offset", lambda self, pass_B: np.zeros(np.shape(pass_B), np.int64))
    order = WindowedShuffle(np.zeros((12, 1), np.int8), np.repeat(np.arange(3), 4), seed=1, balance=0.0, window=1)
    assert sorted(order[np.arange(12)].tolist()) == list(range(12))
    for shard in np.split(order[np.arange(12)], 3):  # one shard after the other
        assert len(np.unique(shard // 4)) == 1


def test_tiles_of_a_large_shard_keep_the_order_of_the_index() -> None:
    """The order of equal shards matters: the same set must have the same order on every machine."""
    shard_N = np.tile(np.arange(3), 200)
    order = WindowedShuffle(np.zeros((600, 1), np.int8), shard_N, seed=0, balance=0.0, window=1)
    for shard in range(3):
        assert order._tiles_N[200 * shard : 200 * (shard + 1)].tolist() == list(range(shard, 600, 3))
