"""``attributegan-bench diffusion``: trains and samples a class-conditional diffusion model on a shard set, for comparison with a generator.

The model is the UNet of diffusers as its users set it up: DDPM training, an average of the weights, DDIM sampling. The networks are in
`tools.benchmarks.diffusion_model`.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tools.benchmarks.diffusion_settings import DiffusionSettings
from tools.options import add_command, add_precision, with_settings

if TYPE_CHECKING:
    from attributegan.attributes import AttributeSchema
    from tools.benchmarks.diffusion_model import DiffusionTrainer
    from tools.benchmarks.harness import Result

CHECKPOINT = "diffusion.safetensors"
TILES, TABLE = "tiles", "samples.csv"


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser) -> None:
    """Add the benchmark to those of ``attributegan-bench``."""
    default = DiffusionSettings
    parser = add_command(
        commands,
        "diffusion",
        "train a diffusion model of diffusers on a shard set, write its tiles, and measure seconds per tile",
        [
            "attributegan-bench diffusion --shards shards --cpu-minutes 24 --out diffusion --generator runs/first",
            "attributegan-evaluate diffusion/tiles --shards shards --out report --baseline runs/first",
        ],
        parents=[common],
    )
    parser.add_argument("--shards", required=True, metavar="DIR|URL", help="shard set to train on")
    parser.add_argument("--split", default=default.split, help="split to train on (default: %(default)s)")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help=f"folder for {CHECKPOINT}, {TILES}/ and log.txt; resumes")
    parser.add_argument("--size", type=int, default=default.size, metavar="PIXELS", help="size of the tiles (default: %(default)s)")
    parser.add_argument("--cpu-minutes", type=float, metavar="M", help="stop training after this CPU time of all threads")
    parser.add_argument("--images", type=int, metavar="N", help="stop training after this number of images")
    parser.add_argument(
        "--channels",
        type=int,
        nargs="+",
        default=list(default.channels),
        metavar="C",
        help="UNet channels at each size (default: 16 32 64 96)",
    )
    parser.add_argument(
        "--prediction",
        choices=("epsilon", "v_prediction"),
        default=default.prediction,
        help="what the network predicts: the noise, or the velocity (default: %(default)s)",
    )
    parser.add_argument("--batch", type=int, default=default.batch, metavar="N", help="images per step (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=default.learning_rate, metavar="R", help="of AdamW (default: %(default)s)")
    parser.add_argument(
        "--label-dropout",
        type=float,
        default=default.label_dropout,
        metavar="P",
        help="share of tiles without levels (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=default.seed, help="seed of training and sampling (default: %(default)s)")
    parser.add_argument(
        "--save-every", type=int, default=default.save_every, metavar="N", help="images between two checkpoints (default: %(default)s)"
    )
    add_precision(parser)
    parser.add_argument("--count", type=int, default=default.count, metavar="N", help="tiles to write (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=default.steps, metavar="N", help="DDIM steps per tile (default: %(default)s)")
    parser.add_argument(
        "--guidance", type=float, default=default.guidance, metavar="W", help="classifier-free guidance; 1: none (default: %(default)s)"
    )
    parser.add_argument("--generator", type=Path, metavar="RUN", help="run or checkpoint of a generator, to time its sampling as well")
    parser.set_defaults(measure=with_settings(run, DiffusionSettings))


def run(settings: DiffusionSettings) -> Result:
    """Train until the limit, write the tiles, and measure seconds of CPU time per tile."""
    from tools.benchmarks.diffusion_model import DiffusionTrainer, require
    from tools.benchmarks.harness import Result, interleaved

    require()
    tiles = settings.out / TILES
    if tiles.exists():
        raise ValueError(f"--out: {tiles} exists; move it away, or choose another folder")
    tiles_NCHW, levels_NA, schema = _read(settings)
    generator = _generator(settings.generator, schema, settings) if settings.generator else None
    settings.out.mkdir(parents=True, exist_ok=True)
    trainer = DiffusionTrainer(settings, schema)
    if trainer.load(settings.out / CHECKPOINT):
        _log(settings.out, f"resuming at {trainer.images:,} images, {trainer.cpu_seconds / 60:.1f} minutes of CPU time")
    _train(trainer, tiles_NCHW, levels_NA, settings)
    _write(trainer, levels_NA, settings)
    contenders: dict[str, Callable[[], float]] = {f"diffusion, {settings.steps} steps": _timed(trainer.sample, schema, settings)}
    facts: dict[str, Any] = {
        "parameters of the UNet": trainer.parameters, "images": trainer.images, "minutes of CPU time": round(trainer.cpu_seconds / 60, 1),
        "loss": round(trainer.loss, 4),
    }  # fmt: skip
    against = []
    if generator:
        generate, parameters = generator
        contenders["generator"] = _timed(generate, schema, settings)
        facts["parameters of the generator"] = parameters
        against = [(next(iter(contenders)), "generator")]
    return Result("diffusion, sampling", "s of CPU time per tile", interleaved(contenders, settings.repeats), against, facts)


def _read(settings: DiffusionSettings) -> tuple[np.ndarray, np.ndarray, AttributeSchema]:
    """Read the whole split: tiles (N, 3, H, W) uint8, levels (N, A) int64, and the attributes."""
    from data_shards.loader.shard_set import ShardSet
    from tools.evaluation.data import set_reader

    shards = ShardSet.open(settings.shards, settings.split, split_option="--split")
    tiles_NHWC = set_reader(shards, settings.size)(np.arange(len(shards)))
    return np.ascontiguousarray(tiles_NHWC.transpose(0, 3, 1, 2)), shards.levels_NA.astype(np.int64), shards.schema


def _train(trainer: DiffusionTrainer, tiles_NCHW: np.ndarray, levels_NA: np.ndarray, settings: DiffusionSettings) -> None:
    """Train until ``cpu_minutes`` or ``images`` is reached; saves every ``save_every`` images and at the end."""
    limit_s = float("inf") if settings.cpu_minutes is None else 60 * settings.cpu_minutes
    limit_images = float("inf") if settings.images is None else settings.images
    before, started = trainer.cpu_seconds, time.process_time()
    while trainer.cpu_seconds < limit_s and trainer.images < limit_images:
        trainer.step(tiles_NCHW, levels_NA)
        trainer.cpu_seconds = before + time.process_time() - started
        if trainer.images // settings.save_every > (trainer.images - settings.batch) // settings.save_every:
            trainer.save(settings.out / CHECKPOINT)
            minutes = trainer.cpu_seconds / 60
            _log(settings.out, f"{trainer.images:,} images  {minutes:.1f} minutes of CPU time  loss {trainer.loss:.4f}")
    trainer.save(settings.out / CHECKPOINT)


def _write(trainer: DiffusionTrainer, levels_NA: np.ndarray, settings: DiffusionSettings) -> None:
    """Write tiles with levels like those of real ones, and their table, as `attributegan-sample` does; the folder is renamed last."""
    from attributegan.sampling.latents import levels_like
    from attributegan.utils.files import atomic_path
    from tools.sampling.writer import encoded, file_name

    out = settings.out / TILES
    with atomic_path(out) as folder:
        folder.mkdir()
        with (folder / TABLE).open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(["file", *trainer.schema.names, "seed"])
            for first in range(0, settings.count, settings.batch):
                indices = range(first, min(first + settings.batch, settings.count))
                levels_BA = levels_like(levels_NA, settings.seed, indices)
                for k, tile_HWC, level_A in zip(indices, trainer.sample(levels_BA, indices), levels_BA.tolist(), strict=True):
                    (folder / file_name(k, "png")).write_bytes(encoded(tile_HWC))
                    writer.writerow([file_name(k, "png"), *trainer.schema.written(level_A).values(), settings.seed])
    _log(settings.out, f"{settings.count:,} tiles in {out}")


def _generator(path: Path, schema: AttributeSchema, settings: DiffusionSettings) -> tuple[Callable[..., np.ndarray], int]:
    """Return a function that generates tiles of a run or checkpoint as `DiffusionTrainer.sample` does, and its number of parameters."""
    from attributegan.checkpoint.loading import load_for_sampling
    from attributegan.sampling.generate import generate, prepare_for_inference
    from attributegan.sampling.latents import latents_for
    from attributegan.utils import precision

    loaded = load_for_sampling(path)
    if differences := loaded.schema.difference(schema):
        raise ValueError(f"--generator {path}: does not fit the shards: {'; '.join(differences)}")
    network = prepare_for_inference(loaded.generator)
    chosen = precision.choose("cpu")[0] if settings.precision == "auto" else settings.precision

    def tiles(levels_BA: Any, indices: range) -> np.ndarray:
        latents_BL = latents_for(settings.seed, indices, loaded.config.model.latent_dim)
        return generate(network, latents_BL, levels_BA, settings.batch, chosen)

    return tiles, sum(parameter.numel() for parameter in network.parameters())


def _timed(sample: Callable[..., np.ndarray], schema: AttributeSchema, settings: DiffusionSettings) -> Callable[[], float]:
    """Return a contender that samples one batch and returns the seconds of CPU time per tile."""
    from attributegan.sampling.latents import levels_for

    indices = range(settings.batch)
    levels_BA = levels_for(schema, settings.seed, indices)

    def turn() -> float:
        started = time.process_time()
        sample(levels_BA, indices)
        return (time.process_time() - started) / len(indices)

    return turn


def _log(out: Path, line: str) -> None:
    print(line, flush=True)
    with (out / "log.txt").open("a", encoding="utf-8") as stream:
        stream.write(f"{time.strftime('%H:%M:%S')} {line}\n")
