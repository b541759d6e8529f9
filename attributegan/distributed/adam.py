"""Adam in one pass over memory, with the same numbers for whole and for sharded weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

REGISTER = 16  # numbers that fill a vector register of every CPU, one or several times


class Adam(torch.optim.Adam):
    """Adam (Kingma & Ba, ICLR 2015) by torch's fused kernel.

    On CPUs that kernel rounds the last numbers of a tensor, which don't fill a vector register, in another way than all others, so that
    what a number becomes would depend on how weights are cut into shards. Here those go through it in a tensor that they fill with zeros.
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
            ends = [[tensor[len(tensor) - len(tensor) % REGISTER :] for tensor in tensors] for tensors in flat]
            filled = [[nn.functional.pad(end, (0, REGISTER - len(end))) for end in tensors] for tensors in ends]
            for tensors, their_steps in ((bodies, steps), (filled, [step.clone() for step in steps])):
                _fused(group, tensors, their_steps)
            for end, full in zip(ends[0] + ends[2] + ends[3], filled[0] + filled[2] + filled[3], strict=True):
                end.copy_(full[: len(end)])


def _flat(tensor: Tensor) -> Tensor:
    """The numbers of a dense tensor in the order in which they lie in memory."""
    return tensor.as_strided((tensor.numel(),), (1,))


def _fused(group: dict[str, Any], tensors: list[list[Tensor]], steps: list[Tensor]) -> None:
    """One step of weights by gradients, with both moments."""
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
