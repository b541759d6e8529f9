"""Adaptive augmentation: the statistic by hand, the rule of the probability, and its state."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from attributegan.config import AugmentConfig, Config, LossConfig
from attributegan.training.adaptive import ADAPT_EVERY, AdaptiveProbability, real_sign
from attributegan.training.trainer import Trainer
from tools.benchmarks.gpu_parts import Context
from tools.benchmarks.gpu_training import TINY, Tree, settings_of, take, trainer_of

ONE: Any = SimpleNamespace(mean=lambda values: {name: float(value) for name, value in values.items()})


def adaptive(target: float = 0.5, probability: float = 1.0, adapt_images: int = 2560) -> AdaptiveProbability:
    return AdaptiveProbability(AugmentConfig(policy=("color",), probability=probability, target=target, adapt_images=adapt_images))


def after(state: AdaptiveProbability, *signs: float, batch: int = ADAPT_EVERY) -> float:
    for sign in signs:
        state.update(torch.tensor(sign), batch, ONE)
    return state.value


def test_statistic_of_hinge_and_relativistic_losses() -> None:
    real, fake = torch.tensor([[-1.0, 2.0], [-3.0, -0.5]]), torch.tensor([[-2.0, 3.0], [-3.0, 1.0]])
    assert real_sign(Config(loss=LossConfig(adversarial="hinge")), real, fake) == (1 - 1 + 1 + 1) / 4
    assert real_sign(Config(loss=LossConfig(adversarial="relativistic")), real, fake) == (-1 + 1 + 0 + 1) / 4
    nothing = torch.full((2, 1), float("nan"))
    assert real_sign(Config(loss=LossConfig(adversarial="relativistic")), nothing, nothing) == 0
    halves = real_sign(Config(), real.bfloat16().requires_grad_(), fake.bfloat16())
    assert halves == 0.5 and halves.dtype == torch.float32 and not halves.requires_grad


def test_probability_follows_the_sign_at_a_rate_of_images() -> None:
    state = adaptive()
    assert state.value == 0
    assert after(state, 0.6) == pytest.approx(0.1)
    assert after(state, 0.4) == pytest.approx(0.0)
    assert after(state, 0.4) == 0.0  # not below 0
    assert after(state, *[0.9] * 3) == pytest.approx(0.3)
    assert after(state, 0.5) == pytest.approx(0.3)  # at the target
    assert after(adaptive(probability=0.25), *[1.0] * 9) == 0.25
    assert after(adaptive(), *[1.0] * 30) == 1


def test_statistic_is_the_mean_over_images_whatever_the_batch() -> None:
    for batch in (8, 64, 256):
        state = adaptive()
        steps = ADAPT_EVERY // batch
        values = [after(state, 1.0 if k < steps // 2 else 0.125, batch=batch) for k in range(steps)]
        assert values[:-1] == [0.0] * (steps - 1) and state.value == pytest.approx(0.1 if batch < 256 else 0.0)
    large = adaptive()
    assert after(large, 0.9, batch=512) == pytest.approx(0.2) and large.images == 0


def test_all_ranks_decide_by_their_mean() -> None:
    """This rank has 0.8 and the other 0.1, so the mean is below the target."""
    both: Any = SimpleNamespace(mean=lambda values: {name: (float(value) + 0.1 * ADAPT_EVERY) / 2 for name, value in values.items()})
    state = adaptive()
    state.load({"probability": 0.5, "sum": 0.0, "images": 0})
    state.update(torch.tensor(0.8), ADAPT_EVERY, both)
    assert state.value == pytest.approx(0.4)


def test_state_resumes_between_changes() -> None:
    whole, parts, resumed = adaptive(), adaptive(), adaptive()
    signs = [0.9, 0.7, 0.2, 0.1, 0.9, 0.8]
    for sign in signs:
        whole.update(torch.tensor(sign), 100, ONE)
    for sign in signs[:2]:
        parts.update(torch.tensor(sign), 100, ONE)
    resumed.load(parts.state(ONE))
    for sign in signs[2:]:
        resumed.update(torch.tensor(sign), 100, ONE)
    assert resumed.state(ONE) == whole.state(ONE) and whole.images == 0 and whole.value > 0


def test_constant_probability_has_no_state() -> None:
    constant = AdaptiveProbability(AugmentConfig(policy=("color",), probability=0.3))
    constant.load({"probability": 0.9, "sum": 1.0, "images": 1})
    assert constant.value == 0.3 and constant.state(ONE) == {}
    started = adaptive()
    started.load({})  # a checkpoint of a constant probability
    assert started.value == 0
    started.load({"probability": 0.9, "sum": 0.0, "images": 0})
    assert started.value == 0.9
    limited = adaptive(probability=0.5)
    limited.load({"probability": 0.9, "sum": 0.0, "images": 0})
    assert limited.value == 0.5


def test_interrupted_training_adapts_with_the_same_bits(tmp_path: Path) -> None:
    """Steps of 64 images: the probability changes after the fourth; the checkpoint is from after the third."""
    adapt: Tree = {
        "train": {"batch": 64, "precision": "fp32"},
        "loss": {"contrastive": 0, "reconstruction": 0, "adversarial": "relativistic"},
        "model": {"head_32": False},
        "augment": {"policy": ["translation", "hed"], "target": 1e-3, "adapt_images": 500, "probability": 0.4},
    }

    def trainer(run: str) -> Trainer:
        return trainer_of(settings_of(Context("cpu", True, tmp_path), TINY, adapt, {"run": {"dir": str(tmp_path / run)}}))

    whole = trainer("whole")
    probabilities = [float(take(whole, 1)["augment/probability"]) for _ in range(6)]
    assert probabilities == pytest.approx([0.0] * 4 + [0.4] * 2)
    parts = trainer("parts")
    take(parts, 3)
    parts.save()
    parts.wait_for_checkpoint()
    resumed = trainer("parts")
    assert resumed.resume() and resumed.augmenting.images == 192
    take(resumed, 3)
    assert resumed.augmenting.state(resumed.runtime) == whole.augmenting.state(whole.runtime)
    for network, other in ((resumed.generator, whole.generator), (resumed.discriminator, whole.discriminator)):
        assert all(torch.equal(tensor, other.module.state_dict()[name]) for name, tensor in network.module.state_dict().items())
