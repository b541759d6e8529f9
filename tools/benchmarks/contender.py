"""A contender of a benchmark in its own processes, which warm up once and then run one turn per request.

Each contender has its own memory, threads and number of processes, while contenders still run in turns. Protocol: a line "go" on stdin, a
line of JSON on stdout; the first line has facts that are known after the warm-up.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attributegan.commands import module_process
from tools.options import settings_of

if TYPE_CHECKING:
    from attributegan.config import Config


class Contender:
    """Processes of ``python -m tools.benchmarks.contender``.

    Args:
        arguments: command line of `main`.
        processes: number of processes; several form a process group.
        threads: threads per process; 0 for torch's default.
        independent: run the processes at the same time without a process group.

    Raises:
        ValueError: a process failed to start; its own message was printed.
    """

    def __init__(self, arguments: Sequence[str], processes: int = 1, threads: int = 0, independent: bool = False) -> None:
        command, environ = module_process("tools.benchmarks.contender", *arguments)
        environ |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
        grouped = processes > 1 and not independent
        if grouped:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": str(processes)}
        self.children = [
            subprocess.Popen(
                command,
                env=environ | ({"RANK": str(k), "LOCAL_RANK": str(k)} if grouped else {}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for k in range(processes)
        ]
        self.facts = self._answers()[0]

    def turn(self) -> dict[str, Any]:
        """Run one turn on all processes and return the measurements of the slowest."""
        for child in self.children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        return max(self._answers(), key=lambda answer: answer["seconds"])

    def close(self) -> None:
        """Stop the processes."""
        for child in self.children:
            assert child.stdin is not None and child.stdout is not None
            child.stdin.close()
            child.stdout.close()
        for child in self.children:
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _answers(self) -> list[dict[str, Any]]:
        answers = []
        for child in self.children:
            assert child.stdout is not None
            line = child.stdout.readline()
            if not line:
                self.close()
                raise ValueError("a contender of the benchmark exited early; see its message above")
            answers.append(json.loads(line))
        return answers


def main() -> int:
    """Warm up, print the facts, and run one turn per line of stdin."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=sorted(_WORKS))
    parser.add_argument("--config", required=True)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    network = settings_of(NetworkSettings, options)
    output, sys.stdout = sys.stdout, sys.stderr  # keeps what libraries print out of the protocol

    def send(answer: dict[str, Any]) -> None:
        output.write(json.dumps(answer) + "\n")
        output.flush()

    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        try:
            work, facts = _WORKS[options.work](network, Path(folder))
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        send(facts)
        for _ in sys.stdin:
            begun = time.perf_counter()
            more = work() or {}
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            send({"seconds": time.perf_counter() - begun, "peak_bytes": peak, **more})
    return 0


Work = Callable[[], "dict[str, Any] | None"]


@dataclass(frozen=True)
class NetworkSettings:
    """Network and recipe of a contender.

    Args:
        config: path of a training config.
        batch: images per step and process.
        overrides: ``section.key=value`` options that replace those of the file.
    """

    config: str
    batch: int = 4
    overrides: tuple[str, ...] = ()


def load_config(network: NetworkSettings, folder: Path) -> Config:
    """Return the training configuration of a contender, with the published attributes and ``folder`` as its run folder."""
    from attributegan import config

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    batch = [f"train.batch={network.batch * processes}", f"run.dir={folder}", "run.keep_last=1"]
    settings = config.load(network.config, [*batch, *network.overrides])
    return dataclasses.replace(settings, model=dataclasses.replace(settings.model, attributes="published"))


def _train(network: NetworkSettings, folder: Path) -> tuple[Work, dict[str, Any]]:
    """Set up training steps of both networks on noise tiles."""
    import torch

    from attributegan.attributes import PUBLISHED
    from attributegan.distributed.runtime import Runtime
    from attributegan.training.trainer import Trainer
    from data_shards.loader.loader import Batch

    settings = load_config(network, folder)
    trainer = Trainer(settings, PUBLISHED, Runtime(settings))
    images_BCHW, levels_BA = tiles(network.batch, settings.model.image_size)

    def step() -> None:
        trainer.step([Batch(images_BCHW, levels_BA, trainer.images)])
        if trainer.runtime.device.type == "cuda":
            torch.cuda.synchronize()

    flops = _count_flops(step)
    gradients = sum(p.numel() * 4 for engine in (trainer.generator, trainer.discriminator) for p in engine.parameters.values())

    def work() -> dict[str, Any]:
        sent = _loopback_bytes()
        step()
        found = {"loopback_bytes": _loopback_bytes() - sent, "gradient_bytes": gradients}
        return found | ({"gpu_bytes": torch.cuda.max_memory_allocated()} if torch.cuda.is_available() else {})

    return work, {"flops": flops, "device": trainer.runtime.device.type}


def _plain(network: NetworkSettings, folder: Path) -> tuple[Work, dict[str, Any]]:
    """Set up training steps of `tools.benchmarks.reference_model`."""
    import torch

    from tools.benchmarks.reference_model import PlainTraining

    model = load_config(network, folder).model
    trainer = PlainTraining(model.image_size, model.latent_dim)
    images_BCHW, levels_BA = tiles(network.batch, model.image_size)

    def step() -> None:
        latents = torch.randn(2, network.batch, model.latent_dim)
        trainer.step(images_BCHW, levels_BA, (latents[0], latents[1]), quadrant=0)

    return step, {"flops": _count_flops(step), "device": "cpu"}


def _sample(network: NetworkSettings, folder: Path) -> tuple[Work, dict[str, Any]]:
    """Set up sampling from our generator, as in `attributegan-sample`."""
    from attributegan.attributes import PUBLISHED
    from attributegan.models import Generator
    from attributegan.sampling.generate import prepare_for_inference

    settings = load_config(network, folder)
    generator = prepare_for_inference(Generator(settings.model, PUBLISHED))
    return _sampling(generator, settings, network.batch), {}


def _sample_plain(network: NetworkSettings, folder: Path) -> tuple[Work, dict[str, Any]]:
    """Set up sampling from the reference generator."""
    from tools.benchmarks.reference_model import PlainGenerator

    settings = load_config(network, folder)
    return _sampling(PlainGenerator(settings.model.image_size, settings.model.latent_dim).eval(), settings, network.batch), {}


def _sampling(generator: Any, settings: Config, batch: int) -> Work:
    import torch

    from attributegan.sampling.generate import generate

    latents_BL, levels_BA = torch.randn(batch, settings.model.latent_dim), torch.ones(batch, 5, dtype=torch.int64)

    def work() -> None:
        generate(generator, latents_BL, levels_BA, batch, settings.train.precision)

    work()
    return work


def _convolve(network: NetworkSettings, folder: Path) -> tuple[Work, dict[str, Any]]:
    """Set up the peak compute rate: the fastest of convolutions (both memory layouts, forward and backward) and a matrix product."""
    import torch
    from torch import nn

    from attributegan.utils.allocator import keep_freed_memory

    keep_freed_memory()
    dtype = torch.bfloat16 if load_config(network, folder).train.precision == "bf16" else torch.float32

    def convolution(channels: int, size: int, layout: torch.memory_format) -> Work:
        conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(dtype=dtype, memory_format=layout)  # type: ignore[call-overload]
        x = torch.randn(network.batch, channels, size, size, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
        along = torch.randn_like(x)

        def work() -> None:
            x.grad = conv.weight.grad = None
            conv(x).backward(along)

        return work

    def product() -> Work:
        a, b = torch.randn(2, 1536, 1536, dtype=dtype)

        def work() -> None:
            torch.mm(a, b)

        return work

    layouts = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}
    works = {
        f"convolution of {channels} channels, {name}": convolution(channels, size, layout)
        for channels, size in ((64, 128), (128, 64), (128, 128))
        for name, layout in layouts.items()
    }
    works["matrix product"] = product()
    rates = {}
    for name, work in works.items():
        flops = _count_flops(work)
        begun = time.perf_counter()
        work()
        rates[name] = flops / (time.perf_counter() - begun)
    best = max(rates, key=rates.__getitem__)
    repeats = max(1, round(0.5 * rates[best] / _count_flops(works[best])))  # 0.5 s per turn

    def turn() -> None:
        for _ in range(repeats):
            works[best]()

    return turn, {"flops": repeats * _count_flops(works[best]), "best": best}


def tiles(batch: int, size: int) -> tuple[Any, Any]:
    """Return noise tiles (B, 3, size, size) uint8 and levels of the published attributes (B, 5) int64."""
    import torch

    return torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8), torch.ones(batch, 5, dtype=torch.int64)


def _count_flops(step: Callable[[], Any]) -> int:
    """Count the floating-point operations of convolutions and matrix products in a step; runs the step twice."""
    from torch.utils.flop_counter import FlopCounterMode

    step()
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def _loopback_bytes() -> int:
    """Return the bytes sent over the loopback device so far; 0 if the system doesn't report them."""
    try:
        lines = Path("/proc/net/dev").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split(":")[1].split()[8]) for line in lines if line.strip().startswith("lo:")), 0)


_WORKS = {"train": _train, "plain": _plain, "sample": _sample, "sample-plain": _sample_plain, "convolve": _convolve}


if __name__ == "__main__":
    sys.exit(main())
