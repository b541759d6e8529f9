"""Counter-based randomness of training: numbers depend on (seed, purpose, images seen) only, so no state needs saving.

Numbers are drawn for the global batch and sliced, so they are the same on one process and on many.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attributegan.config import Config
from attributegan.training import augment
from attributegan.utils.devices import to_device
from attributegan.utils.rng import Purpose, rng_for


@dataclass(frozen=True)
class StepNoise:
    """The random numbers of a step or of one slice of it: tensors have one row per image, other fields hold for all images."""

    latents_discriminator_BL: Tensor  # standard normal
    latents_generator_BL: Tensor
    augment_real_BP: Tensor  # uniform in [0, 1)
    augment_fake_BP: Tensor
    augment_generator_BP: Tensor
    varied_B: Tensor  # uniform in [0, 1): selects the attribute to vary in the generator phase
    vary_attribute: bool  # whether this step varies attributes, if both pair losses are on
    quadrant: int  # 0 to 3: the quadrant that the second decoder reconstructs

    @classmethod
    def for_step(cls, config: Config, images: int, dtype: torch.dtype) -> StepNoise:
        """Draws the numbers of the global batch for the step that starts after ``images`` real images."""
        seed, batch, latent_dim = config.train.seed, config.train.batch, config.model.latent_dim

        def latents(purpose: Purpose) -> Tensor:
            return torch.randn(batch, latent_dim, generator=rng_for(seed, purpose, images), dtype=dtype)

        def augmentation(purpose: Purpose) -> Tensor:
            return augment.draw(config.augment, batch, rng_for(seed, purpose, images))

        return cls(
            latents_discriminator_BL=latents(Purpose.LATENTS_D),
            latents_generator_BL=latents(Purpose.LATENTS_G),
            augment_real_BP=augmentation(Purpose.AUGMENT_REAL),
            augment_fake_BP=augmentation(Purpose.AUGMENT_FAKE),
            augment_generator_BP=augmentation(Purpose.AUGMENT_G),
            varied_B=torch.rand(batch, generator=rng_for(seed, Purpose.VARIED_ATTRIBUTES, images)),
            vary_attribute=bool(torch.randint(2, (), generator=rng_for(seed, Purpose.VARY_ATTRIBUTE, images))),
            quadrant=int(torch.randint(4, (), generator=rng_for(seed, Purpose.QUADRANT, images))),
        )

    def micro_batches(self, count: int, rank: int, world: int, device: torch.device) -> Iterator[StepNoise]:
        """Yields this rank's slice of each of ``count`` micro-batches, on ``device``."""
        micro = len(self.latents_generator_BL) // count
        share = micro // world
        for first in range(rank * share, count * micro, micro):
            rows = {name: to_device(draw[first : first + share], device) for name, draw in vars(self).items() if isinstance(draw, Tensor)}
            yield StepNoise(**rows, vary_attribute=self.vary_attribute, quadrant=self.quadrant)
