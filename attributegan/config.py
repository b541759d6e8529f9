"""The training configuration: frozen dataclasses filled from a YAML file and ``section.key=value`` overrides.

Owns every option, its default, its help and its checks. Imports no torch, so that help, submission and error messages
start fast. ``attributegan-train --help``, docs/reference/configuration.md and configs/train/schema.json are made from
the fields below; after a change, run ``python docs/reference.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from attributegan import options, presets, strict_yaml
from attributegan.errors import require
from attributegan.old_names import current_option, with_current_keys, with_current_names
from attributegan.options import check_limits, option
from attributegan.strict_yaml import YAML_ERRORS

T = TypeVar("T")

# Papers that several options refer to.
ADA = "Karras et al., Training GANs with Limited Data, NeurIPS 2020"
ATTRIBUTEGAN = "Ye et al., AttributeGAN, MICCAI 2021"
CONTRAGAN = "Kang & Park, ContraGAN, NeurIPS 2020, eq. 8"
ADC_GAN = "Hou et al., ADC-GAN, ICML 2022"
DIFFAUGMENT = "Zhao et al., DiffAugment, NeurIPS 2020"
STAIN = "Tellez et al., Medical Image Analysis 2019"
R3GAN = "Huang et al., R3GAN, NeurIPS 2024"


def _is_power_of_two(n: int) -> bool:
    return n > 0 and n & (n - 1) == 0


@dataclass(frozen=True)
class ModelConfig:
    """Generator and discriminator. The defaults are the published network at 512 pixels."""

    image_size: int = option(512, "Side of the tiles in pixels.", choices=(32, 64, 128, 256, 512, 1024))
    latent_dim: int = option(
        512,
        "Size of the latent vector. Must equal the number of channels at 4 pixels, min(2^(fmap_inverse_coef - 2), fmap_max).",
        minimum=8,
        multiple_of=4,
    )
    fmap_max: int = option(512, "Largest number of channels of a feature map.", minimum=8, multiple_of=4)
    fmap_inverse_coef: int = option(
        12,
        "Sets the number of channels of all feature maps. A map that is 2^n pixels wide has min(2^(fmap_inverse_coef - n), fmap_max) "
        "channels.",
    )
    generator_attention: tuple[int, ...] = option(
        (32, 64), "Widths in pixels of the generator's feature maps that get an attention block. Powers of two, at least 4."
    )
    discriminator_attention: tuple[int, ...] = option(
        (),
        "Widths in pixels of the discriminator's feature maps that get an attention block. Powers of two, at least 4. "
        "The paper's figure has [32, 64], the published code none.",
    )
    attention_heads: int = option(
        8, "Number of attention heads in each attention block, including those of the 32-pixel head. Each has 64 channels.", minimum=1
    )
    generator_levels: Literal["onehot", "ordinal"] = option(
        "onehot",
        "How the generator receives levels: a column per level (`onehot`), or one value per attribute, its position (`ordinal`).",
    )
    generator_modulation: bool = option(
        False,
        "Scale and shift the feature maps of every generator stage by latent and levels. If false, these only set the first map.",
    )
    conditioning: Literal["product", "projection"] = option(
        "product",
        "How the discriminator uses levels. `product` multiplies its outputs by the label columns, as published; `projection` adds the "
        "inner product of the image features with one embedding per level.",
        source=f"{ATTRIBUTEGAN} (product); Miyato & Koyama, projection discriminator, ICLR 2018, eq. 11 (projection)",
    )
    head_32: bool = option(
        True, "Add a second discriminator head on the image at 32 pixels, with attention. Used with `conditioning: product` only."
    )
    auxiliary_heads: bool = option(
        False,
        "Add a classifier of levels and of real versus generated tiles to the discriminator, per attribute. Requires loss.auxiliary > 0.",
        source=ADC_GAN,
    )
    label_columns: Literal["padded", "levels"] = option(
        "padded",
        "One-hot label columns, of the discriminator and of a generator with `onehot` levels. `padded` gives every attribute as many "
        "columns as the largest one, as published; `levels` has one column per existing level.",
    )
    proxy: Literal["published", "level"] = option(
        "published",
        "Proxy embeddings of the contrastive loss. `published` picks row 0 or 1 by the value of each label column, as the published code "
        "does, so that only two rows are trained; `level` has one row per level.",
    )
    attributes: str = option(
        "", 'Attributes of the model: "published", a preset such as bladder, a YAML file, or "" for those of the shards.'
    )

    def __post_init__(self) -> None:
        check_limits(self, "model")
        require(
            self.feature_width(2) == self.latent_dim,
            f"model.latent_dim: {self.latent_dim} must equal the number of channels at 4 pixels, "
            f"min(2^(fmap_inverse_coef - 2), fmap_max) = {self.feature_width(2)}",
        )
        last = self.image_size.bit_length() - 2
        require(
            self.feature_width(last) >= 4,
            f"model.fmap_inverse_coef: {self.fmap_inverse_coef} leaves {self.feature_width(last)} channels at {2**last} pixels; "
            f"use at least {last + 2}",
        )
        for name in ("generator_attention", "discriminator_attention"):
            bad = [width for width in getattr(self, name) if not (_is_power_of_two(width) and width >= 4)]
            require(not bad, f"model.{name}: {bad} are not powers of two of at least 4")

    def feature_width(self, n: int) -> int:
        """Returns the number of channels nf(n) of a feature map that is 2^n pixels wide."""
        return max(0, min(int(2.0 ** (self.fmap_inverse_coef - n)), self.fmap_max))


@dataclass(frozen=True)
class LossConfig:
    """Loss functions and their weights. A weight of 0 turns a term off and saves its computation."""

    adversarial: Literal["hinge", "relativistic"] = option(
        "hinge",
        "Adversarial loss: hinge, or relativistic pairing of real and generated tiles.",
        source=f"Lim & Ye, Geometric GAN, 2017 (hinge); {R3GAN}, eq. 2 (relativistic)",
    )
    contrastive: float = option(
        1.0, "Weight of the conditional contrastive (2C) loss in discriminator and generator.", minimum=0, source=CONTRAGAN
    )
    contrastive_over: Literal["label", "attribute"] = option(
        "label",
        "Positives of the 2C loss share all levels (`label`), or are matched per attribute (`attribute`). Requires loss.contrastive > 0.",
    )
    temperature: float = option(1.0, "Temperature of the 2C loss. Requires loss.contrastive > 0.", above=0, source=CONTRAGAN)
    auxiliary: float = option(
        0.0,
        "Weight of the auxiliary classification loss in discriminator and generator. Requires model.auxiliary_heads.",
        minimum=0,
        source=ADC_GAN,
    )
    control: float = option(
        0.0,
        "Weight of the classification loss over levels alone, for the generator. Requires loss.auxiliary > 0.",
        minimum=0,
        source="Odena et al., AC-GAN, ICML 2017, eq. 3",
    )
    diversity: float = option(
        0.0,
        "Weight of the generator's diversity loss, which keeps generated tiles of equal levels as far apart as real tiles are.",
        minimum=0,
        source="Yang et al., ICLR 2019, eq. 4; Mao et al., mode seeking, CVPR 2019",
    )
    residual: float = option(
        0.0,
        "Weight of the penalty on pixel change when one attribute of a generated tile changes. With loss.diversity, each step draws "
        "at random one of the two terms, at twice its weight.",
        minimum=0,
        source="Shen & Liu, residual images, CVPR 2017",
    )
    mmd: float = option(
        0.0,
        "Weight of the generator's maximum mean discrepancy (MMD) to the real tiles, in pretrained features. The energy distance between "
        "the tiles of a batch in EfficientNet-Lite0 trained on ImageNet; use batches of at least 16. For real tiles, few or many.",
        minimum=0,
        source="Sejdinovic et al., Annals of Statistics 2013 (energy distance); Santos et al., ICCV 2019 (perceptual features)",
    )
    mmd_levels: float = option(
        0.5,
        "Weight of a differing level in the distances of loss.mmd, so that tiles are compared together with their levels; 0 ignores "
        "levels. Requires loss.mmd > 0.",
        minimum=0,
    )
    reconstruction: float = option(
        1.0,
        "Weight of the reconstruction loss of the discriminator's self-supervised decoders, on real tiles.",
        minimum=0,
        source=ATTRIBUTEGAN,
    )
    r1_gamma: float = option(
        0.0,
        "Weight of the R1 gradient penalty on real tiles. The penalty is gamma/2 times the squared norm of the gradient.",
        minimum=0,
        source="Mescheder et al., ICML 2018, eq. 9",
    )
    r2_gamma: float = option(
        0.0,
        "Weight of the R2 gradient penalty on generated tiles. Requires loss.r1_gamma > 0.",
        minimum=0,
        source="Mescheder et al., ICML 2018, eq. 10",
    )
    r1_every: int = option(
        1,
        "Steps between gradient penalties (lazy regularization), which are scaled up by this number.",
        minimum=1,
        source="Karras et al., StyleGAN2, CVPR 2020, appendix B",
    )

    def __post_init__(self) -> None:
        check_limits(self, "loss")
        require(self.auxiliary > 0 or not self.control, f"loss.control: {self.control} requires loss.auxiliary > 0")
        require(self.r1_gamma > 0 or not self.r2_gamma, f"loss.r2_gamma: {self.r2_gamma} requires loss.r1_gamma > 0")
        require(self.mmd > 0 or self.mmd_levels == 0.5, f"loss.mmd_levels: {self.mmd_levels} requires loss.mmd > 0")
        for name, default in (("contrastive_over", "label"), ("temperature", 1.0)):
            value = getattr(self, name)
            require(self.contrastive > 0 or value == default, f"loss.{name}: {value} requires loss.contrastive > 0")


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation: flips and crops of the tiles as they are read, and DiffAugment in front of the discriminator."""

    flips: bool = option(True, "Mirror tiles and rotate them by multiples of 90 degrees at random.")
    crop: float = option(
        1.0,
        "Side of the square cut from each tile, as a fraction of the shorter side. Below 1, at a random position.",
        above=0,
        maximum=1,
    )
    policy: tuple[Literal["translation", "offset", "cutout", "color", "hed"], ...] = option(
        ("translation", "offset"),
        "Differentiable augmentations applied to real and generated tiles, in this order. [] turns them off. `hed` scales and shifts the "
        "concentrations of hematoxylin, eosin and residual stain.",
        source=f"{DIFFAUGMENT}; offset (cyclic shift): the published AttributeGAN code; hed: {STAIN}",
    )
    probability: float = option(
        1.0, "Probability of augmenting an image; with augment.target, its upper limit. Requires augment.policy.", minimum=0, maximum=1
    )
    target: float = option(
        0.0,
        "Target of adaptive augmentation, 0 to 1: the probability rises while real and generated tiles are separated by more. "
        "The paper uses 0.6; 0 keeps the probability constant. With loss.adversarial=relativistic the separation is 2 P - 1, where P is "
        "the share of pairs of a real and a generated tile that are ordered correctly. Requires augment.policy.",
        minimum=0,
        below=1,
        source=f"{ADA}, eq. 1",
    )
    adapt_images: int = option(
        500_000,
        "Images in which the adapted probability can rise from 0 to 1. Shorter runs need fewer. Requires augment.target.",
        minimum=1,
        source=ADA,
    )

    def __post_init__(self) -> None:
        check_limits(self, "augment")
        require(bool(self.policy) or self.probability == 1, f"augment.probability: {self.probability} requires augment.policy")
        require(bool(self.policy) or not self.target, f"augment.target: {self.target} requires augment.policy")
        default = self.adapt_images == 500_000
        require(self.target > 0 or default, f"augment.adapt_images: {self.adapt_images} requires augment.target > 0")


@dataclass(frozen=True)
class OptimConfig:
    """Optimizers of both networks, and the moving average (EMA) of the generator."""

    name: Literal["adam", "sgd"] = option("adam", "Optimizer of both networks. `sgd` has no momentum and is meant for tests.")
    generator_lr: float = option(2e-4, "Learning rate of the generator.", above=0)
    discriminator_lr: float = option(2e-4, "Learning rate of the discriminator.", above=0)
    betas: tuple[float, ...] = option((0.5, 0.9), "The two beta coefficients of Adam.", minimum=0, below=1)
    grad_clip: float = option(0.0, "Largest gradient norm of each network; 0 turns clipping off.", minimum=0)
    ema_half_life: float = option(
        88_000,
        "Half-life, in images, of the generator's exponential moving average. 88,000 equals the published decay of 0.995 every 10 steps "
        "of 64 images.",
        above=0,
        source="Karras et al., EDM2, CVPR 2024",
    )
    ema_rampup: float = option(
        0.05,
        "Limits the half-life to this fraction of the images seen, so that the average forgets the first steps. 0 turns the limit off.",
        minimum=0,
        source="StyleGAN2 (code)",
    )

    def __post_init__(self) -> None:
        check_limits(self, "optim")
        require(len(self.betas) == 2, f"optim.betas: {list(self.betas)} must be two numbers in [0, 1)")


@dataclass(frozen=True)
class DataConfig:
    """Training tiles: where the shards are, and how tiles are sampled."""

    shards: str = option("", "Shard set to train on: a folder or a URL (https://, s3://, gs://, hf://, pipe:) with an index and tars.")
    cache: str = option("", 'Cache folder for the shards of a remote set, shared by all processes of a node; "" is ~/.cache/attributegan.')
    cache_gb: float = option(50.0, "Size limit of the cache in GB. The least recently used shards are deleted first.", above=0)
    split: str = option("train", "Split of the shard set to train on.")
    balance: float = option(
        1.0,
        "How strongly rare levels are oversampled. 0 samples all tiles equally often; 1 aims at equally many tiles of each level of every "
        "attribute, with each tile between 0.1 and 10 times per epoch.",
        minimum=0,
        maximum=1,
        source="Deming & Stephan, 1940; Deville & Särndal, 1992",
    )
    shuffle_window: int = option(
        0,
        "Read whole shards in random order, this many at a time; 0 shuffles a whole local set, or 8 shards of a remote one.",
        minimum=0,
    )
    assessable_only: bool = option(False, 'Skip tiles with any attribute at its "not assessable" level.')
    attributes: tuple[str, ...] = option((), "Attributes whose levels are used; the levels of others count as unknown. [] uses all.")
    workers: int = option(2, "Data-loading worker processes per rank. 0 loads in the training process.", minimum=0)

    def __post_init__(self) -> None:
        check_limits(self, "data")


@dataclass(frozen=True)
class TrainConfig:
    """Length, batch size, precision and speed of the training."""

    images: int = option(3_200_000, "Length of the run in real images shown.", minimum=1)
    batch: int = option(
        64, "Global batch size: images per step over all processes and micro-batches. A multiple of train.grad_accumulation.", minimum=1
    )
    grad_accumulation: int = option(1, "Micro-batches per step.", minimum=1)
    seed: int = option(0, "Random seed of the initial weights, the order of tiles, latents and augmentation.")
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp64"] = option(
        "auto",
        "Floating-point precision (autocast for bf16 and fp16). `auto` is bf16 where the hardware supports it natively, otherwise fp16 on "
        "GPUs and fp32 on CPUs. fp64 is meant for tests.",
    )
    world_size: int = option(0, "Number of processes that the run must have, else it fails; 0 accepts any number.", minimum=0)
    timeout_s: int = option(600, "Timeout of collective operations in seconds. A rank that does not join in time ends the run.", minimum=1)
    tf32: bool = option(True, "Use TensorFloat-32 for fp32 convolutions and matrix products on GPUs that support it.")
    channels_last: bool = option(True, "Use the channels-last memory layout for images and feature maps.")
    activation_checkpointing: bool = option(
        False, "Recompute feature maps in the backward pass instead of storing them. Uses less memory and more time."
    )
    compile: bool = option(False, "Compile both networks with torch.compile.")
    max_nonfinite: int = option(
        20, "Number of consecutive steps with a non-finite loss or gradient after which the run stops. Such steps are skipped.", minimum=1
    )
    init: str = option(
        "",
        "Start a new run from the weights of another one: a run folder (its latest checkpoint), a checkpoint, or an exported generator. "
        'Layers that fit are taken, the others start as usual; optimizers start fresh. Ignored when a run resumes. "" is none.',
    )
    device: Literal["auto", "cpu", "cuda", "mps", "xpu"] = option(
        "auto", "Device to train on. `auto` is CUDA if there is a GPU, otherwise the CPU. mps and xpu are untested."
    )

    def __post_init__(self) -> None:
        check_limits(self, "train")
        require(
            self.batch % self.grad_accumulation == 0,
            f"train.batch: {self.batch} is not a multiple of train.grad_accumulation={self.grad_accumulation}",
        )


@dataclass(frozen=True)
class DeepSpeedConfig:
    """DeepSpeed (ZeRO) configuration per network. It must agree with the launcher's configuration."""

    generator: str = option("", 'DeepSpeed JSON file of the generator, or a preset such as zero2. "" takes the launcher\'s settings.')
    discriminator: str = option("", 'DeepSpeed JSON file of the discriminator. "" takes the launcher\'s settings, at most ZeRO stage 2.')


@dataclass(frozen=True)
class RunConfig:
    """The run folder: where a run writes, and how often. Intervals are in images shown."""

    dir: str = option("runs/default", "Run folder, for checkpoints, logs and images. Use a new one for each run.")
    resume: Literal["auto", "never"] = option(
        "auto", "Resume from the newest complete checkpoint in the run folder (`auto`), or fail if the folder has one (`never`)."
    )
    log_every: int = option(1_000, "Images between log lines and metrics.", minimum=1)
    grid_every: int = option(10_000, "Images between attribute grids.", minimum=1)
    save_every: int = option(10_000, "Images between checkpoints.", minimum=1)
    keep_last: int = option(3, "Number of newest checkpoints to keep. 0 keeps all.", minimum=0)
    trace: int = option(0, "Number of steps to profile with torch.profiler, from the fourth step of each start; 0 is off.", minimum=0)
    scratch: str = option(
        "",
        'Folder on a local disk that buffers checkpoints, to free memory while they are written to a slow disk; "" is none.',
    )
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = option(
        ("tensorboard",),
        "Experiment trackers that receive options, metrics, grids and evaluations. [] is none. wandb and mlflow require "
        "`pip install 'attributegan[trackers]'`.",
    )
    notify: str = option(
        "",
        'Shell command that rank 0 runs when the run starts, finishes, stops or fails. "" is none. Its environment has ATTRIBUTEGAN_EVENT '
        "(start, finished, stopped or failed), ATTRIBUTEGAN_RUN (the run folder), ATTRIBUTEGAN_IMAGES and ATTRIBUTEGAN_MESSAGE. It is "
        "killed after 30 seconds; if it fails, a warning is logged. The command is saved in config.yaml: keep secrets in a script.",
    )

    def __post_init__(self) -> None:
        check_limits(self, "run")
        require(bool(self.dir), "run.dir: is empty; give a run folder, such as run.dir=runs/first")


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation during training, in a background process. It reads checkpoints, so ``run.save_every`` limits how often it runs."""

    every: int = option(0, "Minimum number of images between evaluations; 0 turns evaluation off.", minimum=0)
    split: str = option("val", "Held-out split of the shard set to evaluate on.")
    best: Literal["kid", "control_score"] = option(
        "kid", "Criterion for the checkpoint kept in RUN/best: the lowest KID, or the highest control score."
    )
    count: int = option(1_024, "Number of generated tiles for image quality metrics.", minimum=16)
    sweeps: int = option(64, "Number of latents for which every attribute is moved through its levels.", minimum=2)
    features: str = option(
        "efficientnet-lite0",
        "Feature network of the metrics; see attributegan-evaluate --help. If the model is trained on features of efficientnet-lite0, the "
        "default is efficientnet-lite1.",
    )

    def __post_init__(self) -> None:
        check_limits(self, "evaluate")


@dataclass(frozen=True)
class Config:
    """All options of a training run."""

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
            f"loss.auxiliary: {self.loss.auxiliary} does not fit model.auxiliary_heads={str(self.model.auxiliary_heads).lower()}; "
            "set loss.auxiliary > 0 together with model.auxiliary_heads=true",
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns nested dicts, lists and scalars, which `from_dict` reads back."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain


def from_dict(tree: Mapping[str, Any], where: str = "configuration") -> Config:
    """Build a `Config` from nested mappings; options that are not given keep their defaults. Raises as `fill`."""
    return fill(Config, tree, where)


def fill(cls: type[T], tree: Mapping[str, Any], where: str, section: str = "") -> T:
    """`attributegan.options.fill` that also reads the names of earlier versions (`attributegan.old_names`)."""
    if isinstance(tree, Mapping):
        tree = with_current_keys(tree, f"{section}.", where) if section else with_current_names(tree, where)
    return options.fill(cls, tree, where, section)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, or a preset by its name, and apply ``section.key=value`` overrides (values in YAML syntax).

    Raises:
        ValueError: As `options.fill`; names the override if the error is in one.
    """
    path = presets.resolve("train", path)
    return _overridden(with_current_names(read_yaml(path), str(path)), overrides, str(path))


def override(base: Config, overrides: Sequence[str], where: str) -> Config:
    """Apply ``section.key=value`` overrides to ``base``; error messages name ``where`` as its source. Raises as `load`."""
    return _overridden(base.to_dict(), overrides, where)


def _overridden(tree: dict[str, Any], overrides: Sequence[str], where: str) -> Config:
    given: dict[str, str] = {}
    for override in overrides:
        dotted, equals, value = override.partition("=")
        section, dot, key = current_option(dotted.strip(), repr(override)).partition(".")
        require(bool(equals and dot and section and key), f"{override!r}: expected an override section.key=value, such as train.batch=64")
        try:
            parsed = strict_yaml.parse(value)
        except YAML_ERRORS as error:
            raise ValueError(f"{override!r}: the value is not valid YAML: {error}") from None
        branch = tree.setdefault(section, {})
        require(isinstance(branch, dict), f"{where}: {section}: expected a mapping of options, got {branch!r}")
        branch |= with_current_keys({key: parsed}, f"{section}.", repr(override))
        given[section] = given[f"{section}.{key}"] = override
    try:
        return options.fill(Config, tree, where="")
    except ValueError as error:
        message = str(error).removeprefix(": ")
        name = message.partition(":")[0]
        source = repr(given[name]) if name in given else f"{where} with overrides" if given else where
        raise ValueError(f"{source}: {message}") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Returns the mapping in a YAML file without tags and duplicate keys; ValueError names the file if it is not one."""
    tree = strict_yaml.read(path)
    tree = {} if tree is None else tree
    require(isinstance(tree, dict), f"{path}: expected sections with options, got {type(tree).__name__}")
    return tree


def dump(config: Config) -> str:
    """Returns the resolved configuration as YAML."""
    return yaml.safe_dump(config.to_dict(), sort_keys=False)


def _plain(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    return [_plain(item) for item in tree] if isinstance(tree, list | tuple) else tree
