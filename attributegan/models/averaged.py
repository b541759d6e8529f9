"""Layers that learn with their weights and answer with an average of these, as batch norm does with statistics."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attributegan.models.blocks import layout

EMA_RATE = 0.01  # share of the newest weights in the average: of each call while training, so of each micro-batch, as in batch norm


class AveragedConv2d(nn.Conv2d):
    """`nn.Conv2d` without bias; in eval mode by the exponential average of the weights that it was called with while training.

    Weights that learn fast from small batches jump about their optimum; their average lies nearer to it (Polyak & Juditsky, "Acceleration
    of Stochastic Approximation by Averaging", 1992). It begins at zero.
    """

    averaged_weight: Tensor

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__(channels_in, channels_out, kernel_size, stride, padding, bias=False)
        self.register_buffer("averaged_weight", torch.zeros_like(self.weight))

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.training:
            _follow(self.averaged_weight, weight)
        else:
            weight = self.averaged_weight.to(memory_format=layout(input))  # sharded engines lay out parameters alone
        return super()._conv_forward(input, weight, bias)


class AveragedLinear(nn.Linear):
    """`nn.Linear`, in eval mode by averages as in `AveragedConv2d`."""

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
