"""Transposed convolution with gradients by the faster kernels of this CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attributegan.utils import precision

ROW_MAJOR = precision.cpu_capability() == "AVX2"  # a constant, which torch.compile can trace


def conv_transpose2d(x_BCHW: Tensor, weight_IOHW: Tensor, stride: int, padding: int) -> Tensor:
    """`torch.nn.functional.conv_transpose2d` without bias.

    On CPUs without AVX-512, gradients in fp32 are computed row-major, in about half the time that oneDNN takes channels-last.
    """
    is_fp32 = x_BCHW.dtype == weight_IOHW.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if x_BCHW.device.type == "cpu" and is_fp32 and ROW_MAJOR:
        return _RowMajorGradients.apply(x_BCHW, weight_IOHW, stride, padding)
    return F.conv_transpose2d(x_BCHW, weight_IOHW, stride=stride, padding=padding)


class _RowMajorGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, weight_IOHW: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x_BCHW, weight_IOHW)
        ctx.stride, ctx.padding = stride, padding
        return F.conv_transpose2d(x_BCHW, weight_IOHW, stride=stride, padding=padding)

    @staticmethod
    def backward(ctx: Any, grad_BCHW: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x_BCHW, weight_IOHW = ctx.saved_tensors
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(  # differentiable, for penalties
            grad_BCHW.contiguous(),
            x_BCHW.contiguous(),
            weight_IOHW.contiguous(),
            None,
            (ctx.stride, ctx.stride),
            (ctx.padding, ctx.padding),
            (1, 1),
            True,
            (0, 0),
            1,
            (*ctx.needs_input_grad[:2], False),
        )
        return grad_x if grad_x is None else grad_x.contiguous(memory_format=torch.channels_last), grad_weight, None, None
