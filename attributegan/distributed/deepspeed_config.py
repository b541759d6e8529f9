"""Resolves the DeepSpeed configuration of each network from the launcher's settings and DeepSpeed files, and validates it.

Rejects settings that conflict between sources, and combinations that would train incorrectly. Imports no torch.
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
OWNED = {  # blocks that would override the training configuration, and what sets them instead
    "optimizer": "the optimizer and its learning rate are set by optim.*",
    "scheduler": "the learning rate is set by optim.*",
    "amp": "the precision is set by train.precision",
    "torch_autocast": "the precision is set by train.precision",
}
UNSUPPORTED = {  # settings of zero_optimization and their "off" values: they round, or shard in ways that checkpoints can't store
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

    stage: int  # of ZeRO; 0 replicates the network with DistributedDataParallel
    deepspeed: Tree  # configuration for `deepspeed.initialize`


def resolve(config: Config, environ: Mapping[str, str], world: int) -> dict[str, NetworkSharding]:
    """Resolves the sharding of each network from ``deepspeed.*`` and the environment set by ``accelerate launch``.

    Args:
        config: the configuration.
        environ: environment variables.
        world: number of processes.

    Raises:
        ValueError: sources conflict, or an unsupported combination; names the sources and the fix.
    """
    _check_launcher(config, environ)
    launched = environ if environ.get("ACCELERATE_USE_DEEPSPEED") == "true" else {}
    return {network: _network(network, config, launched, world) for network in NETWORKS}


def _check_launcher(config: Config, environ: Mapping[str, str]) -> None:
    for variable, kind in OTHER_KINDS.items():
        if environ.get(variable) == "true":
            raise ValueError(f"distributed_type: {kind} in {ACCELERATE} is not supported; use MULTI_GPU or DEEPSPEED")
    if environ.get("ACCELERATE_DYNAMO_BACKEND", "NO").upper() != "NO" and not config.train.compile:
        raise ValueError(
            f"dynamo_backend: {environ['ACCELERATE_DYNAMO_BACKEND']} in {ACCELERATE}, but train.compile is false; "
            "remove dynamo_backend, and use train.compile=true to compile"
        )
    precision = environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", config.train.precision):
        raise ValueError(
            f"mixed_precision: {precision} in {ACCELERATE}, train.precision is {config.train.precision}; make them equal, "
            "or set mixed_precision to 'no'"
        )
    if environ.get("ACCELERATE_USE_DEEPSPEED") != "true":
        return
    _check_equal(
        "gradient_accumulation_steps",
        environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS"),
        ACCELERATE,
        "train.grad_accumulation",
        config.train.grad_accumulation,
    )
    _check_equal("gradient_clipping", environ.get("ACCELERATE_GRADIENT_CLIPPING"), ACCELERATE, "optim.grad_clip", config.optim.grad_clip)


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
                f"{file or ACCELERATE}: {offloaded[0]} requires a ZeRO stage above 0 for the {network}; remove it, or use stage 2"
            )
        return NetworkSharding(0, {})
    _check_supported(network, stage, config, file)
    return NetworkSharding(stage, tree)


def _launcher_stage(launched: Mapping[str, str]) -> int | None:
    """Returns the stage set in accelerate's configuration or its DeepSpeed file; None without DeepSpeed."""
    if not launched:
        return None
    file = launched.get(CONFIG_FILE, "")
    in_file = _stage_in(_read(file), file) if file else None
    in_launcher = _valid_stage(launched.get("ACCELERATE_DEEPSPEED_ZERO_STAGE"), f"zero_stage of {ACCELERATE}")
    if None not in (in_file, in_launcher) and in_file != in_launcher:
        raise ValueError(f"{file}: zero_optimization.stage is {in_file}, {ACCELERATE} has zero_stage {in_launcher}; make them equal")
    stage = in_launcher if in_file is None else in_file
    if stage is None and file:
        raise ValueError(f"{file}: zero_optimization.stage is missing; set it to 0, 1, 2 or 3")
    return 2 if stage is None else stage  # 2 is accelerate's default


def _stage(network: str, tree: Tree, own: str, in_launcher: int | None) -> int:
    """Returns the stage in the network's own file, else the launcher's. The discriminator's may be lower, and by default is at most 2."""
    in_file = _stage_in(tree, own) if own else None
    if in_file is None:
        if own and in_launcher is None:
            raise ValueError(f"{own}: zero_optimization.stage is missing; set it to 0, 1, 2 or 3")
        return min(in_launcher or 0, 2) if network == "discriminator" else in_launcher or 0
    is_lower = network == "discriminator" and in_launcher is not None and in_file < in_launcher
    if in_launcher not in (None, in_file) and not is_lower:
        raise ValueError(f"{own}: zero_optimization.stage is {in_file} for the {network}, {ACCELERATE} has {in_launcher}; make them equal")
    return in_file


def _stage_in(tree: Tree, file: str) -> int | None:
    return _valid_stage(tree.get("zero_optimization", {}).get("stage"), f"{file}: zero_optimization.stage")


def _valid_stage(value: Any, source: str) -> int | None:
    stage = _number(value)
    if stage not in (None, 0, 1, 2, 3):
        raise ValueError(f"{source}: {value} is not a ZeRO stage; use 0, 1, 2 or 3")
    return None if stage is None else int(stage)


def _add_offload(zero: Tree, file: str, launched: Mapping[str, str]) -> None:
    """Adds the launcher's offloading to ``zero`` and removes blocks that offload nothing.

    "none" in the launcher's environment counts as not set, since accelerate writes it by default.
    """
    for part in OFFLOAD:
        block = zero.pop(part, None)
        in_file = None if block is None else str(block.get("device", "none"))
        in_launcher = launched.get(f"ACCELERATE_DEEPSPEED_{part.upper()}_DEVICE", "none")
        if in_launcher != "none" and in_file not in (None, in_launcher):
            raise ValueError(f"{file}: zero_optimization.{part}.device is {in_file}, {ACCELERATE} has {in_launcher}; make them equal")
        device = in_file or in_launcher
        if device not in ("none", "cpu"):
            raise ValueError(f"{file or ACCELERATE}: {part} to {device} is not supported by checkpoints; use cpu, or none")
        if device == "cpu" and (part == "offload_optimizer" or zero["stage"] == 3):  # only stage 3 can offload weights
            zero[part] = (block or {}) | {"device": "cpu"}


def _check_supported(network: str, stage: int, config: Config, file: str) -> None:
    if find_spec("deepspeed") is None:
        raise ValueError(f"{file or ACCELERATE}: ZeRO requires deepspeed: pip install 'attributegan[train]'")
    if config.train.precision == "fp64":
        raise ValueError(
            "train.precision: fp64 is not supported with ZeRO, which keeps master weights in fp32; use the preset accelerate/ddp"
        )
    if stage == 3 and network == "discriminator" and config.loss.r1_gamma > 0:
        raise ValueError(
            f"{file}: zero_optimization.stage is 3 for the discriminator, but the gradient penalty (loss.r1_gamma={config.loss.r1_gamma}) "
            "needs its weights in double backward, when stage 3 has released them; "
            "use deepspeed.discriminator=zero2"
        )
    if config.train.compile:
        raise ValueError(f"train.compile: not supported with ZeRO ({network}: stage {stage}); use false, or the preset accelerate/ddp")


def _complete(tree: Tree, file: str, config: Config, world: int) -> Tree:
    """Adds the values that DeepSpeed needs from the configuration to ``tree``.

    Raises:
        ValueError: ``tree`` conflicts with the configuration or has unsupported settings.
    """
    if owned := [block for block in OWNED if block in tree]:
        raise ValueError(f"{file}: {owned[0]}: remove this block; {OWNED[owned[0]]}")
    for key, off in UNSUPPORTED.items():
        if tree["zero_optimization"].get(key, off) != off:
            raise ValueError(f"{file}: zero_optimization.{key}: remove it; it breaks checkpoints or rounds weights")
    train = config.train
    for key, option, expected in (
        ("train_batch_size", "train.batch", train.batch),
        (
            "train_micro_batch_size_per_gpu",
            "train.batch / (train.grad_accumulation x processes)",
            train.batch // (train.grad_accumulation * world),
        ),
        ("gradient_accumulation_steps", "train.grad_accumulation", train.grad_accumulation),
        ("gradient_clipping", "optim.grad_clip", config.optim.grad_clip),
    ):
        _check_equal(key, tree.get(key), file, option, expected)
        tree[key] = expected
    for precision in ("fp16", "bf16"):  # removed: precision is implemented by autocast in the forward pass in every mode
        enabled = tree.pop(precision, {}).get("enabled", "auto")
        if enabled not in ("auto", train.precision == precision):
            raise ValueError(f"{file}: {precision}.enabled is {enabled}, train.precision is {train.precision}; make them equal")
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


def _check_blocks(tree: Tree, names: tuple[str, ...], source: str) -> None:
    """Checks that blocks are mappings; removes those that are null."""
    for name in names:
        if tree.get(name, {}) is None:
            del tree[name]
        elif not isinstance(tree.get(name, {}), dict):
            raise ValueError(f"{source}: {name}: expected a mapping of settings, got {tree[name]!r}")


def _check_equal(key: str, value: Any, source: str, option: str, expected: float) -> None:
    number = _number(value)
    if number is not None and number != expected:
        raise ValueError(f"{source}: {key} is {value}, {option} is {expected:g}; make them equal, or remove {key}")


def _number(value: Any) -> float | None:
    """Parses a number; returns None if the value is not set ("auto", "none") and NaN if it is not a number."""
    if value in (None, "auto", "none", ""):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")
