"""The two phases of a training step. Each function is the complete recipe of its network.

Losses follow AttributeGAN (Ye et al., MICCAI 2021); they are defined in losses.py,
except for the reconstruction loss, which the discriminator computes where its decoders are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attributegan.config import Config
from attributegan.distributed.engine import Engine
from attributegan.distributed.runtime import Runtime
from attributegan.models import DiscriminatorOutput
from attributegan.models.perceptual import PerceptualFeatures
from attributegan.training import augment, losses
from attributegan.training.adaptive import real_sign
from attributegan.training.random_draws import StepNoise


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch of one process."""

    images_BCHW: Tensor  # real tiles, [-1, 1]
    levels_BA: Tensor
    assessable_BA: Tensor  # whether each level is known and on its scale
    noise: StepNoise
    augment_probability: float | None = None  # None: augment.probability


def discriminator_phase(
    config: Config, runtime: Runtime, generator: Engine, discriminator: Engine, batches: Sequence[MicroBatch], penalise: bool
) -> tuple[dict[str, Tensor], bool]:
    """Trains the discriminator to distinguish real tiles from generated ones with the same levels.

    Args:
        config: the configuration.
        runtime: this process.
        generator: generates the fake tiles; gets no gradients.
        discriminator: the network to train.
        batches: the micro-batches of this process.
        penalise: whether the gradient penalties are due in this step.

    Returns:
        the loss terms (means over the micro-batches of this process), and whether the step was taken.
    """
    weights, terms = config.loss, _Terms(len(batches))
    for k, batch in enumerate(batches):
        with discriminator.micro_batch(last=k == len(batches) - 1):
            with torch.no_grad():
                fakes = generator(batch.noise.latents_discriminator_BL, batch.levels_BA)
            fakes = augment.apply(fakes, batch.noise.augment_fake_BP, config.augment, batch.augment_probability)
            reals = augment.apply(batch.images_BCHW, batch.noise.augment_real_BP, config.augment, batch.augment_probability)
            output = discriminator(
                torch.cat([reals, fakes]),
                batch.levels_BA.repeat(2, 1),
                batch.noise.quadrant,
                embed=weights.contrastive > 0,
                reconstruct=weights.reconstruction > 0,
                train_levels=weights.auxiliary > 0,
                first=len(reals),
            )
            loss = torch.zeros((), device=runtime.device)
            for head, outputs in _heads(output).items():
                loss = loss + terms.add(f"discriminator/adversarial{head}", _d_adversarial(config, *outputs.chunk(2)))
            if weights.auxiliary:
                aux_loss = losses.auxiliary_discriminator(output.levels, batch.levels_BA)
                loss = loss + weights.auxiliary * terms.add("discriminator/auxiliary", aux_loss)
            if weights.contrastive:
                contrastive_loss = _contrastive(config, runtime, output.embedding, output.proxy, batch.levels_BA)
                loss = loss + weights.contrastive * terms.add("discriminator/contrastive", contrastive_loss)
            if weights.reconstruction:
                loss = loss + weights.reconstruction * terms.add("discriminator/reconstruction", output.reconstruction_loss)
            if penalise:
                for name, (gamma, penalty) in _penalties(config, discriminator, reals, fakes, batch.levels_BA).items():
                    loss = loss + weights.r1_every * gamma / 2 * terms.add(f"discriminator/{name}", penalty)
            discriminator.backward(loss / len(batches))
            for name, logits in zip(("real_score", "fake_score"), output.logits.float().chunk(2), strict=True):
                terms.add(name, -logits.mean())
            if config.augment.target:
                terms.add("augment/real_sign", real_sign(config, *output.logits.chunk(2)))
    norm, taken = discriminator.step()
    return terms.means | {"discriminator/gradient_norm": norm}, taken


def generator_phase(
    config: Config,
    runtime: Runtime,
    generator: Engine,
    discriminator: Engine,
    batches: Sequence[MicroBatch],
    features: PerceptualFeatures | None = None,
) -> tuple[dict[str, Tensor], bool]:
    """Trains the generator to make tiles that the discriminator classifies as real tiles with the requested levels.

    Args and Returns: as `discriminator_phase`; ``features`` are those of the MMD loss.
    """
    weights, terms = config.loss, _Terms(len(batches))
    # With both pair losses on, each step uses one of them at random, with doubled weight.
    pair_losses = (weights.diversity > 0) + (weights.residual > 0)
    paired, vary_attribute = pair_losses > 0, weights.residual > 0 and (pair_losses == 1 or batches[0].noise.vary_attribute)
    with discriminator.frozen():
        for k, batch in enumerate(batches):
            with generator.micro_batch(last=k == len(batches) - 1):
                latents_BL, levels_BA = _sample_conditions(batch, paired, vary_attribute)
                generated = generator(latents_BL, levels_BA)
                fakes = augment.apply(generated, batch.noise.augment_generator_BP, config.augment, batch.augment_probability)
                output = discriminator.unwrapped(
                    fakes, levels_BA, embed=weights.contrastive > 0, reconstruct=False, predict_levels=weights.auxiliary > 0
                )
                real_outputs = _real_outputs(config, discriminator, batch, paired) if weights.adversarial == "relativistic" else {}
                loss = torch.zeros((), device=runtime.device)
                for head, fake_output in _heads(output).items():
                    loss = loss + terms.add(f"generator/adversarial{head}", _g_adversarial(fake_output, real_outputs.get(head)))
                if weights.auxiliary:
                    aux_loss = losses.auxiliary_generator(output.levels, levels_BA)
                    loss = loss + weights.auxiliary * terms.add("generator/auxiliary", aux_loss)
                if weights.control:
                    loss = loss + weights.control * terms.add("generator/control", losses.control(output.levels, levels_BA))
                if vary_attribute:
                    residual_loss = losses.residual(generated, _real_distance(runtime, batch.images_BCHW))
                    loss = loss + pair_losses * weights.residual * terms.add("generator/residual", residual_loss)
                elif weights.diversity:
                    diversity_loss = losses.diversity(generated, _real_distance(runtime, batch.images_BCHW))
                    loss = loss + pair_losses * weights.diversity * terms.add("generator/diversity", diversity_loss)
                if features is not None:
                    mmd_loss = _mmd(runtime, features, generated, levels_BA, batch, rows_per_latent=2 if vary_attribute else 1)
                    loss = loss + weights.mmd * terms.add("generator/mmd", mmd_loss)
                if weights.contrastive:
                    contrastive_loss = _contrastive(config, runtime, output.embedding, output.proxy, levels_BA)
                    loss = loss + weights.contrastive * terms.add("generator/contrastive", contrastive_loss)
                generator.backward(loss / len(batches))
        norm, taken = generator.step()
    return terms.means | {"generator/gradient_norm": norm}, taken


def _heads(output: DiscriminatorOutput) -> dict[str, Tensor]:
    """Returns the logits of each head, by the suffix of its loss terms."""
    return {"": output.logits} | ({} if output.logits_32 is None else {"_32": output.logits_32})


def _d_adversarial(config: Config, real: Tensor, fake: Tensor) -> Tensor:
    return losses.relativistic(real, fake) if config.loss.adversarial == "relativistic" else losses.hinge_discriminator(real, fake)


def _g_adversarial(fake: Tensor, real: Tensor | None) -> Tensor:
    return losses.hinge_generator(fake) if real is None else losses.relativistic(fake, real)


def _real_outputs(config: Config, discriminator: Engine, batch: MicroBatch, paired: bool) -> dict[str, Tensor]:
    """Returns the logits of the real tiles that generated ones are paired with in the relativistic loss, by head; no gradients.

    The real tile has the same levels, except for the varied attribute of the second tile of a pair.
    """
    rows = slice(None, None, 2 if paired else 1)  # both tiles of a pair have the levels of its first real tile
    with torch.no_grad():
        reals = augment.apply(batch.images_BCHW[rows], batch.noise.augment_real_BP[rows], config.augment, batch.augment_probability)
        outputs = _heads(discriminator.unwrapped(reals, batch.levels_BA[rows], embed=False, reconstruct=False))
    return {head: output.repeat_interleave(2, dim=0) for head, output in outputs.items()} if paired else outputs


def _sample_conditions(batch: MicroBatch, paired: bool, vary_attribute: bool) -> tuple[Tensor, Tensor]:
    """Returns the latents and levels for the generator phase.

    Args:
        batch: the micro-batch.
        paired: False takes the levels of the real tiles. True gives rows 2k and 2k + 1 the levels of real tile 2k.
        vary_attribute: the tiles of a pair share one latent, and the second has one attribute at the level of real tile 2k + 1. The
            attribute is drawn from those that are assessable in both tiles and differ; without one, both tiles are identical. If False,
            the tiles of a pair have the same levels and different latents.
    """
    latents_BL, levels_BA = batch.noise.latents_generator_BL, batch.levels_BA
    if not paired:
        return latents_BL, levels_BA
    first_BA = _in_pairs(levels_BA)
    if not vary_attribute:
        return latents_BL, first_BA
    candidates_BA = batch.assessable_BA & _in_pairs(batch.assessable_BA) & (levels_BA != first_BA)
    index_B1 = (batch.noise.varied_B[:, None] * candidates_BA.sum(dim=1, keepdim=True)).long()
    varied_BA = candidates_BA & (candidates_BA.cumsum(dim=1) == index_B1 + 1)
    return _in_pairs(latents_BL), torch.where(varied_BA, levels_BA, first_BA)


def _in_pairs(rows: Tensor) -> Tensor:
    """Repeats every other row: rows 2k and 2k + 1 of the result are row 2k."""
    return rows[0::2].repeat_interleave(2, dim=0)


def _real_distance(runtime: Runtime, images_BCHW: Tensor) -> Tensor:
    """Returns the mean absolute difference between tiles 2k and 2k + 1 of the global batch of real tiles."""
    distance_P = (images_BCHW[0::2] - images_BCHW[1::2]).abs().mean(dim=(1, 2, 3))
    return runtime.gather(distance_P).mean()


def _mmd(
    runtime: Runtime, features: PerceptualFeatures, fakes_BCHW: Tensor, levels_BA: Tensor, batch: MicroBatch, rows_per_latent: int
) -> Tensor:
    """Returns the energy distance of this process's generated tiles, before augmentation, to the real tiles of all processes."""
    with runtime.autocast():
        fake_BD = features(fakes_BCHW, levels_BA)
        with torch.no_grad():
            real_BD = features(batch.images_BCHW, batch.levels_BA)
    all_fakes_MD = runtime.gather(fake_BD)
    latent_M = torch.arange(len(all_fakes_MD), device=runtime.device) // rows_per_latent
    own_B = latent_M[runtime.rank * len(fake_BD) :][: len(fake_BD)]
    return losses.energy_distance(fake_BD, runtime.gather(real_BD), all_fakes_MD, own_B[:, None] == latent_M)


def _contrastive(config: Config, runtime: Runtime, embedding_BE: Tensor, proxy_BE: Tensor, levels_BA: Tensor) -> Tensor:
    """Returns the 2C loss of this process's tiles against the tiles of all processes."""
    loss = losses.contrastive_by_attribute if config.loss.contrastive_over == "attribute" else losses.contrastive_2c
    return loss(
        embedding_BE,
        proxy_BE,
        levels_BA,
        temperature=config.loss.temperature,
        all_embeddings_NE=runtime.gather(embedding_BE),
        all_levels_NA=runtime.gather(levels_BA),
        first=runtime.rank * len(levels_BA),
    )


def _penalties(
    config: Config, discriminator: Engine, reals_BCHW: Tensor, fakes_BCHW: Tensor, levels_BA: Tensor
) -> dict[str, tuple[float, Tensor]]:
    """Returns gamma and value of the enabled gradient penalties, by name. Both penalties share one forward pass over all heads.

    Uses the unwrapped network, since sharded engines don't support double backward.
    """
    penalties = {"r1": (config.loss.r1_gamma, reals_BCHW), "r2": (config.loss.r2_gamma, fakes_BCHW)}
    penalties = {name: (gamma, images) for name, (gamma, images) in penalties.items() if gamma}
    images = torch.cat([images for _, images in penalties.values()]).detach().requires_grad_(True)
    output = discriminator.unwrapped(images, levels_BA.repeat(len(penalties), 1), embed=False, reconstruct=False)
    scores_B = sum(head.float().mean(1) for head in (output.logits, output.logits_32) if head is not None)
    means = losses.gradient_penalty(scores_B, images).view(len(penalties), -1).mean(1)
    return {name: (gamma, mean) for (name, (gamma, _)), mean in zip(penalties.items(), means, strict=True)}


class _Terms:
    """Accumulates the means of loss terms over the micro-batches of a phase, on the device."""

    def __init__(self, micro_batches: int) -> None:
        self.micro_batches = micro_batches
        self.means: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor) -> Tensor:
        """Adds the value of one micro-batch and returns it unchanged."""
        self.means[name] = self.means.get(name, 0) + value.detach() / self.micro_batches
        return value
