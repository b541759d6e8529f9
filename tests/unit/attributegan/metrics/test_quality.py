"""Distances between feature sets against closed-form values."""

import numpy as np
import pytest

from attributegan.metrics import quality


def gaussian(count: int, mean: np.ndarray, scale: np.ndarray, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, len(mean))) * scale + mean


@pytest.fixture(scope="module")
def two_sets() -> tuple[np.ndarray, np.ndarray]:
    """Independent draws of one distribution."""
    return gaussian(600, np.zeros(16), np.ones(16), 0), gaussian(500, np.zeros(16), np.ones(16), 1)


def test_identical_sets() -> None:
    x = gaussian(300, np.arange(8.0), np.ones(8), 0)
    assert quality.frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    members = quality.manifolds(x, x).estimates()
    assert [round(members[name].value, 6) for name in ("precision", "recall", "coverage")] == [1, 1, 1]
    assert members["density"].value == pytest.approx(1 + 1 / quality.NEIGHBOURS, rel=0.5)


def test_frechet_distance_of_gaussians_is_the_closed_form() -> None:
    """|m - n|^2 + sum (s - t)^2 for diagonal covariances."""
    mean_x, mean_y = np.zeros(6), np.array([1.0, 0, -2, 0, 0, 0.5])
    scale_x, scale_y = np.array([1.0, 1, 2, 1, 0.5, 1]), np.array([1.0, 3, 1, 1, 0.5, 1])
    expected = ((mean_x - mean_y) ** 2).sum() + ((scale_x - scale_y) ** 2).sum()
    found = quality.frechet_distance(gaussian(100_000, mean_x, scale_x, 0), gaussian(100_000, mean_y, scale_y, 1))
    assert found == pytest.approx(expected, rel=0.01)


def test_frechet_distance_of_rotated_covariances_and_of_fewer_tiles_than_features() -> None:
    """Against the definition, tr sqrt(S T) by eigenvalues."""
    rng = np.random.default_rng(0)
    for count, width in ((200, 8), (12, 30)):
        x, y = (rng.standard_normal((count, width)) @ rng.standard_normal((width, width)) for _ in range(2))
        s, t = (np.cov(a, rowvar=False) for a in (x, y))
        root = np.sqrt(np.maximum(np.linalg.eigvals(s @ t).real, 0)).sum()
        expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * root
        assert quality.frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_is_biased_in_small_sets_and_kid_is_not(two_sets: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = two_sets
    assert quality.frechet_distance(x[:40], y[:40]) > 5 * quality.frechet_distance(x, y[:500])
    small = [quality.kernel_distance(x[first : first + 40], y[first : first + 40]).value for first in range(0, 480, 40)]
    assert abs(np.mean(small)) < 3 * np.std(small) / np.sqrt(len(small))


def test_kid_is_the_mean_over_pairs() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((5, 4)), rng.standard_normal((4, 4)) + 1

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return (a @ b / 4 + 1) ** 3

    within = [np.mean([k(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j]) for s in (x, y)]
    expected = within[0] + within[1] - 2 * np.mean([k(a, b) for a in x for b in y])
    assert np.isfinite(quality.kernel_distance(x, y, replicates=1).low)
    for found in (quality.kernel_distance(x, y), quality.Kernels.of(x, y).distance()):
        assert found.value == pytest.approx(expected, rel=1e-12) and np.isnan([found.low, found.high]).all()


def test_kid_interval_contains_the_truth_and_detects_a_shift(two_sets: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = two_sets
    same = quality.kernel_distance(x, y, replicates=200)
    assert same.low < 0 < same.high and same.low < same.value < same.high
    moved = quality.kernel_distance(x, y + 0.5, replicates=200)
    assert moved.low > same.high
    assert quality.kernel_distance(x, y, replicates=200) == same  # deterministic


def test_kid_of_a_part_is_that_of_its_tiles(two_sets: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = two_sets
    of_x, of_y = np.arange(len(x)) % 3 == 0, np.arange(len(y)) % 4 == 1
    assert quality.Kernels.of(x, y).subset(of_x, of_y).distance().value == pytest.approx(quality.kernel_distance(x[of_x], y[of_y]).value)


def test_precision_sees_tiles_off_the_data_and_recall_what_is_missing() -> None:
    real = np.concatenate([gaussian(200, np.array([0.0, 0]), np.ones(2), 0), gaussian(200, np.array([50.0, 0]), np.ones(2), 1)])
    half = gaussian(400, np.array([0.0, 0]), 0.5 * np.ones(2), 2)  # one of the two modes
    found = {name: estimate.value for name, estimate in quality.manifolds(real, half).estimates().items()}
    assert found["precision"] > 0.95 and found["recall"] < 0.6 and found["coverage"] < 0.6 and found["density"] > 0.8
    far = quality.manifolds(real, half + 500).estimates(replicates=50)
    assert all(estimate.value == 0 and estimate.low == estimate.high == 0 for estimate in far.values())


def test_density_ignores_an_outlier_that_fools_precision() -> None:
    """The example of Naeem et al. 2020: one real outlier has a huge ball."""
    real = np.concatenate([gaussian(200, np.zeros(2), 0.1 * np.ones(2), 0), [[30.0, 0]]])
    fake = gaussian(201, np.array([30.0, 10]), np.ones(2), 1)
    found = quality.manifolds(real, fake)
    assert found.precision_M.mean() > 0.9 and found.density_M.mean() < 0.3


def test_two_draws_of_one_distribution_score_alike(two_sets: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = two_sets
    found = quality.manifolds(x[:500], y).estimates(replicates=200)
    assert found["density"].value == pytest.approx(1, abs=0.15) and found["coverage"].value > 0.9
    assert found["precision"].low <= found["precision"].value <= found["precision"].high < 1


def test_memorised_tiles_are_found_and_new_ones_are_not() -> None:
    training, held_out, new = (gaussian(400, np.zeros(8), np.ones(8), seed) for seed in range(3))
    rng = np.random.default_rng(9)
    chosen = rng.permutation(400)[:100]
    copies = training[chosen] + 0.01 * rng.standard_normal((100, 8))
    copied, fresh = quality.memorisation(training, copies, held_out), quality.memorisation(training, new, held_out)
    assert copied.nearest_N.tolist() == chosen.tolist()
    assert copied.ratio < 0.05 and copied.nearer == 1
    assert fresh.ratio == pytest.approx(1, abs=0.1) and fresh.nearer < 0.05


def test_mean_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    inside = 0
    for seed in range(200):
        found = quality.mean_of(np.random.default_rng(seed).random(60), replicates=200, seed=seed)
        inside += found.low <= 0.5 <= found.high
    assert 0.88 <= inside / 200 <= 0.99


def test_too_few_tiles_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 5 tiles in each set, got 5 and 9"):
        quality.manifolds(np.ones((5, 2)), np.ones((9, 2)))
    with pytest.raises(ValueError, match="at least two tiles"):
        quality.kernel_distance(np.ones((1, 2)), np.ones((9, 2)))


def test_balls_by_hand() -> None:
    """On a line, with the nearest neighbour alone: real balls (-1, 1), (0, 2), (1, 5); generated (-1.7, 2.7), (0.5, 4.9), (2.7, 17.3)."""
    real, fake = np.array([[0.0], [1], [3]]), np.array([[0.5], [2.7], [10]])
    found = quality.manifolds(real, fake, k=1)
    assert found.precision_M.tolist() == [1, 1, 0] and found.density_M.tolist() == [2, 1, 0]
    assert found.recall_N.tolist() == [1, 1, 1] and found.coverage_N.tolist() == [1, 1, 1]
    two = quality.manifolds(real, fake, k=2)  # real balls (-3, 3), (-1, 3), (0, 6): the first has 2.7, the edge at 3 is outside
    assert two.density_M.tolist() == [1.5, 1.5, 0] and two.precision_M.tolist() == [1, 1, 0]
    edge = quality.manifolds(real, np.array([[-1.0], [20], [22]]), k=1)
    assert edge.precision_M.tolist() == [0, 0, 0] and edge.coverage_N.tolist() == [0, 0, 0]
    estimates = found.estimates()
    assert {name: one.value for name, one in estimates.items()} == pytest.approx(
        {"precision": 2 / 3, "recall": 1, "density": 1, "coverage": 1}
    )
    assert all(np.isnan(one.low) and np.isnan(one.high) for one in estimates.values())
    for name, values in (("density", found.density_M), ("precision", found.precision_M)):
        assert found.estimates(50)[name] == quality.mean_of(values, 50)
        assert found.estimates(50, seed=3)[name] == quality.mean_of(values, 50, seed=3)
    assert quality.mean_of(found.density_M, 50) != quality.mean_of(found.density_M, 50, seed=1)
    assert quality.manifolds(real, fake, k=2) and quality.NEIGHBOURS == 5
    with pytest.raises(ValueError, match="more than 3 tiles"):
        quality.manifolds(real, fake, k=3)


def test_memorisation_by_hand() -> None:
    training = np.array([[0.0], [10], [20]])
    usual = np.arange(1.0, 5)[:, None]  # 1 to 4 from the nearest training tile, their median 2.5
    found = quality.memorisation(training, np.array([[19.0], [10.5], [-1.0], [14]]), usual)
    assert found.nearest_N.tolist() == [2, 1, 0, 1] and found.distance_N.tolist() == [1, 0.5, 1, 4]
    assert found.ratio == 1 / 2.5 and found.nearer == 3 / 4 and found.threshold == pytest.approx(1.03)  # the 1 % quantile
    assert quality.memorisation(training, training + 1, training + 1).nearer == 0  # as near as held-out tiles
    assert quality.memorisation(training, training, training).ratio == 0
    assert quality.memorisation(training, training + 1, training).ratio == pytest.approx(1e12)


def test_nearest_in_parts_and_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((23, 5)), rng.standard_normal((11, 5))
    expected = np.array([[np.linalg.norm(a - b) for b in y] for a in x])
    np.testing.assert_allclose(quality.distances(x, y), expected, rtol=1e-9)
    for chunk in (1, 7, 23, 100):
        monkeypatch.setattr(quality, "CHUNK", chunk)
        place_N, distance_N = quality.nearest(x, y)
        assert place_N.tolist() == expected.argmin(axis=1).tolist()
        np.testing.assert_allclose(distance_N, expected.min(axis=1), rtol=1e-9)


def test_intervals_are_quantiles_of_resampled_scores() -> None:
    assert quality.bounds(np.arange(41.0)) == (1, 39)
    values = np.array([0.0, 1, 1, 5])
    counts_RN = np.random.default_rng(3).multinomial(4, [0.25] * 4, 50)
    expected = np.quantile([np.repeat(values, counts_N).mean() for counts_N in counts_RN], [0.025, 0.975])
    found = quality.mean_of(values, 50, seed=3)
    assert (found.value, found.low, found.high) == pytest.approx((1.75, *expected))
    plain = quality.mean_of(values)
    assert plain.value == 1.75 and np.isnan([plain.low, plain.high]).all()
    assert found != quality.mean_of(values, 50) == quality.mean_of(values, 50, seed=0)


def test_kid_of_resampled_tiles_has_no_pair_of_a_tile_with_itself() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((4, 3)), rng.standard_normal((5, 3))
    drawn, values = np.random.default_rng(7), []
    counts = [drawn.multinomial(n, np.full(n, 1 / n), 20) for n in (4, 5)]
    for r in range(20):
        rows = [np.repeat(np.arange(len(count)), count) for count in (counts[0][r], counts[1][r])]
        within = []
        for tiles, row in zip((x, y), rows, strict=True):
            pairs = [(a, b) for a in row for b in row if a != b]
            within.append(np.mean([(tiles[a] @ tiles[b] / 3 + 1) ** 3 for a, b in pairs]))
        values.append(sum(within) - 2 * np.mean([(x[a] @ y[b] / 3 + 1) ** 3 for a in rows[0] for b in rows[1]]))
    found = quality.kernel_distance(x, y, replicates=20, seed=7)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])), rel=1e-9)


def test_distances_of_the_smallest_sets() -> None:
    one = np.array([[3.0, 4.0]])
    assert quality.frechet_distance(one, np.zeros((1, 2))) == 25
    assert quality.kernel_distance(np.ones((2, 1)), np.ones((2, 1))).value == 0


def test_frechet_distance_of_two_tiles_has_the_unbiased_variance() -> None:
    assert quality.frechet_distance(np.array([[0.0], [2.0]]), np.zeros((2, 1))) == pytest.approx(1 + 2)


def test_features_in_single_precision_are_compared_in_double() -> None:
    x, y = (1e4 + np.random.default_rng(seed).normal(size=(6, 4)).astype(np.float32) for seed in (0, 1))
    x, y = x.astype(np.float32), y.astype(np.float32)
    direct = np.linalg.norm(x.astype(float)[:, None] - y.astype(float), axis=2)
    np.testing.assert_allclose(quality.distances(x, y), direct, rtol=1e-6)
