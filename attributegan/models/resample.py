"""Blur, and upsampling by 2 with convolution: equal to the separate steps up to rounding, with less compute and memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attributegan.models.conv_transpose import conv_transpose2d
from attributegan.models.precision import full_precision

TRANSPOSED_FROM = 32  # pixels of a map from which transposed convolution is faster (on CPUs, forward and backward)


def blur(x_BCHW: Tensor) -> Tensor:
    """Depthwise [1,2,1] x [1,2,1] / 16 with reflected borders."""
    return _Blur.apply(x_BCHW)


class _Blur(torch.autograd.Function):
    """The blur with its transpose as derivative: saves no tensors, and double backward costs as little as backward.

    Autograd through pad and conv2d saves the padded map and is ten times slower in double backward.
    """

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor) -> Tensor:
        return F.conv2d(F.pad(x_BCHW, (1, 1, 1, 1), mode="reflect"), _kernel(x_BCHW), groups=x_BCHW.shape[1])

    @staticmethod
    def backward(ctx: Any, grad_BCHW: Tensor) -> Tensor:
        return _BlurTransposed.apply(grad_BCHW)


class _BlurTransposed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor) -> Tensor:
        x = F.conv_transpose2d(x_BCHW, _kernel(x_BCHW), groups=x_BCHW.shape[1])
        for dim in (2, 3):  # gradients of the reflected borders are added to the pixels that they reflect
            before, after = x.select(dim, 0), x.select(dim, -1)
            x = x.narrow(dim, 1, x.shape[dim] - 2).clone()
            x.select(dim, 1).add_(before)
            x.select(dim, -2).add_(after)
        return x

    @staticmethod
    def backward(ctx: Any, grad_BCHW: Tensor) -> Tensor:
        return _Blur.apply(grad_BCHW)


def _kernel(x_BCHW: Tensor) -> Tensor:
    # 1, 2, 1 made on the device: `torch.tensor` would copy them from the host, and a GPU would have to finish all its work first.
    taps = 2 - torch.arange(-1, 2, dtype=x_BCHW.dtype, device=x_BCHW.device).abs()
    return (taps[:, None] * taps / 16).expand(x_BCHW.shape[1], 1, 3, 3)


class UpsampleBlurConv2d(nn.Conv2d):
    """Nearest x2, `blur`, Conv3x3 with zero padding. Its weights are those of the convolution.

    Nearest x2 and blur together are bilinear x2, including borders; small maps use that. Larger maps are convolved before the blur, as in
    StyleGAN2 (Karras et al., CVPR 2020): nearest x2 and a 3 x 3 convolution are one transposed convolution with 4/9 of the work. Since the
    zero padding of the convolution must not be blurred, its contribution is subtracted from the frame.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3, padding=1)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if min(input.shape[2:]) < TRANSPOSED_FROM:
            return F.conv2d(_bilinear(input), weight, bias, padding=1)
        padded, *lines = _Extended.apply(input)
        output = _InnerBlur.apply(conv_transpose2d(padded, _doubled(weight), stride=2, padding=2), bias)
        top, bottom, left, right = (F.interpolate(line, scale_factor=2, mode="linear", align_corners=False) for line in lines)
        top, bottom = (F.pad(line, (1, 1), mode="replicate") for line in (top, bottom))  # include the corners
        corrections = [
            F.conv1d(top, weight[:, :, 0]),
            F.conv1d(bottom, weight[:, :, 2]),
            F.conv1d(left, weight[:, :, :, 0], padding=1),
            F.conv1d(right, weight[:, :, :, 2], padding=1),
        ]
        if torch.is_grad_enabled():
            return _SubtractFromFrame.apply(output, *corrections)
        return _subtract_from_frame(output, corrections)  # torch.compile supports `mark_dirty` only with gradients


class UpsampleNearestConv2d(nn.Conv2d):
    """Nearest x2, Conv3x3. Its weights are those of the convolution; larger maps use one transposed convolution."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3, padding=1)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if min(input.shape[2:]) < TRANSPOSED_FROM:
            return F.conv2d(F.interpolate(input, scale_factor=2), weight, bias, padding=1)
        output = conv_transpose2d(input, _doubled(weight), stride=2, padding=1)
        return output if bias is None else output + bias.to(output.dtype)[:, None, None]  # faster than inside for bf16 on CPUs


def _bilinear(x_BCHW: Tensor) -> Tensor:
    return F.interpolate(x_BCHW, scale_factor=2, mode="bilinear", align_corners=False)


def _doubled(weight_OI33: Tensor) -> Tensor:
    """Returns the kernel (I, O, 4, 4) of the transposed convolution with stride 2 that equals nearest x2 and convolution."""
    wide = F.pad(weight_OI33.flip(2, 3).transpose(0, 1), (1, 1, 1, 1))
    wide = wide[:, :, 1:] + wide[:, :, :-1]
    return wide[:, :, :, 1:] + wide[:, :, :, :-1]


class _InnerBlur(torch.autograd.Function):
    """`blur` without padding, plus a bias: the output is 2 pixels smaller."""

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, bias_C: Tensor | None) -> Tensor:
        return F.conv2d(x_BCHW, _kernel(x_BCHW), None if bias_C is None else bias_C.to(x_BCHW.dtype), groups=x_BCHW.shape[1])

    @staticmethod
    def backward(ctx: Any, grad_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        bias = full_precision(grad_BCHW).sum((0, 2, 3)) if ctx.needs_input_grad[1] else None
        return _InnerBlur.apply(F.pad(grad_BCHW, (2, 2, 2, 2)), None), bias


class _Extended(torch.autograd.Function):
    """Returns a map with replicated border pixels, and its first and last row and column.

    One function, since the derivatives of torch's padding and slicing are as large as the map and always row-major.
    """

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor) -> tuple[Tensor, ...]:
        return F.pad(x_BCHW, (1, 1, 1, 1), mode="replicate"), *(line.clone() for line in _frame(x_BCHW))

    @staticmethod
    def backward(ctx: Any, grad_BCHW: Tensor, *grads: Tensor) -> Tensor:
        grad = grad_BCHW[:, :, 1:-1, 1:-1].clone()
        for line, padding_grad, line_grad in zip(_frame(grad), _frame(grad_BCHW), grads, strict=True):
            line.add_(padding_grad[..., 1:-1] + line_grad)
        for row in (0, -1):
            for column in (0, -1):
                grad[:, :, row, column].add_(grad_BCHW[:, :, row, column])
        return grad


class _SubtractFromFrame(torch.autograd.Function):
    """Subtracts lines (B, C, N) from the first and last row and column of a map, in place; autograd of slices would copy whole maps."""

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, top: Tensor, bottom: Tensor, left: Tensor, right: Tensor) -> Tensor:
        ctx.mark_dirty(x_BCHW)
        return _subtract_from_frame(x_BCHW, (top, bottom, left, right))

    @staticmethod
    def backward(ctx: Any, grad_BCHW: Tensor) -> tuple[Tensor, ...]:
        return grad_BCHW, *(-line for line in _frame(grad_BCHW))


def _subtract_from_frame(x_BCHW: Tensor, corrections: Sequence[Tensor]) -> Tensor:
    for line, correction in zip(_frame(x_BCHW), corrections, strict=True):
        line.sub_(correction)
    return x_BCHW


def _frame(x_BCHW: Tensor) -> list[Tensor]:
    """Returns views of the first and last row and the first and last column."""
    return [x_BCHW[:, :, 0], x_BCHW[:, :, -1], x_BCHW[:, :, :, 0], x_BCHW[:, :, :, -1]]
