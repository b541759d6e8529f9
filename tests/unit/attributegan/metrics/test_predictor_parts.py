"""Parts of the attribute predictor by hand: expected levels, weights, folds, coherence, corruption of tiles, optimum of the fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import expit
from torch import nn

from attributegan.attributes import Attribute, AttributeSchema
from attributegan.metrics import predictor
from attributegan.metrics.predictor import Cnn, Head, PredictorCache
from attributegan.utils.rng import Purpose, rng_for

TWO = AttributeSchema((Attribute("grade", ("unclear", "low", "mid", "high"), 0), Attribute("tone", ("dark", "light", "unclear"), 2)))


def tiles_of(count: int, size: int = 16) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 255, (count, size, size, 3), np.uint8)


def test_expected_level_is_the_lowest_plus_the_chances_of_being_above_each() -> None:
    logits = torch.tensor([[0.0, -100.0, 1.0], [100.0, 100.0, -100.0]], dtype=torch.float64)
    found = predictor.AttributePredictor(TWO)._expected(logits)
    assert found.tolist() == [pytest.approx([1.5, expit(1.0)]), pytest.approx([3, 0])]


def test_scores_of_the_head_by_hand() -> None:
    head = Head(TWO, 2)
    assert head.outputs == 3
    head.mean_D, head.scale_D = torch.tensor([1.0, 2.0]).double(), torch.tensor([2.0, 4.0]).double()
    with torch.no_grad():
        head.weight_AD.copy_(torch.tensor([[1.0, 2.0], [-1.0, 0.5]]))
        head.threshold_K.copy_(torch.tensor([0.0, 1.0, 3.0]))
    # standardised (1, 2): 5 on the first direction and 0 on the second
    assert head(torch.tensor([[3.0, 10.0]]).double()).tolist() == [[5, 4, -3]]


def test_tiles_are_predicted_in_parts_each_for_itself() -> None:
    torch.manual_seed(0)
    cnn = Cnn(TWO).train()
    tiles = tiles_of(predictor.PREDICT_BATCH + 7)
    found = cnn.predict(tiles)
    assert found.shape == (len(tiles), 2) and not cnn.training
    alone = [cnn.predict(tiles[k : k + 1])[0] for k in (0, len(tiles) - 8, len(tiles) - 1)]
    np.testing.assert_allclose(found[[0, -8, -1]], alone, atol=1e-5)
    head = Head(TWO, 3 + predictor.COHERENCES)
    with torch.no_grad():
        head.weight_AD.normal_()
    features = np.random.default_rng(0).standard_normal((len(tiles), 3)).astype(np.float32)
    found = head.predict(tiles, features)
    np.testing.assert_allclose(found[-1:], head.predict(tiles[-1:], features[-1:]), atol=1e-9)


def test_images_are_between_0_and_1_and_no_larger_than_the_network_sees() -> None:
    small = predictor._images(np.full((1, 20, 20, 3), 255, np.uint8), torch.device("cpu"))
    assert small.shape == (1, 3, 20, 20) and (small == 1).all()
    assert predictor._images(np.zeros((1, 200, 200, 3), np.uint8), torch.device("cpu")).shape == (1, 3, 128, 128)


def test_network_is_residual_blocks_on_pooled_maps() -> None:
    torch.manual_seed(0)
    cnn = Cnn(TWO).double().eval()
    images = torch.rand(2, 3, 24, 24, dtype=torch.float64)

    def conv(layer: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, layer.weight, layer.bias, padding=layer.weight.shape[2] // 2)

    x = conv(cnn.stem, 2 * images - 1)
    for number, block in enumerate(cnn.blocks):
        x = F.max_pool2d(x, 2) if number else x
        inner = conv(block.residual[2], F.gelu(block.residual[0](x)))
        x = conv(block.skip, x) + conv(block.residual[5], F.gelu(block.residual[3](inner)))
    x = F.gelu(x)
    vector = cnn.scale(torch.cat([x.mean((2, 3)), x.flatten(2).max(2).values, predictor.coherence(images)], dim=1))
    torch.testing.assert_close(cnn(images), F.linear(vector, cnn.head.weight, cnn.head.bias))
    assert x.shape == (2, 96, 6, 6) and vector.shape == (2, 196) and cnn.stem.weight.shape == (12, 3, 5, 5)


def test_coherence_is_the_mean_doubled_angle_over_the_mean_strength() -> None:
    images = torch.rand(3, 3, 14, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images[:, 0, :4] = 0  # black: a finite absorbance
    found = predictor.coherence(images)
    columns = []
    for pool in (1, 2):
        dark = np.clip(-np.log(np.maximum(images[:, 0].numpy(), 1 / 255)), 0.3, 0.6)
        height, width = dark.shape[1] // pool, dark.shape[2] // pool
        dark = dark.reshape(3, height, pool, width, pool).mean(axis=(2, 4))
        down, right = dark[:, 2:, 1:-1] - dark[:, :-2, 1:-1], dark[:, 1:-1, 2:] - dark[:, 1:-1, :-2]
        strength, angle = np.hypot(right, down), np.arctan2(down, right)
        for power in (2, 1):
            turned = (strength**power * np.exp(2j * angle)).mean(axis=(1, 2))
            columns.append(np.abs(turned) / (strength**power).mean(axis=(1, 2)))
    np.testing.assert_allclose(found.numpy(), np.stack(columns, axis=1), rtol=1e-6)
    assert predictor.coherence(torch.ones(1, 3, 8, 8)).tolist() == [[0.0] * 4]


def test_targets_and_weights_by_hand() -> None:
    levels = np.array([[1, 0]] * 6 + [[2, 1]] * 2 + [[3, 2]] * 1 + [[0, -1]] * 3)
    targets, weights = predictor._targets(levels, TWO)
    # 9 tiles of 3 grades: 3 each as usual; 8 of 2 tones: 4 each
    grade = np.array([3 / 6] * 6 + [3 / 2] * 2 + [3 / 1] + [0] * 3)
    tone = np.array([4 / 6] * 6 + [4 / 2] * 2 + [0] + [0] * 3)
    np.testing.assert_allclose(weights, np.stack([grade, grade, tone], axis=1))
    assert targets[[0, 6, 8]].tolist() == [[0, 0, 0], [1, 0, 1], [1, 1, 1]]
    rare = predictor._targets(np.array([[1, 0]] * 99 + [[2, 0]]), TWO)[1]
    assert rare[99].tolist() == [10, 10, 1] and rare[0, 0] == pytest.approx(50 / 99)
    nothing = predictor._targets(np.array([[0, -1]]), TWO)[1]
    assert nothing.tolist() == [[0, 0, 0]]


def test_folds_by_hand() -> None:
    """Largest groups first, each assigned to the fold with the fewest tiles."""
    groups = np.repeat([7, 1, 5, 3, 9, 2], [2, 5, 3, 3, 1, 4])
    assert dict(zip(groups.tolist(), predictor.folds(groups).tolist(), strict=True)) == {1: 0, 2: 1, 3: 2, 5: 3, 7: 2, 9: 3}
    assert predictor.folds(groups, max_folds=2).max() == 1 and predictor.FOLDS == 4
    assert predictor.folds(np.array([3, 3, 8])).tolist() == [0, 0, 1]


@pytest.fixture(scope="module")
def fitted() -> tuple[Head, torch.Tensor, np.ndarray, np.ndarray]:
    """A head on noisy features, its inputs, the levels and groups."""
    rng = np.random.default_rng(0)
    levels = np.stack([rng.integers(0, 4, 90), rng.integers(0, 2, 90)], axis=1)
    features = rng.standard_normal((90, 6)).astype(np.float32) * 3 + 1
    features[:, :2] += 2 * levels
    group_N = np.arange(90) // 9
    head = predictor.fit_head(tiles_of(90, 8), features, levels, group_N, TWO)
    return head, head.inputs(tiles_of(90, 8), features, torch.device("cpu"))[0], levels, group_N


def fit_loss(head: Head, inputs: torch.Tensor, levels: np.ndarray, decay: float) -> torch.Tensor:
    targets, weights = (torch.from_numpy(array) for array in predictor._targets(levels, TWO))
    each = F.softplus(head(inputs)) - targets * head(inputs)
    return (weights * each).mean() + decay * (head.weight_AD**2).sum()


def test_head_is_fitted_to_the_optimum(fitted: tuple[Head, torch.Tensor, np.ndarray, np.ndarray]) -> None:
    head, inputs, levels, _ = fitted
    torch.testing.assert_close(head.mean_D, inputs.mean(0))
    torch.testing.assert_close(head.scale_D, inputs.std(0))
    gradients = torch.autograd.grad(fit_loss(head, inputs, levels, float(head.decay)), [head.weight_AD, head.threshold_K])
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-4
    assert bool(head.threshold_K[0] < head.threshold_K[1]) and float(head.weight_AD.detach().abs().max()) > 0.1


def test_decay_is_the_one_that_predicts_left_out_groups_best(fitted: tuple[Head, torch.Tensor, np.ndarray, np.ndarray]) -> None:
    head, inputs, levels, group_N = fitted
    fold_N, found = predictor.folds(group_N), []
    for decay in predictor.DECAYS:
        predicted = np.zeros(levels.shape)
        for fold in range(4):
            other = Head(TWO, inputs.shape[1])
            other.mean_D, other.scale_D = head.mean_D, head.scale_D
            predictor._minimise(other, inputs[torch.from_numpy(fold_N != fold)], levels[fold_N != fold], decay)
            with torch.no_grad():
                predicted[fold_N == fold] = other._expected(other(inputs[torch.from_numpy(fold_N == fold)])).numpy()
        found.append(predictor.mean_spearman(TWO, levels, predicted))
    assert float(head.decay) == predictor.DECAYS[int(np.argmax(found))] and len(set(found)) == 4
    assert predictor._best_decay(head, inputs, levels, np.zeros(90, int)) == predictor.DECAYS[0]  # one group: no cross-validation


def test_tiles_of_no_fold_train_in_every_fold_and_are_not_scored(
    fitted: tuple[Head, torch.Tensor, np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    head, inputs, levels, group_N = fitted
    fold_N = np.where(group_N < 2, -1, group_N % 2)
    scored: list[tuple[np.ndarray, np.ndarray]] = []
    monkeypatch.setattr(predictor, "mean_spearman", lambda schema, *arrays: (scored.append(arrays), len(scored) == 2)[1])
    fit = predictor.fit_head_on(inputs, levels, fold_N, TWO)
    assert float(fit.decay) == predictor.DECAYS[1] and len(scored) == len(predictor.DECAYS)
    expected, other = np.zeros(levels.shape), Head(TWO, inputs.shape[1])
    other.mean_D, other.scale_D = inputs.mean(0), inputs.std(0)
    for fold in (0, 1):
        predictor._minimise(other, inputs[torch.from_numpy(fold_N != fold)], levels[fold_N != fold], predictor.DECAYS[1])
        expected[fold_N == fold] = other.predict_inputs(inputs[torch.from_numpy(fold_N == fold)])
    np.testing.assert_array_equal(scored[1][0], levels[fold_N >= 0])
    np.testing.assert_allclose(scored[1][1], expected[fold_N >= 0], atol=1e-6)


def test_decay_can_be_given_and_constant_features_are_supported() -> None:
    levels, features = np.tile([[1, 0], [2, 1]], (10, 1)), np.zeros((20, 1), np.float32)
    head = predictor.fit_head(np.zeros((20, 8, 8, 3), np.uint8), features, levels, np.arange(20), TWO, decay=0.5)
    assert float(head.decay) == 0.5 and (head.scale_D == 1e-6).all() and torch.isfinite(head.weight_AD).all()


@pytest.mark.parametrize(("values", "scale"), [([7.0], 1e-6), ([1.0, 4.0], 3 / 2**0.5), ([1.0, 4.0, 7.0], 3.0)])
def test_scale_is_the_sample_deviation_from_two_tiles_on(values: list[float], scale: float) -> None:
    features, levels = np.array(values, np.float32)[:, None], np.array([[1, 0], [2, 1], [3, 0]])[: len(values)]
    head = predictor.fit_head(np.zeros((len(values), 8, 8, 3), np.uint8), features, levels, np.arange(len(values)), TWO, decay=0.5)
    assert float(head.scale_D[0]) == pytest.approx(scale) and bool(torch.isfinite(head.threshold_K).all())


def test_mean_spearman_is_over_the_attributes_that_vary() -> None:
    levels = np.array([[1, 0], [2, 0], [3, 0], [0, 0], [-1, 0]])
    predicted = np.array([[1, 0], [2, 1], [3, 0], [-9, 1], [9, 1]], float)
    assert predictor.mean_spearman(TWO, levels, predicted) == pytest.approx(1)
    both = np.array([[1, 0], [2, 1], [3, 0], [0, 1], [-1, 1]])
    assert predictor.mean_spearman(TWO, both, predicted * [1, -1]) == pytest.approx(0, abs=1e-9)
    assert predictor.mean_spearman(TWO, np.zeros((4, 2), int), np.zeros((4, 2))) == 0


def test_tiles_are_corrupted_within_the_documented_bounds() -> None:
    rng = torch.Generator().manual_seed(0)
    grey = predictor._corrupted(torch.full((4000, 3, 6, 6), 0.5), rng)
    level_BC, noise_B = grey.mean((2, 3)) - 0.5, grey.std((2, 3)).mean(1)
    assert float(level_BC.std()) == pytest.approx(0.15 / 12**0.5, rel=0.05) and abs(float(level_BC.mean())) < 0.003
    assert (
        0 <= float(noise_B.min()) < 0.002 and 0.07 < float(noise_B.max()) < 0.11 and float(noise_B.mean()) == pytest.approx(0.04, rel=0.08)
    )
    light = predictor._corrupted(torch.full((4000, 3, 6, 6), 0.8), rng).mean((2, 3)) - 0.8
    assert float(light.std()) == pytest.approx(((0.3 * 0.3) ** 2 / 12 + 0.15**2 / 12) ** 0.5, rel=0.05) and abs(float(light.mean())) < 0.003
    board = (torch.arange(12)[:, None] + torch.arange(12)) % 2 * 0.4 + 0.3
    corrupted = predictor._corrupted(board.expand(4000, 3, 12, 12), rng)
    contrast_B = (corrupted * (board - 0.5).sign()).mean((1, 2, 3)) / 0.2
    # Half of them keep their contrast; a full blur would remove eight or nine tenths of it, of which the others lose up to 70 %.
    assert float((contrast_B < 0.86).float().mean()) == pytest.approx(0.4, abs=0.05)
    assert 0.25 < float(contrast_B.min()) < 0.4 and float(contrast_B.median()) > 0.86
    assert corrupted.is_contiguous(memory_format=torch.channels_last)
    assert predictor._corrupted(torch.ones(50, 3, 4, 4), rng).max() == 1 and predictor._corrupted(torch.zeros(50, 3, 4, 4), rng).min() == 0


def test_progress_is_reported_and_few_tiles_are_enough() -> None:
    reported: list[int] = []
    tiles, levels = tiles_of(5), np.array([[1, 0], [2, 1], [3, 0], [0, 1], [-1, 1]])
    cnn = predictor.fit_cnn(tiles, levels, TWO, steps=4, progress=reported.append)
    assert reported == [1, 2, 3, 4] and not cnn.training


def test_predictors_are_cached_with_their_kind_and_note(tmp_path: Path) -> None:
    head, cnn = Head(TWO, 7), Cnn(TWO)
    with torch.no_grad():
        head.weight_AD.normal_()
    for model, kind, width in ((head, "features", 7), (cnn, "cnn", 0)):
        cache = PredictorCache(tmp_path / "deep" / kind)
        cache.save(model, {"score": 0.5})
        cache.save(model, {"score": 0.75})
        loaded, note = cache.load(TWO) or pytest.fail("not cached")
        assert type(loaded) is type(model) and not loaded.training and note == {"kind": kind, "width": width, "score": 0.75}
        assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    tree = json.loads((tmp_path / "deep" / "cnn" / "judge.json").read_text())
    del tree["attributes"]
    (tmp_path / "deep" / "cnn" / "judge.json").write_text(json.dumps(tree))  # as older versions wrote it
    assert PredictorCache(tmp_path / "deep" / "cnn").load(TWO) is not None
    (tmp_path / "deep" / "cnn" / "judge.safetensors").write_bytes(b"no")
    assert PredictorCache(tmp_path / "deep" / "cnn").load(TWO) is None


def test_training_depends_on_its_seed_alone_and_each_step_has_its_own_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles, levels = tiles_of(64), np.array([[1, 0], [2, 1], [3, 0], [0, 1]] * 16)
    rows: list[list[int]] = []
    images = predictor._images
    monkeypatch.setattr(predictor, "_images", lambda batch, device: (rows.append(batch[:, 0, 0, 0].tolist()), images(batch, device))[1])
    weights = []
    for unrelated in (1, 2):
        torch.manual_seed(unrelated)
        weights.append(predictor.fit_cnn(tiles, levels, TWO, steps=3).state_dict())
    assert rows[:3] == rows[3:] and rows[0] != rows[1] != rows[2]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_gradients_of_different_steps_do_not_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a learning rate of 0 and the same batch, each step has the same gradient."""
    monkeypatch.setattr(predictor, "CNN_RATE", 0.0)
    monkeypatch.setattr(predictor, "rng_for", lambda seed, purpose, *counters: rng_for(seed, purpose, *(0 for _ in counters)))
    step, gradients = torch.optim.AdamW.step, []

    def recorded(self: torch.optim.AdamW, closure: None = None) -> None:
        gradients.append([parameter.grad.clone() for parameter in self.param_groups[0]["params"]])
        step(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    predictor.fit_cnn(tiles_of(4), np.array([[1, 0], [2, 1], [3, 0], [0, 1]]), TWO, steps=2)
    first, second = gradients
    assert max(float(gradient.abs().max()) for gradient in first) > 1e-3
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(first, second, strict=True))


def test_weights_decay_with_the_schedule_of_the_learning_rate() -> None:
    """Unknown levels have no gradient, which leaves the decay: AdamW multiplies by 1 - rate * 0.01."""
    steps = 20
    torch.manual_seed(rng_for(3, Purpose.PREDICTOR_WEIGHTS).initial_seed())
    start = Cnn(TWO).head.weight.detach()
    cnn = predictor.fit_cnn(tiles_of(4), np.full((4, 2), -1), TWO, seed=3, steps=steps)
    rate = torch.optim.lr_scheduler.OneCycleLR(torch.optim.SGD([nn.Parameter(torch.ones(1))], 1.0), 2e-3, steps, cycle_momentum=False)
    expected = 1.0
    for _ in range(steps):
        expected *= 1 - 0.01 * float(rate.get_last_lr()[0])
        rate.optimizer.step()
        rate.step()
    assert float(cnn.head.weight.detach().norm() / start.norm()) == pytest.approx(expected, abs=2e-6)
    assert expected < 1 - 1e-4
