"""What DeepSpeed is asked to do with each network: the launcher's fields and plain DeepSpeed files, put together and checked.

A setting that two places say differently is refused, and so is a combination that would train wrongly. Torch-free.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attributegan.config import Config

NETWORKS = ("generator", "discriminator")
ACCELERATE = "accelerate's configuration"
OWNED = ("optimizer", "scheduler")  # blocks that would replace what the configuration says
Tree = dict[str, Any]


@dataclass(frozen=True)
class Network:
    """How one network is sharded."""

    stage: int  # of ZeRO; at 0 the network is whole on every process, under DistributedDataParallel
    deepspeed: Tree  # what `deepspeed.initialize` gets


def settings(config: Config, environ: Mapping[str, str], world: int) -> dict[str, Network]:
    """How each network is to be sharded, from ``deepspeed.*`` and what ``accelerate launch`` left in the environment.

    Raises:
        ValueError: two places differ, or the combination can't be right; names the places and the fix.
    """
    _check_launcher(config, environ)
    return {network: _network(network, config, environ, world) for network in NETWORKS}


def _check_launcher(config: Config, environ: Mapping[str, str]) -> None:
    precision = environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", config.train.precision):
        raise ValueError(
            f"mixed_precision: {precision} in {ACCELERATE}, train.precision is {config.train.precision}; make them the same, "
            "or leave the first at 'no'"
        )
    if environ.get("ACCELERATE_USE_DEEPSPEED") != "true":
        return
    _agree("gradient_accumulation_steps", _number(environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS")), ACCELERATE,
           "train.accumulation", config.train.accumulation)  # fmt: skip
    clipping = _number(environ.get("ACCELERATE_GRADIENT_CLIPPING"))
    _agree("gradient_clipping", clipping, ACCELERATE, "optim.grad_clip", config.optim.grad_clip)


def _network(network: str, config: Config, environ: Mapping[str, str], world: int) -> Network:
    launched = environ if environ.get("ACCELERATE_USE_DEEPSPEED") == "true" else {}
    own = getattr(config.deepspeed, network)
    file = own or launched.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "")
    tree = _read(file) if file else {}
    stage = _stage(network, tree, file, own, launched)
    if stage == 0:
        return Network(0, {})
    _check_right(network, stage, config, file)
    zero = tree.setdefault("zero_optimization", {})
    zero["stage"] = stage
    for part, variable in (("offload_optimizer", "OFFLOAD_OPTIMIZER"), ("offload_param", "OFFLOAD_PARAM")):
        device = launched.get(f"ACCELERATE_DEEPSPEED_{variable}_DEVICE", "none")
        said = zero.get(part, {}).get("device", "none")
        if said != device and "none" not in (said, device):
            raise ValueError(f"{file}: zero_optimization.{part}.device is {said}, {ACCELERATE} says {device}; make them the same")
        if device != "none" and (part == "offload_optimizer" or stage == 3):
            zero.setdefault(part, {})["device"] = device
    return Network(stage, _complete(tree, file, config, world))


def _stage(network: str, tree: Tree, file: str, own: str, launched: Mapping[str, str]) -> int:
    """The file's stage, else the launcher's; the discriminator's may be lower than the launcher's, and is 2 where that is 3."""
    in_file = _number(tree.get("zero_optimization", {}).get("stage"))
    in_launcher = _number(launched.get("ACCELERATE_DEEPSPEED_ZERO_STAGE"))
    for said, place in ((in_file, f"{file}: zero_optimization.stage"), (in_launcher, f"zero_stage of {ACCELERATE}")):
        if said not in (None, 0, 1, 2, 3):
            raise ValueError(f"{place}: {said} is no stage of ZeRO; stages are 0, 1, 2 and 3")
    if in_file is not None:
        lower = network == "discriminator" and own and in_launcher is not None and in_file < in_launcher
        if in_launcher not in (None, in_file) and not lower:
            raise ValueError(f"{file}: zero_optimization.stage is {in_file} for the {network}, {ACCELERATE} says zero_stage {in_launcher}; "
                             "make them the same")  # fmt: skip
        return int(in_file)
    if in_launcher is None:
        return 0 if not (file or launched) else 2  # 2 is what accelerate takes
    return min(int(in_launcher), 2) if network == "discriminator" else int(in_launcher)


def _check_right(network: str, stage: int, config: Config, file: str) -> None:
    if config.train.precision == "fp64":
        raise ValueError(
            "train.precision: fp64 is not possible under ZeRO, which keeps its weights in fp32; use configs/accelerate/ddp.yaml"
        )
    if stage == 3 and network == "discriminator" and config.loss.r1_gamma > 0:
        raise ValueError(
            f"{file}: zero_optimization.stage is 3 for the discriminator, which a gradient penalty (loss.r1_gamma={config.loss.r1_gamma}) "
            "differentiates twice after its weights have been released; use deepspeed.discriminator=configs/deepspeed/zero2.json"
        )
    if config.train.compile:
        raise ValueError(f"train.compile: not possible under ZeRO ({network}: stage {stage}); use false, or configs/accelerate/ddp.yaml")


def _complete(tree: Tree, file: str, config: Config, world: int) -> Tree:
    """``tree`` without what is ours, with what DeepSpeed must know; ValueError where it says otherwise than the configuration."""
    if owned := [block for block in OWNED if block in tree]:
        raise ValueError(f"{file}: {owned[0]}: remove this block; the optimizer and its rate are those of optim.*")
    train = config.train
    for key, option, ours in (
        ("train_batch_size", "train.batch", train.batch),
        ("train_micro_batch_size_per_gpu", "train.batch / (train.accumulation x processes)", train.batch // (train.accumulation * world)),
        ("gradient_accumulation_steps", "train.accumulation", train.accumulation),
        ("gradient_clipping", "optim.grad_clip", config.optim.grad_clip),
    ):
        _agree(key, _number(tree.get(key)), file, option, ours)
        tree[key] = ours
    for precision in ("fp16", "bf16"):  # autocast in the forward pass is what a precision means in every mode
        wanted = tree.pop(precision, {}).get("enabled", "auto")
        if wanted not in ("auto", train.precision == precision) and wanted is not False:
            raise ValueError(f"{file}: {precision}.enabled is {wanted}, train.precision is {train.precision}; make them the same")
        if wanted is False and train.precision == precision:
            raise ValueError(f"{file}: {precision}.enabled is false, train.precision is {train.precision}; make them the same")
    return tree | {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False, "steps_per_print": 10**9}


def _read(file: str) -> Tree:
    try:
        tree = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: not a readable DeepSpeed configuration: {error}") from error
    bad = not isinstance(tree, dict) or any(not isinstance(tree.get(block, {}), dict) for block in ("zero_optimization", "fp16", "bf16"))
    if bad:
        raise ValueError(f"{file}: not a DeepSpeed configuration: expected a mapping with blocks such as zero_optimization")
    return tree


def _agree(key: str, said: float | None, place: str, option: str, ours: float) -> None:
    if said is not None and said != ours:
        raise ValueError(f"{place}: {key} is {said:g}, {option} is {ours:g}; make them the same, or leave {key} out")


def _number(value: Any) -> float | None:
    """None for what is not said ("auto", "none")."""
    if value in (None, "auto", "none", ""):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")
