"""The two phases of a training step: the discriminator's and the generator's. Each is the whole recipe of its network.

Networks, losses and processes are elsewhere; here they meet. Losses are those of AttributeGAN (Ye et al., MICCAI 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attributegan import augment, losses
from attributegan.config import Config
from attributegan.engine import Engine
from attributegan.randomness import Draws
from attributegan.runtime import Runtime


@dataclass(frozen=True)
class MicroBatch:
    """What one process works on at a time."""

    images_BCHW: Tensor  # real tiles, [-1, 1]
    levels_BA: Tensor
    draws: Draws


def discriminator_phase(
    config: Config, runtime: Runtime, generator: Engine, discriminator: Engine, batches: Sequence[MicroBatch], penalise: bool
) -> tuple[dict[str, Tensor], bool]:
    """Teach the discriminator to tell real tiles from generated ones with the same levels.

    Args:
        penalise: whether the gradient penalty is due in this step.

    Returns:
        the loss terms (means over the micro-batches of this process), and whether the step was taken.
    """
    weights, terms = config.loss, _Terms(len(batches))
    for k, batch in enumerate(batches):
        with discriminator.micro_batch(last=k == len(batches) - 1):
            with torch.no_grad():
                fakes = generator(batch.draws.latents_discriminator_BL, batch.levels_BA)
            fakes = augment.apply(fakes, batch.draws.augment_fake_BP, config.augment)
            reals = augment.apply(batch.images_BCHW, batch.draws.augment_real_BP, config.augment)
            real = discriminator(
                reals, batch.levels_BA, batch.draws.quadrant, embed=weights.contrastive > 0, reconstruct=weights.reconstruction > 0
            )
            fake = discriminator(fakes, batch.levels_BA, embed=False, reconstruct=False)
            loss = terms.add("discriminator/hinge", losses.hinge_discriminator(real.logits, fake.logits))
            loss = loss + terms.add("discriminator/hinge_32", losses.hinge_discriminator(real.logits_32, fake.logits_32))
            if weights.contrastive:
                contrast = _contrastive(config, runtime, real.embedding, real.proxy, batch.levels_BA)
                loss = loss + weights.contrastive * terms.add("discriminator/contrastive", contrast)
            if weights.reconstruction:
                loss = loss + weights.reconstruction * terms.add("discriminator/reconstruction", real.reconstruction_loss)
            if penalise:
                loss = loss + weights.r1_every * weights.r1_gamma / 2 * terms.add(
                    "discriminator/r1", _r1(discriminator, reals, batch.levels_BA)
                )
            discriminator.backward(loss / len(batches))
            terms.add("real_score", -real.logits.float().mean())
            terms.add("fake_score", -fake.logits.float().mean())
    norm, taken = discriminator.step()
    return terms.means | {"discriminator/gradient_norm": norm}, taken


def generator_phase(
    config: Config, runtime: Runtime, generator: Engine, discriminator: Engine, batches: Sequence[MicroBatch]
) -> tuple[dict[str, Tensor], bool]:
    """Teach the generator to make tiles that the discriminator takes for real ones of the levels asked for.

    Returns: as `discriminator_phase`.
    """
    weights, terms = config.loss, _Terms(len(batches))
    with discriminator.frozen():
        for k, batch in enumerate(batches):
            with generator.micro_batch(last=k == len(batches) - 1):
                fakes = generator(batch.draws.latents_generator_BL, batch.levels_BA)
                fakes = augment.apply(fakes, batch.draws.augment_generator_BP, config.augment)
                answer = discriminator.local(fakes, batch.levels_BA, embed=weights.contrastive > 0, reconstruct=False)
                loss = terms.add("generator/adversarial", losses.hinge_generator(answer.logits))
                loss = loss + terms.add("generator/adversarial_32", losses.hinge_generator(answer.logits_32))
                if weights.contrastive:
                    contrast = _contrastive(config, runtime, answer.embedding, answer.proxy, batch.levels_BA)
                    loss = loss + weights.contrastive * terms.add("generator/contrastive", contrast)
                generator.backward(loss / len(batches))
        norm, taken = generator.step()
    return terms.means | {"generator/gradient_norm": norm}, taken


def _contrastive(config: Config, runtime: Runtime, embedding_BE: Tensor, proxy_BE: Tensor, levels_BA: Tensor) -> Tensor:
    """2C loss of this process's tiles against the tiles of all processes."""
    return losses.contrastive_2c(
        embedding_BE,
        proxy_BE,
        levels_BA,
        temperature=config.loss.temperature,
        all_embeddings_NE=runtime.gather(embedding_BE),
        all_levels_NA=runtime.gather(levels_BA),
        first=runtime.rank * len(levels_BA),
    )


def _r1(discriminator: Engine, reals_BCHW: Tensor, levels_BA: Tensor) -> Tensor:
    """R1 penalty of both heads; through the plain network, since sharded engines can't differentiate twice."""
    reals = reals_BCHW.detach().requires_grad_(True)
    answer = discriminator.local(reals, levels_BA, embed=False, reconstruct=False)
    return losses.r1_penalty(answer.logits.float().mean(1) + answer.logits_32.float().mean(1), reals)


class _Terms:
    """Means of loss terms over the micro-batches of a phase, kept on the device."""

    def __init__(self, micro_batches: int) -> None:
        self.micro_batches = micro_batches
        self.means: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor) -> Tensor:
        self.means[name] = self.means.get(name, 0) + value.detach() / self.micro_batches
        return value
