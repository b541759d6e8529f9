"""The phases against sums computed by hand: every term with its weight, over micro-batches, and the requested outputs of each network."""

import contextlib
import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from attributegan.config import AugmentConfig, Config, LossConfig, ModelConfig
from attributegan.models import DiscriminatorOutput
from attributegan.training import augment, losses, phases
from attributegan.training.random_draws import StepNoise

BATCH, LEVELS = 4, 5
EVERYTHING: dict[str, Any] = {
    "contrastive": 0.3,
    "reconstruction": 0.7,
    "auxiliary": 0.5,
    "r1_gamma": 2.0,
    "r2_gamma": 3.0,
    "r1_every": 4,
    "temperature": 0.5,
}


def output_for(images: Tensor, levels: Tensor, quadrant: int, first: int | None) -> DiscriminatorOutput:
    """The output of `FormulaDiscriminator` when all parts are requested."""
    mean, square = images.mean(dim=(1, 2, 3)), images.square().mean(dim=(1, 2, 3))
    return DiscriminatorOutput(
        logits=torch.stack([3 * mean + levels[:, 0], square - levels[:, 1]], dim=1),
        logits_32=(2 * square - mean)[:, None],
        embedding=images[:first].flatten(1)[:, :4],
        proxy=torch.stack([levels[:first, 0], 1 + levels[:first, 1], 2 + levels[:first, 0], 1 + levels[:first, 0]], dim=1).float(),
        reconstruction_loss=(1 + quadrant) * images[:first].square().mean(),
        levels=tuple(mean[:, None] * torch.linspace(k - 2, k, 2 * LEVELS) for k in range(2)),
    )


class FormulaDiscriminator:
    """A discriminator given by a formula that records its calls."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.losses: list[float] = []
        self.last: list[bool] = []
        self.is_frozen = False
        self.frozen_calls: list[Any] = []

    def __call__(
        self,
        images: Tensor,
        levels: Tensor,
        quadrant: int = 0,
        *,
        embed: bool = True,
        reconstruct: bool = True,
        train_levels: bool = False,
        predict_levels: bool = False,
        first: int | None = None,
    ) -> DiscriminatorOutput:
        self.calls.append(
            {"embed": embed, "reconstruct": reconstruct, "train_levels": train_levels, "predict_levels": predict_levels, "n": len(images)}
        )
        self.frozen_calls.append(self.is_frozen)
        output = output_for(images, levels, quadrant, first)
        output = output if embed else output._replace(embedding=None, proxy=None)
        output = output if reconstruct else output._replace(reconstruction_loss=None)
        return output if train_levels or predict_levels else output._replace(levels=None)

    def unwrapped(self, *inputs: Any, **options: Any) -> DiscriminatorOutput:
        return self(*inputs, **options)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        self.is_frozen = True
        yield
        self.is_frozen = False

    @contextlib.contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        self.last.append(last)
        yield

    def backward(self, loss: Tensor) -> None:
        self.losses.append(float(loss.detach()))

    def step(self) -> tuple[Tensor, bool]:
        return torch.tensor(7.0), len(self.losses) == 2


class FormulaGenerator(FormulaDiscriminator):
    """A generator given by a formula."""

    def __call__(self, latents: Tensor, levels: Tensor) -> Tensor:  # type: ignore[override]
        return images_for(latents, levels)


def images_for(latents: Tensor, levels: Tensor) -> Tensor:
    return latents[:, :12].view(-1, 3, 2, 2) + levels.sum(dim=1).view(-1, 1, 1, 1) / 3


def other_rank(x: Tensor) -> Tensor:
    """The tensor of rank 0; this process is rank 1."""
    return x.flip(0) + 1


RUNTIME = SimpleNamespace(device=torch.device("cpu"), rank=1, gather=lambda x: torch.cat([other_rank(x), x]))


def configured(**loss: Any) -> Config:
    loss = {"contrastive": 0.0, "reconstruction": 0.0} | loss
    return Config(
        model=dataclasses.replace(ModelConfig(), auxiliary_heads="auxiliary" in loss),
        train=dataclasses.replace(Config().train, batch=BATCH),
        loss=LossConfig(**loss),
        augment=AugmentConfig(policy=("color",)),
    )


def two_batches(config: Config) -> list[phases.MicroBatch]:
    generator, batches = torch.Generator().manual_seed(3), []
    for k in range(2):
        levels = torch.randint(1, LEVELS, (BATCH, 2), generator=generator)
        images = torch.rand(BATCH, 3, 2, 2, generator=generator) * 2 - 1
        draws = dataclasses.replace(StepNoise.for_step(config, images=k, dtype=torch.float32), quadrant=k + 1)
        batches.append(phases.MicroBatch(images, levels, torch.ones_like(levels, dtype=torch.bool), draws))
    return batches


def adversarial(config: Config, better: Tensor, worse: Tensor) -> Tensor:
    if config.loss.adversarial == "relativistic":
        return losses.relativistic(better, worse)
    return losses.hinge_discriminator(better, worse)


def penalty(images: Tensor) -> Tensor:
    """The score of an image is (3 m + s) / 2 + 2 s - m, with m the mean of its 12 numbers and s the mean of their squares."""
    return (0.5 / 12 + 2.5 * 2 * images.flatten(1) / 12).square().sum(1).mean()


def discriminator_terms(config: Config, batch: phases.MicroBatch) -> tuple[dict[str, Tensor], Tensor]:
    fakes = augment.apply(images_for(batch.noise.latents_discriminator_BL, batch.levels_BA), batch.noise.augment_fake_BP, config.augment)
    reals = augment.apply(batch.images_BCHW, batch.noise.augment_real_BP, config.augment)
    levels = batch.levels_BA
    real, fake = output_for(reals, levels, batch.noise.quadrant, None), output_for(fakes, levels, 0, None)
    contrast = losses.contrastive_by_attribute if config.loss.contrastive_over == "attribute" else losses.contrastive_2c
    global_batch = (torch.cat([other_rank(real.embedding), real.embedding]), torch.cat([other_rank(levels), levels]))
    terms = {
        "adversarial": adversarial(config, real.logits, fake.logits),
        "adversarial_32": adversarial(config, real.logits_32, fake.logits_32),
        "auxiliary": losses.auxiliary_discriminator([torch.cat(pair) for pair in zip(real.levels, fake.levels, strict=True)], levels),
        "contrastive": contrast(real.embedding, real.proxy, levels, 0.5, *global_batch, BATCH),
        "reconstruction": (1 + batch.noise.quadrant) * reals.square().mean(),
        "r1": penalty(reals),
        "r2": penalty(fakes),
    }
    weights = {"auxiliary": 0.5, "contrastive": 0.3, "reconstruction": 0.7, "r1": 4 * 2.0 / 2, "r2": 4 * 3.0 / 2}
    terms_and_scores = terms | {"real_score": -real.logits.mean(), "fake_score": -fake.logits.mean()}
    return terms_and_scores, sum(weights.get(name, 1.0) * term for name, term in terms.items())


@pytest.mark.parametrize("adversarial", ["hinge", "relativistic"])
@pytest.mark.parametrize("over", ["label", "attribute"])
def test_discriminator_phase_is_the_weighted_sum_of_its_terms(adversarial: str, over: str) -> None:
    config = configured(adversarial=adversarial, contrastive_over=over, **EVERYTHING)
    batches, discriminator = two_batches(config), FormulaDiscriminator()
    found, taken = phases.discriminator_phase(config, RUNTIME, FormulaGenerator(), discriminator, batches, penalise=True)
    (terms, total), (terms_2, total_2) = (discriminator_terms(config, batch) for batch in batches)
    assert discriminator.losses == pytest.approx([total.item() / 2, total_2.item() / 2], rel=1e-4)
    expected = {name if "score" in name else f"discriminator/{name}": (terms[name] + terms_2[name]).item() / 2 for name in terms}
    assert {name: float(value.detach()) for name, value in found.items()} == pytest.approx(
        expected | {"discriminator/gradient_norm": 7.0}, rel=1e-4
    )
    assert taken and discriminator.last == [False, True]
    everything = {"embed": True, "reconstruct": True, "train_levels": True, "predict_levels": False, "n": 2 * BATCH}
    nothing = {"embed": False, "reconstruct": False, "train_levels": False, "predict_levels": False, "n": 2 * BATCH}
    assert discriminator.calls == [everything, nothing] * 2 and not any(discriminator.frozen_calls)


def test_disabled_terms_are_not_requested() -> None:
    config = configured()
    discriminator = FormulaDiscriminator()
    found, taken = phases.discriminator_phase(config, RUNTIME, FormulaGenerator(), discriminator, two_batches(config)[:1], penalise=False)
    assert set(found) == {
        "discriminator/adversarial",
        "discriminator/adversarial_32",
        "discriminator/gradient_norm",
        "real_score",
        "fake_score",
    }
    assert (
        discriminator.calls == [{"embed": False, "reconstruct": False, "train_levels": False, "predict_levels": False, "n": 2 * BATCH}]
        and not taken
    )
    discriminator = FormulaDiscriminator()
    found, _ = phases.generator_phase(config, RUNTIME, FormulaGenerator(), discriminator, two_batches(config)[:1])
    assert set(found) == {"generator/adversarial", "generator/adversarial_32", "generator/gradient_norm"}
    assert discriminator.calls == [{"embed": False, "reconstruct": False, "train_levels": False, "predict_levels": False, "n": BATCH}]


def test_probability_of_the_batch_reaches_every_augmentation() -> None:
    """Without augmentation, all losses are those of an empty policy."""
    config = configured(adversarial="relativistic")
    plain = dataclasses.replace(config, augment=AugmentConfig(policy=()))
    batch = dataclasses.replace(two_batches(config)[0], augment_probability=0.0)
    for phase, options in ((phases.discriminator_phase, {"penalise": False}), (phases.generator_phase, {})):
        found = []
        for settings, one in ((config, batch), (plain, dataclasses.replace(batch, noise=two_batches(plain)[0].noise))):
            generator, discriminator = FormulaGenerator(), FormulaDiscriminator()
            phase(settings, RUNTIME, generator, discriminator, [one], **options)
            found.append(generator.losses + discriminator.losses)
        assert found[0] == found[1] and found[0]


def test_statistic_of_adaptive_augmentation_is_a_term() -> None:
    config = configured(adversarial="relativistic")
    adaptive = dataclasses.replace(config, augment=AugmentConfig(policy=("color",), target=0.5))
    batches = two_batches(config)
    found, _ = phases.discriminator_phase(adaptive, RUNTIME, FormulaGenerator(), FormulaDiscriminator(), batches, penalise=False)
    signs = []
    for batch in batches:
        fakes = images_for(batch.noise.latents_discriminator_BL, batch.levels_BA)
        fakes = augment.apply(fakes, batch.noise.augment_fake_BP, config.augment)
        reals = augment.apply(batch.images_BCHW, batch.noise.augment_real_BP, config.augment)
        fake, real = (output_for(images, batch.levels_BA, 0, None).logits for images in (fakes, reals))
        signs.append((fake - real).sign().mean())
    assert found["augment/real_sign"] == torch.stack(signs).mean()


@pytest.mark.parametrize(("gammas", "names"), [((2.0, 0.0), {"r1"}), ((2.0, 3.0), {"r1", "r2"})])
def test_enabled_penalties(gammas: tuple[float, float], names: set[str]) -> None:
    config = configured(r1_gamma=gammas[0], r2_gamma=gammas[1])
    batch = two_batches(config)[0]
    found, _ = phases.discriminator_phase(config, RUNTIME, FormulaGenerator(), FormulaDiscriminator(), [batch], penalise=True)
    terms, _ = discriminator_terms(config, batch)
    assert {name for name in ("r1", "r2") if f"discriminator/{name}" in found} == names
    for name in names:
        torch.testing.assert_close(found[f"discriminator/{name}"], terms[name])


@pytest.mark.parametrize("adversarial", ["hinge", "relativistic"])
def test_generator_phase_is_the_weighted_sum_of_its_terms(adversarial: str) -> None:
    weights = {"contrastive": 0.3, "auxiliary": 0.5, "control": 0.2, "diversity": 0.6, "temperature": 0.5}
    config = configured(adversarial=adversarial, **weights)
    batches, generator, discriminator = two_batches(config), FormulaGenerator(), FormulaDiscriminator()
    found, taken = phases.generator_phase(config, RUNTIME, generator, discriminator, batches)
    sums: dict[str, Any] = {}
    totals = []
    for batch in batches:
        levels = batch.levels_BA[[0, 0, 2, 2]]
        plain = images_for(batch.noise.latents_generator_BL, levels)
        fake = output_for(augment.apply(plain, batch.noise.augment_generator_BP, config.augment), levels, 0, None)
        reals = augment.apply(batch.images_BCHW, batch.noise.augment_real_BP, config.augment)[[0, 0, 2, 2]]
        real = output_for(reals, levels, 0, None)
        apart = (batch.images_BCHW[[0, 2]] - batch.images_BCHW[[1, 3]]).abs().mean(dim=(1, 2, 3))
        global_batch = (torch.cat([other_rank(fake.embedding), fake.embedding]), torch.cat([other_rank(levels), levels]))
        terms = {
            "auxiliary": losses.auxiliary_generator(fake.levels, levels),
            "control": losses.control(fake.levels, levels),
            "diversity": losses.diversity(plain, torch.cat([other_rank(apart), apart]).mean()),
            "contrastive": losses.contrastive_2c(fake.embedding, fake.proxy, levels, 0.5, *global_batch, BATCH),
        }
        for name, better, worse in (("adversarial", fake.logits, real.logits), ("adversarial_32", fake.logits_32, real.logits_32)):
            terms[name] = losses.relativistic(better, worse) if adversarial == "relativistic" else losses.hinge_generator(better)
        totals.append(float(sum(weights.get(name, 1.0) * term for name, term in terms.items())) / 2)
        sums |= {f"generator/{name}": sums.get(f"generator/{name}", 0) + float(term) / 2 for name, term in terms.items()}
    assert generator.losses == pytest.approx(totals, rel=1e-4)
    assert {name: float(value.detach()) for name, value in found.items()} == pytest.approx(
        sums | {"generator/gradient_norm": 7.0}, rel=1e-4
    )
    assert taken and generator.last == [False, True] and not discriminator.losses
    expected_call = {"embed": True, "reconstruct": False, "train_levels": False, "predict_levels": True, "n": BATCH}
    real_call = {"embed": False, "reconstruct": False, "train_levels": False, "predict_levels": False, "n": BATCH // 2}
    assert discriminator.calls == ([expected_call, real_call] if adversarial == "relativistic" else [expected_call]) * 2
    assert all(discriminator.frozen_calls) and not discriminator.is_frozen
