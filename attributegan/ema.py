"""The exponential moving average of the generator, counted in images."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Ema:
    """An averaged copy of a network, in eval mode.

    The half-life is in images and ramps up with the images seen, so that batch size changes nothing and short runs do
    not average over their first steps (Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion
    Models", CVPR 2024, and StyleGAN2's ramp-up).

    Args:
        module: the network to copy; call before it is wrapped for training.
        half_life: images after which an old weight counts half.
        rampup: the half-life is at most this share of the images seen; 0 for no such limit.
    """

    def __init__(self, module: nn.Module, half_life: float, rampup: float) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.half_life = half_life
        self.rampup = rampup

    @torch.no_grad()
    def update(self, module: nn.Module, batch: int, images: int) -> None:
        """Move towards ``module``, which has now seen ``images`` images, ``batch`` of them since the last update."""
        half_life = min(self.half_life, self.rampup * images) if self.rampup else self.half_life
        weight = 1 - 0.5 ** (batch / half_life)
        averaged, current = self.module.state_dict(), module.state_dict()
        names = [name for name, tensor in averaged.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([averaged[name] for name in names], [current[name] for name in names], weight)
        for name in averaged.keys() - set(names):  # counters
            averaged[name].copy_(current[name])

    def state_dict(self) -> dict[str, Tensor]:
        return self.module.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.module.load_state_dict(state)
