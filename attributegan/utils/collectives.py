"""Collectives other than the gradient reduction, among them an all-gather that is differentiable."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def world_size() -> int:
    """Returns the number of processes in the default group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(tensor: Tensor) -> Tensor:
    """All-gathers tensors of one shape, stacked in rank order: (W, ...). Gradients flow back to the rank that a tensor came from."""
    gathered: Tensor = _Gather.apply(tensor)
    return gathered


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Returns the sum of the tensors of all processes; not differentiable."""
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        rows = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, tensor.contiguous())
        return torch.stack(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradients: Tensor) -> Tensor:
        return all_reduce_sum(gradients)[dist.get_rank()]
