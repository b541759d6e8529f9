"""Options of ``attributegan-sample``: the command line and the settings dataclass."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from attributegan.config import DataConfig
from tools import options as options_module
from tools.evaluation.options import add_same_slides


@dataclass(frozen=True)
class SamplingSettings:
    """What to sample, from which model, and where to write it. Fields are the options of the command.

    Raises:
        ValueError: names the option that is wrong.
    """

    model: str | Path  # a run folder or a checkpoint
    out: Path
    count: int = 16
    levels: str = ""  # fixed levels, "attribute=level,..."
    levels_from: str | None = None  # shard set to draw levels from
    format: str = "png"
    shard_count: int = 1000  # tiles per shard
    overwrite: bool = False
    truncation: float | None = None
    sweep: bool = False
    pair: tuple[str, str] | None = None
    interpolate: tuple[str, str] | None = None
    movie: str | None = None
    filter_copies: bool = False
    shards: str | None = None  # training set of --filter-copies
    shards_cache: str = ""
    shards_cache_gb: float = DataConfig.cache_gb
    same_slides: str | None = None
    train: str = "train"
    held_out: str = "val"
    features: str = "efficientnet-lite0"
    feature_size: int | None = None
    cache: Path | None = None
    project: Path | None = None
    steps: int = 300  # of --project
    seed: int = 0
    batch: int = 16
    precision: str = "auto"
    workers: int = 1
    no_ema: bool = False

    def __post_init__(self) -> None:
        options_module.require_at_least(self, count=1, batch=1, workers=1, shard_count=1, steps=1)
        if self.truncation is not None and not self.truncation > 0:
            raise ValueError(f"--truncation: {self.truncation} must be above 0")
        if self.movie and not self.interpolate:
            raise ValueError("--movie: requires --interpolate")
        pictures = [f"--{name}" for name in ("sweep", "pair", "interpolate", "project") if getattr(self, name)]
        if self.format == "shards" and pictures:
            raise ValueError(f"{pictures[0]}: not supported with --format shards; use another --format and --out")
        if self.filter_copies and not self.shards:
            raise ValueError("--filter-copies: requires --shards, the set that the model was trained on")
        if self.shards and not self.filter_copies:
            raise ValueError("--shards: requires --filter-copies; use --levels-from to draw levels from a set")
        if self.filter_copies and pictures:
            raise ValueError(f"{pictures[0]}: its tiles are not filtered; run it without --filter-copies")
        if self.filter_copies and self.train == self.held_out:
            raise ValueError(f"--held-out: {self.held_out} is also the training split; give a split that the model was not trained on")

    @property
    def to_shards(self) -> bool:
        """Whether the tiles are written as a shard set."""
        return self.format == "shards"


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser."""
    default = SamplingSettings
    parser.add_argument("model", metavar="RUN|CHECKPOINT", help="run folder (uses its latest checkpoint) or a checkpoint")
    parser.add_argument("--out", metavar="DIR", required=True, type=Path, help="output folder; created if it does not exist")
    parser.add_argument("--count", metavar="N", type=int, default=default.count, help="number of tiles (default: %(default)s)")
    parser.add_argument(
        "--levels", metavar="A=L,...", default="", help="fix attributes to levels, by number or name; all others are drawn at random"
    )
    parser.add_argument(
        "--levels-from", metavar="SHARDS", help="draw levels jointly from the training split of this shard set (default: uniform levels)"
    )
    parser.add_argument(
        "--format", choices=("png", "jpeg", "webp", "shards"), default=default.format, help="output format (default: %(default)s)"
    )
    parser.add_argument(
        "--shard-count",
        metavar="N",
        type=int,
        default=default.shard_count,
        help="tiles per shard, with --format shards (default: %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace earlier samples or a shard set in DIR")
    parser.add_argument(
        "--truncation", metavar="T", type=float, help="truncate latents at +-T: higher quality, less variety (default: no truncation)"
    )
    parser.add_argument(
        "--filter-copies",
        action="store_true",
        help="draw another latent for tiles nearer to a training tile than 99 %% of the real held-out tiles are; requires --shards",
    )
    parser.add_argument("--shards", metavar="DIR", help="with --filter-copies: shard set that the model was trained on, a folder or a URL")
    options_module.add_cache(parser, "shards-cache")
    parser.add_argument(
        "--train", metavar="SPLIT", default=default.train, help="split of --shards used for training (default: %(default)s)"
    )
    parser.add_argument(
        "--held-out", metavar="SPLIT", default=default.held_out, help="split of --shards not used for training (default: %(default)s)"
    )
    add_same_slides(parser)
    parser.add_argument(
        "--features",
        metavar="NETWORK",
        default=default.features,
        help="feature network of --filter-copies, as in attributegan-evaluate (default: %(default)s)",
    )
    parser.add_argument(
        "--feature-size", metavar="PIXELS", type=int, help="size to resize tiles to for the feature network (default: the network's own)"
    )
    options_module.add_evaluation_cache(parser)
    parser.add_argument("--sweep", action="store_true", help="write sweep.png: every attribute through its levels, one latent per row")
    parser.add_argument(
        "--pair", nargs=2, metavar=("A", "B"), help="write pair.png: all levels of A by all levels of B, for the first latent"
    )
    parser.add_argument(
        "--interpolate",
        nargs=2,
        metavar=("A=L,...", "A=L,..."),
        help="write interpolation.png: from the first levels to the second, one latent per row",
    )
    parser.add_argument("--movie", choices=("gif", "mp4"), help="also write the interpolation as a movie (mp4 requires the extra `movie`)")
    parser.add_argument(
        "--project",
        metavar="IMAGE",
        type=Path,
        help="find the latent of this image and write projection.png instead of tiles; --sweep, --pair and --interpolate then use "
        "that latent",
    )
    parser.add_argument(
        "--steps", metavar="N", type=int, default=default.steps, help="optimization steps of --project (default: %(default)s)"
    )
    parser.add_argument("--seed", metavar="S", type=int, default=default.seed, help="random seed (default: %(default)s)")
    parser.add_argument("--batch", metavar="B", type=int, default=default.batch, help="tiles per batch (default: %(default)s)")
    options_module.add_precision(parser)
    parser.add_argument("--workers", metavar="N", type=int, default=default.workers, help="generating processes (default: %(default)s)")
    options_module.add_no_ema(parser)
