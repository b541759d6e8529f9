"""What the phases of a step put together: what tiles the generator is asked for, and which real tile each is held against."""

import dataclasses

import pytest
import torch
from torch import Tensor

from attributegan import phases
from attributegan.config import Config, LossConfig
from attributegan.models import DiscriminatorOutput
from attributegan.randomness import Draws


class Echo:
    """A discriminator whose answer is an image's first pixel and its first level."""

    def local(self, images_BCHW: Tensor, levels_BA: Tensor, embed: bool, reconstruct: bool) -> DiscriminatorOutput:
        return DiscriminatorOutput(torch.stack([images_BCHW[:, 0, 0, 0], levels_BA[:, 0].float()], dim=1), None, None, None, None, None)


def batch_of(config: Config) -> phases.MicroBatch:
    levels_BA = torch.tensor([[1], [2], [3], [4]])
    draws = Draws.for_step(config, images=0, dtype=torch.float32)
    return phases.MicroBatch(torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2), levels_BA, draws)


def test_every_generated_tile_meets_a_real_one_of_its_levels() -> None:
    plain = dataclasses.replace(Config(), train=dataclasses.replace(Config().train, batch=4))
    plain = dataclasses.replace(plain, augment=dataclasses.replace(plain.augment, policy=()))
    alone = phases._answers_to_real(plain, Echo(), batch_of(plain))
    assert alone[""].tolist() == [[0, 1], [1, 2], [2, 3], [3, 4]]
    paired = dataclasses.replace(plain, loss=LossConfig(diversity=1.0))
    batch = batch_of(paired)
    answers = phases._answers_to_real(paired, Echo(), batch)
    assert answers[""].tolist() == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert answers[""][:, 1].tolist() == phases._in_pairs(batch.levels_BA)[:, 0].tolist()


def with_pairs(moved: float, **weights: float) -> tuple[Tensor, Tensor, bool, phases.MicroBatch]:
    """What is asked for with a batch of four tiles with three attributes."""
    config = dataclasses.replace(Config(), loss=LossConfig(**weights), train=dataclasses.replace(Config().train, batch=4))
    levels_BA = torch.tensor([[1, 1, 1], [2, -1, 4], [3, 2, -1], [4, 1, 3]])
    draws = dataclasses.replace(Draws.for_step(config, images=0, dtype=torch.float32), moved=moved)
    batch = phases.MicroBatch(torch.zeros(4, 3, 2, 2), levels_BA, draws)
    return *phases._asked_for(config, batch), batch


def test_without_pairs_every_tile_has_the_levels_of_a_real_one() -> None:
    latents_BL, levels_BA, moved, batch = with_pairs(0.1)
    assert not moved and levels_BA is batch.levels_BA and latents_BL is batch.draws.latents_generator_BL


@pytest.mark.parametrize(("moved", "weights"), [(0.1, {"diversity": 1.0}), (0.6, {"diversity": 1.0, "residual": 1.0})])
def test_tiles_of_one_label_have_two_latents(moved: float, weights: dict[str, float]) -> None:
    latents_BL, levels_BA, was_moved, batch = with_pairs(moved, **weights)
    assert not was_moved and torch.equal(latents_BL, batch.draws.latents_generator_BL)
    assert levels_BA.tolist() == [[1, 1, 1], [1, 1, 1], [3, 2, -1], [3, 2, -1]]


@pytest.mark.parametrize(
    ("moved", "second", "fourth"),
    [(0.0, [2, 1, 1], [4, 2, -1]), (0.16, [2, 1, 1], [4, 2, -1]), (0.2, [1, 1, 1], [3, 1, -1]), (0.499, [1, 1, 4], [3, 2, -1])],
)
def test_one_attribute_is_moved_to_where_another_tile_has_it_and_the_latent_stays(
    moved: float, second: list[int], fourth: list[int]
) -> None:
    latents_BL, levels_BA, was_moved, batch = with_pairs(moved, residual=1.0)
    assert (
        was_moved
        and torch.equal(latents_BL[0::2], latents_BL[1::2])
        and torch.equal(latents_BL[0::2], batch.draws.latents_generator_BL[0::2])
    )
    assert levels_BA.tolist() == [[1, 1, 1], second, [3, 2, -1], fourth]
    assert batch.levels_BA.tolist() == [[1, 1, 1], [2, -1, 4], [3, 2, -1], [4, 1, 3]]
