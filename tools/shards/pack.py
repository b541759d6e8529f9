"""``attributegan-shard pack``, ``phantom`` and ``merge``: write a new shard set, at once or in parts."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attributegan.attributes import PUBLISHED
from tools import options
from tools.options import with_settings
from tools.shards.written import add_skip_bad, report, schema_of

if TYPE_CHECKING:  # slow to import; --help must be fast
    from data_shards.packing.labels import Labels
    from data_shards.packing.parts import Part
    from data_shards.packing.plan import Options
    from data_shards.packing.sources import Source

PACK_EXAMPLES = """\
The table needs a column `file` (paths relative to --images) and a column per attribute, with levels as numbers or names. Columns are
separated by , ; tab or |. Transparent pixels become white, 16-bit images are scaled to 8 bits. All accepted inputs: docs/inputs.md.

examples:
  attributegan-shard pack --images tiles --labels levels.csv --group slide --out shards
  attributegan-shard pack --images tiles --labels levels.csv --out shards --size 256 --column file=path --column mitosis=mit
  attributegan-shard pack --images tiles --labels a.csv --labels b.csv --out shards --attributes my_attributes.yaml --val-fraction 0
  attributegan-shard pack --images tiles --labels levels.csv --group slide --out shards --part 2/8   # then merge shards"""

MERGE_EXAMPLES = """\
The files are the same as those of an undivided pack. Unmerged parts are in the folder DIR.parts; parts that were packed on machines
without a common disk can be copied into one such folder. A missing or incomplete part is an error that names it.

examples:
  attributegan-shard merge shards"""


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


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to those of ``attributegan-shard``."""
    _add_pack(commands)
    _add_phantom(commands)
    _add_merge(commands)


def _add_pack(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "pack",
        help="pack a folder of tiles and a table of levels",
        description="Pack a folder of tiles and a table of their attribute levels into a shard set.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=PACK_EXAMPLES,
    )
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
    options.add_attributes(parser)
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NAME=COLUMN",
        help="CSV column for `file` or an attribute, if it has another name; repeatable",
    )
    add_skip_bad(parser)
    parser.add_argument(
        "--quick", action="store_true", help="skip decoding the images; `attributegan-shard verify` finds damaged images later"
    )
    _output_options(parser, val_fraction=0.2)
    parser.set_defaults(run=with_settings(_pack, PackSettings))


def _add_phantom(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "phantom",
        help="render phantom tiles with known levels and pack them",
        description="Render phantom tiles, synthetic images with known levels of the published attributes, and pack them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  attributegan-shard phantom --count 4000 --size 64 --out shards",
    )
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
    options.add_workers(parser)


def _add_merge(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "merge",
        help="merge the parts of a pack into the shard set",
        description="Check that all parts of a pack are complete and publish them as one shard set.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=MERGE_EXAMPLES,
    )
    parser.add_argument("set", type=Path, metavar="DIR", help="folder of the new shard set, the --out of the parts")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing shard set in that folder")
    parser.set_defaults(run=with_settings(_merge, MergeSettings))


def _pack(settings: PackSettings) -> int:
    return _write(*pack_input(settings), settings)


def pack_input(settings: PackSettings) -> tuple[Labels, Source]:
    """Returns the labels and the source of the tiles; ValueError if they can't be read."""
    from data_shards.packing.labels import read_labels
    from data_shards.packing.sources import Folder

    labels = read_labels(settings.labels, schema_of(settings.attributes), _columns(settings.column), settings.group)
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

    plan, part = pack_options(settings), Part.parse(settings.part)
    processes = options.worker_count(settings.workers)
    require_writable(settings.out.absolute().parent, "--out")
    try:
        with TileProgress(len(labels.table) if part.count == 1 else None) as progress:
            header = pack(
                labels,
                source,
                settings.out,
                plan,
                part=part,
                processes=processes,
                progress=progress,
                skip_bad=settings.skip_bad,
                overwrite=settings.overwrite,
            )
    except OSError as error:  # no space, no permission
        raise ValueError(f"--out: {error}; finished shards are kept, rerun the same command to resume") from error
    return report(settings.out, header) if header else _report_part(settings.out, part)


def _report_part(out: Path, part: Part) -> int:
    from data_shards.packing.parts import parts_folder

    print(f"{parts_folder(out)}: part {part} is complete; when all parts are: attributegan-shard merge {shlex.quote(str(out))}")
    return 0


def _merge(settings: MergeSettings) -> int:
    from data_shards.packing.parts import merge

    return report(settings.set, merge(settings.set, settings.overwrite))
