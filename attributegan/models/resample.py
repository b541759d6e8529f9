"""Blur, and maps doubled and convolved: the same numbers as the plain steps, to rounding, for less work and memory."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attributegan.models.precision import full_precision

TRANSPOSED_FROM = 32  # pixels of a map from which doubling it by transposed convolution is the faster way (on CPUs, forward and backward)


def blur(x_BCHW: Tensor) -> Tensor:
    """Depthwise [1,2,1] x [1,2,1] / 16 with reflected borders."""
    return _Blur.apply(x_BCHW)


class _Blur(torch.autograd.Function):
    """A linear map with its transpose as derivative: nothing is saved, and a second derivative costs as little as the first.

    Autograd through pad and conv2d saves the padded map, and needs ten times as long when differentiated twice.
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
        for dim in (2, 3):  # what fell on the reflected borders goes back to where it was reflected from
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
    """Nearest x2, `blur`, Conv3x3 with a border of zeros. Its weights are the convolution's.

    Nearest x2 and blur are together bilinear x2, borders included, which is how small maps are doubled. Larger ones are convolved before
    they are blurred, as in StyleGAN2 (Karras et al., CVPR 2020): nearest x2 and a 3 x 3 convolution are one transposed convolution, with
    4/9 of the work. Since the convolution's border is zeros and not blurred, what it would see out there is taken off the frame.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3, padding=1)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if min(input.shape[2:]) < TRANSPOSED_FROM:
            return F.conv2d(_bilinear(input), weight, bias, padding=1)
        around, *lines = _Extended.apply(input)
        answer = _InnerBlur.apply(F.conv_transpose2d(around, _doubled(weight), stride=2, padding=2), bias)
        top, bottom, left, right = (F.interpolate(line, scale_factor=2, mode="linear", align_corners=False) for line in lines)
        top, bottom = (F.pad(line, (1, 1), mode="replicate") for line in (top, bottom))  # these have the corners
        off = [
            F.conv1d(top, weight[:, :, 0]),
            F.conv1d(bottom, weight[:, :, 2]),
            F.conv1d(left, weight[:, :, :, 0], padding=1),
            F.conv1d(right, weight[:, :, :, 2], padding=1),
        ]
        return _OffFrame.apply(answer, *off)


class UpsampleNearestConv2d(nn.Conv2d):
    """Nearest x2, Conv3x3. Its weights are the convolution's; of larger maps it is one transposed convolution."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3, padding=1)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if min(input.shape[2:]) < TRANSPOSED_FROM:
            return F.conv2d(F.interpolate(input, scale_factor=2), weight, bias, padding=1)
        answer = F.conv_transpose2d(input, _doubled(weight), stride=2, padding=1)
        return answer if bias is None else answer + bias.to(answer.dtype)[:, None, None]  # in bf16 on CPUs faster than inside


def _bilinear(x_BCHW: Tensor) -> Tensor:
    return F.interpolate(x_BCHW, scale_factor=2, mode="bilinear", align_corners=False)


def _doubled(weight_OI33: Tensor) -> Tensor:
    """The kernel (I, O, 4, 4) of the transposed convolution of stride 2 that nearest x2 and a convolution by ``weight_OI33`` are."""
    wide = F.pad(weight_OI33.flip(2, 3).transpose(0, 1), (1, 1, 1, 1))
    wide = wide[:, :, 1:] + wide[:, :, :-1]
    return wide[:, :, :, 1:] + wide[:, :, :, :-1]


class _InnerBlur(torch.autograd.Function):
    """`blur` without the border pixels, which have no neighbour on one side, plus a bias."""

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, bias_C: Tensor | None) -> Tensor:
        return F.conv2d(x_BCHW, _kernel(x_BCHW), None if bias_C is None else bias_C.to(x_BCHW.dtype), groups=x_BCHW.shape[1])

    @staticmethod
    def backward(ctx: Any, grad_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        bias = full_precision(grad_BCHW).sum((0, 2, 3)) if ctx.needs_input_grad[1] else None
        return _InnerBlur.apply(F.pad(grad_BCHW, (2, 2, 2, 2)), None), bias


class _Extended(torch.autograd.Function):
    """A map with its border pixels repeated around it, and its first and last row, first and last column.

    In one, since the derivatives of torch's own padding and slices are as large as the map, and row-major whatever that is.
    """

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor) -> tuple[Tensor, ...]:
        return F.pad(x_BCHW, (1, 1, 1, 1), mode="replicate"), *(line.clone() for line in _frame(x_BCHW))

    @staticmethod
    def backward(ctx: Any, grad_BCHW: Tensor, *grads: Tensor) -> Tensor:
        grad = grad_BCHW[:, :, 1:-1, 1:-1].clone()
        for line, around, more in zip(_frame(grad), _frame(grad_BCHW), grads, strict=True):
            line.add_(around[..., 1:-1] + more)
        for row in (0, -1):
            for column in (0, -1):
                grad[:, :, row, column].add_(grad_BCHW[:, :, row, column])
        return grad


class _OffFrame(torch.autograd.Function):
    """Subtract lines (B, C, N) from a map's first and last row, first and last column, in place: autograd of slices copies whole maps."""

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, top: Tensor, bottom: Tensor, left: Tensor, right: Tensor) -> Tensor:
        ctx.mark_dirty(x_BCHW)
        for line, off in zip(_frame(x_BCHW), (top, bottom, left, right), strict=True):
            line.sub_(off)
        return x_BCHW

    @staticmethod
    def backward(ctx: Any, grad_BCHW: Tensor) -> tuple[Tensor, ...]:
        return grad_BCHW, *(-line for line in _frame(grad_BCHW))


def _frame(x_BCHW: Tensor) -> list[Tensor]:
    return [x_BCHW[:, :, 0], x_BCHW[:, :, -1], x_BCHW[:, :, :, 0], x_BCHW[:, :, :, -1]]
