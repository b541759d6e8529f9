"""Processes, devices and precision: the only file that imports accelerate.

A `Runtime` knows who this process is among how many. The phases and the loop are written against it and the engines (build.py), and don't
know in which mode they run.
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
ASK_S = 1.0
log = logging.getLogger("attributegan")


class Runtime:
    """This process among the processes of the run.

    Raises:
        ValueError: the number of processes is not the one asked for, or does not divide the batch.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        device, self._device_problem = devices.choose(config.train.device, os.environ)
        self.environ = dict(os.environ)  # as the launcher left it
        os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)  # Accelerate would prepare one engine, and we need two
        handlers = []
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # with one process, Accelerate takes a backend for a process group's
            self.rendezvous = wait_for_all_ranks(config.train.timeout_s)  # kept, since rank 0 may have the store of all
            timeout = datetime.timedelta(seconds=config.train.timeout_s)
            handlers = [InitProcessGroupKwargs(backend=devices.BACKENDS.get(device, "gloo"), timeout=timeout)]
        devices.prepare(device, config.train.tf32)
        self.accelerator = Accelerator(cpu=device == "cpu", kwargs_handlers=handlers)
        self.device: torch.device = self.accelerator.device
        if self.device.type != device:
            self._device_problem = f"train.device: accelerate chose {self.device.type} instead of {device}; name one of them"
        self.rank: int = self.accelerator.process_index
        self.world: int = self.accelerator.num_processes
        self.is_main = self.rank == 0
        self.config = config = replace(config, train=replace(config.train, precision=cast(Any, self._precision())))
        self.dtype = torch.float64 if config.train.precision == "fp64" else torch.float32
        self.sharding = self.run_and_raise_everywhere(self._check)
        self.launch_id: str = self.broadcast_object(secrets.token_hex(4))  # a word that this start alone has

    def _check(self) -> dict[str, deepspeed_config.NetworkSharding]:
        """How the networks are sharded; ValueError when this start can't be what was asked for."""
        train = self.config.train
        if self._device_problem:
            raise ValueError(self._device_problem)
        if train.world_size not in (0, self.world):
            raise ValueError(
                f"train.world_size: {train.world_size} were asked for, the launcher gave {self.world}; "
                "see `Many processes` in the README for launch commands that start them all"
            )
        if not train.world_size and (why := launcher.launch_problem(self.environ)):
            raise ValueError(f"{why} (or train.world_size={self.world}, if that is what you want)")
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
        """The mixed-precision context of forward passes; losses are computed outside of it, in full precision."""
        return precision.autocast(self.config.train.precision, self.device)

    def _precision(self) -> str:
        """``train.precision``, with "auto" decided by rank 0 for all: the launcher's, that of the run so far, or the fastest here."""
        chosen: str = self.config.train.precision
        self.precision_reason = ""
        if chosen == "auto" and self.is_main:
            launcher = self.environ.get("ACCELERATE_MIXED_PRECISION", "no")
            if launcher in precision.AUTOCAST:
                chosen, self.precision_reason = launcher, "mixed_precision of the launcher"
            elif self.config.run.resume == "auto" and (previous := previous_precision(Path(self.config.run.dir))):
                chosen, self.precision_reason = previous, f"as in {self.config.run.dir}/config.yaml, which this start resumes"
            else:
                chosen, self.precision_reason = precision.choose(self.device)
        return self.broadcast_object(chosen)

    def log_precision(self) -> None:
        """Log what "auto" was decided to be and why, and a warning when the precision is slow here."""
        if not self.is_main:
            return
        chosen = self.config.train.precision
        if self.precision_reason:
            log.info("train.precision: %s (%s)", chosen, self.precision_reason)
        if message := precision.warning(chosen, self.device, "train.precision="):
            log.warning(message)

    def place(self, module: M, network: str) -> M:
        """Move a network to this device, in the precision and layout that training uses."""
        module = module.to(self.device, self.dtype)
        if self.sharding[network].stage:  # DeepSpeed keeps weights in flat buffers; maps are channels-last all the same
            return module
        return module.to(memory_format=self.memory_format)  # type: ignore[call-overload]

    def images(self, images_BCHW: Tensor) -> Tensor:
        """uint8 tiles -> this device, [-1, 1], in the layout that training uses."""
        images = devices.to_device(images_BCHW, self.device).to(self.dtype) / 127.5 - 1
        return images.contiguous(memory_format=self.memory_format)

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.config.train.channels_last else torch.contiguous_format

    def any_rank(self, flag: bool) -> bool:
        """Whether ``flag`` is set on any process; every process must ask."""
        if self.world == 1:
            return flag
        flags = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        return bool(flags.item())

    def mean(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Scalars averaged over the processes; every process must ask, with the same keys."""
        stacked = torch.stack([value.detach().to(devices.widest_float(self.device)) for value in values.values()])
        if self.world > 1:
            dist.all_reduce(stacked)
        return dict(zip(values, (stacked / self.world).tolist(), strict=True))

    def gather(self, tensor: Tensor) -> Tensor:
        """Rows of all processes, in rank order, with gradients through the gather."""
        if self.world == 1:
            return tensor
        return gather(tensor).flatten(0, 1)

    def broadcast_object(self, value: Any) -> Any:
        """The main process's ``value`` (JSON-like), on every process."""
        return self.all_gather_object(value)[0]

    def run_on_rank0(self, work: Callable[[], T]) -> T:
        """What ``work()`` (JSON-like) gives on the main process, on every process; every process must call.

        The others ask again and again, so that it may take longer than ``train.timeout_s`` lets a collective wait.
        """
        with ThreadPoolExecutor(1) as pool:
            working = pool.submit(work if self.is_main else lambda: None)
            while not self.broadcast_object(bool(futures.wait([working], ASK_S).done)):
                pass
            return self.broadcast_object(working.result())

    def all_gather_object(self, value: T) -> list[T]:
        """The ``value`` (JSON-like) of every process, in rank order, on every process."""
        values = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value)
        return values

    def run_and_raise_everywhere(self, work: Callable[[], T]) -> T:
        """``work()``, on every process; a ValueError on any of them is raised on all, so that none waits for one that has gone.

        Raises:
            ValueError: from ``work``; names the processes, when they are several.
            TransientError: the same, when every one was one.
        """
        result, problem, may_pass = None, "", True
        try:
            result = work()
        except ValueError as error:
            problem, may_pass = str(error) or type(error).__name__, isinstance(error, TransientError)
        answers = self.all_gather_object((problem, may_pass))
        problems = [of_rank for of_rank, _ in answers]
        if any(problems):
            message = problems[0] if len(set(problems)) == 1 else _by_rank(problems, self.all_gather_object(socket.gethostname()))
            raise (TransientError if all(may_pass for _, may_pass in answers) else ValueError)(message)
        return result  # type: ignore[return-value]

    def check_same(self, **facts: str) -> None:
        """Refuse to train where processes differ in anything they must have in common.

        Args:
            facts: what must be the same on every process, by its name in messages.

        Raises:
            ValueError: on every process; names the fact and the processes.
        """
        everyone, hosts = self.all_gather_object(facts), self.all_gather_object(socket.gethostname())
        lines = []
        for name, value in everyone[0].items():
            others = [rank for rank, of_rank in enumerate(everyone) if of_rank[name] != value]
            if others:
                lines.append(
                    f"{name}: rank 0 ({hosts[0]}) has {value}; "
                    + ", ".join(f"rank {rank} ({hosts[rank]}) has {everyone[rank][name]}" for rank in others)
                )
        if lines:
            raise ValueError("processes differ; start all of them with the same code, configuration and data:\n  " + "\n  ".join(lines))

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def shutdown(self) -> None:
        """Leave the process group; the last call of a process."""
        if dist.is_initialized():
            dist.destroy_process_group()


def _by_rank(problems: list[str], hosts: list[str]) -> str:
    return "\n".join(
        f"rank {rank} ({host}): {problem or 'no problem'}" for rank, (problem, host) in enumerate(zip(problems, hosts, strict=True))
    )
