"""Options of an evaluation: the command line and the settings dataclass."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from attributegan.config import DataConfig
from launch.evaluator import SHARDS
from tools import options as options_module


@dataclass(frozen=True)
class EvaluationSettings:
    """Which model to evaluate, against which real tiles, and how. Fields are the options of the command.

    Raises:
        ValueError: names the option that is too small.
    """

    model: str | Path  # run folder or checkpoint
    out: Path  # output folder of the report
    shards: str  # shard set with the real tiles, a folder or a URL
    baseline: tuple[str, ...] = ()  # further models to evaluate
    shards_cache: str = ""
    shards_cache_gb: float = DataConfig.cache_gb
    assessable_only: bool = False
    same_slides: str | None = None  # shard set with further tiles of the training slides
    train: str = "train"  # split that the model was trained on
    held_out: str = "val"  # split that it was not trained on
    count: int = 1024  # tiles generated for image quality
    sweeps: int = 64  # latents for which every attribute is swept
    max_real: int = 5000  # maximum number of real tiles per split
    features: str = "auto"  # name of a network; auto for an EfficientNet that trained none of the models
    allow_trained_features: bool = False
    feature_size: int | None = None  # pixels; None for the network's default
    predictor: str = "auto"  # predictor of levels: auto, cnn or features
    measure: str | None = None  # ATTRIBUTE=MEASUREMENT,... or an attributes file
    predictor_steps: int = 600  # training steps of the CNN predictor
    seed: int = 0
    batch: int = 16  # tiles per batch
    no_ema: bool = False
    precision: str = "auto"  # precision of the generator: auto, fp32, bf16 or fp16
    reader_study: Path | None = None  # result of `attributegan-label 2afc` to include
    cache: Path | None = None  # cache folder for features and predictors of real tiles

    def __post_init__(self) -> None:
        options_module.require_at_least(self, count=16, sweeps=2, max_real=32, batch=1, predictor_steps=1)


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the options that ``report`` and ``watch`` share."""
    default = EvaluationSettings
    add_shared(parser)
    add_same_slides(parser)
    parser.add_argument(
        "--count", metavar="N", type=int, default=default.count, help="tiles to generate for image quality (default: %(default)s)"
    )
    parser.add_argument(
        "--sweeps", metavar="N", type=int, default=default.sweeps, help="latents to sweep every attribute for (default: %(default)s)"
    )
    parser.add_argument(
        "--allow-trained-features",
        action="store_true",
        help="use the network of --features even if a model was trained on its features; the report is marked",
    )
    parser.add_argument(
        "--predictor",
        choices=("auto", "cnn", "features"),
        default=default.predictor,
        help="predictor of attribute levels: a CNN, a head on the features, or the better of the two (default: %(default)s)",
    )
    parser.add_argument(
        "--predictor-steps",
        metavar="N",
        type=int,
        default=default.predictor_steps,
        help="training steps of the CNN predictor (default: %(default)s)",
    )
    parser.add_argument(
        "--measure",
        metavar="ATTRIBUTE=MEASUREMENT,…|FILE",
        help="also score control by image measurements, such as cell_crowding=nuclei_count,…, or with the attributes file written by "
        "`attributegan-shard measure`; see docs/measure.md",
    )


def add_same_slides(parser: argparse.ArgumentParser) -> None:
    """Add ``--same-slides``."""
    parser.add_argument(
        "--same-slides",
        metavar="DIR",
        help="shard set with tiles of the training slides that were kept out of training: compare training tiles with these instead of "
        "tiles of held-out slides when looking for copies",
    )


def add_shared(parser: argparse.ArgumentParser) -> None:
    """Add the options of all commands that compare a model with real tiles."""
    default = EvaluationSettings
    parser.add_argument(
        "--shards",
        metavar="DIR",
        required=SHARDS not in os.environ,
        default=os.environ.get(SHARDS),
        help="shard set with real tiles in two splits, a folder or a URL. Set the environment variable "
        f"{SHARDS} instead to keep a URL with a secret off the command line",
    )
    options_module.add_cache(parser, "shards-cache")
    parser.add_argument("--assessable-only", action="store_true", help="skip real tiles with a level that is not assessable")
    parser.add_argument(
        "--train", metavar="SPLIT", default=default.train, help="split that the model was trained on (default: %(default)s)"
    )
    parser.add_argument(
        "--held-out", metavar="SPLIT", default=default.held_out, help="split that the model was not trained on (default: %(default)s)"
    )
    parser.add_argument(
        "--max-real", metavar="N", type=int, default=default.max_real, help="maximum number of real tiles per split (default: %(default)s)"
    )
    parser.add_argument(
        "--features",
        metavar="NETWORK",
        default=default.features,
        help="feature network: efficientnet-lite0, -lite1 or -lite2, random, handcrafted, inception[:FILE], uni[:FILE], "
        "virchow[:FILE], virchow2[:FILE], timm:NAME[:FILE], hub:OWNER/REPO:ENTRY, a TorchScript or .pt2 file, or MODULE:FUNCTION "
        "(default: efficientnet-lite0, or -lite1 or -lite2 if a model was trained on it)",
    )
    parser.add_argument(
        "--feature-size", metavar="PIXELS", type=int, help="size to resize tiles to for the feature network (default: the network's own)"
    )
    parser.add_argument(
        "--seed", metavar="S", type=int, default=default.seed, help="random seed of the tiles and the predictor (default: %(default)s)"
    )
    parser.add_argument("--batch", metavar="B", type=int, default=default.batch, help="tiles per batch (default: %(default)s)")
    options_module.add_precision(parser)
    options_module.add_no_ema(parser)
    options_module.add_evaluation_cache(parser)
