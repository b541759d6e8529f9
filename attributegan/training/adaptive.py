"""Adaptive discriminator augmentation: adapts the probability of augmenting an image to the overfitting of the discriminator.

Karras et al., "Training Generative Adversarial Networks with Limited Data", NeurIPS 2020, section 3. Owns the probability and its
statistic; the augmentations are in augment.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from attributegan.config import AugmentConfig, Config
from attributegan.distributed.runtime import Runtime
from attributegan.models.precision import full_precision
from attributegan.utils.devices import widest_float

ADAPT_EVERY = 256  # images between changes of the probability: 4 steps of 64 images, as in the paper
EQUAL = 1e-6  # difference to the target that is rounding, so that all ranks and world sizes decide alike


def real_sign(config: Config, real: Tensor, fake: Tensor) -> Tensor:
    """Returns r_t of a batch: 0 if the discriminator does not separate real tiles from generated ones, 1 if it separates all.

    In the paper, r_t = E[sign(D(real))] (eq. 1). Logits of real tiles are lowered here, so it is E[sign(-logit)] with the hinge loss. The
    relativistic loss fixes only differences of logits; there it is 2 P - 1 = E[sign(fake logit - real logit)], where P is the share of
    pairs in which the real tile has the lower logit. Logits that are not finite count as not separated.

    Args:
        config: the configuration.
        real: logits of the first head for real tiles, any shape.
        fake: for the generated tiles that they are paired with.
    """
    real, fake = full_precision(real.detach()), full_precision(fake.detach())
    return (fake - real if config.loss.adversarial == "relativistic" else -real).sign().nan_to_num(0.0).mean()


class AdaptiveProbability:
    """The probability of augmenting an image, from 0 up to ``augment.probability``; constant if ``augment.target`` is 0.

    Every `ADAPT_EVERY` images, it rises if the mean of r_t since the last change is above the target, else it falls, both at a rate of 1 in
    ``augment.adapt_images`` images.
    """

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config
        self.value = 0.0 if config.target else config.probability
        self.sum: Tensor | float = 0.0  # of r_t of this process since the last change, weighted by images
        self.images = 0  # since the last change

    def update(self, sign: Tensor, batch: int, runtime: Runtime) -> None:
        """Updates the probability after a step; every process must call it.

        Args:
            sign: `real_sign` of this process, not read on the host until the next change.
            batch: global batch size.
            runtime: averages over the processes.
        """
        self.sum, self.images = self.sum + sign.to(widest_float(sign.device)) * batch, self.images + batch
        if self.images < ADAPT_EVERY:
            return
        excess = self._mean_sum(runtime) / self.images - self.config.target
        step = 0.0 if abs(excess) < EQUAL else math.copysign(self.images / self.config.adapt_images, excess)
        self.value = min(max(self.value + step, 0.0), self.config.probability)
        self.sum, self.images = 0.0, 0

    def state(self, runtime: Runtime) -> dict[str, Any]:
        """Returns the state for a checkpoint, equal on all processes; every process must call it."""
        return {"probability": self.value, "sum": self._mean_sum(runtime), "images": self.images} if self.config.target else {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restores what `state` returned; ignored if the probability is constant, or was when the checkpoint was saved."""
        if self.config.target and state:
            self.value = min(float(state["probability"]), self.config.probability)
            self.sum, self.images = float(state["sum"]), int(state["images"])

    def _mean_sum(self, runtime: Runtime) -> float:
        return runtime.mean({"sum": self.sum})["sum"] if isinstance(self.sum, Tensor) else self.sum
