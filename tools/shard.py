"""``attributegan-shard``: make shard sets from tiles and look after them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attributegan import cli
from attributegan.attributes import PUBLISHED, AttributeSchema

if TYPE_CHECKING:  # these import slowly, and help texts should not
    from data_shards.index import Header
    from data_shards.labels import Labels
    from data_shards.sources import Source

EXAMPLES = """\
  attributegan-shard pack --images tiles --labels levels.csv --group slide --out shards
  attributegan-shard pack --images tiles --labels a.csv --labels b.csv --out shards --size 128 --column file=path
  attributegan-shard phantom --count 4000 --size 64 --out shards"""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    return cli.exit_status(lambda: arguments.run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("Make shard sets from tiles and look after them.", EXAMPLES)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _pack_options(
        commands.add_parser("pack", help="pack a folder of tiles and a table of levels", formatter_class=_HELP, epilog=PACK_EXAMPLES)
    )
    _phantom_options(commands.add_parser("phantom", help="draw tiles with known levels and pack them"))
    return parser


_HELP = argparse.RawDescriptionHelpFormatter
PACK_EXAMPLES = """\
The table needs a column `file` (names relative to --images) and one for each attribute, with levels as numbers or names.

examples:
  attributegan-shard pack --images tiles --labels levels.csv --group slide --out shards
  attributegan-shard pack --images tiles --labels levels.csv --out shards --size 256 --column file=path --column mitosis=mit
  attributegan-shard pack --images tiles --labels levels.csv --out shards --attributes my_attributes.yaml --val-fraction 0"""


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
    parser.add_argument("--attributes", type=Path, metavar="FILE", help="YAML with your attributes; without it, the five of the paper")
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NAME=COLUMN",
        help="column of the CSV for `file` or an attribute, if it has another name",
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out tiles that are missing, unreadable or have wrong levels, instead of refusing all"
    )
    _common_options(parser, val_fraction=0.2)
    parser.set_defaults(run=_pack)


def _phantom_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", required=True, type=int, metavar="N", help="how many tiles")
    parser.add_argument("--size", required=True, type=int, metavar="PIXELS", help="width and height")
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
    parser.add_argument("--workers", type=int, metavar="N", help="processes (one for each core)")


def _pack(arguments: argparse.Namespace) -> None:
    from data_shards.labels import read_labels
    from data_shards.sources import Folder

    if not arguments.images.is_dir():
        raise ValueError(f"--images: {arguments.images} is no folder")
    if arguments.size is not None and arguments.size < 1:
        raise ValueError(f"--size: {arguments.size} must be above 0")
    schema = AttributeSchema.from_yaml(arguments.attributes) if arguments.attributes else PUBLISHED
    labels = read_labels(arguments.labels, schema, _columns(arguments.column), arguments.group)
    _write(labels, Folder(str(arguments.images), arguments.size), arguments)


def _columns(texts: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    if bad := [text for text, (name, _, column) in zip(texts, pairs, strict=True) if not (name and column)]:
        raise ValueError(f"--column {bad[0]}: write NAME=COLUMN, such as file=filename")
    return {name: column for name, _, column in pairs}


def _phantom(arguments: argparse.Namespace) -> None:
    from data_shards.sources import Phantoms, phantom_labels

    if arguments.count < 1:
        raise ValueError(f"--count: {arguments.count} must be above 0")
    if not 32 <= arguments.size <= 1024:
        raise ValueError(f"--size: {arguments.size} is not from 32 to 1024")
    labels = phantom_labels(arguments.count, arguments.seed)
    _write(labels, Phantoms(labels.schema, arguments.size, arguments.seed), arguments)


def _write(labels: Labels, source: Source, arguments: argparse.Namespace) -> None:
    from data_shards import workers
    from data_shards.pack import pack
    from data_shards.plan import Options
    from tools.shard_progress import TileProgress

    shard_bytes = int(arguments.shard_size * 2**20)
    options = Options(arguments.val_fraction, arguments.seed, shard_bytes, arguments.shard_count)
    if arguments.workers is not None and arguments.workers < 1:
        raise ValueError(f"--workers: {arguments.workers} must be above 0")
    choices = {name: getattr(arguments, name, False) for name in ("skip_bad", "overwrite")}
    try:
        with TileProgress(len(labels.table)) as progress:
            processes = arguments.workers or workers.available()
            header = pack(labels, source, arguments.out, options, processes=processes, progress=progress, **choices)
    except OSError as error:  # no space, no permission
        raise ValueError(f"--out: {error}; what is written of the set so far is kept beside it, for the same command to go on") from error
    for line in header.left_out:
        print(f"left out: {line}", file=sys.stderr)
    print(summary(arguments.out, header))


def summary(folder: Path, header: Header) -> str:
    """What a set holds, in a line for each split."""
    lines = [f"{folder}: {len(header.schema.names)} attributes ({', '.join(header.schema.names)})"]
    for split in header.splits:
        shards = [shard for shard in header.shards if shard.split == split]
        tiles, size = sum(shard.tiles for shard in shards), sum(shard.size for shard in shards)
        lines.append(f"  {split}: {tiles:,} tiles in {len(shards):,} shards, {size / 2**20:,.1f} MiB")
    return "\n".join(lines + ([f"  {len(header.left_out):,} tiles left out"] if header.left_out else []))


if __name__ == "__main__":
    sys.exit(main())
