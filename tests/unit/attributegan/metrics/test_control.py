"""Control scores against known answers: perfect control, ignored labels, errors of one level, constructed leaks."""

import numpy as np
import pytest

from attributegan.metrics import control

LEVELS = (1, 2, 3, 4)


def requested(count: int, shares: tuple[float, ...] = (0.25, 0.25, 0.25, 0.25)) -> np.ndarray:
    return np.random.default_rng(0).choice(LEVELS, count, p=shares)


def noise(count: int, scale: float) -> np.ndarray:
    return scale * np.random.default_rng(1).standard_normal(count)


def test_perfect_control() -> None:
    requested_N = requested(400)
    found = control.scores(requested_N, requested_N + noise(400, 0.05), LEVELS)
    assert (found.accuracy, found.mae, found.kappa) == pytest.approx((1, 0, 1))
    assert found.spearman == pytest.approx(1, abs=0.01)


def test_ignored_labels() -> None:
    found = control.scores(requested(4000), 2.5 + noise(4000, 1.0), LEVELS)
    assert found.accuracy == pytest.approx(0.25, abs=0.03)
    assert abs(found.kappa) < 0.05 and abs(found.spearman) < 0.05


def test_reversed_levels_score_minus_one() -> None:
    requested_N = requested(400)
    found = control.scores(requested_N, 5 - requested_N + noise(400, 0.01), LEVELS)
    assert found.spearman == pytest.approx(-1, abs=0.01) and found.kappa == pytest.approx(-1, abs=0.1)


def test_one_step_off_costs_accuracy_and_not_order() -> None:
    requested_N = np.array([1, 2, 3] * 100)
    found = control.scores(requested_N, requested_N + 1 + noise(300, 0.01), LEVELS)
    assert (found.accuracy, found.mae) == pytest.approx((0, 1))
    assert found.spearman == pytest.approx(1, abs=0.01) and 0.3 < found.kappa < 0.8


def test_kappa_of_a_textbook_table() -> None:
    """Two levels: kappa = (p_o - p_e) / (1 - p_e); balanced rows 0.8/0.2 and 0.4/0.6 give (0.7 - 0.5) / 0.5."""
    requested_N = np.repeat([1, 2], 10)
    predicted_N = np.array([1] * 8 + [2] * 2 + [1] * 4 + [2] * 6)
    assert control.scores(requested_N, predicted_N, (1, 2)).kappa == pytest.approx(0.4)


def test_scores_do_not_depend_on_how_often_levels_come() -> None:
    skewed = requested(20_000, (0.7, 0.2, 0.06, 0.04))
    even, odd = (control.scores(a, a + noise(20_000, 0.6), LEVELS) for a in (requested(20_000), skewed))
    for name in control.Scores.names():
        assert getattr(odd, name) == pytest.approx(getattr(even, name), abs=0.03)


def test_levels_that_do_not_count_are_left_out() -> None:
    requested_N = np.concatenate([requested(400), np.zeros(100, int)])
    predicted_N = requested_N + noise(500, 0.01)
    assert control.scores(requested_N, predicted_N, LEVELS) == control.scores(requested_N[:400], predicted_N[:400], LEVELS)


@pytest.mark.parametrize(("levels", "ceiling"), [(4, 0.968), (3, 0.943), (2, 0.866)])
def test_spearman_reaches_its_ceiling_and_no_more(levels: int, ceiling: float) -> None:
    assert control.spearman_ceiling(levels) == pytest.approx(ceiling, abs=5e-4)
    requested_N = np.repeat(np.arange(levels), 2000)
    assert control.spearman(requested_N, requested_N + np.linspace(0, 0.5, len(requested_N))) == pytest.approx(ceiling, abs=1e-3)


def test_spearman_is_the_usual_one_with_ties() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is in the extra `eval`")
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, 200), rng.integers(0, 7, 200) + rng.integers(0, 3, 200)
    assert control.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    times = rng.integers(1, 4, 200)
    assert control.spearman(x, y, times.astype(float)) == pytest.approx(stats.spearmanr(np.repeat(x, times), np.repeat(y, times)).statistic)
    assert control.spearman(x, np.ones(200)) == 0


def test_confusion_counts() -> None:
    table = control.confusion(np.array([1, 1, 4, 2]), np.array([1.4, 2.6, 9.0, -3.0]), LEVELS)
    assert table.tolist() == [[1, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]


def test_interval_is_wider_when_few_groups_are_drawn_together() -> None:
    requested_N = requested(400)
    off = np.repeat(noise(20, 1.0), 20)  # an error shared by a whole group
    together = control.interval(requested_N, requested_N + off, LEVELS, np.repeat(np.arange(20), 20), 200)["mae"]
    apart = control.interval(requested_N, requested_N + off, LEVELS, np.arange(400), 200)["mae"]
    assert together.value == apart.value and together.low < together.value < together.high
    assert together.high - together.low > 2 * (apart.high - apart.low)


def test_interval_is_that_of_whole_groups_drawn_with_replacement() -> None:
    group = np.repeat(np.arange(5), [40, 5, 60, 25, 30])
    requested_N = requested(160)
    predicted_N = requested_N + np.array([0.0, 1.0, -1.0, 0.4, 2.0])[group]
    found = control.interval(requested_N, predicted_N, LEVELS, group, 60, seed=3)
    rng, drawn = np.random.default_rng(3), []
    for _ in range(60):
        rows = [row for one in rng.integers(5, size=5) for row in range(160) if group[row] == one]
        drawn.append(control.scores(requested_N[rows], predicted_N[rows], LEVELS))
    for name in control.Scores.names():
        expected = np.quantile([getattr(scores, name) for scores in drawn], [0.025, 0.975])
        assert (found[name].low, found[name].high) == pytest.approx(expected), name
        assert found[name].value == getattr(control.scores(requested_N, predicted_N, LEVELS), name)


def test_interval_leaves_out_draws_of_one_level_alone() -> None:
    """Two groups of one level each, one of them predicted correctly: a replicate has both levels, or can't be scored."""
    requested_N, predicted_N = np.array([0, 1, 1, 2, 2]), np.array([0, 1, 1, 1, 2])  # level 0 does not count
    found = control.interval(requested_N, predicted_N, (1, 2), np.array([0, 0, 0, 1, 1]), 20)
    for one in found.values():
        assert (one.low, one.high) == pytest.approx((one.value, one.value))
    assert found["accuracy"].value == 0.75
    alone = control.interval(requested_N, predicted_N, (1, 2), np.zeros(5), 20)
    assert alone["accuracy"].low == 0.75
    none = control.interval(requested_N[:4], requested_N[:4], (1, 2), np.arange(4), 0)
    assert none["mae"].value == 0 and np.isnan([none["mae"].low, none["mae"].high]).all()


def sweeps(moves: np.ndarray, jitter: float = 0.0) -> control.Sweeps:
    """Sweeping attribute a over its scale changes b by ``moves[a, b]`` times b's span; levels 1-4, 1-3 and 1-2."""
    rng = np.random.default_rng(0)
    spans = np.array([3.0, 2.0, 1.0])
    predicted = []
    for a, span in enumerate(spans):
        along_L = np.linspace(0, 1, int(span) + 1)
        start_P13 = rng.random((30, 1, 3))
        predicted.append(start_P13 + along_L[None, :, None] * moves[a] * spans + jitter * rng.standard_normal((30, len(along_L), 3)))
    return control.Sweeps(predicted, spans)


def test_leak_matrix_is_what_was_built_in() -> None:
    moves = np.array([[1.0, 0.3, 0], [0, 0.9, -0.5], [0, 0, 1.0]])
    np.testing.assert_allclose(sweeps(moves).leak_AA(), np.abs(moves), atol=1e-12)
    assert control.mean_leak(np.abs(moves)) == pytest.approx(0.8 / 6)
    assert sweeps(moves).monotone_A().tolist() == [1, 1, 1]


def test_generator_that_ignores_its_labels_has_no_leak_and_no_monotonicity() -> None:
    ignoring = sweeps(np.zeros((3, 3)))
    np.testing.assert_allclose(ignoring.leak_AA(), 0, atol=1e-12)
    assert ignoring.monotone_A().tolist() == [0.5, 0.5, 0.5]
    assert sweeps(np.zeros((3, 3)), jitter=1).monotone_A() == pytest.approx([0.5] * 3, abs=4 * 0.5 / 30**0.5)  # 30 sweeps
    assert sweeps(-np.eye(3)).monotone_A().tolist() == [0, 0, 0]


def test_path_length_of_an_even_way_and_of_a_jump() -> None:
    even = np.linspace(0, 1, 9)[None, :, None] * np.array([3.0, 4.0])  # |way| = 5
    jump = (np.linspace(0, 1, 9) > 0.5)[None, :, None] * np.array([3.0, 4.0])
    assert control.path(even).length == pytest.approx(25) and control.path(even).largest == pytest.approx(1 / 8)
    assert control.path(jump).length == pytest.approx(25 * 8) and control.path(jump).largest == pytest.approx(1)
    assert control.path(np.zeros((2, 9, 3))) == control.LevelPath(0.0, 1 / 8)
    several = control.path(np.concatenate([even, 2 * jump, np.zeros((1, 9, 2))]))  # the last is constant, so it does not count for evenness
    assert several.length == pytest.approx((25 + 4 * 25 * 8 + 0) / 3) and several.largest == pytest.approx((1 / 8 + 1) / 2)


def test_pixels_are_compared_tile_by_tile_without_overflow() -> None:
    one = np.array([0, 250, 7], np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    assert control.pixel_distance(zip(one, one[::-1], strict=True)) == pytest.approx((7 + 0 + 7) / 3)
    assert control.pixel_distance([(one[0], one[1])]) == 250
    assert control.pixel_distance([]) == 0


def test_shuffling_keeps_rows_whole() -> None:
    levels = np.arange(200).reshape(100, 2)
    mixed = control.shuffle(levels)
    assert (mixed != levels).any() and sorted(mixed[:, 0]) == levels[:, 0].tolist()
    assert (mixed[:, 1] == mixed[:, 0] + 1).all()


def test_diversity_is_that_of_tiles_with_one_label() -> None:
    tiles = np.array([0, 100, 10, 40, 7], np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    levels = np.array([[1, 2], [1, 3], [1, 2], [1, 2], [2, 2]])
    assert control.diversity(tiles, levels) == (10 + 30) / 2
    assert control.diversity(tiles[:2], levels[:2]) is None
    assert control.diversity(np.repeat(tiles[:1], 5, axis=0), levels) == 0


def test_one_level_alone_has_neither_order_nor_agreement() -> None:
    """All rows of one level: perfect predictions agree by chance alone, and have nothing to rank."""
    found = control.scores(np.array([2, 2, 2]), np.array([2.0, 2.0, 2.0]), (1, 2, 3))
    assert (found.accuracy, found.mae, found.kappa, found.spearman) == (1, 0, 0, 0)
    assert control.spearman_ceiling(1) == 1
