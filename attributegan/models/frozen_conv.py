"""Convolutions with frozen weights, whose gradient is computed as a convolution.

The gradient of a convolution's input is a convolution with the flipped weights (of the map with zeros in between, for a stride of 2).
oneDNN runs it in bf16 twice as fast as its own backward pass of depthwise convolutions, and equally fast in fp32 (AMD Zen 4).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from attributegan.models.blocks import layout


class FrozenConv2d(nn.Module):
    """A copy of a square convolution without trainable weights; differentiable once in its input.

    Args:
        conv: pointwise or depthwise with a stride of 1 or 2, or with any weights and a stride of 2.
        padding: applied to the input before the convolution.
    """

    weight: Tensor
    flipped: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d, padding: nn.Module) -> None:
        super().__init__()
        assert conv.bias is not None and conv.dilation == (1, 1) and conv.padding == (0, 0)
        self.groups, self.stride = conv.groups, conv.stride[0]
        self.size = conv.kernel_size[0]
        symmetric = self.stride == 1  # such padding is part of the convolution, which saves a copy
        self.padding = self.size // 2 if symmetric else 0
        self.pad = nn.Identity() if symmetric else padding
        weight = conv.weight.detach()
        flipped = weight.flip(2, 3)
        for name, value in (
            ("weight", weight),
            ("flipped", flipped if self.groups > 1 else flipped.transpose(0, 1)),
            ("bias", conv.bias.detach()),
        ):
            self.register_buffer(name, value.clone(), persistent=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y: Tensor = _FrozenConv2d.apply(self.pad(x_BCHW), self)
        return y


class _FrozenConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, conv: FrozenConv2d) -> Tensor:
        ctx.conv, ctx.shape = conv, x_BCHW.shape
        return F.conv2d(x_BCHW, conv.weight, conv.bias, conv.stride, conv.padding, 1, conv.groups)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        conv, (height, width) = ctx.conv, ctx.shape[2:]
        flipped = conv.flipped.to(gradient.dtype)
        if conv.stride == 1:
            return F.conv2d(gradient, flipped, None, 1, conv.size - 1 - conv.padding, 1, conv.groups), None
        if conv.groups == 1:
            return conv2d_input(ctx.shape, conv.weight.to(gradient.dtype), gradient, conv.stride), None
        border = conv.size - 1
        zeros = gradient.new_zeros((*gradient.shape[:2], height + border, width + border)).contiguous(memory_format=layout(gradient))
        last_row, last_column = (border + conv.stride * (length - 1) + 1 for length in gradient.shape[2:])
        zeros[:, :, border : last_row : conv.stride, border : last_column : conv.stride] = gradient
        return F.conv2d(zeros, flipped, None, 1, 0, 1, conv.groups), None
