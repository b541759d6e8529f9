"""One network in training: gradient synchronisation, loss scaling, optimizer, skipped steps, and its checkpoint state.

The phases use the interface `Engine`; `DataParallel` replicates the network on every process, `DeepSpeedEngine` shards it.
"""

from __future__ import annotations

import contextlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from attributegan.config import OptimConfig
from attributegan.distributed.adam import Adam
from attributegan.distributed.sharding import EvenShard, ShardedStateDict

if TYPE_CHECKING:
    from attributegan.distributed.runtime import Runtime

Read = Callable[[str], Tensor]  # reads a whole tensor of a checkpoint file by name


class LossScale:
    """Dynamic loss scaling (Micikevicius et al., "Mixed Precision Training", ICLR 2018) with the rule of torch's GradScaler.

    Halved after a non-finite step, doubled after `GROWTH_INTERVAL` consecutive finite ones. Always 1 if disabled.
    """

    INITIAL, GROWTH_INTERVAL = 2.0**16, 2000

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.value, self.good_steps = self.INITIAL if enabled else 1.0, 0

    def update(self, taken: bool) -> None:
        """Adjusts the scale after a step; ``taken`` is False if it was skipped as non-finite."""
        if not self.enabled:
            return
        self.good_steps = self.good_steps + 1 if taken else 0
        if not taken:
            self.value /= 2
        elif self.good_steps == self.GROWTH_INTERVAL:
            self.value, self.good_steps = self.value * 2, 0

    def state(self) -> dict[str, float]:
        """Returns the state for a checkpoint."""
        return {"enabled": self.enabled, "value": self.value, "good_steps": self.good_steps}

    def load(self, state: dict[str, float]) -> None:
        """Restores what `state` returned; ignored if either scale is disabled."""
        if self.enabled and state.get("enabled"):
            self.value, self.good_steps = float(state["value"]), int(state["good_steps"])


class Engine(ABC):
    """One network in training.

    ``engine(...)`` runs it to train its parameters; ``engine.unwrapped(...)`` runs it for gradients of its inputs only.
    """

    wrapped: Any  # the module that `engine(...)` runs
    sharded = False  # whether `local_state` has even shards of the parameters

    def __init__(self, runtime: Runtime, module: nn.Module) -> None:
        self.runtime = runtime
        self.module = module
        self.share = EvenShard(runtime.rank, runtime.world)
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
        self.loss_scale = LossScale(runtime.config.train.precision == "fp16")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.runtime.autocast():
            return self.wrapped(*args, **kwargs)

    def unwrapped(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the plain network in the same precision: for the phase of the other network and for gradient penalties."""
        with self.runtime.autocast():
            return self.module(*args, **kwargs)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Disables gradients of the parameters; gradients still flow through the network to its inputs."""
        for parameter in self.parameters.values():
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in self.parameters.values():
                parameter.requires_grad_(True)

    def backward(self, loss: Tensor) -> None:
        """Accumulates gradients. A non-finite loss gives NaN gradients, which the reduction propagates to every rank."""
        sentinel = torch.where(torch.isfinite(loss.detach()), 1.0, float("nan"))
        self._backward(loss * sentinel)

    def step(self) -> tuple[Tensor, bool]:
        """Updates the parameters and clears the gradients.

        Returns:
            the gradient norm before clipping, and whether the step was taken; it is skipped on all processes if the norm is not
            finite.
        """
        norm, taken = self._step()
        self.loss_scale.update(taken)
        return norm, taken

    @abstractmethod
    def micro_batch(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Returns the context for forward and backward of one micro-batch; gradients are reduced after the last one."""

    @abstractmethod
    def _backward(self, loss: Tensor) -> None: ...

    @abstractmethod
    def _step(self) -> tuple[Tensor, bool]: ...

    @abstractmethod
    def local_state(self) -> dict[str, Tensor]:
        """Returns the current parameters and buffers on this process by name, not copies; parameters are even shards if `sharded`."""

    @abstractmethod
    def model_state(self) -> ShardedStateDict:
        """Returns parameters and buffers for a checkpoint."""

    @abstractmethod
    def optimizer_state(self) -> ShardedStateDict:
        """Returns the optimizer state as ``{parameter}.{moment}``; names are equal in all modes, so that any mode can load it."""

    @abstractmethod
    def load_model_state(self, read: Read) -> None:
        """Loads what `model_state` returned."""

    @abstractmethod
    def load_optimizer_state(self, names: frozenset[str], read: Read) -> None:
        """Loads what `optimizer_state` returned; ``names`` are those in the file."""


class DataParallel(Engine):
    """Replicates the network and its optimizer on every process; DistributedDataParallel reduces gradients."""

    def __init__(self, runtime: Runtime, module: nn.Module, learning_rate: float, compile: bool) -> None:
        super().__init__(runtime, module)
        if compile:
            module.compile(options=compile_options(runtime.device))
        self.wrapped = _data_parallel(module, runtime.device) if runtime.world > 1 else module
        self.clip = runtime.config.optim.grad_clip
        self.optimizer = optimizer(runtime.config.optim, list(self.parameters.values()), learning_rate)

    def micro_batch(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        if last or not isinstance(self.wrapped, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.wrapped.no_sync()

    def _backward(self, loss: Tensor) -> None:
        (loss * self.loss_scale.value).backward()

    def _step(self) -> tuple[Tensor, bool]:
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        if self.loss_scale.enabled:
            torch._foreach_mul_(gradients, 1 / self.loss_scale.value)
        norm = torch.nn.utils.get_total_norm(gradients)
        taken = bool(torch.isfinite(norm))
        if taken and self.clip:
            torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), self.clip, norm)
        if taken:
            self.optimizer.step()
        self.optimizer.zero_grad()
        return norm, taken

    def local_state(self) -> dict[str, Tensor]:
        return self.module.state_dict()

    def model_state(self) -> ShardedStateDict:
        return ShardedStateDict.replicated(self.module.state_dict(), self.share)

    def optimizer_state(self) -> ShardedStateDict:
        state = self.optimizer.state
        tensors = {
            f"{name}.{key}": torch.as_tensor(value)
            for name, p in self.parameters.items()
            for key, value in state.get(p, {}).items()
            if value is not None
        }
        return ShardedStateDict.replicated(tensors, self.share)

    def load_model_state(self, read: Read) -> None:
        self.module.load_state_dict({name: read(name) for name in self.module.state_dict()})

    def load_optimizer_state(self, names: frozenset[str], read: Read) -> None:
        by_parameter: dict[str, dict[str, Tensor]] = {}
        for name in names:
            parameter, _, key = name.rpartition(".")
            value, like = read(name), self.parameters[parameter]
            if value.shape == like.shape:  # fused optimizers need the memory format of the parameter
                value = torch.empty_like(like, dtype=value.dtype).copy_(value)
            by_parameter.setdefault(parameter, {})[key] = value
        packed = self.optimizer.state_dict()
        packed["state"] = {index: by_parameter[name] for index, name in enumerate(self.parameters) if name in by_parameter}
        self.optimizer.load_state_dict(packed)


def optimizer(config: OptimConfig, parameters: list[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """Creates the configured optimizer."""
    if config.name == "sgd":
        return torch.optim.SGD(parameters, lr=learning_rate)
    return Adam(parameters, learning_rate, (config.betas[0], config.betas[1]))


def compile_options(device: torch.device) -> dict[str, int] | None:
    """Returns options of `torch.compile` that make inductor's cache depend on the vector width of the CPU.

    The key of the cache ignores the instruction set, so code generated for AVX-512 would be found and compiled for AVX2. It crashes, or
    returns wrong values.
    """
    if device.type != "cpu":
        return None
    from torch._inductor import cpu_vec_isa

    return {"cpp.simdlen": cpu_vec_isa.pick_vec_isa().bit_width()}


def _data_parallel(module: nn.Module, device: torch.device) -> DistributedDataParallel:
    with warnings.catch_warnings():  # broadcast_buffers is renamed in torch 2.13
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*broadcast_buffers.*")
        return DistributedDataParallel(
            module,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,  # buffers are equal on all ranks: batch norm is synchronised, and weights are equal
            gradient_as_bucket_view=True,
        )
