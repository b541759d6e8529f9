"""Benchmarks of training and sampling: steps against their plain form, over processes, and beside a checkpoint being written."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attributegan.training.trainer import Trainer
    from tools.benchmarks.contender import Contender
    from tools.benchmarks.harness import Result


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser) -> None:
    """Add the benchmarks to those of ``attributegan-bench``."""
    shared = argparse.ArgumentParser(add_help=False, parents=[common])
    shared.add_argument("--config", default="published", metavar="NAME|FILE", help="of the networks (%(default)s)")
    shared.add_argument("--batch", type=int, default=4, metavar="N", help="images of a step and process (%(default)s)")
    shared.add_argument("overrides", nargs="*", metavar="section.key=value", help="options that replace those of the file")
    train = commands.add_parser("train", parents=[shared], help="training steps: ours in fp32 and bf16, and the plain form")
    train.add_argument("--threads", type=int, default=0, metavar="N", help="of each side; 0 for all cores (%(default)s)")
    train.add_argument(
        "--side", nargs="+", action="append", default=[], metavar=("NAME", "section.key=value"), help="one more side, with these options"
    )
    train.set_defaults(measure=_train)
    sample = commands.add_parser("sample", parents=[shared], help="generated tiles: ours in fp32 and bf16, and the plain form")
    sample.set_defaults(measure=_sample)
    processes = commands.add_parser("processes", parents=[shared], help="training steps on one process and on several, a thread each")
    processes.add_argument("--processes", type=int, default=2, metavar="N", help="of the larger side (%(default)s)")
    processes.add_argument("--apart", action="store_true", help="one more side: as many that have nothing to do with each other")
    processes.set_defaults(measure=_processes)
    checkpoint = commands.add_parser("checkpoint", parents=[shared], help="training steps with and without a checkpoint being written")
    checkpoint.set_defaults(measure=_checkpoint)


def _train(arguments: argparse.Namespace) -> Result:
    """Images/s; with the share of the machine's best rate that the sides reach."""
    from tools.benchmarks.contender import Contender

    words = _words(arguments)
    precisions = _precisions()
    ours = {name: [f"train.precision={name}"] for name in precisions} | {contender[0]: contender[1:] for contender in arguments.side}
    contenders = {name: Contender(["train", *words, *more], threads=arguments.threads) for name, more in ours.items()}
    against = []
    if _is_published(arguments):
        contenders["plain"] = Contender(["plain", *words], threads=arguments.threads)
        against = [(name, "plain") for name in ours]
    rates = {
        f"reference {precision}": Contender(["convolve", *words, f"train.precision={precision}"], threads=arguments.threads)
        for precision in precisions
    }
    result, last = _interleaved("train", contenders, arguments, against, beside=rates)
    for name, contender in contenders.items():
        result.facts[f"{name}: peak memory, GB"] = round(last[name].get("gpu_bytes", last[name]["peak_bytes"]) / 1e9, 2)
        result.facts[f"{name}: GFLOP an image"] = round(contender.facts["flops"] / arguments.batch / 1e9, 1)
    for name, contender in rates.items():
        rate = contender.facts["flops"] / last[name]["seconds"]
        result.facts[f"{name}, GFLOP/s"] = round(rate / 1e9)
        result.facts[f"{name}, by"] = contender.facts["best"]
        precision = name.split()[1]
        work = contenders.get("plain", contenders[precision]).facts["flops"] / arguments.batch
        shares = [round(value * work / rate, 2) for value in result.contenders[precision]]
        result.facts[f"{precision}: share of that rate, counting the operations of {'the plain form' if against else 'ours'}"] = shares
    return result


def _sample(arguments: argparse.Namespace) -> Result:
    from tools.benchmarks.contender import Contender

    words = _words(arguments)
    precisions = _precisions()
    contenders = {precision: Contender(["sample", *words, f"train.precision={precision}"]) for precision in precisions}
    against = []
    if _is_published(arguments):
        contenders["plain"] = Contender(["sample-plain", *words])
        against = [(name, "plain") for name in precisions]
    return _interleaved("sample", contenders, arguments, against)[0]


def _precisions() -> list[str]:
    """ "fp32", and "bf16" where it is native; elsewhere it is emulated, at a tenth of the speed, and left out with a message."""
    import torch

    from attributegan.utils import precision

    if torch.cuda.is_available() or precision.native_bf16():
        return ["fp32", "bf16"]
    print(f"skipping bf16: this CPU has no native bf16 ({precision.cpu_capability()})", file=sys.stderr)
    return ["fp32"]


def _processes(arguments: argparse.Namespace) -> Result:
    from tools.benchmarks.contender import Contender

    if arguments.processes < 2:
        raise ValueError(f"--processes: {arguments.processes} must be above 1")
    words, many, count = _words(arguments), f"{arguments.processes} processes", arguments.processes
    contenders = {"1 process": Contender(["train", *words], threads=1), many: Contender(["train", *words], count, threads=1)}
    against = [(many, "1 process")]
    apart = f"{many} apart"  # what the machine can do at most, which has one memory
    if arguments.apart:
        contenders[apart] = Contender(["train", *words], count, threads=1, apart=True)
        against += [(apart, "1 process"), (many, apart)]
    result, last = _interleaved("processes", contenders, arguments, against, processes={many: count, apart: count})
    gradients = last[many]["gradient_bytes"]
    result.facts["gradients of both networks, MB"] = round(gradients / 1e6, 1)
    result.facts["bytes of a step on the loopback device over those of the gradients"] = round(last[many]["loopback_bytes"] / gradients, 3)
    return result


def _interleaved(
    name: str,
    contenders: Mapping[str, Contender],
    arguments: argparse.Namespace,
    against: list[tuple[str, str]],
    processes: Mapping[str, int] | None = None,
    beside: Mapping[str, Contender] | None = None,
) -> tuple[Result, dict[str, dict[str, float]]]:
    """Images/s of the sides, and their last answers; ``beside`` are sides that take their turns and are no result of their own."""
    from tools.benchmarks.harness import Result, interleaved

    everyone, last = {**contenders, **(beside or {})}, {}

    def turn(key: str) -> float:
        last[key] = everyone[key].turn()
        return arguments.batch * (processes or {}).get(key, 1) / last[key]["seconds"]

    try:
        values = interleaved({key: lambda key=key: turn(key) for key in everyone}, arguments.repeats)  # type: ignore[misc]
    finally:
        for contender in everyone.values():
            contender.close()
    return Result(name, "images/s", {key: values[key] for key in contenders}, against), last


def _words(arguments: argparse.Namespace) -> list[str]:
    return ["--config", arguments.config, "--batch", str(arguments.batch), *arguments.overrides]


def _is_published(arguments: argparse.Namespace) -> bool:
    """Whether the plain form is the same network and recipe."""
    from attributegan import config

    found = config.load(arguments.config, arguments.overrides)
    sizes = dataclasses.replace(
        config.ModelConfig(), image_size=found.model.image_size, latent_dim=found.model.latent_dim, fmap_max=found.model.fmap_max
    )
    known = found.model == sizes and found.model.latent_dim == found.model.fmap_max and found.model.image_size >= 256
    return known and found.loss == config.LossConfig() and not found.augment.policy


def _checkpoint(arguments: argparse.Namespace) -> Result:
    from tools.benchmarks.harness import Result, interleaved

    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        trainer = _training(arguments, Path(folder))
        returned, stands = [], []

        def plain() -> float:
            return _steps(trainer, 1)

        def writing() -> float:
            """Mean seconds of the steps that fit into the writing of a checkpoint, at least one."""
            begun = time.perf_counter()
            trainer.save()
            returned.append(time.perf_counter() - begun)
            seconds = [_steps(trainer, 1)]
            while trainer.writer.busy:
                seconds.append(_steps(trainer, 1))
            trainer.wait_for_checkpoint()
            stands.append(time.perf_counter() - begun)
            return sum(seconds) / len(seconds)

        contenders = interleaved({"step while writing": writing, "step": plain}, arguments.repeats)
        size = sum(path.stat().st_size for path in max(Path(folder, "checkpoints").iterdir()).iterdir())
        facts = {
            "checkpoint, MB": round(size / 1e6, 1),
            "seconds until `save` returns": [round(value, 3) for value in returned[1:]],
            "seconds until it stands": [round(value, 3) for value in stands[1:]],
        }
        return Result("checkpoint", "s", contenders, against=[("step while writing", "step")], facts=facts)


def _training(arguments: argparse.Namespace, folder: Path) -> Trainer:
    from attributegan.attributes import PUBLISHED
    from attributegan.distributed.runtime import Runtime
    from attributegan.training.trainer import Trainer
    from tools.benchmarks.contender import settings_of

    settings = settings_of(arguments, folder)
    return Trainer(settings, PUBLISHED, Runtime(settings))


def _steps(trainer: Trainer, count: int) -> float:
    """Seconds of ``count`` steps on tiles of noise."""
    from data_shards.loader.loader import Batch
    from tools.benchmarks.contender import tiles

    images_BCHW, levels_BA = tiles(trainer.config.train.batch, trainer.config.model.image_size)
    begun = time.perf_counter()
    for _ in range(count):
        trainer.step([Batch(images_BCHW, levels_BA, trainer.images)])
    return time.perf_counter() - begun
