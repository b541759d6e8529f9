"""The options of an evaluation: as users type them, and as the code passes them on."""

from __future__ import annotations

import argparse
import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attributegan.config import DataConfig
from launch.evaluator import SHARDS
from tools import options as options_module

LEAST = {"count": 16, "sweeps": 2, "max_real": 32, "batch": 1, "predictor_steps": 1}


@dataclass(frozen=True)
class EvaluationSettings:
    """What is evaluated, against which real tiles, and how.

    Raises:
        ValueError: a number that is too small; names its option.
    """

    model: str | Path  # a run's folder or one checkpoint
    out: Path  # folder of the report
    shards: str  # shard set with the real tiles: a folder or a URL
    baseline: tuple[str, ...] = ()  # other models for the same tables
    shards_cache: str = ""
    shards_cache_gb: float = DataConfig.cache_gb
    assessable_only: bool = False
    train: str = "train"  # splits
    held_out: str = "val"
    count: int = 1024  # tiles generated for image quality
    sweeps: int = 64  # latents of which every attribute is moved
    max_real: int = 5000  # real tiles of a split
    features: str = "efficientnet-lite0"
    feature_size: int | None = None  # pixels; None for the network's own size
    predictor: str = "auto"  # what reads levels off tiles: auto, cnn or features
    measure: str | None = None  # what is measured for which attribute: ATTRIBUTE=MEASUREMENT,... or a file
    predictor_steps: int = 600  # training steps of the CNN
    seed: int = 0
    batch: int = 16  # tiles generated at a time
    no_ema: bool = False
    precision: str = "auto"  # of generated tiles: auto, fp32, bf16 or fp16
    cache: Path | None = None  # folder for what is known of real tiles

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"--{name.replace('_', '-')}: {getattr(self, name)} must be at least {least}")

    @classmethod
    def of(cls, options: argparse.Namespace, **changes: Any) -> EvaluationSettings:
        """The settings in parsed options, with ``changes``."""
        names = [field.name for field in dataclasses.fields(cls)]
        given = {name: getattr(options, name) for name in names if hasattr(options, name)} | changes
        return cls(**given | {"baseline": tuple(given.get("baseline", ()))})


def common_options(result: argparse.ArgumentParser) -> None:
    """The options of one evaluation and of many in a row."""
    result.add_argument(
        "--shards",
        metavar="DIR",
        required=SHARDS not in os.environ,
        default=os.environ.get(SHARDS),
        help="shard set with the real tiles, of two splits: a folder or a URL. One with a secret, which others could see "
        f"in a command line, may stand in the variable {SHARDS}",
    )
    options_module.add(result, "shards-cache")
    result.add_argument("--assessable-only", action="store_true", help='leave out tiles with an attribute that is "not assessable"')
    result.add_argument("--train", metavar="SPLIT", default="train", help="split that the model was trained on (%(default)s)")
    result.add_argument("--held-out", metavar="SPLIT", default="val", help="split that it has not seen (%(default)s)")
    result.add_argument("--count", metavar="N", type=int, default=1024, help="tiles to generate for image quality (%(default)s)")
    result.add_argument("--sweeps", metavar="N", type=int, default=64, help="latents to move every attribute of (%(default)s)")
    result.add_argument("--max-real", metavar="N", type=int, default=5000, help="real tiles of a split to use, at most (%(default)s)")
    result.add_argument(
        "--features",
        metavar="NETWORK",
        default="efficientnet-lite0",
        help="what sees the tiles: efficientnet-lite0 (default), timm:NAME, hub:OWNER/REPO:ENTRY, a TorchScript or .pt2 "
        "file, or MODULE:FUNCTION",
    )
    result.add_argument("--feature-size", metavar="PIXELS", type=int, help="resize tiles to this for NETWORK, instead of its own size")
    result.add_argument(
        "--predictor",
        choices=("auto", "cnn", "features"),
        default="auto",
        help="what reads levels off tiles: a CNN, a head on the features, or the better one (%(default)s)",
    )
    result.add_argument("--seed", metavar="S", type=int, default=0, help="of the tiles and of the judge (%(default)s)")
    result.add_argument("--batch", metavar="B", type=int, default=16, help="tiles generated at a time (%(default)s)")
    result.add_argument("--measure", metavar="ATTRIBUTE=MEASUREMENT,…|FILE",
                        help="report control by image arithmetic too, without a judge: cell_crowding=nuclei_count,…, or the attributes "
                        "file that `attributegan-shard measure` wrote; see docs/measure.md")  # fmt: skip
    result.add_argument("--predictor-steps", metavar="N", type=int, default=600, help="training steps of the CNN (%(default)s)")
    options_module.add_precision(result)
    result.add_argument("--no-ema", action="store_true", help="the weights as trained, instead of their average (EMA)")
    result.add_argument("--cache", metavar="DIR", type=Path, help="what is known of real tiles (~/.cache/attributegan/evaluation)")
