"""What DeepSpeed is asked to do with each network: the launcher's fields and plain DeepSpeed files, put together and checked.

A setting that two places say differently is refused, and so is a combination that would train wrongly. Torch-free.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from attributegan import presets
from attributegan.config import Config

NETWORKS = ("generator", "discriminator")
ACCELERATE = "accelerate's configuration"
CONFIG_FILE = "ACCELERATE_DEEPSPEED_CONFIG_FILE"
OTHER_KINDS = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_MEGATRON_LM": "MEGATRON_LM"}
OFFLOAD = ("offload_optimizer", "offload_param")
OWNED = {  # blocks that would replace what the configuration says
    "optimizer": "the optimizer and its rate are those of optim.*",
    "scheduler": "the rate is that of optim.*",
    "amp": "the precision is train.precision",
    "torch_autocast": "the precision is train.precision",
}
FOREIGN = {  # of zero_optimization, by what leaves them off: they round, or lay shards out as checkpoints here can't read
    "mics_shard_size": -1,
    "zero_hpz_partition_size": 1,
    "zero_quantized_weights": False,
    "zero_quantized_gradients": False,
    "zenflow": None,
}
Tree = dict[str, Any]


@dataclass(frozen=True)
class NetworkSharding:
    """How one network is sharded."""

    stage: int  # of ZeRO; at 0 the network is whole on every process, under DistributedDataParallel
    deepspeed: Tree  # what `deepspeed.initialize` gets


def resolve(config: Config, environ: Mapping[str, str], world: int) -> dict[str, NetworkSharding]:
    """How each network is to be sharded, from ``deepspeed.*`` and what ``accelerate launch`` left in the environment.

    Raises:
        ValueError: two places differ, or the combination can't be right; names the places and the fix.
    """
    _check_launcher(config, environ)
    launched = environ if environ.get("ACCELERATE_USE_DEEPSPEED") == "true" else {}
    return {network: _network(network, config, launched, world) for network in NETWORKS}


def _check_launcher(config: Config, environ: Mapping[str, str]) -> None:
    for variable, kind in OTHER_KINDS.items():
        if environ.get(variable) == "true":
            raise ValueError(f"distributed_type: {kind} in {ACCELERATE} is not what this trains with; use MULTI_GPU or DEEPSPEED")
    if environ.get("ACCELERATE_DYNAMO_BACKEND", "NO").upper() != "NO" and not config.train.compile:
        raise ValueError(
            f"dynamo_backend: {environ['ACCELERATE_DYNAMO_BACKEND']} in {ACCELERATE}, train.compile is false; "
            "leave the first out, and use train.compile=true to compile"
        )
    precision = environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", config.train.precision):
        raise ValueError(
            f"mixed_precision: {precision} in {ACCELERATE}, train.precision is {config.train.precision}; make them the same, "
            "or leave the first at 'no'"
        )
    if environ.get("ACCELERATE_USE_DEEPSPEED") != "true":
        return
    _agree(
        "gradient_accumulation_steps",
        environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS"),
        ACCELERATE,
        "train.grad_accumulation",
        config.train.grad_accumulation,
    )
    _agree("gradient_clipping", environ.get("ACCELERATE_GRADIENT_CLIPPING"), ACCELERATE, "optim.grad_clip", config.optim.grad_clip)


def _network(network: str, config: Config, launched: Mapping[str, str], world: int) -> NetworkSharding:
    own = getattr(config.deepspeed, network)
    file = own or launched.get(CONFIG_FILE, "")
    tree = _read(file) if file else {}
    stage = _stage(network, tree, own, _launcher_stage(launched))
    zero = tree.setdefault("zero_optimization", {})
    zero["stage"] = stage
    _add_offload(zero, file, launched)
    tree = _complete(tree, file, config, world)
    if stage == 0:
        if offloaded := [part for part in OFFLOAD if part in zero]:
            raise ValueError(
                f"{file or ACCELERATE}: {offloaded[0]} needs a stage of ZeRO, and the {network}'s is 0; leave it out, or use 2"
            )
        return NetworkSharding(0, {})
    _check_right(network, stage, config, file)
    return NetworkSharding(stage, tree)


def _launcher_stage(launched: Mapping[str, str]) -> int | None:
    """The stage that accelerate was given, by itself or in its DeepSpeed file; None without DeepSpeed."""
    if not launched:
        return None
    file = launched.get(CONFIG_FILE, "")
    in_file = _stage_in(_read(file), file) if file else None
    in_launcher = _valid_stage(launched.get("ACCELERATE_DEEPSPEED_ZERO_STAGE"), f"zero_stage of {ACCELERATE}")
    if None not in (in_file, in_launcher) and in_file != in_launcher:
        raise ValueError(f"{file}: zero_optimization.stage is {in_file}, {ACCELERATE} says zero_stage {in_launcher}; make them the same")
    stage = in_launcher if in_file is None else in_file
    if stage is None and file:
        raise ValueError(f"{file}: zero_optimization.stage is not there; write it, 0 to 3")
    return 2 if stage is None else stage  # which is what accelerate takes


def _stage(network: str, tree: Tree, own: str, in_launcher: int | None) -> int:
    """The network's own file's stage, else the launcher's; the discriminator's may be lower than that, and is 2 where that is 3."""
    in_file = _stage_in(tree, own) if own else None
    if in_file is None:
        if own and in_launcher is None:
            raise ValueError(f"{own}: zero_optimization.stage is not there; write it, 0 to 3")
        return min(in_launcher or 0, 2) if network == "discriminator" else in_launcher or 0
    lower = network == "discriminator" and in_launcher is not None and in_file < in_launcher
    if in_launcher not in (None, in_file) and not lower:
        raise ValueError(
            f"{own}: zero_optimization.stage is {in_file} for the {network}, {ACCELERATE} says {in_launcher}; make them the same"
        )
    return in_file


def _stage_in(tree: Tree, file: str) -> int | None:
    return _valid_stage(tree.get("zero_optimization", {}).get("stage"), f"{file}: zero_optimization.stage")


def _valid_stage(value: Any, place: str) -> int | None:
    stage = _number(value)
    if stage not in (None, 0, 1, 2, 3):
        raise ValueError(f"{place}: {value} is no stage of ZeRO; stages are 0, 1, 2 and 3")
    return None if stage is None else int(stage)


def _add_offload(zero: Tree, file: str, launched: Mapping[str, str]) -> None:
    """Complete ``zero`` by the launcher's offloading; blocks that offload nothing are left out.

    Its "none" says nothing: accelerate writes that without being asked.
    """
    for part in OFFLOAD:
        block = zero.pop(part, None)
        said = None if block is None else str(block.get("device", "none"))
        asked = launched.get(f"ACCELERATE_DEEPSPEED_{part.upper()}_DEVICE", "none")
        if asked != "none" and said not in (None, asked):
            raise ValueError(f"{file}: zero_optimization.{part}.device is {said}, {ACCELERATE} says {asked}; make them the same")
        device = said or asked
        if device not in ("none", "cpu"):
            raise ValueError(f"{file or ACCELERATE}: {part} to {device}: checkpoints can't read what is there; use cpu, or none")
        if device == "cpu" and (part == "offload_optimizer" or zero["stage"] == 3):  # weights leave the device at stage 3 only
            zero[part] = (block or {}) | {"device": "cpu"}


def _check_right(network: str, stage: int, config: Config, file: str) -> None:
    if find_spec("deepspeed") is None:
        raise ValueError(f"{file or ACCELERATE}: ZeRO needs deepspeed: pip install 'attributegan[train]'")
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
        raise ValueError(f"{file}: {owned[0]}: remove this block; {OWNED[owned[0]]}")
    for key, off in FOREIGN.items():
        if tree["zero_optimization"].get(key, off) != off:
            raise ValueError(f"{file}: zero_optimization.{key}: remove it; with it, checkpoints can't be written or weights are rounded")
    train = config.train
    for key, option, ours in (
        ("train_batch_size", "train.batch", train.batch),
        (
            "train_micro_batch_size_per_gpu",
            "train.batch / (train.grad_accumulation x processes)",
            train.batch // (train.grad_accumulation * world),
        ),
        ("gradient_accumulation_steps", "train.grad_accumulation", train.grad_accumulation),
        ("gradient_clipping", "optim.grad_clip", config.optim.grad_clip),
    ):
        _agree(key, tree.get(key), file, option, ours)
        tree[key] = ours
    for precision in ("fp16", "bf16"):  # autocast in the forward pass is what a precision means in every mode
        wanted = tree.pop(precision, {}).get("enabled", "auto")
        if wanted not in ("auto", train.precision == precision):
            raise ValueError(f"{file}: {precision}.enabled is {wanted}, train.precision is {train.precision}; make them the same")
    return tree | {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False, "steps_per_print": 10**9}


def _read(file: str) -> Tree:
    path = presets.resolve("deepspeed", file)
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: not a readable DeepSpeed configuration: {error}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{file}: not a DeepSpeed configuration: expected a mapping with blocks such as zero_optimization")
    _check_blocks(tree, ("zero_optimization", "fp16", "bf16"), file)
    _check_blocks(tree.get("zero_optimization", {}), OFFLOAD, f"{file}: zero_optimization")
    return tree


def _check_blocks(tree: Tree, names: tuple[str, ...], place: str) -> None:
    """Blocks are mappings; null says nothing."""
    for name in names:
        if tree.get(name, {}) is None:
            del tree[name]
        elif not isinstance(tree.get(name, {}), dict):
            raise ValueError(f"{place}: {name}: expected a mapping of settings, got {tree[name]!r}")


def _agree(key: str, said: Any, place: str, option: str, ours: float) -> None:
    number = _number(said)
    if number is not None and number != ours:
        raise ValueError(f"{place}: {key} is {said}, {option} is {ours:g}; make them the same, or leave {key} out")


def _number(value: Any) -> float | None:
    """None for what is not said ("auto", "none")."""
    if value in (None, "auto", "none", ""):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")
