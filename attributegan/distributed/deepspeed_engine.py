"""The engine of a network sharded by DeepSpeed ZeRO: the only file that imports deepspeed.

Stages 1 to 3 of ZeRO (Rajbhandari et al., SC 2020) shard fp32 master weights and optimizer state; stage 3 shards the weights as well.
DeepSpeed always runs in fp32: bf16 and fp16 use autocast in the forward pass and the loss scale of `Engine`, as with
DistributedDataParallel, so that all modes train the same network.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")  # avoids a warning

import deepspeed
from deepspeed.utils import logger, safe_get_local_fp32_param, safe_get_local_optimizer_state, safe_set_local_fp32_param
from torch import Tensor, nn
from torch import distributed as dist

from attributegan.distributed.deepspeed_config import NetworkSharding
from attributegan.distributed.engine import Engine, Read, optimizer
from attributegan.distributed.sharding import ShardedStateDict, TensorSlice
from attributegan.models.generator import LatentToMap
from attributegan.utils.devices import BACKENDS

if TYPE_CHECKING:
    from attributegan.distributed.runtime import Runtime

BUCKET = 500_000_000  # elements; DeepSpeed's default, reduced to the size of the network


class DeepSpeedEngine(Engine):
    """A network under `deepspeed.initialize`, with a torch optimizer."""

    sharded = True

    def __init__(self, runtime: Runtime, module: nn.Module, learning_rate: float, network: NetworkSharding) -> None:
        super().__init__(runtime, module)
        self.stage = network.stage
        self.buffers = dict(module.named_buffers())
        logger.setLevel(logging.ERROR)  # skipped steps are logged by the trainer
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.c10d_logger")  # caused by calls in DeepSpeed
        _patch_libraries()
        if runtime.config.train.channels_last:
            _use_channels_last(module)
        if not dist.is_initialized():  # one process
            os.environ.setdefault("LOCAL_RANK", "0")
            dist.init_process_group(BACKENDS[runtime.device.type], store=dist.HashStore(), rank=0, world_size=1)
        self.wrapped, self.optimizer, _, _ = deepspeed.initialize(
            model=module,
            optimizer=optimizer(runtime.config.optim, list(self.parameters.values()), learning_rate),
            config=_with_bucket_sizes(network.deepspeed, self.parameters.values()),
            dist_init_required=False,
        )

    def micro_batch(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        self.wrapped.set_gradient_accumulation_boundary(last)
        if self.loss_scale.enabled:
            self.optimizer.override_loss_scale(self.loss_scale.value)
        return contextlib.nullcontext()

    def _backward(self, loss: Tensor) -> None:
        self.wrapped.backward(loss, scale_wrt_gas=False)

    def _step(self) -> tuple[Tensor, bool]:
        self.wrapped.step()
        taken = bool(self.wrapped.was_step_applied())
        norm = self.wrapped.get_global_grad_norm() if taken else float("inf")
        return torch.as_tensor(norm, dtype=torch.float32, device=self.runtime.device), taken

    def local_state(self) -> dict[str, Tensor]:
        return {name: self._local_parameter(p) for name, p in self.module.named_parameters()} | self._saved_buffers()

    def model_state(self) -> ShardedStateDict:
        state_dict = ShardedStateDict.replicated(self._saved_buffers(), self.share)
        for name, p in self.module.named_parameters():
            first = self.share.bounds(self._numel(name))[0]
            state_dict.add(name, p.dtype, self.shapes[name], [TensorSlice(name, first, self._local_parameter(p).detach())])
        return state_dict

    def optimizer_state(self) -> ShardedStateDict:
        states = list(self._base_state.values())
        steps = {f"{name}.step": torch.as_tensor(states[0]["step"]) for name in self.parameters} if states and "step" in states[0] else {}
        state_dict = ShardedStateDict.replicated(steps, self.share)
        for name in self.parameters:
            for key in states[0].keys() - {"step"} if states else ():
                slices = [TensorSlice(f"{name}.{key}", part.start, part.values_N) for part, _ in self._fragments(name, key)]
                state_dict.add(f"{name}.{key}", torch.float32, self.shapes[name], slices)
        return state_dict

    @torch.no_grad()
    def load_model_state(self, read: Read) -> None:
        for name, buffer in self._saved_buffers().items():
            buffer.copy_(read(name))
        p: Any  # a parameter with DeepSpeed's attributes
        for name, p in self.module.named_parameters():
            whole_N = read(name).reshape(-1).to(p.device)
            if self.stage < 3:
                p.data.copy_(whole_N.view(p.shape))
                for part, master_N in self._fragments(name, None):
                    master_N.copy_(whole_N[part.start : part.start + len(master_N)])
                continue
            padded_N = self._padded(whole_N, p)
            p.ds_tensor.data.copy_(padded_N)
            safe_set_local_fp32_param(p, padded_N)
            if p.data.numel() == len(whole_N):  # below the persistence threshold: replicated as well
                p.data.copy_(whole_N.view(p.shape))

    @torch.no_grad()
    def load_optimizer_state(self, names: frozenset[str], read: Read) -> None:
        if not names:
            return
        keys = {name.rpartition(".")[2] for name in names}
        step = next(name for name in self.parameters if f"{name}.step" in names) if "step" in keys else ""
        for flat in self._flats():
            self._base_state[flat] = {key: read(f"{step}.step").clone() if key == "step" else torch.zeros_like(flat) for key in keys}
        if self.stage < 3:
            self.optimizer._lazy_init_hp_params_optimizer_state()
        for name, p in self.parameters.items():
            for key in {key for key in keys - {"step"} if f"{name}.{key}" in names}:  # parameters without state were not trained: zeros
                whole_N = read(f"{name}.{key}").reshape(-1).to(self.runtime.device)
                for part, moment_N in self._fragments(name, key):
                    values_N = whole_N if self.stage < 3 else self._padded(whole_N, p)
                    start = part.start if self.stage < 3 else 0
                    moment_N.copy_(values_N[start : start + len(moment_N)])

    @property
    def _base_state(self) -> dict[Tensor, dict[str, Any]]:
        state: dict[Tensor, dict[str, Any]] = self.optimizer.optimizer.state
        return state

    def _flats(self) -> Sequence[Tensor]:
        """Returns the flat master weights that the torch optimizer updates."""
        optimizer = self.optimizer
        flats: Sequence[Tensor] = optimizer.fp32_partitioned_groups_flat if self.stage == 3 else optimizer.single_partition_of_fp32_groups
        return flats

    def _numel(self, name: str) -> int:
        return torch.Size(self.shapes[name]).numel()

    def _local_parameter(self, p: Any) -> Tensor:
        """Returns this process's even shard of a parameter, not a copy."""
        if self.stage < 3:
            return self.share.local(p.detach())
        first, end = self.share.bounds(p.ds_numel)
        shard: Tensor = p.ds_tensor.detach()[: end - first]
        return shard

    def _saved_buffers(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.module.state_dict().items() if name in self.buffers}

    def _fragments(self, name: str, key: str | None) -> Iterator[tuple[TensorSlice, Tensor]]:
        """Yields this process's master weights (``key`` None) or optimizer state of a parameter: (slice to save, tensor to load into).

        The tensor includes the padding of stage 3.
        """
        p: Any = self.parameters.get(name)
        if p is None:
            return
        if self.stage == 3:
            local_N = safe_get_local_fp32_param(p) if key is None else safe_get_local_optimizer_state(p, key)
            first, end = self.share.bounds(self._numel(name))
            yield TensorSlice(name, first, local_N[: end - first]), local_N
        elif (fragment := p._hp_mapping) is not None:
            values_N = fragment.get_hp_fragment(key)
            yield TensorSlice(name, fragment.lp_fragment_address.start, values_N), values_N

    def _padded(self, whole_N: Tensor, p: Any) -> Tensor:
        """Returns this process's shard of a whole parameter, padded like a ZeRO-3 partition."""
        padded_N = torch.zeros(p.ds_tensor.numel(), dtype=torch.float32, device=whole_N.device)
        part_N = self.share.local(whole_N)
        padded_N[: len(part_N)] = part_N
        return padded_N


def _patch_libraries() -> None:
    """Disables two slow and unneeded features of deepspeed 0.19 and torch 2.13; no effect in versions without these names."""
    # Skips building a CPU collective that training never calls, which takes a minute. (The attribute `deepspeed.comm.torch` is torch.)
    vars(sys.modules["deepspeed.comm.torch"])["build_shm_op"] = lambda: None
    # With deterministic algorithms, torch would fill every empty tensor, such as DeepSpeed's buffers, before it is written.
    vars(torch.utils.deterministic)["fill_uninitialized_memory"] = False


def _use_channels_last(module: nn.Module) -> None:
    """Makes every convolution use channels-last weights, as without DeepSpeed, whose flat buffers are row-major."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d | LatentToMap):
            child.forward = partial(_channels_last_forward, child)  # type: ignore[method-assign]


def _channels_last_forward(conv: nn.Conv2d | LatentToMap, x_BCHW: Tensor) -> Tensor:
    weight = conv.weight.to(memory_format=torch.channels_last)  # `contiguous` would not change 1 x 1 kernels
    return conv.spread(x_BCHW, weight) if isinstance(conv, LatentToMap) else conv._conv_forward(x_BCHW, weight, conv.bias)


def _with_bucket_sizes(tree: dict[str, Any], parameters: Any) -> dict[str, Any]:
    """Sets bucket sizes that the file does not set: no larger than the network."""
    numel = sum(p.numel() for p in parameters)
    zero = dict(tree["zero_optimization"])
    for key in ("reduce_bucket_size", "allgather_bucket_size"):
        if zero.get(key, "auto") == "auto":
            zero[key] = min(BUCKET, numel + numel % 2)  # DeepSpeed needs an even number
    if zero["stage"] == 3:
        for key, value in (("stage3_prefetch_bucket_size", 0), ("stage3_param_persistence_threshold", 0)):
            if zero.get(key, "auto") == "auto":
                zero[key] = value
    return tree | {"zero_optimization": zero}
