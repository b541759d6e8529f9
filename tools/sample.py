"""``attributegan-sample``: tiles, attribute sweeps, grids, movies and projections from a trained model.

Owns the order of the work. Options are in `tools.sampling.options`, pictures in `attributegan.sampling.grids`, files in
`tools.sampling.writer`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attributegan.cli import exit_status, parser
from tools.options import resolve_precision, settings_of
from tools.sampling import options as sampling_options
from tools.sampling.options import SamplingSettings

if TYPE_CHECKING:  # slow to import; --help must be fast
    import argparse

    import numpy as np

    from attributegan.checkpoint.loading import Loaded
    from attributegan.distributed.process_group import Processes
    from attributegan.evaluation.copies import CopyFilter
    from attributegan.evaluation.reference import Split
    from attributegan.metrics.features import Features
    from tools.sampling.writer import Recipe

EXAMPLES = """\
  attributegan-sample runs/first --out tiles --count 64                                    uniform levels
  attributegan-sample runs/first --out tiles --count 64 --levels cell_crowding=4,mitosis=frequent
  attributegan-sample runs/first --out tiles --count 5000 --levels-from shards             levels distributed as in real tiles
  attributegan-sample runs/first --out made --count 50000 --format shards --workers 2 --precision bf16
  attributegan-sample runs/first --out tiles --count 5000 --filter-copies --shards shards   without copies of training tiles
  attributegan-sample runs/first --out tiles --count 2 --sweep --pair mitosis nucleoli     grids of attribute levels
  attributegan-sample runs/first --out tiles --count 2 --interpolate pleomorphism=1 pleomorphism=4 --movie gif
  attributegan-sample runs/first --out found --project tile.png --sweep                    edit a real tile
  attributegan-sample runs/first/checkpoints/images-000000020000 --out tiles --no-ema      one checkpoint, without EMA
  attributegan-shard pack --images tiles --labels tiles/samples.csv --out shards           use the tiles as training data"""

ALL, MAX_HELD_OUT = sys.maxsize, 5000  # training and held-out tiles of --filter-copies
LATENTS_IN_GRID = 4  # maximum number of latents in a grid: those of the first tiles


def main(argv: Sequence[str] | None = None) -> int:
    """Sample with ``argv`` (default: ``sys.argv``) and return the exit status."""
    options = parse(argv)
    return exit_status(lambda: sample(settings_of(SamplingSettings, options)))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line (default: ``sys.argv``)."""
    return _parser().parse_args(argv)


def settings(argv: Sequence[str]) -> SamplingSettings:
    """Return the settings of a command line; ValueError or SystemExit if it is invalid."""
    return settings_of(SamplingSettings, parse(argv))


def _parser() -> argparse.ArgumentParser:
    result = parser(
        "Generate tiles with a trained model. Writes image files and samples.csv with their levels, or a shard set.\n"
        "Tile k of a seed is the same for any count, batch size and number of processes. Also runs under `accelerate launch`.",
        EXAMPLES,
    )
    sampling_options.add(result)
    return result


def sample(settings: SamplingSettings) -> None:
    """Generate the tiles and pictures; every process of a launch calls this.

    Raises:
        ValueError: a model, option or output folder that can't be used; raised before anything is written.
    """
    from attributegan.checkpoint.store import resolve
    from attributegan.distributed.process_group import is_main
    from attributegan.utils.files import require_writable
    from tools.sampling.writer import to_replace, write_atomic

    require_writable(settings.out, "--out")
    settings = dataclasses.replace(settings, model=resolve(settings.model))  # all processes must load the same checkpoint
    if not is_main():  # under `accelerate launch`; rank 0 writes pictures and prints
        _make_folder(settings.out.parent if settings.to_shards else settings.out)
        return None if settings.project else make_tiles(settings)
    old = [] if settings.to_shards else to_replace(settings.out, settings.overwrite)
    settings = dataclasses.replace(settings, precision=resolve_precision(settings.precision))
    loaded = load(settings)
    pictures = _pictures(loaded, settings)  # before the tiles, so that invalid levels are an error before anything is written
    if settings.project:
        written = sorted(pictures)
    else:
        make_recipe(loaded, settings)  # checks --levels and --levels-from
        if settings.filter_copies:
            _training_tiles(loaded, settings)  # checks --shards and --features
        written = [] if settings.to_shards else sorted(["samples.csv", *pictures])
    _make_folder(settings.out if written else settings.out.parent)
    for path in old:
        path.unlink()
    if not settings.project:
        if settings.workers > 1:
            from attributegan.distributed.process_group import launch

            launch(make_tiles, (settings,), settings.workers)
        else:
            make_tiles(settings)
    for name, data in pictures.items():
        write_atomic(settings.out / name, data)
    tiles = "" if settings.project else f"{settings.count} tiles, "
    print(f"{tiles}{', '.join(written) or 'a shard set'} in {settings.out} (model after {loaded.images:,} images)")
    if settings.filter_copies:
        print(dropped_line(settings))


def dropped_line(settings: SamplingSettings) -> str:
    """Return how many tiles --filter-copies dropped."""
    from attributegan.metrics.quality import NEARER
    from tools.sampling.writer import dropped_copies

    dropped = dropped_copies(settings.out)
    total = settings.count + dropped
    return (
        f"--filter-copies: dropped {dropped:,} of {total:,} generated tiles ({dropped / total:.1%}; about {NEARER:.0%} is expected of a "
        "model that does not copy)"
    )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {folder}: can't create the folder: {error}") from error


def load(settings: SamplingSettings) -> Loaded:
    """Load the model of the settings, ready for inference."""
    import torch

    from attributegan.checkpoint.loading import load_for_sampling
    from attributegan.sampling.generate import prepare_for_inference

    loaded = load_for_sampling(settings.model, ema=not settings.no_ema)
    prepare_for_inference(loaded.generator, "cuda" if torch.cuda.is_available() else "cpu")
    return loaded


def make_tiles(settings: SamplingSettings) -> None:
    """Generate and write this process's share of the tiles; every process of the launch calls this."""
    from attributegan.distributed.process_group import Processes
    from tools.sampling import writer

    processes = Processes()
    try:
        settings = dataclasses.replace(settings, precision=processes.broadcast_object(settings.precision))
        loaded = load(settings)
        loaded.generator.to(processes.device)
        recipe = make_recipe(loaded, settings)
        if settings.filter_copies:
            recipe = dataclasses.replace(recipe, copies=open_copy_filter(loaded, settings, processes))
        if settings.to_shards:
            writer.write_shards(
                recipe, settings.out, settings.count, settings.shard_count, settings.overwrite, digest_of(settings), processes
            )
        else:
            writer.write_files(recipe, settings.out, settings.count, settings.format, processes)
    finally:
        processes.shutdown()


def _training_tiles(loaded: Loaded, settings: SamplingSettings) -> tuple[Split, Split, Split | None, Features]:
    """Open the training tiles of --filter-copies, the held-out ones, those of the same slides, and the feature network.

    Raises:
        ValueError: a shard set or feature network that can't be used, or that doesn't fit the model.
    """
    from attributegan.metrics import features
    from data_shards.storage.cache import Cache
    from tools.evaluation import data

    assert settings.shards
    size, cache = loaded.config.model.image_size, Cache.of(settings.shards_cache, settings.shards_cache_gb)
    shards, _, train = data.open_split(settings.shards, settings.train, size, ALL, False, cache, "--train")
    _, _, held_out = data.open_split(settings.shards, settings.held_out, size, MAX_HELD_OUT, False, cache, "--held-out")
    if differences := loaded.schema.difference(shards.schema):
        raise ValueError(f"--shards: {shards.location} does not fit the model: {'; '.join(differences)}")
    same = data.same_slides(settings.same_slides, shards, train, size, MAX_HELD_OUT, cache)
    return train, held_out, same, features.load(settings.features, settings.feature_size)


def open_copy_filter(loaded: Loaded, settings: SamplingSettings, processes: Processes) -> CopyFilter:
    """Make the filter of --filter-copies; every process of the launch calls this."""
    from attributegan.evaluation.copies import copy_filter
    from attributegan.evaluation.reference import FeatureCache
    from tools.progress import StageProgress

    train, held_out, same, network = _training_tiles(loaded, settings)
    progress, cache = StageProgress(processes.is_main), FeatureCache.at(settings.cache)
    found = copy_filter(
        train, held_out, network.to(processes.device), same_slides=same, processes=processes, cache=cache, progress=progress
    )
    progress.close()
    return found


def digest_of(settings: SamplingSettings) -> str:
    """Return what identifies the weights in a set's fingerprint."""
    return Path(settings.model, "manifest.json").read_text() + str(settings.no_ema)


def make_recipe(loaded: Loaded, settings: SamplingSettings) -> Recipe:
    """Return the recipe of the tiles.

    Raises:
        ValueError: ``--levels`` or ``--levels-from`` don't fit the model or the format.
    """
    from tools.sampling.writer import Recipe

    real_NA = None
    if settings.levels_from:
        from data_shards.loader.shard_set import ShardSet

        shards = ShardSet.open(settings.levels_from, split_option="--levels-from")
        if differences := loaded.schema.difference(shards.schema):
            raise ValueError(f"--levels-from: {shards.location} does not fit the model: {'; '.join(differences)}")
        real_NA = shards.levels_NA
    given = loaded.schema.parse(settings.levels)
    if settings.to_shards and (fractional := [name for name, level in given.items() if level != int(level)]):
        raise ValueError(f"--levels {fractional[0]}={given[fractional[0]]}: shards hold integer levels; use another --format")
    return Recipe(loaded, settings.seed, given, real_NA, settings.truncation, settings.batch, settings.precision)


def _pictures(loaded: Loaded, settings: SamplingSettings) -> dict[str, bytes]:
    """Return the encoded pictures that the options request, by file name."""
    from attributegan.sampling import grids, latents
    from tools.sampling.writer import encoded, movie

    generator, schema = loaded.generator, loaded.schema
    given = schema.parse(settings.levels)
    indices = range(min(settings.count, LATENTS_IN_GRID))
    found: dict[str, bytes] = {}
    if settings.project:
        latents_BL, given, found = _project(loaded, settings.project, settings)
        indices = range(1)
    elif not (settings.sweep or settings.pair or settings.interpolate):
        return {}
    else:
        latents_BL = make_recipe(loaded, settings).latents(indices)
    if settings.sweep:
        grid = grids.sweep_grid(generator, schema, latents_BL, latents.middle_levels(schema, given), settings.batch)
        found["sweep.png"] = encoded(grid)
    if settings.pair:
        rows, columns = settings.pair
        grid = grids.pair_grid(generator, schema, latents_BL[:1], rows, columns, latents.middle_levels(schema, given), settings.batch)
        found["pair.png"] = encoded(grid)
    if settings.interpolate:
        start, end = (latents.levels_for(schema, settings.seed, indices, given | schema.parse(levels)) for levels in settings.interpolate)
        found["interpolation.png"] = encoded(grids.interpolation_grid(generator, schema, latents_BL, start, end, batch=settings.batch))
        if settings.movie:
            frames = grids.frames(generator, schema, latents_BL, start, end, batch=settings.batch)
            found[f"interpolation.{settings.movie}"] = movie(frames, settings.movie)
    return found


def _project(loaded: Loaded, image_path: Path, settings: SamplingSettings) -> tuple[Any, dict[str, float], dict[str, bytes]]:
    """Find the latent of an image.

    Returns:
        The latent (1, L), the levels by attribute name, and the files projection.png and projection.json.

    Raises:
        ValueError: not a readable image.
    """
    import numpy as np
    from tqdm import tqdm

    from attributegan.sampling.projector import project
    from data_shards.format import intact, rgb
    from data_shards.format.tile import DECODING_ERRORS, fit
    from tools.sampling.writer import encoded

    size = loaded.config.model.image_size
    try:
        data = image_path.read_bytes()
        intact.check(data)
        with rgb.opened(data) as image:
            rgb.check_one_picture(image)
            target: np.ndarray = np.asarray(fit(rgb.to_rgb(image), size))
    except DECODING_ERRORS as error:
        raise ValueError(f"--project {image_path}: not a readable image: {error}") from error
    with tqdm(total=settings.steps, desc="projection", disable=None, file=sys.stderr) as bar:

        def advance(step: int) -> None:
            bar.update(1)

        found = project(
            loaded.generator,
            loaded.schema,
            target,
            loaded.config.model.latent_dim,
            loaded.schema.parse(settings.levels),
            settings.steps,
            settings.seed,
            advance,
        )
    levels = dict(zip(loaded.schema.names, found.levels_1A[0].tolist(), strict=True))
    tree = {
        "image": image_path.name,
        "levels": loaded.schema.written(list(levels.values())),
        "distance": found.distance,
        "distance_of_best_start": found.start,
        "latent": found.latent_1L[0].tolist(),
    }
    gap = np.full((size, 2, 3), 255, np.uint8)
    picture = encoded(np.concatenate([target, gap, found.tile_HWC], axis=1))
    files = {"projection.png": picture, "projection.json": json.dumps(tree, indent=1).encode()}
    return found.latent_1L, levels, files


if __name__ == "__main__":
    sys.exit(main())
