"""Batch normalisation over the global batch: every process normalises with the statistics of all.

Owns the only collective inside the networks, and the running statistics under activation checkpointing. On one process, and in
eval mode, results are bitwise those of `nn.BatchNorm2d`.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules._functions import SyncBatchNorm

from attributegan.utils.collectives import all_reduce_sum, gather, world_size


class BatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` (Ioffe & Szegedy, ICML 2015), synchronised over the default process group while training.

    Same state-dict keys and numbers as one process with the whole batch. torch's SyncBatchNorm module can't be used, because it
    does not support CPUs, where DistributedDataParallel rejects it as well; on CUDA its kernels are used.
    """

    update_statistics = True

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x_BCHW)
        mean, var, count = self.running_mean, self.running_var, self.num_batches_tracked
        assert mean is not None and var is not None and count is not None and self.momentum is not None
        if self.update_statistics:
            count.add_(1)
        else:  # a second pass over the same batch: normalise as before, but update copies
            mean, var = mean.clone(), var.clone()
        world = world_size()
        if world == 1:
            return F.batch_norm(x_BCHW, mean, var, self.weight, self.bias, True, self.momentum, self.eps)
        if x_BCHW.is_cuda:
            return SyncBatchNorm.apply(x_BCHW, self.weight, self.bias, mean, var, self.eps, self.momentum, dist.group.WORLD, world)
        return _synchronised(x_BCHW, self.weight, self.bias, mean, var, self.momentum, self.eps)


class _WithoutUpdates(contextlib.AbstractContextManager[None]):
    """Disables updates of the running statistics of a module's batch norms. Reentrant, since double backward recomputes twice."""

    def __init__(self, module: nn.Module) -> None:
        self.norms = [child for child in module.modules() if isinstance(child, BatchNorm2d)]

    def __enter__(self) -> None:
        for norm in self.norms:
            norm.update_statistics = False

    def __exit__(self, *error: object) -> None:
        for norm in self.norms:
            norm.update_statistics = True


def discarded_statistics(module: nn.Module) -> tuple[contextlib.AbstractContextManager[Any], contextlib.AbstractContextManager[Any]]:
    """Returns the contexts of the forward pass and its recomputation, for `torch.utils.checkpoint`; the latter updates no statistics."""
    return contextlib.nullcontext(), _WithoutUpdates(module)


@torch.compiler.disable
def _synchronised(*inputs: Any) -> Tensor:
    return _Synchronised.apply(*inputs)


class _Synchronised(torch.autograd.Function):
    """Normalises with the mean and variance over all processes, whose batch sizes may differ. For CPUs; differentiable once.

    Forward uses one collective: each process sends its mean, variance and count, which are combined without cancellation (Chan et al.,
    "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979, eq. 2.1). Backward uses one for the two sums over
    pixels in the derivative (Ioffe & Szegedy, ICML 2015, section 3). torch's kernels do the rest.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_BCHW: Tensor,
        weight_C: Tensor,
        bias_C: Tensor,
        running_mean_C: Tensor,
        running_var_C: Tensor,
        momentum: float,
        eps: float,
    ) -> Tensor:
        mean_C, var_C = torch.ops.aten.batch_norm_update_stats(x_BCHW, running_mean_C.clone(), running_var_C.clone(), momentum)
        count_1 = mean_C.new_full((1,), x_BCHW.numel() / x_BCHW.shape[1])
        gathered_WS = gather(torch.cat([mean_C, var_C, count_1]))
        means_WC, vars_WC, counts_W1 = gathered_WS.split([len(mean_C), len(mean_C), 1], dim=1)
        total = counts_W1.sum()
        mean_C = (counts_W1 * means_WC).sum(0) / total
        var_C = (counts_W1 * (vars_WC + (means_WC - mean_C).square())).sum(0) / total
        running_mean_C.lerp_(mean_C.to(running_mean_C.dtype), momentum)
        running_var_C.lerp_((var_C * total / (total - 1)).to(running_var_C.dtype), momentum)
        ctx.save_for_backward(x_BCHW, weight_C, mean_C, var_C, total)
        ctx.eps = eps
        return F.batch_norm(x_BCHW, mean_C, var_C, weight_C, bias_C, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BCHW: Tensor) -> tuple[Tensor | None, ...]:
        x_BCHW, weight_C, mean_C, var_C, total = ctx.saved_tensors
        grad, weight_grad_C, bias_grad_C = torch.ops.aten.native_batch_norm_backward(
            grad_BCHW, x_BCHW, weight_C, mean_C, var_C, None, None, False, ctx.eps, [True, True, True]
        )  # treats the statistics as constants
        sum_weight_grad_C, sum_bias_grad_C = all_reduce_sum(torch.stack([weight_grad_C, bias_grad_C]))
        scale_C = (var_C + ctx.eps).rsqrt()
        slope_C = weight_C * scale_C.square() * sum_weight_grad_C / total
        offset_C = weight_C * scale_C * sum_bias_grad_C / total
        correction = F.batch_norm(x_BCHW, mean_C, torch.ones_like(var_C), slope_C, offset_C, False, 0.0, 0.0)  # (x - mean) slope + offset
        return grad.sub_(correction), weight_grad_C, bias_grad_C, None, None, None, None
