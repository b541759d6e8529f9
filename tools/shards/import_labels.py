"""``attributegan-shard import-captions`` and ``import-published``: converts published labels to the CSV that ``pack`` reads."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from attributegan.utils.files import require_writable
from data_shards.ingest import importers
from tools.options import with_settings

CAPTIONS_EXAMPLES = """\
The file is {tile: {"caption": [texts]}}: each text has a sentence per attribute, in any order, and one for the diagnosis. Conflicting
captions of a tile and sentences that match no rule are listed on stderr; the levels of all other tiles are written.
Exit status: 2 if anything is listed, else 0.

examples:
  attributegan-shard import-captions captions.json --out levels.csv --images tiles
  attributegan-shard pack --images tiles --labels levels.csv --group slide --out shards"""

PUBLISHED_EXAMPLES = """\
The table has the columns path, five levels, freq_id and cl_labels; the last two are kept. Invalid rows are listed on stderr, all others
are written. Exit status: 2 if anything is listed, else 0.

examples:
  attributegan-shard import-published attribute_levels.csv --out levels.csv --images tiles
  attributegan-shard import-published attribute_levels.csv --out levels.csv --prefix /data/Images/ --without-rare"""


@dataclass(frozen=True)
class CaptionsSettings:
    """Options of ``import-captions``."""

    captions: Path
    suffix: str
    out: Path
    images: Path | None


@dataclass(frozen=True)
class PublishedSettings:
    """Options of ``import-published``."""

    table: Path
    prefix: str
    without_rare: bool
    out: Path
    images: Path | None


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both commands to those of ``attributegan-shard``."""
    layout = argparse.RawDescriptionHelpFormatter
    captions = commands.add_parser(
        "import-captions",
        help="convert pathologists' captions to levels",
        description="Convert pathologists' captions of tiles to a CSV of attribute levels.",
        formatter_class=layout,
        epilog=CAPTIONS_EXAMPLES,
    )
    captions.add_argument("captions", type=Path, metavar="FILE", help="JSON file with the captions of each tile")
    captions.add_argument(
        "--suffix", default=".png", metavar="TEXT", help="suffix of the image files, if --images is not given (default: %(default)s)"
    )
    _common(captions)
    captions.set_defaults(run=with_settings(_captions, CaptionsSettings))
    published = commands.add_parser(
        "import-published",
        help="convert the table published with AttributeGAN",
        description="Convert the table of levels published with AttributeGAN.",
        formatter_class=layout,
        epilog=PUBLISHED_EXAMPLES,
    )
    published.add_argument("table", type=Path, metavar="FILE", help="the published CSV")
    published.add_argument(
        "--prefix", default=importers.PUBLISHED_PREFIX, metavar="TEXT", help="prefix to remove from each path (default: %(default)s)"
    )
    published.add_argument("--without-rare", action="store_true", help="skip tiles with rare combinations of levels (freq_id 1)")
    _common(published)
    published.set_defaults(run=with_settings(_published, PublishedSettings))


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="CSV file to write")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="write only tiles that have an image in this folder, under its file name (jpg, png, …)"
    )


def _captions(settings: CaptionsSettings) -> int:
    table = importers.read_captions(settings.captions)
    if settings.images is None:
        table = importers.with_suffix(table, settings.suffix)
    return _finish(table, settings.out, settings.images)


def _published(settings: PublishedSettings) -> int:
    table = importers.read_published(settings.table, settings.prefix, settings.without_rare)
    return _finish(table, settings.out, settings.images)


def _finish(table: importers.Imported, out: Path, images: Path | None) -> int:
    """Write the valid rows, list the others on stderr; returns the exit status.

    Raises:
        ValueError: no row is valid.
    """
    require_writable(out.parent, "--out")
    if images is not None:
        table = importers.with_images(table, images)
    for line in table.bad:
        print(line, file=sys.stderr)
    if not table.rows:
        raise ValueError(f"--out: nothing to write to {out}: no valid tile, {len(table.bad):,} problems are listed above")
    importers.write(table, out)
    tail = f"; {table.left_out:,} left out as requested" if table.left_out else ""
    problems = f"; {len(table.bad):,} problems listed on stderr" if table.bad else ""
    print(f"{out}: {len(table.rows):,} tiles{tail}{problems}")
    return 2 if table.bad else 0
