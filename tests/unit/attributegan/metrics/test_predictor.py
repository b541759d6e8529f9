"""The attribute predictor: learns real levels, ignores levels that are not assessable, is reproducible, and is cached."""

from pathlib import Path

import numpy as np
import pytest
import torch

from attributegan.attributes import PUBLISHED, Attribute, AttributeSchema
from attributegan.metrics import control, predictor
from data_shards.phantoms import render

TWO = AttributeSchema((Attribute("grade", ("unclear", "low", "mid", "high"), 0), Attribute("tone", ("dark", "light"))))


def vectors(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noise tiles, features of which the first two encode the levels of `TWO` and the rest is noise, and the levels."""
    rng = np.random.default_rng(seed)
    levels_NA = np.stack([rng.integers(0, 4, count), rng.integers(0, 2, count)], axis=1)
    features_ND = rng.standard_normal((count, 40)).astype(np.float32)
    features_ND[:, :2] = levels_NA + 0.1 * features_ND[:, :2]
    features_ND[levels_NA[:, 0] == 0, 0] = rng.standard_normal((levels_NA[:, 0] == 0).sum())
    return rng.integers(0, 255, (count, 16, 16, 3), np.uint8), features_ND, levels_NA


def test_head_learns_from_few_tiles_and_leaves_out_what_cannot_be_assessed() -> None:
    tiles, features, levels = vectors(160)
    head = predictor.fit_head(tiles, features, levels, np.arange(160) // 20, TWO)
    new_tiles, new_features, new_levels = vectors(200, seed=1)
    predicted = head.predict(new_tiles, new_features)
    assert predicted.shape == (200, 2) and predicted[:, 0].min() >= 1 and predicted[:, 0].max() <= 3
    assert control.scores(new_levels[:, 0], predicted[:, 0], (1, 2, 3)).spearman > 0.9
    assert control.scores(new_levels[:, 1], predicted[:, 1], (0, 1)).accuracy > 0.95
    garbage = levels.copy()
    garbage[:, 0] = 0
    blind = predictor.fit_head(tiles, features, garbage, np.arange(160) // 20, TWO).predict(new_tiles, new_features)
    assert np.ptp(blind[:, 0]) == 0  # no assessable tiles to learn from


def test_head_is_the_same_again() -> None:
    tiles, features, levels = vectors(80)
    first, again = (predictor.fit_head(tiles, features, levels, np.arange(80) // 20, TWO).predict(tiles, features) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_folds_keep_groups_whole_and_are_even() -> None:
    groups = np.repeat(np.arange(9), [30, 5, 5, 20, 10, 10, 5, 10, 5])
    fold = predictor.folds(groups)
    assert all(len(np.unique(fold[groups == group])) == 1 for group in range(9))
    assert len(np.unique(fold)) == 4 and np.bincount(fold).max() <= 30
    assert len(np.unique(predictor.folds(np.zeros(5)))) == 1


def test_rare_levels_weigh_as_much_as_frequent_ones() -> None:
    levels = np.repeat([[0, 0], [1, 0], [2, 1], [3, 1]], [50, 80, 15, 5], axis=0)
    targets, weights = predictor._targets(levels, TWO)
    assert targets.shape == weights.shape == (150, 3)
    assert targets[[50, 130, 145], 0].tolist() == [0, 1, 1] and targets[[130, 145], 1].tolist() == [0, 1]
    assert (weights[:50, :2] == 0).all() and (weights[:50, 2] > 0).all()
    assert weights[50:130, 0].sum() == pytest.approx(weights[130:145, 0].sum())


def test_unknown_levels_have_no_weight() -> None:
    levels = np.repeat([[1, 0], [2, 1], [-1, 1]], [40, 40, 20], axis=0)
    _, weights = predictor._targets(levels, TWO)
    assert (weights[80:, :2] == 0).all() and (weights[80:, 2] > 0).all() and np.isfinite(weights).all()
    np.testing.assert_array_equal(weights[:80, :2], predictor._targets(levels[:80], TWO)[1][:, :2])


@pytest.fixture(scope="module")
def phantoms() -> tuple[np.ndarray, np.ndarray]:
    levels = render.draw_levels(900, seed=0).astype(int)
    return np.stack([render.render(row, 64, 0, index) for index, row in enumerate(levels)]), levels


def test_cnn_reads_every_attribute_of_phantoms(phantoms: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    """Within seconds, and including polarity, which convolutions alone do not learn."""
    tiles, levels = phantoms
    attribute_predictor = predictor.fit_cnn(tiles[:700], levels[:700], PUBLISHED, steps=150)
    predicted = attribute_predictor.predict(tiles[700:])
    for a, attribute in enumerate(PUBLISHED.attributes):
        assert control.scores(levels[700:, a], predicted[:, a], attribute.assessable).spearman > 0.8, attribute.name
    cache = predictor.PredictorCache(tmp_path / "predictor")
    assert cache.load(PUBLISHED) is None
    cache.save(attribute_predictor, {"note": 1})
    loaded, note = cache.load(PUBLISHED)
    assert note["note"] == 1
    np.testing.assert_array_equal(loaded.predict(tiles[700:]), predicted)
    assert cache.load(TWO) is None  # other attributes


def test_cnn_of_a_seed_is_the_same_again_and_leaves_the_random_state_alone(phantoms: tuple[np.ndarray, np.ndarray]) -> None:
    tiles, levels = phantoms
    state = torch.random.get_rng_state()
    first, again, other = (predictor.fit_cnn(tiles[:64], levels[:64], PUBLISHED, seed, steps=5).predict(tiles[:32]) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_coherence_sees_direction_and_not_which() -> None:
    stripes = np.tile((np.arange(64) // 4 % 2 * 120 + 80).astype(np.float32)[None, :, None], (64, 1, 3))
    noise = np.random.default_rng(0).integers(60, 220, (64, 64, 3)).astype(np.float32)
    images = torch.from_numpy(np.stack([stripes, stripes.transpose(1, 0, 2), noise])).permute(0, 3, 1, 2) / 255
    found = predictor.coherence(images)
    assert found.shape == (3, predictor.COHERENCES)
    assert (found[:2] > 0.99).all() and (found[2] < 0.2).all()
