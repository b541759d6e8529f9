"""Processes, devices, precision and gradient synchronisation: the only file that imports accelerate.

A `Runtime` knows who this process is among how many; an `Engine` trains one network and its optimizer. The phases and the
loop are written against these two and don't know in which mode they run.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import warnings
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from attributegan.collectives import gather
from attributegan.config import Config, OptimConfig

M = TypeVar("M", bound=nn.Module)
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=10)


class Runtime:
    """This process among the processes of the run.

    Raises:
        ValueError: the number of processes is not the one asked for, or does not divide the batch.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        on_cpu = not torch.cuda.is_available()
        handlers = []
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # with one process, Accelerate takes a backend for a process group's
            handlers = [InitProcessGroupKwargs(backend="gloo" if on_cpu else "nccl", timeout=COLLECTIVE_TIMEOUT)]
        self.accelerator = Accelerator(cpu=on_cpu, kwargs_handlers=handlers)
        self.device: torch.device = self.accelerator.device
        self.rank: int = self.accelerator.process_index
        self.world: int = self.accelerator.num_processes
        self.is_main = self.rank == 0
        self.dtype = torch.float64 if config.train.precision == "fp64" else torch.float32
        if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
            raise ValueError("distributed_type DEEPSPEED: not supported yet; launch with configs/accelerate/ddp.yaml or cpu.yaml")
        self._check_world()

    def _check_world(self) -> None:
        train = self.config.train
        if train.processes not in (0, self.world):
            raise ValueError(
                f"train.processes: {train.processes} were asked for, the launcher gave {self.world}; "
                "see `Many processes` in the README for launch commands that start them all"
            )
        if train.batch % (train.accumulation * self.world):
            raise ValueError(
                f"train.batch: {train.batch} does not divide into {self.world} processes x {train.accumulation} micro-batches "
                "(train.accumulation); choose a multiple"
            )

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The mixed-precision context of forward passes; losses are computed outside of it, in full precision."""
        dtype = AUTOCAST.get(self.config.train.precision)
        return torch.autocast(self.device.type, dtype=dtype) if dtype else contextlib.nullcontext()

    def place(self, module: M) -> M:
        """Move a network to this device, in the precision and layout that training uses."""
        return module.to(self.device, self.dtype).to(memory_format=self.memory_format)  # type: ignore[call-overload]

    def engine(self, module: nn.Module, learning_rate: float, compile: bool) -> Engine:
        return Engine(self, module, learning_rate, compile)

    def images(self, images_BCHW: Tensor) -> Tensor:
        """uint8 tiles -> this device, [-1, 1], in the layout that training uses."""
        images = images_BCHW.to(self.device, non_blocking=True).to(self.dtype) / 127.5 - 1
        return images.contiguous(memory_format=self.memory_format)

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.config.train.channels_last else torch.contiguous_format

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set on any process; every process must ask."""
        if self.world == 1:
            return flag
        flags = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        return bool(flags.item())

    def mean(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Scalars averaged over the processes; every process must ask, with the same keys."""
        stacked = torch.stack([value.detach().double() for value in values.values()])
        if self.world > 1:
            dist.all_reduce(stacked)
        return dict(zip(values, (stacked / self.world).tolist(), strict=True))

    def gather(self, tensor: Tensor) -> Tensor:
        """Rows of all processes, in rank order, with gradients through the gather."""
        if self.world == 1:
            return tensor
        return gather(tensor).flatten(0, 1)

    def from_main(self, value: Any) -> Any:
        """The main process's ``value`` (JSON-like), on every process."""
        box = [value]
        if self.world > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        if self.world > 1:
            dist.barrier()

    def end(self) -> None:
        """Leave the process group; the last call of a process."""
        if dist.is_initialized():
            dist.destroy_process_group()


class Engine:
    """One network in training: synchronised gradients, loss scaling, optimizer, skipped steps.

    ``engine(...)`` runs the wrapped network; ``engine.module`` is the plain one, for passes whose gradients are not for its own
    parameters.
    """

    def __init__(self, runtime: Runtime, module: nn.Module, learning_rate: float, compile: bool) -> None:
        self.runtime = runtime
        self.module = module
        if compile:
            self.module.compile()
        self.wrapped: nn.Module = self.module
        if runtime.world > 1:
            self.wrapped = _data_parallel(self.module, runtime.device)
        self.parameters = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        self.clip = runtime.config.optim.grad_clip
        self.optimizer = _optimizer(runtime.config.optim, list(self.parameters.values()), learning_rate, runtime.device)
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.config.train.precision == "fp16")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.runtime.autocast():
            return self.wrapped(*args, **kwargs)

    def local(self, *args: Any, **kwargs: Any) -> Any:
        """The plain network under the same precision: for the other network's phase and for penalties on inputs."""
        with self.runtime.autocast():
            return self.module(*args, **kwargs)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Gradients pass through the network, none are kept for it."""
        for parameter in self.parameters.values():
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in self.parameters.values():
                parameter.requires_grad_(True)

    def micro_batch(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Forward and backward of one micro-batch; gradients are reduced over the processes in the last one alone."""
        if last or not isinstance(self.wrapped, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.wrapped.no_sync()

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients. A loss that is not finite becomes NaN gradients, which the reduction shows to every rank."""
        sentinel = torch.where(torch.isfinite(loss.detach()), 1.0, float("nan"))
        self.scaler.scale(loss * sentinel).backward()

    def step(self) -> tuple[Tensor, bool]:
        """Update the parameters and clear the gradients.

        Returns:
            the gradient norm before clipping, and whether the step was taken: it is skipped, on every process alike, when the
            norm is not finite.
        """
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        taken = bool(torch.isfinite(norm))
        if taken and self.clip:
            torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), self.clip, norm)
        if taken:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return norm, taken

    def optimizer_state(self) -> dict[str, Tensor]:
        """``{parameter}.{moment}`` -> tensor: the same names in every mode, so that any mode can read them."""
        state = self.optimizer.state
        return {f"{name}.{key}": torch.as_tensor(value) for name, p in self.parameters.items() for key, value in state.get(p, {}).items()
                if value is not None}  # fmt: skip

    def load_optimizer_state(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `optimizer_state`."""
        by_parameter: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            parameter, _, key = name.rpartition(".")
            by_parameter.setdefault(parameter, {})[key] = tensor
        packed = self.optimizer.state_dict()
        packed["state"] = {index: by_parameter[name] for index, name in enumerate(self.parameters) if name in by_parameter}
        self.optimizer.load_state_dict(packed)


def _data_parallel(module: nn.Module, device: torch.device) -> DistributedDataParallel:
    with warnings.catch_warnings():  # the option has another name from torch 2.13 on
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*broadcast_buffers.*")
        return DistributedDataParallel(
            module,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,  # they are equal on all ranks by construction: batch norm is synchronised
            gradient_as_bucket_view=True,
        )


def _optimizer(config: OptimConfig, parameters: list[nn.Parameter], learning_rate: float, device: torch.device) -> torch.optim.Optimizer:
    if config.name == "sgd":
        return torch.optim.SGD(parameters, lr=learning_rate)
    return torch.optim.Adam(parameters, lr=learning_rate, betas=(config.betas[0], config.betas[1]), fused=device.type == "cuda")
