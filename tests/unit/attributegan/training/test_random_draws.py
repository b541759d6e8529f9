"""Counter-based randomness: what each number depends on, and how the numbers of a step are sliced."""

import dataclasses

import pytest
import torch

from attributegan.config import AugmentConfig, Config
from attributegan.training.random_draws import StepNoise
from attributegan.utils.rng import rng_for

CONFIG = dataclasses.replace(
    Config(), train=dataclasses.replace(Config().train, batch=12, seed=5), augment=AugmentConfig(policy=("color",))
)


def test_streams_of_a_seed_never_change() -> None:
    """Runs of older versions must resume with the same numbers: the values in this test must not change."""
    assert rng_for(7, "test", 3).initial_seed() == 6538639200203420603
    first = {
        "latents_discriminator_BL": 1.301371630569,
        "latents_generator_BL": 0.222810433552,
        "augment_real_BP": 0.0358390212059021,
        "augment_fake_BP": 0.9121134281158447,
        "augment_generator_BP": 0.6565371751785278,
    }
    draws = StepNoise.for_step(CONFIG, images=24, dtype=torch.float64)
    found = {name: float(value[0, 0]) for name, value in vars(draws).items() if name.endswith(("BL", "BP"))}
    assert found == pytest.approx(first, abs=1e-12)
    assert float(draws.varied_B[0]) == pytest.approx(0.2598969340324402, abs=1e-7)
    steps = [StepNoise.for_step(CONFIG, images, torch.float64) for images in range(0, 144, 12)]
    assert [draws.quadrant for draws in steps] == [2, 3, 2, 0, 0, 1, 2, 1, 3, 1, 1, 1]
    assert [int(draws.vary_attribute) for draws in steps] == [1, 1, 0, 1, 1, 0, 1, 0, 1, 1, 1, 1]


def test_streams_depend_on_seed_purpose_and_position() -> None:
    seeds = {rng_for(*which).initial_seed() for which in ((0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1))}
    assert len(seeds) == 4 and rng_for(0, "a").initial_seed() in seeds
    assert rng_for(0, "a").initial_seed() == rng_for(0, "a", 0).initial_seed()


def test_draws_have_a_row_for_each_image_and_their_distributions() -> None:
    steps = [StepNoise.for_step(CONFIG, images, torch.float32) for images in range(0, 6000, 12)]
    assert {draws.quadrant for draws in steps} == {0, 1, 2, 3} and {draws.vary_attribute for draws in steps} == {False, True}
    first = steps[0]
    assert first.latents_generator_BL.shape == first.latents_discriminator_BL.shape == (12, CONFIG.model.latent_dim)
    assert first.augment_real_BP.shape == first.augment_fake_BP.shape == first.augment_generator_BP.shape == (12, 4)
    assert first.varied_B.shape == (12,)
    assert len({float(value.flatten()[0]) for value in vars(first).values() if isinstance(value, torch.Tensor)}) == 6, "no two alike"
    latents = torch.cat([draws.latents_generator_BL for draws in steps[:20]])
    assert abs(float(latents.mean())) < 0.02 and float(latents.std()) == pytest.approx(1, abs=0.02)
    for name in ("augment_real_BP", "varied_B"):
        uniform = torch.cat([getattr(draws, name) for draws in steps])
        assert 0 <= uniform.min() < 0.01 and 0.99 < uniform.max() < 1
    assert StepNoise.for_step(CONFIG, 0, torch.float64).latents_generator_BL.dtype == torch.float64


@pytest.mark.parametrize(("count", "world"), [(1, 1), (1, 3), (3, 1), (2, 3), (3, 4)])
def test_slices_put_together_are_the_global_batch(count: int, world: int) -> None:
    draws = StepNoise.for_step(CONFIG, 0, torch.float32)
    ranks = [list(draws.micro_batches(count, rank, world, torch.device("cpu"))) for rank in range(world)]
    assert [len(batches) for batches in ranks] == [count] * world
    for name, value in vars(draws).items():
        slices = [getattr(ranks[rank][k], name) for k in range(count) for rank in range(world)]  # one micro-batch after another
        if isinstance(value, torch.Tensor):
            assert all(len(part) == 12 // count // world for part in slices) and torch.equal(torch.cat(slices), value), name
        else:
            assert slices == [value] * len(slices), name
