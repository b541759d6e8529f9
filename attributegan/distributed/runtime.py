"""Processes, devices and precision: the only file that imports accelerate.

The training loop and the phases use a `Runtime` and engines (build.py), and are the same in every distributed mode.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import secrets
import socket
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor, nn
from torch import distributed as dist

from attributegan.config import Config
from attributegan.distributed import deepspeed_config, launcher
from attributegan.distributed.rendezvous import wait_for_all_ranks
from attributegan.errors import TransientError
from attributegan.run_dir.resolved_config import previous_precision
from attributegan.utils import devices, precision
from attributegan.utils.collectives import gather

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")
POLL_S = 1.0
log = logging.getLogger("attributegan")


class Runtime:
    """This process among the processes of the run.

    Args:
        config: the configuration; ``train.precision`` "auto" is resolved in the attribute ``config``.

    Raises:
        ValueError: the world size is not the configured one, or does not divide the batch.
        RendezvousError: ranks are missing or the store can't be reached.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        device, self._device_problem = devices.choose(config.train.device, os.environ)
        self.environ = dict(os.environ)  # as set by the launcher
        os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)  # accelerate supports one DeepSpeed engine, and two are needed
        handlers = []
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # with a backend, accelerate would create a process group for one process as well
            self.rendezvous = wait_for_all_ranks(config.train.timeout_s)  # keeps the store alive, which rank 0 may host
            timeout = datetime.timedelta(seconds=config.train.timeout_s)
            handlers = [InitProcessGroupKwargs(backend=devices.BACKENDS.get(device, "gloo"), timeout=timeout)]
        devices.prepare(device, config.train.tf32)
        self.accelerator = Accelerator(cpu=device == "cpu", kwargs_handlers=handlers)
        self.device: torch.device = self.accelerator.device
        if self.device.type != device:
            chosen = self.device.type
            self._device_problem = (
                f"train.device: accelerate chose {chosen}, not {device}; use train.device={chosen}, or unset ACCELERATE_*"
            )
        self.rank: int = self.accelerator.process_index
        self.world: int = self.accelerator.num_processes
        self.is_main = self.rank == 0
        self.config = config = replace(config, train=replace(config.train, precision=cast(Any, self._precision())))
        self.dtype = torch.float64 if config.train.precision == "fp64" else torch.float32
        self.sharding = self.run_and_raise_everywhere(self._check)
        self.launch_id: str = self.broadcast_object(secrets.token_hex(4))  # unique to this launch

    def _check(self) -> dict[str, deepspeed_config.NetworkSharding]:
        """Validates the launch and returns the sharding of the networks.

        Raises:
            ValueError: the launch does not match the configuration.
        """
        train = self.config.train
        if self._device_problem:
            raise ValueError(self._device_problem)
        if train.world_size not in (0, self.world):
            raise ValueError(
                f"train.world_size: {train.world_size} were asked for, the launcher gave {self.world}; "
                "docs/multinode.md has launch commands that start them all"
            )
        if not train.world_size and (problem := launcher.launch_problem(self.environ)):
            raise ValueError(f"{problem} (or set train.world_size={self.world} to train with this number of processes)")
        if train.batch % (train.grad_accumulation * self.world):
            raise ValueError(
                f"train.batch: {train.batch} does not divide into {self.world} processes x {train.grad_accumulation} micro-batches "
                "(train.grad_accumulation); choose a multiple"
            )
        sharding = deepspeed_config.resolve(self.config, self.environ, self.world)
        sharded = any(network.stage for network in sharding.values())
        if message := devices.problem(self.device.type, train.precision, self.world, sharded):
            raise ValueError(message)
        return sharding

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Returns the autocast context of forward passes; losses are computed outside of it, in full precision."""
        return precision.autocast(self.config.train.precision, self.device)

    def _precision(self) -> str:
        """Returns ``train.precision``; rank 0 resolves "auto" to the launcher's precision, that of the resumed run, or the fastest one."""
        chosen: str = self.config.train.precision
        self.precision_reason = ""
        if chosen == "auto" and self.is_main:
            launcher = self.environ.get("ACCELERATE_MIXED_PRECISION", "no")
            if launcher in precision.AUTOCAST:
                chosen, self.precision_reason = launcher, "mixed_precision of the launcher"
            elif self.config.run.resume == "auto" and (previous := previous_precision(Path(self.config.run.dir))):
                chosen, self.precision_reason = previous, f"as in {self.config.run.dir}/config.yaml, which is resumed"
            else:
                chosen, self.precision_reason = precision.choose(self.device)
        shared: str = self.broadcast_object(chosen)
        return shared

    def log_precision(self) -> None:
        """Logs how "auto" was resolved, and a warning if the precision is slow on this device."""
        if not self.is_main:
            return
        chosen = self.config.train.precision
        if self.precision_reason:
            log.info("train.precision: %s (%s)", chosen, self.precision_reason)
        if message := precision.warning(chosen, self.device, "train.precision="):
            log.warning(message)

    def place(self, module: M, network: str) -> M:
        """Moves a network to this device, in the dtype and memory format of training."""
        module = module.to(self.device, self.dtype)
        if self.sharding[network].stage:  # DeepSpeed keeps weights in flat buffers; activations are channels-last nevertheless
            return module
        moved: M = module.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        return moved

    def images(self, images_BCHW: Tensor) -> Tensor:
        """Converts uint8 tiles to [-1, 1] on this device, in the dtype and memory format of training."""
        images = devices.to_device(images_BCHW, self.device).to(self.dtype) / 127.5 - 1
        return images.contiguous(memory_format=self.memory_format)

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory format of images and activations."""
        return torch.channels_last if self.config.train.channels_last else torch.contiguous_format

    def any_rank(self, flag: bool) -> bool:
        """Returns whether ``flag`` is set on any process; every process must call it."""
        if self.world == 1:
            return flag
        flags = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        return bool(flags.item())

    def mean(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Averages scalars over the processes; every process must call it with the same keys."""
        stacked = torch.stack([value.detach().to(devices.widest_float(self.device)) for value in values.values()])
        if self.world > 1:
            dist.all_reduce(stacked)
        return dict(zip(values, (stacked / self.world).tolist(), strict=True))

    def gather(self, tensor: Tensor) -> Tensor:
        """Concatenates the rows of all processes in rank order; differentiable."""
        if self.world == 1:
            return tensor
        return gather(tensor).flatten(0, 1)

    def broadcast_object(self, value: Any) -> Any:
        """Returns rank 0's ``value`` (JSON-like) on every process."""
        return self.all_gather_object(value)[0]

    def run_on_rank0(self, work: Callable[[], T]) -> T:
        """Runs ``work`` on rank 0 and returns its result (JSON-like) on every process; every process must call it.

        Polls with short collectives, so that ``work`` may take longer than the timeout ``train.timeout_s`` of one collective.
        """
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(work if self.is_main else lambda: None)
            while not self.broadcast_object(bool(futures.wait([future], POLL_S).done)):
                pass
            result: T = self.broadcast_object(future.result())
        return result

    def all_gather_object(self, value: T) -> list[T]:
        """Returns the ``value`` (JSON-like) of every process, in rank order, on every process."""
        values = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value)
        return values

    def run_and_raise_everywhere(self, work: Callable[[], T]) -> T:
        """Runs ``work`` on every process. A ValueError on any of them is raised on all, so that none blocks in a later collective.

        Raises:
            ValueError: from ``work``; names the ranks if their errors differ.
            TransientError: likewise, if all errors are transient.
        """
        result, problem, is_transient = None, "", True
        try:
            result = work()
        except ValueError as error:
            problem, is_transient = str(error) or type(error).__name__, isinstance(error, TransientError)
        outcomes = self.all_gather_object((problem, is_transient))
        problems = [problem for problem, _ in outcomes]
        if any(problems):
            message = problems[0] if len(set(problems)) == 1 else _by_rank(problems, self.all_gather_object(socket.gethostname()))
            raise (TransientError if all(is_transient for _, is_transient in outcomes) else ValueError)(message)
        return result  # type: ignore[return-value]

    def check_same(self, **facts: str) -> None:
        """Checks that all processes agree on the given facts.

        Args:
            facts: values that must be equal on every process, by the name used in messages.

        Raises:
            ValueError: on every process; names the facts and ranks that differ.
        """
        by_rank, hosts = self.all_gather_object(facts), self.all_gather_object(socket.gethostname())
        lines = []
        for name, value in by_rank[0].items():
            others = [rank for rank, values in enumerate(by_rank) if values[name] != value]
            if others:
                lines.append(
                    f"{name}: rank 0 ({hosts[0]}) has {value}; "
                    + ", ".join(f"rank {rank} ({hosts[rank]}) has {by_rank[rank][name]}" for rank in others)
                )
        if lines:
            raise ValueError("processes differ; start all of them with the same code, configuration and data:\n  " + "\n  ".join(lines))

    def barrier(self) -> None:
        """Waits for all processes."""
        if self.world > 1:
            dist.barrier()

    def shutdown(self) -> None:
        """Destroys the process group; must be the last call."""
        if dist.is_initialized():
            dist.destroy_process_group()


def _by_rank(problems: list[str], hosts: list[str]) -> str:
    return "\n".join(
        f"rank {rank} ({host}): {problem or 'no problem'}" for rank, (problem, host) in enumerate(zip(problems, hosts, strict=True))
    )
