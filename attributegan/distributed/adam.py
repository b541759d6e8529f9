"""Fused Adam with bitwise the same results for whole and for sharded weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

REGISTER = 16  # numbers; a multiple of the vector register size of every CPU


class Adam(torch.optim.Adam):
    """Adam (Kingma & Ba, ICLR 2015) with torch's fused kernel.

    On CPUs that kernel rounds the last numbers of a tensor, which don't fill a vector register, differently from all others, so that
    results would depend on how weights are sharded. Here the last numbers are processed in a separate tensor padded with zeros.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, betas: tuple[float, float]) -> None:
        super().__init__(parameters, lr=lr, betas=betas, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            lists: list[list[Tensor]] = [[] for _ in range(6)]  # weights, gradients, two moments, (unused), steps
            self._init_group(group, *lists)
            parameters, gradients, means, squares, _, steps = lists
            if not parameters:
                continue
            gradients = [  # the kernels take all tensors of a weight in one layout
                g if g.stride() == p.stride() else torch.empty_like(p).copy_(g) for p, g in zip(parameters, gradients, strict=True)
            ]
            if not parameters[0].is_cpu:
                _fused(group, [parameters, gradients, means, squares], steps)
                continue
            flat = [[_flat(tensor) for tensor in tensors] for tensors in (parameters, gradients, means, squares)]
            bodies = [[tensor[: len(tensor) - len(tensor) % REGISTER] for tensor in tensors] for tensors in flat]
            tails = [[tensor[len(tensor) - len(tensor) % REGISTER :] for tensor in tensors] for tensors in flat]
            padded = [[nn.functional.pad(tail, (0, REGISTER - len(tail))) for tail in tensors] for tensors in tails]
            for tensors, step_counts in ((bodies, steps), (padded, [step.clone() for step in steps])):
                _fused(group, tensors, step_counts)
            for tail, full in zip(tails[0] + tails[2] + tails[3], padded[0] + padded[2] + padded[3], strict=True):
                tail.copy_(full[: len(tail)])


def _flat(tensor: Tensor) -> Tensor:
    """Returns a 1-D view of a dense tensor in memory order."""
    return tensor.as_strided((tensor.numel(),), (1,))


def _fused(group: dict[str, Any], tensors: list[list[Tensor]], steps: list[Tensor]) -> None:
    """Updates weights and both moments by one step; ``tensors`` are weights, gradients, first and second moments."""
    torch._foreach_add_(steps, 1)
    weights, gradients, means, squares = tensors
    first, second = group["betas"]
    torch._fused_adam_(
        weights,
        gradients,
        means,
        squares,
        [],
        steps,
        lr=group["lr"],
        beta1=first,
        beta2=second,
        weight_decay=0.0,
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
    )
