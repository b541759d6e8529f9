"""The phases of a step: the conditions of the generated tiles, the real tiles that they are paired with, and the loss."""

import contextlib
import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from attributegan.config import Config, LossConfig
from attributegan.models import DiscriminatorOutput
from attributegan.training import phases
from attributegan.training.random_draws import StepNoise

PLAIN = dataclasses.replace(
    Config(), train=dataclasses.replace(Config().train, batch=4), augment=dataclasses.replace(Config().augment, policy=())
)


class Echo:
    """A discriminator whose logits are an image's first pixel and its first level."""

    def unwrapped(self, images_BCHW: Tensor, levels_BA: Tensor, **_: bool) -> DiscriminatorOutput:
        return DiscriminatorOutput(torch.stack([images_BCHW[:, 0, 0, 0], levels_BA[:, 0].float()], dim=1), None, None, None, None, None)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        yield


class LevelClassifier(Echo):
    """Also classifies one attribute with levels 0 to 4: constant probabilities `SHARES` for real levels and 0.2 for "generated"."""

    SHARES = (0.05, 0.1, 0.15, 0.2, 0.3)

    def unwrapped(self, images_BCHW: Tensor, levels_BA: Tensor, **options: bool) -> DiscriminatorOutput:
        logits_BK = torch.tensor([*self.SHARES, 0.2, 1e-9, 1e-9, 1e-9, 1e-9]).log().expand(len(images_BCHW), -1)
        return super().unwrapped(images_BCHW, levels_BA)._replace(levels=(logits_BK,) if options.get("predict_levels") else None)


class Linear:
    """A generator of uniform tiles, the first latent number plus the sum of the levels; records the losses."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def __call__(self, latents_BL: Tensor, levels_BA: Tensor) -> Tensor:
        self.made = (latents_BL[:, 0] + levels_BA.sum(dim=1)).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
        return self.made

    @contextlib.contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        yield

    def backward(self, loss: Tensor) -> None:
        self.losses.append(float(loss))

    def step(self) -> tuple[Tensor, bool]:
        return torch.zeros(()), True


def batch_of(levels: list[list[int]], vary_attribute: bool = False, moved: float = 0.0) -> phases.MicroBatch:
    """Four uniform tiles with the values 0 to 3; level 0 is not assessable."""
    levels_BA = torch.tensor(levels)
    noise = StepNoise.for_step(PLAIN, images=0, dtype=torch.float32)
    noise = dataclasses.replace(noise, vary_attribute=vary_attribute, varied_B=torch.full((4,), moved))
    return phases.MicroBatch(torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2), levels_BA, levels_BA > 0, noise)


def test_every_generated_tile_is_paired_with_a_real_one_of_its_levels() -> None:
    batch = batch_of([[1], [2], [3], [4]])
    assert phases._real_outputs(PLAIN, Echo(), batch, paired=False)[""].tolist() == [[0, 1], [1, 2], [2, 3], [3, 4]]
    outputs = phases._real_outputs(PLAIN, Echo(), batch, paired=True)
    assert outputs[""].tolist() == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert outputs[""][:, 1].tolist() == phases._in_pairs(batch.levels_BA)[:, 0].tolist()


LEVELS = [[1, 1, 1, 0], [2, -1, 4, 2], [3, 2, -1, 1], [4, 1, 3, 1]]  # attributes 0 and 2 can vary in the first pair, 0 and 1 in the second


def test_without_pairs_every_tile_has_the_levels_of_a_real_one() -> None:
    batch = batch_of(LEVELS)
    latents_BL, levels_BA = phases._sample_conditions(batch, paired=False, vary_attribute=False)
    assert levels_BA is batch.levels_BA and latents_BL is batch.noise.latents_generator_BL


def test_tiles_of_one_label_have_two_latents() -> None:
    batch = batch_of(LEVELS, vary_attribute=True)
    latents_BL, levels_BA = phases._sample_conditions(batch, paired=True, vary_attribute=False)
    assert torch.equal(latents_BL, batch.noise.latents_generator_BL)
    assert levels_BA.tolist() == [LEVELS[0], LEVELS[0], LEVELS[2], LEVELS[2]]


@pytest.mark.parametrize(
    ("moved", "second", "fourth"),
    [(0.0, [2, 1, 1, 0], [4, 2, -1, 1]), (0.49, [2, 1, 1, 0], [4, 2, -1, 1]), (0.5, [1, 1, 4, 0], [3, 1, -1, 1])],
)
def test_an_assessable_attribute_moves_to_where_another_tile_has_it_and_all_else_stays(
    moved: float, second: list[int], fourth: list[int]
) -> None:
    batch = batch_of(LEVELS, moved=moved)
    latents_BL, levels_BA = phases._sample_conditions(batch, paired=True, vary_attribute=True)
    assert torch.equal(latents_BL, batch.noise.latents_generator_BL[[0, 0, 2, 2]])
    assert levels_BA.tolist() == [LEVELS[0], second, LEVELS[2], fourth]
    assert batch.levels_BA.tolist() == LEVELS


def test_tiles_of_a_pair_are_identical_if_nothing_can_vary() -> None:
    _, levels_BA = phases._sample_conditions(batch_of([[1, -1], [1, 2], [0, 3], [2, 3]], moved=0.9), paired=True, vary_attribute=True)
    assert levels_BA.tolist() == [[1, -1], [1, -1], [0, 3], [0, 3]]


def loss_of(vary_attribute: bool, **weights: float) -> tuple[float, dict[str, Tensor], Tensor]:
    """The generator's loss without its adversarial term, all terms, and the tiles."""
    config = dataclasses.replace(PLAIN, loss=LossConfig(contrastive=0, reconstruction=0, **weights))
    generator, runtime = Linear(), SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x)
    batch = batch_of([[1, 1], [2, 1], [3, 2], [1, 2]], vary_attribute=vary_attribute)
    terms, _ = phases.generator_phase(config, runtime, generator, Echo(), [batch])
    return generator.losses[0] - float(terms["generator/adversarial"]), terms, generator.made


def test_sampled_levels_are_the_targets_of_the_level_losses() -> None:
    loss = LossConfig(contrastive=0, reconstruction=0, auxiliary=0.5, control=3, diversity=0.3)
    config = dataclasses.replace(PLAIN, loss=loss, model=dataclasses.replace(PLAIN.model, auxiliary_heads=True))
    generator, runtime = Linear(), SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x)
    batch = batch_of([[1], [2], [3], [4]])  # so the requested levels are 1, 1, 3 and 3
    terms, _ = phases.generator_phase(config, runtime, generator, LevelClassifier(), [batch])
    shares = torch.tensor([LevelClassifier.SHARES[k] for k in (1, 1, 3, 3)])
    auxiliary, control = -shares.log().mean(), -(shares / 0.8).log().mean()
    torch.testing.assert_close(terms["generator/auxiliary"], auxiliary)
    torch.testing.assert_close(terms["generator/control"], control)
    other = float(terms["generator/adversarial"] + 0.3 * terms["generator/diversity"])
    assert generator.losses[0] - other == pytest.approx(float(0.5 * auxiliary + 3 * control), rel=1e-4)


def test_residual_and_diversity_alternate_with_doubled_weight() -> None:
    # Real tiles 0 and 1 are 1 apart, and so are 2 and 3.
    loss, terms, made = loss_of(vary_attribute=True, residual=0.3, diversity=0.7)
    apart = (made[0::2] - made[1::2])[:, 0, 0, 0].abs()
    torch.testing.assert_close(apart, torch.tensor([1.0, 2.0]))  # the first attribute from 1 to 2, and from 3 to 1
    assert loss == pytest.approx(2 * 0.3 * 1.5, rel=1e-4) and "generator/diversity" not in terms
    assert float(terms["generator/residual"]) == pytest.approx(1.5)
    loss, terms, made = loss_of(vary_attribute=False, residual=0.3, diversity=0.7)
    apart = (made[0::2] - made[1::2])[:, 0, 0, 0].abs()
    assert loss == pytest.approx(2 * 0.7 * float((1 - apart).clamp(min=0).mean()), abs=1e-4) and "generator/residual" not in terms
    assert loss > 0


@pytest.mark.parametrize("vary_attribute", [False, True])
def test_a_single_pair_loss_applies_in_every_step(vary_attribute: bool) -> None:
    loss, terms, _ = loss_of(vary_attribute=vary_attribute, residual=0.3)
    assert loss == pytest.approx(0.3 * 1.5, rel=1e-4) and "generator/residual" in terms
    _, terms, made = loss_of(vary_attribute=vary_attribute, diversity=0.7)
    apart = (made[0::2] - made[1::2])[:, 0, 0, 0].abs()
    assert float(terms["generator/diversity"]) == pytest.approx(float((1 - apart).clamp(min=0).mean()), abs=1e-5)


def test_half_of_the_steps_vary_attributes_and_slices_of_a_step_agree() -> None:
    steps = [StepNoise.for_step(PLAIN, images, torch.float32) for images in range(0, 800, 4)]
    assert abs(sum(noise.vary_attribute for noise in steps) - 100) < 4 * 0.5 * len(steps) ** 0.5  # 4 standard errors
    assert len({float(noise.varied_B[0]) for noise in steps}) == len(steps)
    for noise in steps[:6]:
        parts = [next(noise.micro_batches(1, rank, 2, torch.device("cpu"))) for rank in range(2)]
        assert [part.vary_attribute for part in parts] == [noise.vary_attribute] * 2
        assert torch.equal(torch.cat([part.varied_B for part in parts]), noise.varied_B)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("vary_attribute", [False, True])
def test_mmd_compares_tiles_with_their_levels_and_leaves_out_tiles_of_one_latent(vary_attribute: bool, rank: int) -> None:
    """Features are the first pixel and the first level, so that the loss follows from the tiles of both ranks."""

    def features(images_BCHW: Tensor, levels_BA: Tensor) -> Tensor:
        return torch.stack([images_BCHW[:, 0, 0, 0], levels_BA[:, 0].float()], dim=1)

    def gather(x: Tensor) -> Tensor:
        return torch.cat([x, x.flip(0) + 1] if rank == 0 else [x.flip(0) + 1, x])

    weights = {"residual": 1.0, "diversity": 1.0, "mmd": 2.0}
    config = dataclasses.replace(PLAIN, loss=LossConfig(contrastive=0, reconstruction=0, **weights))
    runtime = SimpleNamespace(device=torch.device("cpu"), rank=rank, gather=gather, autocast=contextlib.nullcontext)
    batch, generator = batch_of([[1, 1], [2, 1], [3, 2], [1, 2]], vary_attribute=vary_attribute), Linear()
    with torch.device("meta"):  # another default device than that of the process, as on a GPU
        terms, _ = phases.generator_phase(config, runtime, generator, Echo(), [batch], features)
    _, levels_BA = phases._sample_conditions(batch, paired=True, vary_attribute=vary_attribute)
    fake, real = features(generator.made, levels_BA), features(batch.images_BCHW, batch.levels_BA)
    shares_latent = (torch.block_diag(*[torch.ones(2, 2)] * 4) if vary_attribute else torch.eye(8))[4 * rank : 4 * rank + 4]
    within = torch.cdist(fake, gather(fake))[shares_latent == 0].mean()
    torch.testing.assert_close(terms["generator/mmd"], 2 * torch.cdist(fake, gather(real)).mean() - within, atol=1e-3, rtol=0)
    pair = "residual" if vary_attribute else "diversity"
    others = terms["generator/adversarial"] + 2 * terms[f"generator/{pair}"]
    assert generator.losses[0] == pytest.approx(float(others + 2 * terms["generator/mmd"]), rel=1e-4)
