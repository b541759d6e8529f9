"""``attributegan-sample``: tiles, attribute sweeps, grids, films and projections from a trained model.

Owns the command line. What is drawn is `attributegan.sampling.grids`'s, files are `tools.sampling.writer`'s.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attributegan.cli import exit_status, parser
from tools import options as options_module

if TYPE_CHECKING:  # these import slowly, and help texts should not
    import numpy as np

    from attributegan.checkpoint.loading import Loaded
    from tools.sampling.writer import Recipe

EXAMPLES = """\
  attributegan-sample runs/first --out tiles --count 64                                    levels drawn evenly
  attributegan-sample runs/first --out tiles --count 64 --levels cell_crowding=4,mitosis=frequent
  attributegan-sample runs/first --out tiles --count 5000 --levels-from shards             levels as real tiles have them
  attributegan-sample runs/first --out made --count 50000 --format shards --workers 2 --precision bf16
  attributegan-sample runs/first --out tiles --count 2 --sweep --pair mitosis nucleoli     a row for each attribute; all pairs of two
  attributegan-sample runs/first --out tiles --count 2 --interpolate pleomorphism=1 pleomorphism=4 --movie gif
  attributegan-sample runs/first --out found --project tile.png --sweep                    the tile's latent, moved
  attributegan-sample runs/first/checkpoints/images-000000020000 --out tiles --no-ema         an older state, not averaged
  attributegan-shard pack --images tiles --labels tiles/samples.csv --out shards           the tiles as training data"""

LATENTS_IN_GRID = 4  # grids show the latents of the first tiles, at most this many


def main(argv: Sequence[str] | None = None) -> int:
    """Parse ``argv`` (the process's arguments by default), sample, and return the exit status."""
    options = _parser().parse_args(argv)
    return exit_status(lambda: _sample(options))


def _parser() -> argparse.ArgumentParser:
    result = parser(
        "Make tiles with a trained model. DIR gets image files and samples.csv, which says the levels of each, or is a shard set. Tile k "
        "of a seed is the same tile whatever the count, the batch or the number of processes. Works under `accelerate launch` too.",
        EXAMPLES,
    )
    result.add_argument("model", metavar="RUN|CHECKPOINT", help="a run's folder (its newest checkpoint) or one checkpoint")
    result.add_argument("--out", metavar="DIR", required=True, type=Path, help="folder for the tiles; made if it is not there")
    result.add_argument("--count", metavar="N", type=int, default=16, help="number of tiles (default: %(default)s)")
    result.add_argument("--levels", metavar="A=L,...", default="", help="fixed levels, by number or name; the other attributes are drawn")
    result.add_argument(
        "--levels-from", metavar="SHARDS", help="draw levels as this set's training tiles have them, jointly; without it, all levels alike"
    )
    result.add_argument("--format", choices=("png", "jpeg", "webp", "shards"), default="png", help="(default: %(default)s)")
    result.add_argument("--shard-count", metavar="N", type=int, default=1000, help="tiles in a shard (default: %(default)s)")
    result.add_argument("--overwrite", action="store_true", help="replace an earlier sampling in DIR, or another shard set")
    result.add_argument("--truncation", metavar="T", type=float, help="latents from a normal cut off at T: fewer odd tiles, less variety")
    result.add_argument("--sweep", action="store_true", help="also sweep.png: each attribute through its levels, a latent a row")
    result.add_argument(
        "--pair", nargs=2, metavar=("A", "B"), help="also pair.png: all levels of A by all levels of B, of the first latent"
    )
    result.add_argument(
        "--interpolate",
        nargs=2,
        metavar=("A=L,...", "A=L,..."),
        help="also interpolation.png: from the first levels to the second, a latent a row",
    )
    result.add_argument("--movie", choices=("gif", "mp4"), help="with --interpolate, also a film of it (mp4 needs the extra `movie`)")
    result.add_argument(
        "--project",
        metavar="IMAGE",
        type=Path,
        help="no tiles: search for the latent of this image (projection.png); --sweep and the like move it",
    )
    result.add_argument("--steps", metavar="N", type=int, default=300, help="of the search of --project (default: %(default)s)")
    result.add_argument("--seed", metavar="S", type=int, default=0, help="tile k of a seed is always the same (default: %(default)s)")
    result.add_argument("--batch", metavar="B", type=int, default=16, help="tiles made at a time (default: %(default)s)")
    options_module.add_precision(result)
    result.add_argument("--workers", metavar="N", type=int, default=1, help="processes that make tiles (default: %(default)s)")
    result.add_argument("--no-ema", action="store_true", help="the weights as trained, instead of their average (EMA)")
    return result


def _check(options: argparse.Namespace) -> None:
    for name in ("count", "batch", "workers", "shard_count", "steps"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')}: {getattr(options, name)} must be at least 1")
    if options.truncation is not None and not options.truncation > 0:
        raise ValueError(f"--truncation: {options.truncation} must be above 0")
    if options.movie and not options.interpolate:
        raise ValueError("--movie: give --interpolate too; a film shows the way between two ends")
    pictures = [f"--{name}" for name in ("sweep", "pair", "interpolate", "project") if getattr(options, name)]
    if options.format == "shards" and pictures:
        raise ValueError(f"{pictures[0]}: a shard set has no place for pictures; use another --format and --out")


def _sample(options: argparse.Namespace) -> None:
    _check(options)
    from attributegan.checkpoint.store import resolve
    from attributegan.distributed.process_group import is_main
    from attributegan.utils.files import require_writable
    from tools.sampling.writer import to_replace, write_whole

    require_writable(options.out, "--out")
    options.model = resolve(options.model)  # every process takes the same one
    if not is_main():  # of `accelerate launch`; pictures and words come from the main process
        _make_folder(options.out.parent if options.format == "shards" else options.out)
        return None if options.project else make_tiles(options)
    old = [] if options.format == "shards" else to_replace(options.out, options.overwrite)
    options.precision = options_module.precision_of(options.precision)
    loaded = _load(options)
    pictures = _pictures(loaded, options)  # before the tiles: levels that can't be are refused before anything is written
    if options.project:
        written = sorted(pictures)
    else:
        _recipe(loaded, options)  # refuses what can't be drawn from
        written = sorted(["samples.csv", *pictures]) if options.format != "shards" else []
    _make_folder(options.out if written else options.out.parent)
    for path in old:
        path.unlink()
    if not options.project:
        if options.workers > 1:
            from attributegan.distributed.process_group import launch

            launch(make_tiles, (options,), options.workers)
        else:
            make_tiles(options)
    for name, data in pictures.items():
        write_whole(options.out / name, data)
    tiles = "" if options.project else f"{options.count} tiles, "
    print(f"{tiles}{', '.join(written) or 'a shard set'} in {options.out} (model after {loaded.images:,} images)")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {folder}: can't be made: {error}") from error


def _load(options: argparse.Namespace) -> Loaded:
    import torch

    from attributegan.checkpoint.loading import load_for_sampling
    from attributegan.sampling.generate import prepare_for_inference

    loaded = load_for_sampling(options.model, ema=not options.no_ema)
    prepare_for_inference(loaded.generator, "cuda" if torch.cuda.is_available() else "cpu")
    return loaded


def make_tiles(options: argparse.Namespace) -> None:
    """This process's share of the tiles; every process of the launch calls."""
    from attributegan.distributed.process_group import Processes
    from tools.sampling import writer

    processes = Processes()
    try:
        options.precision = processes.broadcast_object(options.precision)
        loaded = _load(options)
        loaded.generator.to(processes.device)
        recipe = _recipe(loaded, options)
        if options.format == "shards":
            digest = (options.model / "manifest.json").read_text() + str(options.no_ema)
            writer.write_shards(recipe, options.out, options.count, options.shard_count, options.overwrite, digest, processes)
        else:
            writer.write_files(recipe, options.out, options.count, options.format, processes)
    finally:
        processes.shutdown()


def _recipe(loaded: Loaded, options: argparse.Namespace) -> Recipe:
    from tools.sampling.writer import Recipe

    real_NA = None
    if options.levels_from:
        from data_shards.loader.shard_set import ShardSet

        shards = ShardSet.open(options.levels_from, split_option="--levels-from")
        if differences := loaded.schema.difference(shards.schema):
            raise ValueError(f"--levels-from: {options.levels_from} does not fit the model: {'; '.join(differences)}")
        real_NA = shards.levels_NA
    given = loaded.schema.parse(options.levels)
    if options.format == "shards" and (between := [name for name, level in given.items() if level != int(level)]):
        raise ValueError(f"--levels {between[0]}={given[between[0]]}: shards hold whole levels; use another --format")
    return Recipe(loaded, options.seed, given, real_NA, options.truncation, options.batch, options.precision)


def _pictures(loaded: Loaded, options: argparse.Namespace) -> dict[str, bytes]:
    """The pictures asked for, by file name."""
    from attributegan.sampling import grids, latents
    from tools.sampling.writer import encoded, film

    generator, schema = loaded.generator, loaded.schema
    given = schema.parse(options.levels)
    shown = range(min(options.count, LATENTS_IN_GRID))
    found: dict[str, bytes] = {}
    if options.project:
        latents_BL, given, found = _project(loaded, options)
        shown = range(1)
    elif not (options.sweep or options.pair or options.interpolate):
        return {}
    else:
        latents_BL = _recipe(loaded, options).latents(shown)
    if options.sweep:
        grid = grids.sweep_grid(generator, schema, latents_BL, latents.middle_levels(schema, given), options.batch)
        found["sweep.png"] = encoded(grid)
    if options.pair:
        rows, columns = options.pair
        grid = grids.pair_grid(generator, schema, latents_BL[:1], rows, columns, latents.middle_levels(schema, given), options.batch)
        found["pair.png"] = encoded(grid)
    if options.interpolate:
        start, end = (latents.levels_for(schema, options.seed, shown, given | schema.parse(levels)) for levels in options.interpolate)
        found["interpolation.png"] = encoded(grids.interpolation_grid(generator, schema, latents_BL, start, end, batch=options.batch))
        if options.movie:
            pictures = grids.frames(generator, schema, latents_BL, start, end, batch=options.batch)
            found[f"interpolation.{options.movie}"] = film(pictures, options.movie)
    return found


def _advance(bar: Any) -> None:
    bar.update(1)


def _project(loaded: Loaded, options: argparse.Namespace) -> tuple[Any, dict[str, float], dict[str, bytes]]:
    """The latent of --project, its levels by name, and the files that tell of it."""
    import numpy as np
    from tqdm import tqdm

    from attributegan.sampling.projector import project
    from data_shards.format import intact, rgb
    from data_shards.format.tile import DECODING_ERRORS, fit
    from tools.sampling.writer import encoded

    size = loaded.config.model.image_size
    try:
        data = options.project.read_bytes()
        intact.check(data)
        with rgb.opened(data) as image:
            rgb.check_one_picture(image)
            target: np.ndarray = np.asarray(fit(rgb.to_rgb(image), size))
    except DECODING_ERRORS as error:
        raise ValueError(f"--project {options.project}: not a readable image: {error}") from error
    with tqdm(total=options.steps, desc="search", disable=None, file=sys.stderr) as bar:
        found = project(
            loaded.generator,
            loaded.schema,
            target,
            loaded.config.model.latent_dim,
            loaded.schema.parse(options.levels),
            options.steps,
            options.seed,
            lambda step: _advance(bar),
        )
    levels = dict(zip(loaded.schema.names, found.levels_1A[0].tolist(), strict=True))
    written = loaded.schema.written(list(levels.values()))
    tree = {
        "image": options.project.name,
        "levels": written,
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
