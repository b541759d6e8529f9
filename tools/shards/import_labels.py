"""``attributegan-shard import-captions`` and ``import-published``: levels that others wrote, as the CSV that ``pack`` takes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from attributegan.utils.files import require_writable
from data_shards.ingest import importers

CAPTIONS_EXAMPLES = """\
The file is {tile: {"caption": [texts]}}: each text has a sentence for each attribute, in any order, and one for the diagnosis. Captions of
a tile that disagree and sentences that no rule knows are listed; the levels of all other tiles are written.
Status 2 says that there was something to list, 0 that there was not.

examples:
  attributegan-shard import-captions captions.json --out levels.csv --images tiles
  attributegan-shard pack --images tiles --labels levels.csv --group slide --out shards"""

PUBLISHED_EXAMPLES = """\
The table has the columns path, five levels, freq_id and cl_labels; both of the last are kept. Rows with something wrong are listed, and all
others written. Status 2 says that there was something to list, 0 that there was not.

examples:
  attributegan-shard import-published attribute_levels.csv --out levels.csv --images tiles
  attributegan-shard import-published attribute_levels.csv --out levels.csv --prefix /data/Images/ --without-rare"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both commands to those of ``attributegan-shard``."""
    layout = argparse.RawDescriptionHelpFormatter
    captions = commands.add_parser(
        "import-captions", help="levels from pathologists' captions", formatter_class=layout, epilog=CAPTIONS_EXAMPLES
    )
    captions.add_argument("captions", type=Path, metavar="FILE", help="JSON with the captions of each tile")
    captions.add_argument(
        "--suffix", default=".png", metavar="TEXT", help="what follows a tile's name in that of its image, without --images (%(default)s)"
    )
    _common(captions)
    captions.set_defaults(run=_captions)
    published = commands.add_parser(
        "import-published",
        help="levels from the table that AttributeGAN was published with",
        formatter_class=layout,
        epilog=PUBLISHED_EXAMPLES,
    )
    published.add_argument("table", type=Path, metavar="FILE", help="the published CSV")
    published.add_argument("--prefix", default=importers.PUBLISHED_PREFIX, metavar="TEXT", help="what is taken off each path (%(default)s)")
    published.add_argument("--without-rare", action="store_true", help="leave out tiles with rare combinations of levels (freq_id 1)")
    _common(published)
    published.set_defaults(run=_published)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="CSV to write")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="write only tiles with an image there, under the name that it has (jpg, png, …)"
    )


def _captions(arguments: argparse.Namespace) -> int:
    table = importers.read_captions(arguments.captions)
    if arguments.images is None:
        table = importers.with_suffix(table, arguments.suffix)
    return _finish(table, arguments)


def _published(arguments: argparse.Namespace) -> int:
    return _finish(importers.read_published(arguments.table, arguments.prefix, arguments.without_rare), arguments)


def _finish(table: importers.Imported, arguments: argparse.Namespace) -> int:
    """Write what is good, list what is bad."""
    require_writable(arguments.out.parent, "--out")
    if arguments.images is not None:
        table = importers.with_images(table, arguments.images)
    for line in table.bad:
        print(line, file=sys.stderr)
    if not table.rows:
        raise ValueError(f"--out: nothing to write to {arguments.out}: no tile is left, {len(table.bad):,} problems are listed above")
    importers.write(table, arguments.out)
    tail = f"; {table.left_out:,} left out as asked" if table.left_out else ""
    problems = f"; {len(table.bad):,} problems listed on stderr" if table.bad else ""
    print(f"{arguments.out}: {len(table.rows):,} tiles{tail}{problems}")
    return 2 if table.bad else 0
