"""``attributegan-shard``: make shard sets from tiles and look after them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attributegan import cli
from attributegan.attributes import PUBLISHED, AttributeSchema
from tools import options as options_module
from tools.shards import card, import_labels, measure, tables, tile

if TYPE_CHECKING:  # these import slowly, and help texts should not
    from data_shards.format.index import Header
    from data_shards.packing.labels import Labels
    from data_shards.packing.sources import Source

EXAMPLES = """\
  attributegan-shard pack --images tiles --labels levels.csv --group slide --out shards
  attributegan-shard pack --images tiles --labels a.csv --labels b.csv --out shards --size 128 --column file=path
  attributegan-shard phantom --count 4000 --size 64 --out shards
  attributegan-shard verify shards
  attributegan-shard index tars --attributes my_attributes.yaml"""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    status = 0

    def work() -> None:
        nonlocal status
        status = arguments.run(arguments)

    return cli.exit_status(work) or status


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("Make shard sets from tiles and look after them.", EXAMPLES)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _pack_options(
        commands.add_parser("pack", help="pack a folder of tiles and a table of levels", formatter_class=_HELP, epilog=PACK_EXAMPLES)
    )
    _phantom_options(commands.add_parser("phantom", help="draw tiles with known levels and pack them"))
    _verify_options(commands.add_parser("verify", help="check every byte of a set; status 0 when it is clean, 1 when it is not"))
    _index_options(
        commands.add_parser("index", help="make a set of WebDataset tars that others packed", formatter_class=_HELP, epilog=INDEX_EXAMPLES)
    )
    tile.add(commands)
    import_labels.add(commands)
    tables.add(commands)
    card.add(commands)
    measure.add(commands)
    return parser


_HELP = argparse.RawDescriptionHelpFormatter
PACK_EXAMPLES = """\
The table needs a column `file` (names relative to --images) and one for each attribute, with levels as numbers or names. Columns are
divided by , ; tab or |. Transparent pixels are put on white, 16 bits are scaled to 8; docs/inputs.md describes every kind of input.

examples:
  attributegan-shard pack --images tiles --labels levels.csv --group slide --out shards
  attributegan-shard pack --images tiles --labels levels.csv --out shards --size 256 --column file=path --column mitosis=mit
  attributegan-shard pack --images tiles --labels levels.csv --out shards --attributes my_attributes.yaml --val-fraction 0"""


INDEX_EXAMPLES = """\
A sample needs an image (jpg, png or webp) and its levels: in .json by attribute name, at the top or under "levels", or in .cls when there
is one attribute. The tars stay as they are, and the index is written beside them.

examples:
  attributegan-shard index tars
  attributegan-shard index tars --attributes my_attributes.yaml --val 'holdout-*.tar' --group slide"""


def _pack_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", required=True, type=Path, metavar="DIR", help="folder of the tiles (JPEG, PNG, WebP, TIFF, …)")
    parser.add_argument(
        "--labels", required=True, type=Path, action="append", metavar="FILE", help="CSV with the levels; may be given several times"
    )
    parser.add_argument(
        "--size", type=int, metavar="PIXELS", help="crop to a centred square and resize, stored as PNG; without it, files go in as they are"
    )
    parser.add_argument(
        "--group", metavar="COLUMN", help="column, such as the slide or patient, whose tiles must stay on one side of the split"
    )
    _attributes_option(parser)
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NAME=COLUMN",
        help="column of the CSV for `file` or an attribute, if it has another name",
    )
    _skip_bad_option(parser)
    parser.add_argument(
        "--quick", action="store_true", help="don't decode each image to see whether it is whole; `attributegan-shard verify` does, too"
    )
    _common_options(parser, val_fraction=0.2)
    parser.set_defaults(run=_pack)


def _phantom_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", required=True, type=int, metavar="N", help="how many tiles")
    parser.add_argument("--size", required=True, type=int, metavar="PIXELS", help="width and height")
    parser.add_argument(
        "--like",
        type=Path,
        metavar="CSV",
        help="levels as frequent as in this table, the rows with all five assessable; by default all alike",
    )
    _common_options(parser, val_fraction=0.1)
    parser.set_defaults(run=_phantom)


def _common_options(parser: argparse.ArgumentParser, val_fraction: float) -> None:
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the new set")
    parser.add_argument("--overwrite", action="store_true", help="replace another shard set in that folder")
    parser.add_argument(
        "--val-fraction", type=float, default=val_fraction, metavar="X", help="share of the tiles held out in split `val` (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn: split, order, phantoms (%(default)s)")
    parser.add_argument("--shard-size", type=float, default=256, metavar="MB", help="largest shard, about, in MiB (%(default)s)")
    parser.add_argument("--shard-count", type=int, default=1000, metavar="N", help="most tiles in a shard (%(default)s)")
    _workers_option(parser)


def _verify_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("set", metavar="DIR", help="folder or URL of the set")
    _workers_option(parser)
    options_module.add(parser)
    parser.set_defaults(run=_verify)


def _index_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tars", type=Path, metavar="DIR", help="folder of the tars")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for the index and links to the tars, where theirs can't be written to"
    )
    parser.add_argument("--val", default="val*.tar", metavar="PATTERN", help="names of the tars of split `val` (%(default)s)")
    parser.add_argument("--group", default="group", metavar="NAME", help="entry of the .json with the slide or patient (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an index that is there")
    _attributes_option(parser)
    _skip_bad_option(parser)
    _workers_option(parser)
    parser.set_defaults(run=_index)


def _attributes_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--attributes", type=Path, metavar="FILE", help="YAML with your attributes; without it, the five of the paper")


def _skip_bad_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--skip-bad", action="store_true", help="leave out tiles with something wrong, instead of refusing all")


def _workers_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, metavar="N", help="processes (one for each core)")


def _schema(arguments: argparse.Namespace) -> AttributeSchema:
    return AttributeSchema.from_yaml(arguments.attributes) if arguments.attributes else PUBLISHED


def _processes(arguments: argparse.Namespace) -> int:
    from data_shards import worker_pool

    if arguments.workers is not None and arguments.workers < 1:
        raise ValueError(f"--workers: {arguments.workers} must be above 0")
    return arguments.workers or worker_pool.available()


def _pack(arguments: argparse.Namespace) -> int:
    from data_shards.packing.labels import read_labels
    from data_shards.packing.sources import Folder

    if not arguments.images.is_dir():
        raise ValueError(f"--images: {arguments.images} is no folder")
    if arguments.size is not None and arguments.size < 1:
        raise ValueError(f"--size: {arguments.size} must be above 0")
    labels = read_labels(arguments.labels, _schema(arguments), _columns(arguments.column), arguments.group)
    return _write(labels, Folder(str(arguments.images), arguments.size, arguments.quick), arguments)


def _columns(texts: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    if bad := [text for text, (name, _, column) in zip(texts, pairs, strict=True) if not (name and column)]:
        raise ValueError(f"--column {bad[0]}: write NAME=COLUMN, such as file=filename")
    names = [name for name, _, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"--column: {twice[0]} is given more than once; give each name one column")
    return {name: column for name, _, column in pairs}


def _phantom(arguments: argparse.Namespace) -> int:
    from attributegan.attributes import PUBLISHED
    from data_shards.packing.labels import read_labels
    from data_shards.packing.sources import Phantoms, phantom_labels

    if arguments.count < 1:
        raise ValueError(f"--count: {arguments.count} must be above 0")
    if not 32 <= arguments.size <= 1024:
        raise ValueError(f"--size: {arguments.size} is not from 32 to 1024")
    like = read_labels([arguments.like], PUBLISHED) if arguments.like else None
    try:
        labels = phantom_labels(arguments.count, arguments.seed, like)
    except ValueError as error:
        raise ValueError(f"--like {arguments.like}: {error}") from error
    return _write(labels, Phantoms(labels.schema, arguments.size, arguments.seed), arguments)


def _write(labels: Labels, source: Source, arguments: argparse.Namespace) -> int:
    from attributegan.utils.files import require_writable
    from data_shards.packing.packer import pack
    from data_shards.packing.plan import Options
    from tools.progress import TileProgress

    shard_bytes = int(arguments.shard_size * 2**20)
    options = Options(arguments.val_fraction, arguments.seed, shard_bytes, arguments.shard_count)
    processes = _processes(arguments)
    choices = {name: getattr(arguments, name, False) for name in ("skip_bad", "overwrite")}
    require_writable(arguments.out.absolute().parent, "--out")
    try:
        with TileProgress(len(labels.table)) as progress:
            header = pack(labels, source, arguments.out, options, processes=processes, progress=progress, **choices)
    except OSError as error:  # no space, no permission
        raise ValueError(f"--out: {error}; what is written of the set so far is kept beside it, for the same command to go on") from error
    return _tell(arguments.out, header)


def _verify(arguments: argparse.Namespace) -> int:
    from data_shards.verify import verify
    from tools.progress import TileProgress

    processes, problems = _processes(arguments), 0
    with TileProgress() as progress:
        for problem in verify(arguments.set, processes, progress, options_module.cache_of(arguments)):
            problems += 1
            progress.print(problem)
    from data_shards.storage.stores import redact

    print(f"{redact(arguments.set)}: {f'not clean, {problems:,} problems' if problems else f'clean, {progress.done:,} tiles'}")
    return 1 if problems else 0


def _index(arguments: argparse.Namespace) -> int:
    from data_shards.packing.index_tars import index_tars
    from tools.progress import TileProgress

    choices = {name: getattr(arguments, name) for name in ("val", "group", "out", "skip_bad", "overwrite")}
    with TileProgress() as progress:
        header = index_tars(arguments.tars, _schema(arguments), processes=_processes(arguments), progress=progress, **choices)
    return _tell(arguments.out or arguments.tars, header)


def _tell(folder: Path, header: Header) -> int:
    for line in header.left_out:
        print(f"left out: {line}", file=sys.stderr)
    print(summary(folder, header))
    for line in _absent_levels(folder, header):
        print(f"  {line}")
    return 0


def _absent_levels(folder: Path, header: Header) -> list[str]:
    import numpy as np

    from data_shards.format import index
    from data_shards.packing import level_counts

    table = index.read_table(folder / index.FILE, header.schema.names)
    return level_counts.absent(header.schema, np.stack([table[name].to_numpy() for name in header.schema.names], axis=1))


def summary(folder: Path, header: Header) -> str:
    """What a set holds, in a line for each split."""
    lines = [f"{folder}: {len(header.schema.names)} attributes ({', '.join(header.schema.names)})"]
    for split in header.splits:
        shards = [shard for shard in header.shards if shard.split == split]
        tiles, size = sum(shard.tiles for shard in shards), sum(shard.size for shard in shards)
        lines.append(f"  {split}: {tiles:,} tiles in {len(shards):,} shards, {size / 2**20:,.1f} MiB")
    skipped = sum(line.endswith((": skipped: not a tar", ": passed over: not a tar")) for line in header.left_out)  # the second: older sets
    tiles = len(header.left_out) - skipped
    return "\n".join(lines + [f"  {count:,} {what}" for count, what in ((tiles, "tiles left out"), (skipped, "files skipped")) if count])


if __name__ == "__main__":
    sys.exit(main())
