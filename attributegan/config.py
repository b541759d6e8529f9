"""The configuration: a tree of frozen dataclasses that a YAML file and ``section.key=value`` overrides fill.

Owns every option, its default, its meaning and its check. Imports no torch, so that help texts, submission and refusals
take no time. What an option does is in the module that reads it.
"""

from __future__ import annotations

import dataclasses
import logging
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from attributegan import presets, strict_yaml
from attributegan.errors import require
from attributegan.strict_yaml import YAML_ERRORS

T = TypeVar("T")
log = logging.getLogger("attributegan")

# Names of earlier versions, which old checkpoints and configurations have; still read in this version.
RENAMED_OPTIONS = {
    "data.known": "data.attributes",
    "data.window": "data.shuffle_window",
    "train.accumulation": "train.grad_accumulation",
    "train.processes": "train.world_size",
    "run.keep": "run.keep_last",
}
RENAMED_VALUES = {
    "model.generator_levels": {"columns": "onehot", "places": "ordinal"},
    "loss.contrastive_over": {"tile": "label"},
    "evaluate.best": {"obeys": "control_score"},
}


def _is_power_of_two(n: int) -> bool:
    return n > 0 and n & (n - 1) == 0


@dataclass(frozen=True)
class ModelConfig:
    """Both networks. The defaults are the published network at 512 px; symbols in brackets are those of the paper's code."""

    image_size: int = 512  # pixels [S]; a power of two, 32 to 1024
    latent_dim: int = 512  # [L]
    fmap_max: int = 512  # widest feature map [F]
    fmap_inverse_coef: int = 12  # width at 2^n pixels: nf(n) = min(2^(coef - n), fmap_max)
    generator_attention: tuple[int, ...] = (32, 64)  # feature-map widths, in pixels, that get an attention block
    discriminator_attention: tuple[int, ...] = ()  # the figure has (32, 64), the published code none
    attention_heads: int = 8  # of every attention, the 32 px head's included; 64 channels each
    generator_levels: Literal["onehot", "ordinal"] = "onehot"  # a column for each level, or the place of each attribute on its scale
    generator_modulation: bool = False  # latents and levels scale and shift every stage's normalised map too, not only the first map
    conditioning: Literal["product", "projection"] = "product"  # two heads with label product (published), or one with a projection
    head_32: bool = True  # the label product's second head, which sees the image at 32 px through attention
    auxiliary_heads: bool = False  # heads of the discriminator that tell levels, and real from generated, for each attribute
    label_columns: Literal["padded", "levels"] = "padded"  # every attribute padded to the same number of columns, or only real levels
    proxy: Literal["published", "level"] = "published"  # proxies indexed by the 0/1 columns (as published), or one vector a level
    attributes: str = ""  # schema: "published", a YAML file, or "" for the schema of the shards

    def __post_init__(self) -> None:
        size = self.image_size
        require(_is_power_of_two(size) and 32 <= size <= 1024, f"model.image_size: {size} is not a power of two from 32 to 1024")
        for name in ("latent_dim", "fmap_max"):
            value = getattr(self, name)
            require(value >= 8 and value % 4 == 0, f"model.{name}: {value} must be a multiple of 4, at least 8")
        require(self.attention_heads > 0, f"model.attention_heads: {self.attention_heads} must be above 0")
        require(
            self.feature_width(2) == self.latent_dim,
            f"model.latent_dim: {self.latent_dim} must equal the width at 4 pixels, "
            f"min(2^(fmap_inverse_coef - 2), fmap_max) = {self.feature_width(2)}",
        )
        last = size.bit_length() - 2
        require(
            self.feature_width(last) >= 4,
            f"model.fmap_inverse_coef: {self.fmap_inverse_coef} leaves a width of "
            f"{self.feature_width(last)} at {2**last} pixels; use at least {last + 2}",
        )
        for name in ("generator_attention", "discriminator_attention"):
            bad = [width for width in getattr(self, name) if not (_is_power_of_two(width) and width >= 4)]
            require(not bad, f"model.{name}: {bad} are not feature-map widths (powers of two)")

    def feature_width(self, n: int) -> int:
        """Channels nf(n) of a feature map that is 2^n pixels wide."""
        return max(0, min(int(2.0 ** (self.fmap_inverse_coef - n)), self.fmap_max))


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss terms; 0 turns a term off and its computation with it."""

    adversarial: Literal["hinge", "relativistic"] = "hinge"  # each answer for itself, or that of a real tile against a generated one's
    contrastive: float = 1.0  # 2C loss on real tiles (discriminator) and on generated ones (generator)
    contrastive_over: Literal["label", "attribute"] = "label"  # alike are tiles with all levels the same, or each attribute for itself
    temperature: float = 1.0  # of the 2C loss
    auxiliary: float = 0.0  # heads learn levels, and real from generated (discriminator); tiles pass for real ones of theirs (generator)
    control: float = 0.0  # the levels alone of generated tiles, as the auxiliary heads read them (generator)
    diversity: float = 0.0  # generated tiles of one label as far from each other as real tiles are
    residual: float = 0.0  # few changes in a generated tile when an attribute is moved; with diversity, they take turns at twice the weight
    reconstruction: float = 1.0  # self-supervised decoders of the discriminator, on real tiles
    r1_gamma: float = 0.0  # gradient penalty on real tiles: gamma/2 times the squared norm of the gradient
    r2_gamma: float = 0.0  # the same on generated tiles, beside that on real ones
    r1_every: int = 1  # steps from one penalty to the next, which is that much stronger (lazy regularisation)

    def __post_init__(self) -> None:
        for name in ("contrastive", "auxiliary", "control", "diversity", "residual", "reconstruction", "r1_gamma", "r2_gamma"):
            require(getattr(self, name) >= 0, f"loss.{name}: {getattr(self, name)} is negative")
        require(self.auxiliary > 0 or not self.control, f"loss.control: {self.control} requires loss.auxiliary > 0")
        require(self.r1_gamma > 0 or not self.r2_gamma, f"loss.r2_gamma: {self.r2_gamma} requires loss.r1_gamma > 0")
        require(self.r1_every > 0, f"loss.r1_every: {self.r1_every} must be above 0")
        require(self.temperature > 0, f"loss.temperature: {self.temperature} must be above 0")
        for name, default in (("contrastive_over", "label"), ("temperature", 1.0)):
            value = getattr(self, name)
            require(self.contrastive > 0 or value == default, f"loss.{name}: {value} requires loss.contrastive > 0")


@dataclass(frozen=True)
class AugmentConfig:
    """What happens to tiles: turns when they are read, DiffAugment before the discriminator."""

    flips: bool = True  # random mirror images and quarter turns of the tiles read
    crop: float = 1.0  # side of the square that is taken of a tile, as a share of its shorter side; below 1 at a random place
    policy: tuple[str, ...] = ("translation", "offset")  # DiffAugment: any of translation, offset, cutout, color
    probability: float = 1.0  # that an image is augmented

    def __post_init__(self) -> None:
        known = ("translation", "offset", "cutout", "color")
        bad = [name for name in self.policy if name not in known]
        require(not bad, f"augment.policy: unknown {bad}; known are {', '.join(known)}")
        require(0 < self.crop <= 1, f"augment.crop: {self.crop} is not above 0 and at most 1")
        require(0 <= self.probability <= 1, f"augment.probability: {self.probability} is not between 0 and 1")
        require(bool(self.policy) or self.probability == 1, f"augment.probability: {self.probability} requires augment.policy")


@dataclass(frozen=True)
class OptimConfig:
    name: Literal["adam", "sgd"] = "adam"  # optimizer of both networks; sgd is plain, for checks
    generator_lr: float = 2e-4  # learning rate
    discriminator_lr: float = 2e-4  # learning rate
    betas: tuple[float, ...] = (0.5, 0.9)  # of Adam
    grad_clip: float = 0.0  # largest gradient norm of a network; 0 for no clipping
    ema_half_life: float = 88_000  # images after which the EMA has forgotten half; 88,000 is the published 0.995 every 10 steps of 64
    ema_rampup: float = 0.05  # the half-life is at most this share of the images seen; 0 for no such limit

    def __post_init__(self) -> None:
        for name in ("generator_lr", "discriminator_lr"):
            require(getattr(self, name) > 0, f"optim.{name}: {getattr(self, name)} must be above 0")
        require(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            f"optim.betas: {list(self.betas)} must be two numbers in [0, 1)",
        )
        require(self.grad_clip >= 0, f"optim.grad_clip: {self.grad_clip} is negative")
        require(self.ema_half_life > 0, f"optim.ema_half_life: {self.ema_half_life} must be above 0")
        require(self.ema_rampup >= 0, f"optim.ema_rampup: {self.ema_rampup} is negative")


@dataclass(frozen=True)
class DataConfig:
    shards: str = ""  # a shard set (its index and tars): a folder, or one of https:// s3:// gs:// hf:// pipe:
    cache: str = ""  # folder for the shards of a remote set, shared by the processes of a node; "" is ~/.cache/attributegan
    cache_gb: float = 50.0  # most GB of shards in that folder; the least recently used make room
    split: str = "train"  # which split of the set to train on
    balance: float = 1.0  # 0: as the tiles come, 1: every attribute's levels equally often, as far as its bounds allow
    shuffle_window: int = 0  # 0: fully random order (8 for a remote set); above 0: whole shards in random order, this many open at a time
    assessable_only: bool = False  # leave out tiles with an attribute that is "not assessable"
    attributes: tuple[str, ...] = ()  # attributes whose levels are used, the others count as not known; () for all
    workers: int = 2  # reading processes of each rank; 0 reads in the training process

    def __post_init__(self) -> None:
        require(0 <= self.balance <= 1, f"data.balance: {self.balance} is not between 0 and 1")
        require(self.shuffle_window >= 0, f"data.shuffle_window: {self.shuffle_window} is negative")
        require(self.cache_gb > 0, f"data.cache_gb: {self.cache_gb} must be above 0")
        require(self.workers >= 0, f"data.workers: {self.workers} is negative")


@dataclass(frozen=True)
class TrainConfig:
    images: int = 3_200_000  # length of the run, in real images shown
    batch: int = 64  # global batch: over all processes and all micro-batches of a step
    grad_accumulation: int = 1  # micro-batches of a step
    seed: int = 0  # of the weights, the order of tiles, latents and augmentation
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp64"] = (
        "auto"  # auto: bf16 where native, else fp32 (CPU), fp16 (GPU); fp64: checks
    )
    world_size: int = 0  # refuse to train with any other number of processes; 0 takes what the launcher gives
    timeout_s: int = 600  # seconds after which a collective that a process does not join ends the run
    tf32: bool = True  # TensorFloat-32 in fp32 convolutions and matrix products, on GPUs that have it
    channels_last: bool = True  # memory layout of images and feature maps
    activation_checkpointing: bool = False  # recompute feature maps in the backward pass: less memory, more time
    compile: bool = False  # torch.compile both networks
    max_nonfinite: int = 20  # steps in a row with a loss or gradient that is not finite, after which the run stops

    def __post_init__(self) -> None:
        for name in ("images", "batch", "grad_accumulation", "timeout_s", "max_nonfinite"):
            require(getattr(self, name) > 0, f"train.{name}: {getattr(self, name)} must be above 0")
        require(
            self.batch % self.grad_accumulation == 0,
            f"train.batch: {self.batch} does not divide into train.grad_accumulation={self.grad_accumulation} micro-batches",
        )
        require(self.world_size >= 0, f"train.world_size: {self.world_size} is negative")


@dataclass(frozen=True)
class DeepSpeedConfig:
    """Sharding by network: plain DeepSpeed files. What is in them and in the launcher's configuration must agree."""

    generator: str = ""  # DeepSpeed JSON of the generator, such as configs/deepspeed/zero2.json; "" for what the launcher says
    discriminator: str = ""  # the same of the discriminator; "" for what the launcher says, at most stage 2


@dataclass(frozen=True)
class RunConfig:
    """Where a run writes, and when (in images)."""

    dir: str = "runs/default"  # the run folder
    resume: Literal["auto", "never"] = "auto"  # go on from the newest whole checkpoint of the folder, or refuse a folder that has one
    log_every: int = 1_000  # images between lines of progress and metrics
    grid_every: int = 10_000  # images between attribute grids
    save_every: int = 10_000  # images between checkpoints
    keep_last: int = 3  # newest checkpoints that stay; 0 keeps all
    trace: int = 0  # steps to trace with torch.profiler, from the fourth of each start on, for TensorBoard's profiler page
    scratch: str = ""  # folder on a local disk through which checkpoints are written in the background, to free their memory early

    def __post_init__(self) -> None:
        for name in ("log_every", "grid_every", "save_every"):
            require(getattr(self, name) > 0, f"run.{name}: {getattr(self, name)} must be above 0")
        for name in ("keep_last", "trace"):
            require(getattr(self, name) >= 0, f"run.{name}: {getattr(self, name)} is negative")
        require(bool(self.dir), "run.dir: is empty; name the folder of the run")


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation while training, by a process beside it; needs checkpoints, so ``run.save_every`` bounds how often."""

    every: int = 0  # images between evaluations, at least; 0 for none
    split: str = "val"  # held-out split of the shards
    best: Literal["kid", "control_score"] = "kid"  # RUN/best keeps the checkpoint of the smallest KID, or the one that obeys best
    count: int = 1_024  # tiles generated for image quality
    sweeps: int = 64  # latents of which every attribute is moved
    features: str = "efficientnet-lite0"  # what sees the tiles; see attributegan-evaluate --help

    def __post_init__(self) -> None:
        require(self.every >= 0, f"evaluate.every: {self.every} is negative")
        for name, least in (("count", 16), ("sweeps", 2)):
            require(getattr(self, name) >= least, f"evaluate.{name}: {getattr(self, name)} must be at least {least}")


@dataclass(frozen=True)
class Config:
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)
    run: RunConfig = field(default_factory=RunConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        require(
            (self.loss.auxiliary > 0) == self.model.auxiliary_heads,
            f"loss.auxiliary: {self.loss.auxiliary} with model.auxiliary_heads={str(self.model.auxiliary_heads).lower()}; "
            "heads and a weight above 0 go together",
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and scalars; `from_dict` reads it back."""
        return _plain(dataclasses.asdict(self))


def from_dict(tree: Mapping[str, Any], where: str = "configuration") -> Config:
    """Fill a `Config` from nested mappings; what is not given keeps its default.

    Raises:
        ValueError: an unknown key, or a value of the wrong type or range; names ``where``, the key and the fix.
    """
    return fill(Config, tree, where)


def fill(cls: type[T], tree: Mapping[str, Any], where: str, section: str = "") -> T:
    """Fill a dataclass of options from nested mappings, such as the ``section`` of a configuration; errors as in `from_dict`."""
    try:
        return _fill(cls, tree, prefix=f"{section}." if section else "")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, or a preset by its name, and apply ``section.key=value`` overrides (values in YAML syntax).

    Raises:
        ValueError: see `from_dict`; names the override when that is what is wrong.
    """
    path = presets.resolve("train", path)
    tree, given = with_current_names(read_yaml(path), str(path)), {}
    for override in overrides:
        dotted, equals, value = override.partition("=")
        section, dot, key = _current_option(dotted.strip(), repr(override)).partition(".")
        require(bool(equals and dot and section and key), f"{override!r}: write overrides as section.key=value")
        try:
            parsed = strict_yaml.parse(value)
        except YAML_ERRORS as error:
            raise ValueError(f"{override!r}: the value is not YAML: {error}") from None
        branch = tree.setdefault(section, {})
        require(isinstance(branch, dict), f"{path}: {section}: expected a mapping of options, got {branch!r}")
        branch[key] = parsed
        given[section] = given[f"{section}.{key}"] = override
    try:
        return _fill(Config, tree, prefix="")
    except ValueError as error:
        option = str(error).partition(":")[0]
        where = repr(given[option]) if option in given else f"{path} with overrides" if given else str(path)
        raise ValueError(f"{where}: {error}") from None


def with_current_names(tree: Mapping[str, Any], where: str = "configuration") -> dict[str, Any]:
    """Sections of options with the names and values of earlier versions replaced by those of this one; logs what it replaced.

    Raises:
        ValueError: an option is given by both its names.
    """
    return {section: _renamed(branch, f"{section}.", where) if isinstance(branch, Mapping) else branch for section, branch in tree.items()}


def _renamed(branch: Mapping[str, Any], prefix: str, where: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in branch.items():
        option = _current_option(f"{prefix}{key}", where)
        name = option.removeprefix(prefix)
        require(name == key or name not in branch, f"{prefix}{key}: is now {option}, which is given too; leave the old name out")
        values = RENAMED_VALUES.get(option, {})
        if isinstance(value, str) and value in values:
            log.warning("%s: %s=%s is now %s; the old value is read in this version only", where, option, value, values[value])
            value = values[value]
        result[name] = value
    return result


def _current_option(option: str, where: str) -> str:
    if option in RENAMED_OPTIONS:
        log.warning("%s: %s is now %s; the old name is read in this version only", where, option, RENAMED_OPTIONS[option])
    return RENAMED_OPTIONS.get(option, option)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file (no tags, no key twice); ValueError names the file when there is none."""
    tree = strict_yaml.read(path)
    tree = {} if tree is None else tree
    require(isinstance(tree, dict), f"{path}: expected sections with options, got {type(tree).__name__}")
    return tree


def dump(config: Config) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(config.to_dict(), sort_keys=False)


def _fill(cls: type[T], tree: Any, prefix: str) -> T:
    require(isinstance(tree, Mapping), f"{prefix.rstrip('.') or 'top level'}: expected a mapping of options, got {tree!r}")
    tree = _renamed(tree, prefix, "configuration")
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in tree:
        require(key in known, f"{prefix}{key}: unknown option; known here are {', '.join(known)}")
    return cls(**{key: _convert(hints[key], value, f"{prefix}{key}") for key, value in tree.items()})


def _convert(hint: Any, value: Any, name: str) -> Any:
    """``value`` as the annotation says, or a ValueError that names the option."""
    if dataclasses.is_dataclass(hint):
        return _fill(typing.cast(type, hint), {} if value is None else value, prefix=f"{name}.")
    origin = typing.get_origin(hint)
    if origin is Literal:
        choices = typing.get_args(hint)
        require(value in choices, f"{name}: {value!r} is not one of {', '.join(map(str, choices))}")
        return value
    if origin is tuple:
        require(isinstance(value, list | tuple), f"{name}: expected a list such as [a, b], got {value!r}")
        return tuple(_convert(typing.get_args(hint)[0], item, name) for item in value)
    if origin is dict:
        require(isinstance(value, dict), f"{name}: expected a mapping such as {{NAME: value}}, got {value!r}")
        return {str(key): _convert(typing.get_args(hint)[1], item, f"{name}.{key}") for key, item in value.items()}
    return _convert_scalar(hint, value, name)


def _convert_scalar(hint: type, value: Any, name: str) -> Any:
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:  # YAML reads 2e-4 as a string
            number = float(value)
        except (ValueError, OverflowError):
            number = float("nan")
        require(number == number and abs(number) != float("inf"), f"{name}: {value!r} is not a finite number")
        return number
    if hint is int and isinstance(value, str | float):
        try:  # 1e6 and 1_000_000 are how people write numbers of images
            if float(value).is_integer():
                return int(float(value))
        except (ValueError, OverflowError):
            pass
    if hint is str and value is None:
        return ""
    if hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    require(type(value) is hint, f"{name}: expected {_WORDS[hint]}, got {value!r}")
    return value


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _plain(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    return [_plain(item) for item in tree] if isinstance(tree, list | tuple) else tree
