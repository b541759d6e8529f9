"""One side of a benchmark in processes of its own: it stands ready, and works a turn when it is told to.

So each side has its own memory, threads and number of processes, while sides still run in turns. The protocol: a line "go" in, a line of
JSON out; the first one out has the facts that are known once the side is warm.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attributegan.utils.layout import bundled_root


class Contender:
    """Processes of ``python -m tools.benchmarks.contender``.

    Args:
        words: what they are to do, as in `main`.
        processes: how many, which form a process group when they are several.
        threads: of each; 0 for what torch takes.
        apart: no process group; each works for itself, at the same time.

    Raises:
        ValueError: one could not start; its own message is above.
    """

    def __init__(self, words: Sequence[str], processes: int = 1, threads: int = 0, apart: bool = False) -> None:
        environ = dict(os.environ) | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
        grouped = processes > 1 and not apart
        if grouped:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": str(processes)}
        command = [sys.executable, "-P", "-m", "tools.benchmarks.contender", *words]
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(bundled_root()), environ.get("PYTHONPATH")]))
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
        """One turn of all processes: the answer of the slowest."""
        for child in self.children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        return max(self._answers(), key=lambda answer: answer["seconds"])

    def close(self) -> None:
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
                raise ValueError("a side of the benchmark ended early; its message is above")
            answers.append(json.loads(line))
        return answers


def main() -> int:
    """Warm up, tell the facts, and work a turn for every line that comes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=sorted(_WORKS))
    parser.add_argument("--config")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    words, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer

    def tell(answer: dict[str, Any]) -> None:
        words.write(json.dumps(answer) + "\n")
        words.flush()

    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        try:
            work, facts = _WORKS[options.work](options, Path(folder))
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        tell(facts)
        for _ in sys.stdin:
            begun = time.perf_counter()
            more = work() or {}
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            tell({"seconds": time.perf_counter() - begun, "peak_bytes": peak, **more})
    return 0


Work = Callable[[], "dict[str, Any] | None"]


def settings_of(options: argparse.Namespace, folder: Path) -> Any:
    """The configuration of a side, with the published attributes."""
    import dataclasses

    from attributegan import config

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    batch = [f"train.batch={options.batch * processes}", f"run.dir={folder}", "run.keep_last=1"]
    settings = config.load(options.config, [*batch, *options.overrides])
    return dataclasses.replace(settings, model=dataclasses.replace(settings.model, attributes="published"))


def _train(options: argparse.Namespace, folder: Path) -> tuple[Work, dict[str, Any]]:
    """A training step of both networks on tiles of noise."""
    import torch

    from attributegan.attributes import PUBLISHED
    from attributegan.distributed.runtime import Runtime
    from attributegan.training.trainer import Trainer
    from data_shards.loader.loader import Batch

    settings = settings_of(options, folder)
    trainer = Trainer(settings, PUBLISHED, Runtime(settings))
    images_BCHW, levels_BA = tiles(options.batch, settings.model.image_size)

    def step() -> None:
        trainer.step([Batch(images_BCHW, levels_BA, trainer.images)])
        if trainer.runtime.device.type == "cuda":
            torch.cuda.synchronize()

    flops = _counted(step)
    gradients = sum(p.numel() * 4 for engine in (trainer.generator, trainer.discriminator) for p in engine.parameters.values())

    def work() -> dict[str, Any]:
        sent = _loopback_bytes()
        step()
        found = {"loopback_bytes": _loopback_bytes() - sent, "gradient_bytes": gradients}
        return found | ({"gpu_bytes": torch.cuda.max_memory_allocated()} if torch.cuda.is_available() else {})

    return work, {"flops": flops, "device": trainer.runtime.device.type}


def _plain(options: argparse.Namespace, folder: Path) -> tuple[Work, dict[str, Any]]:
    """A training step of `tools.benchmarks.reference_model`."""
    import torch

    from tools.benchmarks.reference_model import PlainTraining

    model = settings_of(options, folder).model
    trainer = PlainTraining(model.image_size, model.latent_dim)
    images_BCHW, levels_BA = tiles(options.batch, model.image_size)

    def step() -> None:
        latents = torch.randn(2, options.batch, model.latent_dim)
        trainer.step(images_BCHW, levels_BA, (latents[0], latents[1]), quadrant=0)

    return step, {"flops": _counted(step), "device": "cpu"}


def _sample(options: argparse.Namespace, folder: Path) -> tuple[Work, dict[str, Any]]:
    """Tiles of our generator as `attributegan-sample` makes them."""
    from attributegan.attributes import PUBLISHED
    from attributegan.models import Generator
    from attributegan.sampling.generate import prepare_for_inference

    settings = settings_of(options, folder)
    generator = prepare_for_inference(Generator(settings.model, PUBLISHED))
    return _sampling(generator, settings, options.batch), {}


def _sample_plain(options: argparse.Namespace, folder: Path) -> tuple[Work, dict[str, Any]]:
    from tools.benchmarks.reference_model import PlainGenerator

    settings = settings_of(options, folder)
    return _sampling(PlainGenerator(settings.model.image_size, settings.model.latent_dim).eval(), settings, options.batch), {}


def _sampling(generator: Any, settings: Any, batch: int) -> Work:
    import torch

    from attributegan.sampling.generate import generate

    latents_BL, levels_BA = torch.randn(batch, settings.model.latent_dim), torch.ones(batch, 5, dtype=torch.int64)

    def work() -> None:
        generate(generator, latents_BL, levels_BA, batch, settings.train.precision)

    work()
    return work


def _convolve(options: argparse.Namespace, folder: Path) -> tuple[Work, dict[str, Any]]:
    """What the machine can compute at: the fastest of convolutions in both layouts, forward with both gradients, and a matrix product."""
    import torch
    from torch import nn

    from attributegan.utils.allocator import keep_freed_memory

    keep_freed_memory()
    dtype = torch.bfloat16 if settings_of(options, folder).train.precision == "bf16" else torch.float32

    def convolution(channels: int, size: int, layout: torch.memory_format) -> Work:
        conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(dtype=dtype, memory_format=layout)  # type: ignore[call-overload]
        x = torch.randn(options.batch, channels, size, size, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
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

    layouts = {"channels last": torch.channels_last, "rows": torch.contiguous_format}
    works = {
        f"convolution of {channels} channels, {name}": convolution(channels, size, layout)
        for channels, size in ((64, 128), (128, 64), (128, 128))
        for name, layout in layouts.items()
    }
    works["matrix product"] = product()
    rates = {}
    for name, work in works.items():
        flops = _counted(work)
        begun = time.perf_counter()
        work()
        rates[name] = flops / (time.perf_counter() - begun)
    best = max(rates, key=rates.__getitem__)
    repeats = max(1, round(0.5 * rates[best] / _counted(works[best])))  # half a second a turn

    def turn() -> None:
        for _ in range(repeats):
            works[best]()

    return turn, {"flops": repeats * _counted(works[best]), "best": best}


def tiles(batch: int, size: int) -> tuple[Any, Any]:
    """Tiles of noise (B, 3, size, size) uint8, and levels of the published attributes (B, 5)."""
    import torch

    return torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8), torch.ones(batch, 5, dtype=torch.int64)


def _counted(step: Callable[[], Any]) -> int:
    """Floating-point operations of convolutions and matrix products in a step, which is made twice."""
    from torch.utils.flop_counter import FlopCounterMode

    step()
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def _loopback_bytes() -> int:
    """Bytes that this machine has sent to itself; 0 where that is not told."""
    try:
        lines = Path("/proc/net/dev").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split(":")[1].split()[8]) for line in lines if line.strip().startswith("lo:")), 0)


_WORKS = {"train": _train, "plain": _plain, "sample": _sample, "sample-plain": _sample_plain, "convolve": _convolve}


if __name__ == "__main__":
    sys.exit(main())
