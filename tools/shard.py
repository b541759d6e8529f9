"""``attributegan-shard``: makes shard sets from tiles, checks them, and converts labels.

Owns ``pack``, ``phantom``, ``merge``, ``verify`` and ``index``; the other subcommands are in `tools.shards`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attributegan import cli
from attributegan.attributes import PUBLISHED, AttributeSchema
from tools import options as options_module
from tools.options import with_settings
from tools.shards import card, import_labels, measure, tables, tile

if TYPE_CHECKING:  # slow to import; --help must be fast
    from data_shards.format.index import Header
    from data_shards.packing.labels import Labels
    from data_shards.packing.parts import Part
    from data_shards.packing.plan import Options
    from data_shards.packing.sources import Source

EXAMPLES = """\
  attributegan-shard pack --images tiles --labels levels.csv --group slide --out shards
  attributegan-shard phantom --count 4000 --size 64 --out shards
  attributegan-shard verify shards
  attributegan-shard COMMAND --help          options and examples of a command"""

PACK_EXAMPLES = """\
The table needs a column `file` (paths relative to --images) and a column per attribute, with levels as numbers or names. Columns are
separated by , ; tab or |. Transparent pixels become white, 16-bit images are scaled to 8 bits. All accepted inputs: docs/inputs.md.

examples:
  attributegan-shard pack --images tiles --labels levels.csv --group slide --out shards
  attributegan-shard pack --images tiles --labels levels.csv --out shards --size 256 --column file=path --column mitosis=mit
  attributegan-shard pack --images tiles --labels a.csv --labels b.csv --out shards --attributes my_attributes.yaml --val-fraction 0
  attributegan-shard pack --images tiles --labels levels.csv --group slide --out shards --part 2/8   # then merge shards"""

MERGE_EXAMPLES = """\
The files are the same as those of an undivided pack. Until then the shards are in the folder DIR.parts; parts that were packed on machines
without a common disk can be copied into one such folder. A missing or incomplete part is an error that names it.

examples:
  attributegan-shard merge shards"""

INDEX_EXAMPLES = """\
A sample needs an image (jpg, png or webp) and its levels: in .json by attribute name, at the top level or under "levels", or in .cls if
there is only one attribute. The tars are not changed; the index is written next to them.

examples:
  attributegan-shard index tars
  attributegan-shard index tars --attributes my_attributes.yaml --val 'holdout-*.tar' --group slide"""


@dataclass(frozen=True)
class OutputSettings:
    """Options of commands that write a new shard set; ``shard_size`` is in MiB."""

    out: Path
    val_fraction: float
    part: str = "1/1"
    overwrite: bool = False
    seed: int = 0
    shard_size: float = 256
    shard_count: int = 1000
    workers: int | None = None
    skip_bad: bool = False


@dataclass(frozen=True, kw_only=True)
class PackSettings(OutputSettings):
    """Options of ``pack``.

    Raises:
        ValueError: names the option that is wrong.
    """

    images: Path
    labels: tuple[Path, ...]
    size: int | None = None
    group: str | None = None
    attributes: Path | None = None
    column: tuple[str, ...] = ()
    quick: bool = False

    def __post_init__(self) -> None:
        if not self.images.is_dir():
            raise ValueError(f"--images: {self.images} is not a folder")
        if self.size is not None and self.size < 1:
            raise ValueError(f"--size: {self.size} must be above 0")


@dataclass(frozen=True, kw_only=True)
class PhantomSettings(OutputSettings):
    """Options of ``phantom``.

    Raises:
        ValueError: names the option that is wrong.
    """

    count: int
    size: int
    like: Path | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"--count: {self.count} must be above 0")
        if not 32 <= self.size <= 1024:
            raise ValueError(f"--size: {self.size} is not from 32 to 1024")


@dataclass(frozen=True)
class MergeSettings:
    """Options of ``merge``."""

    set: Path
    overwrite: bool


@dataclass(frozen=True)
class VerifySettings:
    """Options of ``verify``."""

    set: str
    workers: int | None
    shards_cache: str
    shards_cache_gb: float


@dataclass(frozen=True)
class IndexSettings:
    """Options of ``index``."""

    tars: Path
    out: Path | None
    val: str
    group: str
    overwrite: bool
    attributes: Path | None
    skip_bad: bool
    workers: int | None


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand with ``argv`` (default: ``sys.argv``) and return the exit status."""
    options = parse(argv)
    status = 0

    def work() -> None:
        nonlocal status
        status = options.run(options)

    return cli.exit_status(work) or status


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line (default: ``sys.argv``)."""
    return _parser().parse_args(argv)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("Make shard sets from tiles, check them, and convert labels.", EXAMPLES)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    layout = argparse.RawDescriptionHelpFormatter
    _pack_options(
        commands.add_parser(
            "pack",
            help="pack a folder of tiles and a table of levels",
            description="Pack a folder of tiles and a table of their attribute levels into a shard set.",
            formatter_class=layout,
            epilog=PACK_EXAMPLES,
        )
    )
    _phantom_options(
        commands.add_parser(
            "phantom",
            help="render phantom tiles with known levels and pack them",
            description="Render phantom tiles, synthetic images with known levels of the published attributes, and pack them.",
            formatter_class=layout,
            epilog="examples:\n  attributegan-shard phantom --count 4000 --size 64 --out shards",
        )
    )
    _merge_options(
        commands.add_parser(
            "merge",
            help="merge the parts of a pack into the shard set",
            description="Check that all parts of a pack are complete and publish them as one shard set.",
            formatter_class=layout,
            epilog=MERGE_EXAMPLES,
        )
    )
    _verify_options(
        commands.add_parser(
            "verify",
            help="check every byte of a shard set",
            description="Check every byte of a shard set. Exit status: 0 if it is clean, 1 if not.",
            formatter_class=layout,
            epilog="examples:\n  attributegan-shard verify shards\n  attributegan-shard verify s3://bucket/shards --workers 8",
        )
    )
    _index_options(
        commands.add_parser(
            "index",
            help="index existing WebDataset tars as a shard set",
            description="Write the index that makes a shard set of existing WebDataset tars.",
            formatter_class=layout,
            epilog=INDEX_EXAMPLES,
        )
    )
    tile.add(commands)
    import_labels.add(commands)
    tables.add(commands)
    card.add(commands)
    measure.add(commands)
    return parser


def _pack_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", required=True, type=Path, metavar="DIR", help="folder with the tiles (JPEG, PNG, WebP, TIFF, …)")
    parser.add_argument("--labels", required=True, type=Path, action="append", metavar="FILE", help="CSV file with the levels; repeatable")
    parser.add_argument(
        "--size",
        type=int,
        metavar="PIXELS",
        help="crop to a centred square, resize to this size and store as PNG (default: store the files unchanged)",
    )
    parser.add_argument(
        "--group", metavar="COLUMN", help="column with the slide or patient; tiles of a group stay in the same split (default: none)"
    )
    options_module.add_attributes(parser)
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NAME=COLUMN",
        help="CSV column for `file` or an attribute, if it has another name; repeatable",
    )
    _skip_bad_option(parser)
    parser.add_argument(
        "--quick", action="store_true", help="skip decoding the images; `attributegan-shard verify` finds damaged images later"
    )
    _output_options(parser, val_fraction=0.2)
    parser.set_defaults(run=with_settings(_pack, PackSettings))


def _phantom_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", required=True, type=int, metavar="N", help="number of tiles")
    parser.add_argument("--size", required=True, type=int, metavar="PIXELS", help="width and height of the tiles, 32 to 1024")
    parser.add_argument(
        "--like",
        type=Path,
        metavar="CSV",
        help="draw the levels from the rows of this table that have all five assessable (default: uniform levels)",
    )
    _output_options(parser, val_fraction=0.1, seeded="the tiles, the split and the order")
    parser.set_defaults(run=with_settings(_phantom, PhantomSettings))


def _output_options(parser: argparse.ArgumentParser, val_fraction: float, seeded: str = "the split and the order") -> None:
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the new shard set")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing shard set in that folder")
    parser.add_argument(
        "--part",
        default=OutputSettings.part,
        metavar="K/N",
        help="write only part K of N of the shards; parts can run at the same time, and `attributegan-shard merge` joins them "
        "(default: %(default)s, the whole set)",
    )
    parser.add_argument(
        "--val-fraction",
        type=float,
        default=val_fraction,
        metavar="X",
        help="fraction of the tiles held out in split `val` (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=OutputSettings.seed, help=f"random seed of {seeded} (default: %(default)s)")
    parser.add_argument(
        "--shard-size",
        type=float,
        default=OutputSettings.shard_size,
        metavar="MB",
        help="approximate maximum size of a shard in MiB (default: %(default)s)",
    )
    parser.add_argument(
        "--shard-count",
        type=int,
        default=OutputSettings.shard_count,
        metavar="N",
        help="maximum number of tiles in a shard (default: %(default)s)",
    )
    options_module.add_workers(parser)


def _merge_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("set", type=Path, metavar="DIR", help="folder of the new shard set, the --out of the parts")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing shard set in that folder")
    parser.set_defaults(run=with_settings(_merge, MergeSettings))


def _verify_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("set", metavar="DIR", help="folder or URL of the shard set")
    options_module.add_workers(parser)
    options_module.add_cache(parser)
    parser.set_defaults(run=with_settings(_verify, VerifySettings))


def _index_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tars", type=Path, metavar="DIR", help="folder with the tars")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for the index and links to the tars, if DIR is read-only (default: DIR)"
    )
    parser.add_argument("--val", default="val*.tar", metavar="PATTERN", help="file names of the tars of split `val` (default: %(default)s)")
    parser.add_argument(
        "--group", default="group", metavar="NAME", help="key of the .json with the slide or patient (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing index")
    options_module.add_attributes(parser)
    _skip_bad_option(parser)
    options_module.add_workers(parser)
    parser.set_defaults(run=with_settings(_index, IndexSettings))


def _skip_bad_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--skip-bad", action="store_true", help="skip invalid tiles with a message (default: fail)")


def _schema(attributes: Path | None) -> AttributeSchema:
    return AttributeSchema.from_yaml(attributes, "--attributes") if attributes else PUBLISHED


def _pack(settings: PackSettings) -> int:
    return _write(*pack_input(settings), settings)


def pack_input(settings: PackSettings) -> tuple[Labels, Source]:
    """Returns the labels and the source of the tiles; ValueError if they can't be read."""
    from data_shards.packing.labels import read_labels
    from data_shards.packing.sources import Folder

    labels = read_labels(settings.labels, _schema(settings.attributes), _columns(settings.column), settings.group)
    return labels, Folder(str(settings.images), settings.size, settings.quick)


def pack_options(settings: OutputSettings) -> Options:
    """Returns how tiles are assigned to shards; ValueError names the option that is wrong."""
    from data_shards.packing.plan import Options

    return Options(settings.val_fraction, settings.seed, int(settings.shard_size * 2**20), settings.shard_count)


def _columns(texts: Sequence[str]) -> dict[str, str]:
    """Parse ``NAME=COLUMN`` options.

    Raises:
        ValueError: malformed, or a name given twice.
    """
    pairs = [text.partition("=") for text in texts]
    if bad := [text for text, (name, _, column) in zip(texts, pairs, strict=True) if not (name and column)]:
        raise ValueError(f"--column {bad[0]}: write NAME=COLUMN, such as file=filename")
    names = [name for name, _, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"--column: {twice[0]} is given more than once; give each name one column")
    return {name: column for name, _, column in pairs}


def _phantom(settings: PhantomSettings) -> int:
    from data_shards.packing.labels import read_labels
    from data_shards.packing.sources import Phantoms, phantom_labels

    like = read_labels([settings.like], PUBLISHED) if settings.like else None
    try:
        labels = phantom_labels(settings.count, settings.seed, like)
    except ValueError as error:
        raise ValueError(f"--like {settings.like}: {error}") from error
    return _write(labels, Phantoms(labels.schema, settings.size, settings.seed), settings)


def _write(labels: Labels, source: Source, settings: OutputSettings) -> int:
    from attributegan.utils.files import require_writable
    from data_shards.packing.packer import pack
    from data_shards.packing.parts import Part
    from tools.progress import TileProgress

    options, part = pack_options(settings), Part.parse(settings.part)
    processes = options_module.worker_count(settings.workers)
    require_writable(settings.out.absolute().parent, "--out")
    try:
        with TileProgress(len(labels.table) if part.count == 1 else None) as progress:
            header = pack(
                labels,
                source,
                settings.out,
                options,
                part=part,
                processes=processes,
                progress=progress,
                skip_bad=settings.skip_bad,
                overwrite=settings.overwrite,
            )
    except OSError as error:  # no space, no permission
        raise ValueError(f"--out: {error}; finished shards are kept, rerun the same command to resume") from error
    return _report(settings.out, header) if header else _report_part(settings.out, part)


def _report_part(out: Path, part: Part) -> int:
    from data_shards.packing.parts import parts_folder

    print(f"{parts_folder(out)}: part {part} is complete; when all parts are: attributegan-shard merge {shlex.quote(str(out))}")
    return 0


def _merge(settings: MergeSettings) -> int:
    from data_shards.packing.parts import merge

    return _report(settings.set, merge(settings.set, settings.overwrite))


def _verify(settings: VerifySettings) -> int:
    from data_shards.verify import verify
    from tools.progress import TileProgress

    processes, problems = options_module.worker_count(settings.workers), 0
    with TileProgress() as progress:
        for problem in verify(settings.set, processes, progress, options_module.open_cache(settings)):
            problems += 1
            progress.print(problem)
    from data_shards.storage.stores import redact

    print(f"{redact(settings.set)}: {f'not clean, {problems:,} problems' if problems else f'clean, {progress.done:,} tiles'}")
    return 1 if problems else 0


def _index(settings: IndexSettings) -> int:
    from data_shards.packing.index_tars import index_tars
    from tools.progress import TileProgress

    with TileProgress() as progress:
        header = index_tars(
            settings.tars,
            _schema(settings.attributes),
            processes=options_module.worker_count(settings.workers),
            progress=progress,
            val=settings.val,
            group=settings.group,
            out=settings.out,
            skip_bad=settings.skip_bad,
            overwrite=settings.overwrite,
        )
    return _report(settings.out or settings.tars, header)


def _report(folder: Path, header: Header) -> int:
    """Print what was packed to stdout and what was skipped to stderr; returns exit status 0."""
    for line in header.left_out:
        print(f"left out: {line}", file=sys.stderr)
    print("\n".join(summary_lines(folder, header)))
    return 0


def summary_lines(folder: Path, header: Header) -> list[str]:
    """Return the contents of a set as lines, with warnings about absent levels."""
    return [summary(folder, header), *(f"  {line}" for line in _absent_levels(folder, header))]


def _absent_levels(folder: Path, header: Header) -> list[str]:
    """Return warnings about levels that no tile has."""
    import numpy as np

    from data_shards.format import index
    from data_shards.packing import level_counts

    names, different = header.schema.names, []
    for table in index.read_row_groups(folder / index.FILE, names):  # at once, they would need memory for each row
        different.append(np.unique(np.stack([table[name].to_numpy() for name in names], axis=1), axis=0))
    return level_counts.absent(header.schema, np.concatenate(different))


def summary(folder: Path, header: Header) -> str:
    """Return the contents of a set as text: its attributes, then a line per split."""
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
