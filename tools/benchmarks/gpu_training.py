"""Small trainings for the parts of ``attributegan-bench gpu``: recipes, tiles, and how two of them differ."""

from __future__ import annotations

import contextlib
import copy
import gc
import itertools
import os
import shutil
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attributegan import config
from attributegan.attributes import PUBLISHED
from attributegan.config import Config
from attributegan.distributed.runtime import Runtime
from attributegan.training.trainer import Trainer
from tools.benchmarks.gpu_parts import Context, Skip

Tree = dict[str, dict[str, Any]]
PLAIN: Tree = {"augment": {"flips": False, "policy": []}}  # the published recipe
CONTROLLED: Tree = {  # every other loss and both penalties, in every step
    "model": {"generator_levels": "ordinal", "generator_modulation": True, "auxiliary_heads": True, "label_columns": "levels"},
    "loss": {
        "adversarial": "relativistic",
        "contrastive": 0,
        "reconstruction": 0,
        "auxiliary": 1,
        "control": 4,
        "diversity": 0.5,
        "residual": 1,
        "r1_gamma": 1,
        "r2_gamma": 1,
    },
    "augment": {"policy": ["translation", "offset", "cutout", "color"]},
}
SMALL: Tree = {"model": {"image_size": 64, "latent_dim": 64, "fmap_max": 64, "fmap_inverse_coef": 8, "attention_heads": 1}}
TINY: Tree = {
    "model": {
        "image_size": 32,
        "latent_dim": 16,
        "fmap_max": 16,
        "fmap_inverse_coef": 6,
        "attention_heads": 1,
        "generator_attention": [16],
        "discriminator_attention": [],
    }
}
FP32: Tree = {"train": {"precision": "fp32", "tf32": False}}
SGD: Tree = {"optim": {"name": "sgd", "generator_lr": 1e-3, "discriminator_lr": 1e-3}}
_runs = itertools.count()
_runtimes: list[Runtime] = []


@dataclass(frozen=True)
class Tiles:
    """A micro-batch, as the trainer takes it."""

    images_BCHW: Tensor  # uint8
    levels_BA: Tensor
    cursor: int


def merged(*trees: Mapping[str, Mapping[str, Any]]) -> Tree:
    """Returns merged sections of options; later ones win."""
    result: Tree = {}
    for tree in trees:
        for section, options in tree.items():
            result[section] = {**result.get(section, {}), **copy.deepcopy(dict(options))}
    return result


def small(context: Context) -> Tree:
    """The network of checks: 64 px on GPUs, 32 px and narrow for tests."""
    return TINY if context.tiny else SMALL


def batch_of(context: Context) -> int:
    return 4 if context.tiny else 8


def settings_of(context: Context, *trees: Mapping[str, Mapping[str, Any]]) -> Config:
    """The configuration of a training of its own run folder on the context's device, unless ``trees`` say otherwise."""
    run = {"run": {"dir": str(context.folder / f"run-{next(_runs)}"), "save_every": 10**9, "log_every": 10**9, "grid_every": 10**9}}
    return config.from_dict(merged({"train": {"device": context.device, "batch": batch_of(context)}}, run, *trees))


def trainer_of(settings: Config) -> Trainer:
    """A new training of the published attributes in this process, which may have had others before."""
    for runtime in _runtimes:  # accelerate keeps one device for a process
        type(runtime.accelerator.state)._reset_state(True)
    _runtimes.clear()
    torch.set_float32_matmul_precision("highest")
    runtime = Runtime(settings)
    _runtimes.append(runtime)
    return Trainer(settings, PUBLISHED, runtime)


def tiles(trainer: Trainer) -> Tiles:
    """A batch of smooth noise and drawn levels that depends on the images seen alone."""
    settings, generator = trainer.config, torch.Generator().manual_seed(trainer.images)
    size, count = settings.model.image_size, settings.train.batch
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear").mul(255).round().to(torch.uint8)
    columns = [
        torch.tensor(attribute.assessable)[torch.randint(len(attribute.assessable), (count,), generator=generator)]
        for attribute in PUBLISHED.attributes
    ]
    return Tiles(images.contiguous(memory_format=torch.channels_last), torch.stack(columns, dim=1), trainer.images)


def release(context: Context) -> None:
    """Return freed memory to the GPU: trainings are reference cycles, and other processes use the same GPU."""
    if context.device == "cuda":
        gc.collect()
        with contextlib.suppress(RuntimeError):  # after an error of the GPU every call fails; the part reports the first one
            torch.cuda.empty_cache()


def require_compiler(context: Context) -> None:
    """Check that `torch.compile` can generate code for the device; on CPUs, networks are only traced.

    Raises:
        Skip: Triton or what it needs is missing.
    """
    if context.device == "cpu":
        return
    if find_spec("triton") is None:
        raise Skip("not installed: triton")
    if not os.environ.get("CC") and not any(map(shutil.which, ("gcc", "clang"))):
        raise Skip("Triton needs a C compiler: install gcc or clang, or set CC")
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        raise Skip("Triton needs Python.h: install python3-dev")


def take(trainer: Trainer, count: int) -> dict[str, Tensor]:
    """``count`` steps; the newest of each loss term."""
    terms: dict[str, Tensor] = {}
    for _ in range(count):
        terms |= trainer.step([tiles(trainer)])
    return terms


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    """Copies on the CPU of all weights and buffers, and of the average, as ``network/name``."""
    networks = {"generator": trainer.generator.module.state_dict(), "discriminator": trainer.discriminator.module.state_dict()}
    networks["average"] = trainer.ema.average
    return {f"{network}/{name}": tensor.detach().cpu().clone() for network, named in networks.items() for name, tensor in named.items()}


def difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor], start: Mapping[str, Tensor] | None = None) -> float:
    """Norm of the difference over the norm of ``b``, or over that of ``b - start``; the largest of the networks.

    By network (what stands before the slash), not by tensor: a bias before a batch norm has no gradient but rounding.
    """
    assert a.keys() == b.keys()
    found = []
    for network in sorted({name.split("/")[0] for name in a}):
        names = [name for name in a if name.startswith(f"{network}/") and a[name].is_floating_point()]
        off = _norm([a[name].double() - b[name].double() for name in names])
        found.append(off / _norm([b[name].double() - (start[name].double() if start else 0) for name in names]))
    return max(found)


def differing(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that are not bit-identical."""
    return sorted(name for name in a.keys() | b.keys() if name not in a or name not in b or not torch.equal(a[name], b[name]))


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(tensor) for tensor in tensors])))
