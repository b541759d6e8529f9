"""Benchmarks of training: what a checkpoint costs the steps beside it."""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attributegan.training import Training
    from tools.bench import Result


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser) -> None:
    """Add the benchmarks to those of ``attributegan-bench``."""
    checkpoint = commands.add_parser("checkpoint", parents=[common], help="training steps with and without a checkpoint being written")
    checkpoint.add_argument("--config", default="configs/train/published.yaml", metavar="FILE", help="of the networks (%(default)s)")
    checkpoint.add_argument("--batch", type=int, default=4, metavar="N", help="images of a step (%(default)s)")
    checkpoint.add_argument("overrides", nargs="*", metavar="section.key=value", help="options that replace those of the file")
    checkpoint.set_defaults(measure=_checkpoint)


def _checkpoint(arguments: argparse.Namespace) -> Result:
    from tools.bench import Result, in_turns

    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        training = _training(arguments, Path(folder))
        returned, stands = [], []

        def plain() -> float:
            return _steps(training, 1)

        def writing() -> float:
            """Mean seconds of the steps that fit into the writing of a checkpoint, at least one."""
            begun = time.perf_counter()
            training.save()
            returned.append(time.perf_counter() - begun)
            seconds = [_steps(training, 1)]
            while training.writer.busy:
                seconds.append(_steps(training, 1))
            training.saved()
            stands.append(time.perf_counter() - begun)
            return sum(seconds) / len(seconds)

        sides = in_turns({"step while writing": writing, "step": plain}, arguments.repeats)
        size = sum(path.stat().st_size for path in max(Path(folder, "checkpoints").iterdir()).iterdir())
        facts = {
            "checkpoint, MB": round(size / 1e6, 1),
            "seconds until `save` returns": [round(value, 3) for value in returned[1:]],
            "seconds until it stands": [round(value, 3) for value in stands[1:]],
        }
        return Result("checkpoint", "s", sides, against=[("step while writing", "step")], facts=facts)


def _training(arguments: argparse.Namespace, folder: Path) -> Training:
    from attributegan import config
    from attributegan.attributes import PUBLISHED
    from attributegan.runtime import Runtime
    from attributegan.training import Training

    batch = [f"train.batch={arguments.batch}", f"run.dir={folder}", "run.keep=1"]
    settings = config.load(arguments.config, [*batch, *arguments.overrides])
    settings = dataclasses.replace(settings, model=dataclasses.replace(settings.model, attributes="published"))
    return Training(settings, PUBLISHED, Runtime(settings))


def _steps(training: Training, count: int) -> float:
    """Seconds of ``count`` steps on tiles of noise."""
    import torch

    from data_shards.read import Batch

    model, batch = training.config.model, training.config.train.batch
    images_BCHW = torch.randint(0, 256, (batch, 3, model.image_size, model.image_size), dtype=torch.uint8)
    levels_BA = torch.ones(batch, len(training.schema.attributes), dtype=torch.int64)
    begun = time.perf_counter()
    for _ in range(count):
        training.step([Batch(images_BCHW, levels_BA, training.images)])
    return time.perf_counter() - begun
