"""The membership test: training tiles with noise are caught, independent tiles are not."""

from __future__ import annotations

import numpy as np
import pytest

from attributegan.metrics import quality


def sets(copies: bool, count: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    training_TD, held_out_MD, other_ND = (rng.standard_normal((count, 12)) for _ in range(3))
    return training_TD, held_out_MD, training_TD + 0.3 * rng.standard_normal((count, 12)) if copies else other_ND


def test_copies_are_caught_by_both_tests_and_independent_tiles_by_none() -> None:
    for copies in (True, False):
        training_TD, held_out_MD, generated_ND = sets(copies)
        auc = quality.membership(training_TD, held_out_MD, generated_ND)
        memory = quality.memorisation(training_TD, generated_ND, held_out_MD)
        assert (auc.low > 0.5) is copies and (memory.ratio < 0.6) is copies and (memory.nearer > 0.1) is copies
        assert auc.value > 0.95 if copies else 0.42 < auc.value < 0.58
        assert auc.low <= auc.value <= auc.high


def test_copies_of_a_few_training_tiles_are_caught() -> None:
    training_TD, held_out_MD, generated_ND = sets(copies=False, count=400)
    generated_ND[:120] = training_TD[:120]
    assert quality.membership(training_TD, held_out_MD, generated_ND).low > 0.5


def test_membership_by_hand() -> None:
    """Distances 0, 2 of training and 1, 2 of held-out tiles: nearer in 2 of 4 pairs, with one tie."""
    training, held_out, generated = np.array([[0.0], [2.0]]), np.array([[1.0], [-2.0]]), np.array([[0.0]])
    assert quality.membership(training, held_out, generated).value == pytest.approx((1 + 1 + 0 + 0.5) / 4)


def test_slides_are_resampled_together() -> None:
    """Ten slides, each at its own distance: wide over slides, narrow over tiles."""
    rng = np.random.default_rng(0)
    group = np.arange(200) // 20
    training, held_out = (
        rng.standard_normal(10)[group][:, None] + 0.01 * rng.standard_normal((200, 1)) + np.array([10.0]) for _ in range(2)
    )
    over = [quality.membership(training, held_out, np.zeros((1, 1)), *groups) for groups in ((), (group, group))]
    assert over[0].value == over[1].value and over[1].high - over[1].low > 2 * (over[0].high - over[0].low)


def on_slides(names: np.ndarray, per: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tiles of slides, each of which has a look of its own; returns features and slides."""
    looks = np.random.default_rng(5).standard_normal((20, 8)) * 2
    group = np.repeat(names, per)
    return looks[group] + np.random.default_rng(seed).standard_normal((len(group), 8)), group


def test_within_slides_the_look_of_a_slide_is_no_copy() -> None:
    slides = np.arange(10)
    (training, group_T), (same, group_S), (other, group_O) = (
        on_slides(slides, 20, 0),
        on_slides(slides, 10, 1),
        on_slides(slides + 10, 10, 2),
    )
    new, _ = on_slides(slides, 20, 3)
    assert quality.membership(training, other, new, group_T, group_O).low > 0.5  # the training slides are recognized, not their tiles
    for over_slides in (True, False):
        found = quality.membership_within_slides(training, same, new, group_T, group_S, over_slides)
        assert found.low <= 0.5 <= found.high and 0.4 < found.value < 0.6
        copied = training + 0.3 * np.random.default_rng(4).standard_normal(training.shape)
        assert quality.membership_within_slides(training, same, copied, group_T, group_S, over_slides).low > 0.8


def test_within_slides_by_hand() -> None:
    """Slide 0 has distances 0 of training and 1 of held-out tiles, slide 1 has 3 and 2; slide 2 has no held-out tile."""
    training, held_out, generated = np.array([[0.0], [3.0], [9.0]]), np.array([[1.0], [2.0]]), np.array([[0.0]])
    for over_slides in (True, False):  # draws of tiles without a pair do not count
        found = quality.membership_within_slides(training, held_out, generated, np.array([0, 1, 2]), np.array([0, 1]), over_slides)
        assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)
    with pytest.raises(ValueError, match="no slide has both"):
        quality.membership_within_slides(training, held_out, generated, np.array([0, 1, 2]), np.array([3, 4]))


def test_intervals_are_those_of_resampled_slides_or_tiles() -> None:
    rng = np.random.default_rng(1)
    training, held_out, generated = (rng.standard_normal((count, 1)) for count in (6, 5, 3))
    held_out[2] = training[1]  # a tie
    group_T, group_M = np.array([0, 0, 1, 1, 2, 4]), np.array([1, 0, 0, 1, 3])
    distance_T, distance_M = (np.abs(x - generated.T).min(axis=1) for x in (training, held_out))
    win_TM = np.array([[1.0 if a < b else 0.5 if a == b else 0.0 for b in distance_M] for a in distance_T])
    same_TM = group_T[:, None] == group_M

    def drawn(draws: np.random.Generator, group_N: np.ndarray) -> np.ndarray:
        names = np.unique(group_N)
        return draws.multinomial(len(names), np.full(len(names), 1 / len(names)), 30)[:, np.searchsorted(names, group_N)]

    def shares(weight_RT: np.ndarray, weight_RM: np.ndarray, pairs_TM: np.ndarray) -> list[float]:
        weight_RTM = weight_RT[:, :, None] * weight_RM[:, None] * pairs_TM
        return [(weight_TM * win_TM).sum() / weight_TM.sum() for weight_TM in weight_RTM if weight_TM.any()]

    for used_T, used_M, found in (
        (np.arange(6), np.arange(5), quality.membership(training, held_out, generated, replicates=30, seed=7)),
        (group_T, group_M, quality.membership(training, held_out, generated, group_T, group_M, replicates=30, seed=7)),
    ):
        draws = np.random.default_rng(7)
        low, high = quality.bounds(np.array(shares(drawn(draws, used_T), drawn(draws, used_M), np.ones((6, 5)))))
        assert (found.value, found.low, found.high) == pytest.approx((win_TM.mean(), low, high))
    draws = np.random.default_rng(7)
    tiles = shares(drawn(draws, np.arange(6)), drawn(draws, np.arange(5)), same_TM)
    wins = [win_TM[part].sum() for part in (np.ix_([0, 1], [1, 2]), np.ix_([2, 3], [0, 3]))]  # of slides 0 and 1, of 4 pairs each
    slides = np.random.default_rng(7).multinomial(2, [0.5, 0.5], 30) @ wins / 8
    for resample_slides, replicates in ((True, slides), (False, tiles)):
        found = quality.membership_within_slides(training, held_out, generated, group_T, group_M, resample_slides, replicates=30, seed=7)
        low, high = quality.bounds(np.array(replicates))
        assert (found.value, found.low, found.high) == pytest.approx((sum(wins) / 8, low, high))
