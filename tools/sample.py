"""``attributegan-sample``: tiles, attribute sweeps and interpolations from a trained model.

Owns the command line and the files it writes. What is drawn and how a grid looks is in `attributegan.sample`.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attributegan.cli import exit_status, parser

if TYPE_CHECKING:
    import numpy as np

    from attributegan.checkpoint import Loaded

EXAMPLES = """\
  attributegan-sample runs/first --out tiles --count 64                                    levels drawn at random
  attributegan-sample runs/first --out tiles --count 64 --levels cell_crowding=4,mitosis=frequent
  attributegan-sample runs/first --out tiles --count 2 --sweep                             a row for each attribute
  attributegan-sample runs/first --out tiles --count 2 --interpolate pleomorphism=1 pleomorphism=4
  attributegan-sample runs/first/checkpoints/images-000000020000 --out tiles --raw         an older state, not averaged
  attributegan-shard pack --images tiles --labels tiles/samples.csv --out shards           the tiles as training data"""

LATENTS_IN_GRID = 4  # grids show the latents of the first tiles, at most this many


def main(argv: Sequence[str] | None = None) -> int:
    """Parse ``argv`` (the process's arguments by default), sample, and return the exit status."""
    options = _parser().parse_args(argv)
    return exit_status(lambda: _sample(options))


def _parser() -> argparse.ArgumentParser:
    result = parser("Make tiles with a trained model. DIR gets PNG files and samples.csv, which says the levels of each.", EXAMPLES)
    result.add_argument("model", metavar="RUN|CHECKPOINT", help="a run's folder (its newest checkpoint) or one checkpoint")
    result.add_argument("--out", metavar="DIR", required=True, type=Path, help="folder for the tiles; made if it is not there")
    result.add_argument("--count", metavar="N", type=int, default=16, help="number of tiles (default: %(default)s)")
    result.add_argument("--levels", metavar="A=L,...", default="", help="fixed levels, by number or name; the other attributes are drawn")
    result.add_argument("--sweep", action="store_true", help="also sweep.png: each attribute through its levels, a latent a row")
    result.add_argument("--interpolate", nargs=2, metavar=("A=L,...", "A=L,..."),
                        help="also interpolation.png: from the first levels to the second, a latent a row")  # fmt: skip
    result.add_argument("--seed", metavar="S", type=int, default=0, help="tile k of a seed is always the same (default: %(default)s)")
    result.add_argument("--batch", metavar="B", type=int, default=16, help="tiles made at a time (default: %(default)s)")
    result.add_argument("--raw", action="store_true", help="the weights as trained, instead of their average (EMA)")
    return result


def _sample(options: argparse.Namespace) -> None:
    for name in ("count", "batch"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name}: {getattr(options, name)} must be at least 1")
    import torch

    from attributegan.checkpoint import load_for_sampling

    loaded = load_for_sampling(options.model, ema=not options.raw)
    loaded.generator.to("cuda" if torch.cuda.is_available() else "cpu")
    grids = _grids(loaded, options)  # before the tiles: levels that can't be are refused before anything is written
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {options.out}: can't be made: {error}") from error
    _write_tiles(loaded, options)
    for name, grid in grids.items():
        _write(options.out / name, _png(grid))
    written = ", ".join(["samples.csv", *grids])
    print(f"{options.count} tiles, {written} in {options.out} (model after {loaded.images:,} images)")


def _grids(loaded: Loaded, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """The pictures asked for, by file name."""
    from attributegan import sample

    generator, schema = loaded.generator, loaded.schema
    given = schema.parse(options.levels)
    shown = range(min(options.count, LATENTS_IN_GRID))
    latents_BL = sample.latents_for(options.seed, shown, loaded.config.model.latent_dim)
    grids = {}
    if options.sweep:
        grids["sweep.png"] = sample.sweep_grid(generator, schema, latents_BL, sample.middle_levels(schema, given), options.batch)
    if options.interpolate:
        start, end = (
            sample.levels_for(schema, options.seed, shown, given | schema.parse(levels)) for levels in options.interpolate
        )  # fmt: skip
        grids["interpolation.png"] = sample.interpolation_grid(generator, schema, latents_BL, start, end, batch=options.batch)
    return grids


def _write_tiles(loaded: Loaded, options: argparse.Namespace) -> None:
    """Write ``{k}.png`` for each tile, then samples.csv: a table there says that its tiles are."""
    from tqdm import tqdm

    from attributegan import sample

    schema, given = loaded.schema, loaded.schema.parse(options.levels)
    (options.out / "samples.csv").unlink(missing_ok=True)
    rows = []
    for first in tqdm(range(0, options.count, options.batch), unit="batch", disable=None, file=sys.stderr):
        indices = range(first, min(first + options.batch, options.count))
        latents_BL = sample.latents_for(options.seed, indices, loaded.config.model.latent_dim)
        levels_BA = sample.levels_for(schema, options.seed, indices, given)
        tiles = sample.generate(loaded.generator, latents_BL, levels_BA, options.batch)
        for index, tile, levels in zip(indices, tiles, levels_BA.tolist(), strict=True):
            _write(options.out / f"{index:06d}.png", _png(tile))
            rows.append([f"{index:06d}.png", *levels, options.seed])
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([["file", *schema.names, "seed"], *rows])
    _write(options.out / "samples.csv", table.getvalue().encode())


def _png(image_HWC: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, format="PNG")
    return buffer.getvalue()


def _write(path: Path, data: bytes) -> None:
    """Write aside, then rename: under its name a file is whole."""
    aside = path.with_name(f".writing-{path.name}")
    with aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


if __name__ == "__main__":
    sys.exit(main())
