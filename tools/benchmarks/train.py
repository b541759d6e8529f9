"""Benchmarks of training and sampling: against the reference model, over processes, and while a checkpoint is written."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tools.benchmarks.contender import Contender, NetworkSettings
from tools.options import add_command, with_settings

if TYPE_CHECKING:
    from attributegan.training.trainer import Trainer
    from tools.benchmarks.harness import Result


@dataclass(frozen=True)
class StepSettings(NetworkSettings):
    """Options of ``sample`` and ``checkpoint``, and those shared with the other benchmarks of this module.

    Args:
        repeats: measured turns of each contender.
    """

    repeats: int = 5

    @property
    def arguments(self) -> list[str]:
        """Command line of a contender of this network."""
        return ["--config", self.config, "--batch", str(self.batch), *self.overrides]


@dataclass(frozen=True)
class TrainSettings(StepSettings):
    """Options of ``train``.

    Args:
        threads: threads of each contender; 0 for all cores.
        side: further contenders, each as (name, ``section.key=value``, ...).
    """

    threads: int = 0
    side: tuple[list[str], ...] = ()


@dataclass(frozen=True)
class ProcessesSettings(StepSettings):
    """Options of ``processes``.

    Args:
        processes: number of processes of the larger contender.
        apart: add a contender of as many independent processes.
    """

    processes: int = 2
    apart: bool = False


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser) -> None:
    """Add the benchmarks to those of ``attributegan-bench``."""
    shared = argparse.ArgumentParser(add_help=False, parents=[common])
    shared.add_argument("--config", default="published", metavar="NAME|FILE", help="training config (default: %(default)s)")
    shared.add_argument("--batch", type=int, default=4, metavar="N", help="images per step and process (default: %(default)s)")
    shared.add_argument("overrides", nargs="*", metavar="section.key=value", help="config options that replace those of the file")
    train = add_command(
        commands,
        "train",
        "measure training in images/s, in fp32 and bf16, against the published recipe without optimizations",
        [
            "attributegan-bench train --batch 8",
            "attributegan-bench train --side contiguous train.precision=fp32 train.channels_last=false",
        ],
        parents=[shared],
    )
    train.add_argument("--threads", type=int, default=0, metavar="N", help="threads of each contender; 0: all cores (default: %(default)s)")
    train.add_argument(
        "--side",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "section.key=value"),
        help="add a contender with these config options; repeatable",
    )
    train.set_defaults(measure=with_settings(_train, TrainSettings))
    sample = add_command(
        commands,
        "sample",
        "measure sampling in images/s, in fp32 and bf16, against the published recipe without optimizations",
        ["attributegan-bench sample --batch 16", "attributegan-bench sample --config small"],
        parents=[shared],
    )
    sample.set_defaults(measure=with_settings(_sample, StepSettings))
    processes = add_command(
        commands,
        "processes",
        "measure training in images/s on one process and on several, with one thread each",
        ["attributegan-bench processes --processes 4 --apart"],
        parents=[shared],
    )
    processes.add_argument("--processes", type=int, default=2, metavar="N", help="number of processes (default: %(default)s)")
    processes.add_argument("--apart", action="store_true", help="add a contender of as many independent processes")
    processes.set_defaults(measure=with_settings(_processes, ProcessesSettings))
    checkpoint = add_command(
        commands,
        "checkpoint",
        "measure seconds per training step while a checkpoint is written",
        ["attributegan-bench checkpoint model.image_size=256 --batch 2"],
        parents=[shared],
    )
    checkpoint.set_defaults(measure=with_settings(_checkpoint, StepSettings))


def _train(settings: TrainSettings) -> Result:
    """Measure training in images/s, and the share of the machine's peak compute rate."""
    arguments = settings.arguments
    precisions = _precisions()
    ours = {name: [f"train.precision={name}"] for name in precisions} | {contender[0]: contender[1:] for contender in settings.side}
    contenders = {name: Contender(["train", *arguments, *more], threads=settings.threads) for name, more in ours.items()}
    against = []
    if _is_published(settings):
        contenders["plain"] = Contender(["plain", *arguments], threads=settings.threads)
        against = [(name, "plain") for name in ours]
    rates = {
        f"reference {precision}": Contender(["convolve", *arguments, f"train.precision={precision}"], threads=settings.threads)
        for precision in precisions
    }
    result, last = _interleaved("train", contenders, settings, against, beside=rates)
    for name, contender in contenders.items():
        result.facts[f"{name}: peak memory, GB"] = round(last[name].get("gpu_bytes", last[name]["peak_bytes"]) / 1e9, 2)
        result.facts[f"{name}: GFLOP an image"] = round(contender.facts["flops"] / settings.batch / 1e9, 1)
    for name, contender in rates.items():
        rate = contender.facts["flops"] / last[name]["seconds"]
        result.facts[f"{name}, GFLOP/s"] = round(rate / 1e9)
        result.facts[f"{name}, by"] = contender.facts["best"]
        precision = name.split()[1]
        work = contenders.get("plain", contenders[precision]).facts["flops"] / settings.batch
        shares = [round(value * work / rate, 2) for value in result.contenders[precision]]
        result.facts[f"{precision}: share of that rate, counting the operations of {'the reference model' if against else 'ours'}"] = shares
    return result


def _sample(settings: StepSettings) -> Result:
    """Measure sampling in images/s."""
    arguments = settings.arguments
    precisions = _precisions()
    contenders = {precision: Contender(["sample", *arguments, f"train.precision={precision}"]) for precision in precisions}
    against = []
    if _is_published(settings):
        contenders["plain"] = Contender(["sample-plain", *arguments])
        against = [(name, "plain") for name in precisions]
    return _interleaved("sample", contenders, settings, against)[0]


def _precisions() -> list[str]:
    """Return "fp32", and "bf16" if the hardware supports it natively; emulated bf16 is ten times slower and skipped with a message."""
    import torch

    from attributegan.utils import precision

    if torch.cuda.is_available() or precision.native_bf16():
        return ["fp32", "bf16"]
    print(f"skipping bf16: this CPU has no native bf16 ({precision.cpu_capability()})", file=sys.stderr)
    return ["fp32"]


def _processes(settings: ProcessesSettings) -> Result:
    """Measure training in images/s on one process and on several."""
    if settings.processes < 2:
        raise ValueError(f"--processes: {settings.processes} must be above 1")
    arguments, many, count = settings.arguments, f"{settings.processes} processes", settings.processes
    contenders = {"1 process": Contender(["train", *arguments], threads=1), many: Contender(["train", *arguments], count, threads=1)}
    against = [(many, "1 process")]
    apart = f"{many} apart"  # upper bound: the processes share nothing but the memory bandwidth
    if settings.apart:
        contenders[apart] = Contender(["train", *arguments], count, threads=1, independent=True)
        against += [(apart, "1 process"), (many, apart)]
    result, last = _interleaved("processes", contenders, settings, against, processes={many: count, apart: count})
    gradients = last[many]["gradient_bytes"]
    result.facts["gradients of both networks, MB"] = round(gradients / 1e6, 1)
    result.facts["bytes of a step on the loopback device over those of the gradients"] = round(last[many]["loopback_bytes"] / gradients, 3)
    return result


def _interleaved(
    name: str,
    contenders: Mapping[str, Contender],
    settings: StepSettings,
    against: list[tuple[str, str]],
    processes: Mapping[str, int] | None = None,
    beside: Mapping[str, Contender] | None = None,
) -> tuple[Result, dict[str, dict[str, float]]]:
    """Run contenders in turns.

    Args:
        against: pairs (contender, baseline) to report as ratios.
        processes: number of processes of a contender; 1 by default.
        beside: contenders that run in turn with the others and are left out of the result.

    Returns:
        The result in images/s, and the last measurements of every contender.
    """
    from tools.benchmarks.harness import Result, interleaved

    running, last = {**contenders, **(beside or {})}, {}

    def turn(key: str) -> float:
        last[key] = running[key].turn()
        return settings.batch * (processes or {}).get(key, 1) / last[key]["seconds"]

    try:
        values = interleaved({key: lambda key=key: turn(key) for key in running}, settings.repeats)  # type: ignore[misc]
    finally:
        for contender in running.values():
            contender.close()
    return Result(name, "images/s", {key: values[key] for key in contenders}, against), last


def _is_published(settings: NetworkSettings) -> bool:
    """Return whether the reference model is the same network and recipe."""
    from attributegan import config

    found = config.load(settings.config, settings.overrides)
    sizes = dataclasses.replace(
        config.ModelConfig(), image_size=found.model.image_size, latent_dim=found.model.latent_dim, fmap_max=found.model.fmap_max
    )
    same = found.model == sizes and found.model.latent_dim == found.model.fmap_max and found.model.image_size >= 256
    return same and found.loss == config.LossConfig() and not found.augment.policy


def _checkpoint(settings: StepSettings) -> Result:
    """Measure seconds per training step, with and without a checkpoint being written."""
    from tools.benchmarks.harness import Result, interleaved

    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        trainer = _trainer(settings, Path(folder))
        returned, committed = [], []

        def plain() -> float:
            return _steps(trainer, 1)

        def writing() -> float:
            """Return the mean seconds of the steps made while a checkpoint is written, at least one."""
            begun = time.perf_counter()
            trainer.save()
            returned.append(time.perf_counter() - begun)
            seconds = [_steps(trainer, 1)]
            while trainer.writer.busy:
                seconds.append(_steps(trainer, 1))
            trainer.wait_for_checkpoint()
            committed.append(time.perf_counter() - begun)
            return sum(seconds) / len(seconds)

        contenders = interleaved({"step while writing": writing, "step": plain}, settings.repeats)
        size = sum(path.stat().st_size for path in max(Path(folder, "checkpoints").iterdir()).iterdir())
        facts = {
            "checkpoint, MB": round(size / 1e6, 1),
            "seconds until `save` returns": [round(value, 3) for value in returned[1:]],
            "seconds until it is committed": [round(value, 3) for value in committed[1:]],
        }
        return Result("checkpoint", "s", contenders, against=[("step while writing", "step")], facts=facts)


def _trainer(network: NetworkSettings, folder: Path) -> Trainer:
    from attributegan.attributes import PUBLISHED
    from attributegan.distributed.runtime import Runtime
    from attributegan.training.trainer import Trainer
    from tools.benchmarks.contender import load_config

    settings = load_config(network, folder)
    return Trainer(settings, PUBLISHED, Runtime(settings))


def _steps(trainer: Trainer, count: int) -> float:
    """Return the seconds of ``count`` steps on noise tiles."""
    from data_shards.loader.loader import Batch
    from tools.benchmarks.contender import tiles

    images_BCHW, levels_BA = tiles(trainer.config.train.batch, trainer.config.model.image_size)
    begun = time.perf_counter()
    for _ in range(count):
        trainer.step([Batch(images_BCHW, levels_BA, trainer.images)])
    return time.perf_counter() - begun
