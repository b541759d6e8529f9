"""Layers that train with their weights and predict with a moving average of them, as batch norm does with statistics."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attributegan.models.blocks import layout

EMA_RATE = 0.01  # weight of the current weights in each update; one update per call in training mode, so per micro-batch, as in batch norm


class AveragedConv2d(nn.Conv2d):
    """`nn.Conv2d` without bias that in eval mode uses the exponential moving average of its weights in training mode.

    Weights trained at a high rate on small batches oscillate around their optimum, and their average is closer to it (Polyak & Juditsky,
    "Acceleration of Stochastic Approximation by Averaging", 1992). The average starts at zero.
    """

    averaged_weight: Tensor

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__(channels_in, channels_out, kernel_size, stride, padding, bias=False)
        self.register_buffer("averaged_weight", torch.zeros_like(self.weight))

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.training:
            _follow(self.averaged_weight, weight)
        else:
            weight = self.averaged_weight.to(memory_format=layout(input))  # sharded engines convert parameters only, not buffers
        return super()._conv_forward(input, weight, bias)


class AveragedLinear(nn.Linear):
    """`nn.Linear` that in eval mode uses averages, like `AveragedConv2d`."""

    averaged_weight: Tensor
    averaged_bias: Tensor

    def __init__(self, features_in: int, features_out: int) -> None:
        super().__init__(features_in, features_out)
        self.register_buffer("averaged_weight", torch.zeros_like(self.weight))
        self.register_buffer("averaged_bias", torch.zeros_like(self.bias))

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return F.linear(input, self.averaged_weight, self.averaged_bias)
        _follow(self.averaged_weight, self.weight)
        _follow(self.averaged_bias, self.bias)
        return super().forward(input)


@torch.no_grad()
def _follow(average: Tensor, weights: Tensor) -> None:
    average.lerp_(weights, EMA_RATE)
