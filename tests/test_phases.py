"""What the phases of a step put together: which real tile a generated one is held against."""

import dataclasses

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
