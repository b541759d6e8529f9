"""``attributegan-shard import-qupath``, ``import-imagefolder``, ``import-table`` and ``export-imagefolder``: levels from and for others."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attributegan.attributes import PUBLISHED, AttributeSchema
from data_shards.ingest import importers

if TYPE_CHECKING:
    from data_shards.ingest.importers import Imported

QUPATH_EXAMPLES = """\
Exports are GeoJSON files called after their image (H7.geojson for H7.svs) and tables of measurements (TSV, CSV). With --tiles, images are
slides that `attributegan-shard tile` has cut; with --images, every image in QuPath is a tile. Without --rules, classes are taken by name:
`attribute: level`, `attribute level`, or `level` alone where one attribute has it. docs/labels.md has the form of the rules.
Status 2 says that something is listed on stderr as wrong, 0 that nothing is. Needs shapely: pip install 'attributegan[qupath]'

examples:
  attributegan-shard import-qupath exports/*.geojson --tiles tiles/tiles.csv --out levels.csv
  attributegan-shard import-qupath cells.tsv --tiles tiles/tiles.csv --rules rules.yaml --attributes my.yaml --out levels.csv
  attributegan-shard import-qupath annotations.tsv --images tiles --out levels.csv"""

FOLDER_EXAMPLES = """\
Levels stand in metadata.csv, .jsonl or .parquet, by number or name; nothing and -1 are "not known". Other columns are kept.

examples:
  attributegan-shard import-imagefolder dataset --attributes my.yaml --out levels.csv
  attributegan-shard pack --images dataset --labels levels.csv --attributes my.yaml --out shards"""

TABLE_EXAMPLES = """\
examples:
  attributegan-shard import-table levels.parquet --column file=path --column grade=isup --attributes my.yaml --out levels.csv"""

EXPORT_EXAMPLES = """\
examples:
  attributegan-shard export-imagefolder --images tiles --labels levels.csv          writes tiles/metadata.jsonl
  attributegan-shard export-imagefolder --images tiles --labels levels.csv --format csv --names"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to those of ``attributegan-shard``."""
    qupath = _command(commands, "import-qupath", "levels from objects that QuPath exported", QUPATH_EXAMPLES)
    qupath.add_argument("exports", nargs="+", type=Path, metavar="EXPORT", help="GeoJSON (also .zip, .gz), TSV or CSV of QuPath 0.2 to 0.6")
    tiles = qupath.add_mutually_exclusive_group(required=True)
    tiles.add_argument("--tiles", type=Path, metavar="CSV", help="tiles.csv of `attributegan-shard tile`: QuPath's images are the slides")
    tiles.add_argument("--images", type=Path, metavar="DIR", help="folder of the tiles: QuPath's images are the tiles themselves")
    qupath.add_argument("--rules", type=Path, metavar="FILE", help="YAML that says how each attribute gets its level")
    qupath.add_argument("--cover", type=float, default=0.5, metavar="X", help="least share of a tile that a class must cover (%(default)s)")
    qupath.add_argument("--slide-mpp", type=float, metavar="UM", help="micrometres per pixel of the slides, if slide.json doesn't say it")
    qupath.add_argument("--decimal-comma", action="store_true", help="numbers in tables are written as 12,3")
    _common(qupath)
    qupath.set_defaults(run=_qupath)
    folder = _command(commands, "import-imagefolder", "levels from the metadata of a Hugging Face ImageFolder", FOLDER_EXAMPLES)
    folder.add_argument("folder", type=Path, metavar="DIR", help="folder of the images")
    _columns_option(folder)
    _common(folder)
    folder.set_defaults(run=_imagefolder)
    table = _command(commands, "import-table", "levels from a Parquet table (or JSON lines)", TABLE_EXAMPLES)
    table.add_argument("table", type=Path, metavar="FILE", help="with a column `file` and one for each attribute")
    _columns_option(table)
    _common(table)
    table.set_defaults(run=_table)
    export = _command(commands, "export-imagefolder", "metadata for a Hugging Face ImageFolder, beside the tiles", EXPORT_EXAMPLES)
    export.add_argument("--images", required=True, type=Path, metavar="DIR", help="folder of the tiles")
    export.add_argument("--labels", required=True, type=Path, action="append", metavar="FILE", help="CSV with the levels; may be repeated")
    export.add_argument("--attributes", type=Path, metavar="FILE", help="YAML with your attributes; without it, the five of the paper")
    export.add_argument("--format", choices=("jsonl", "csv"), default="jsonl", help="of the metadata file (%(default)s)")
    export.add_argument("--names", action="store_true", help="write levels by name instead of by number")
    export.add_argument("--overwrite", action="store_true", help="replace a metadata file that is there")
    export.set_defaults(run=_export)


def _command(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, examples: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=text, formatter_class=argparse.RawDescriptionHelpFormatter, epilog=examples)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="CSV to write")
    parser.add_argument("--attributes", type=Path, metavar="FILE", help="YAML with your attributes; without it, the five of the paper")


def _columns_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--column", action="append", default=[], metavar="NAME=COLUMN", help="column for `file` or an attribute, if it has another name"
    )


def _schema(arguments: argparse.Namespace) -> AttributeSchema:
    return AttributeSchema.from_yaml(arguments.attributes) if arguments.attributes else PUBLISHED


def _columns(texts: Sequence[str], schema: AttributeSchema) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    for text, (name, _, column) in zip(texts, pairs, strict=True):
        if not (name and column) or name not in ("file", *schema.names):
            raise ValueError(f"--column {text}: write NAME=COLUMN, where NAME is file, {', '.join(schema.names)}")
    return {name: column for name, _, column in pairs}


def _qupath(arguments: argparse.Namespace) -> int:
    from data_shards.ingest import qupath, qupath_levels, qupath_locations, qupath_rules

    try:
        import shapely  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError("reading QuPath's exports needs shapely: pip install 'attributegan[qupath]'") from error
    if not 0 < arguments.cover <= 1:
        raise ValueError(f"--cover: {arguments.cover} is not above 0 and up to 1")
    if arguments.slide_mpp is not None and not 0.01 <= arguments.slide_mpp <= 100:
        raise ValueError(f"--slide-mpp: {arguments.slide_mpp} is not from 0.01 to 100 um per pixel")
    schema = _schema(arguments)
    rules = qupath_rules.read_rules(arguments.rules, schema) if arguments.rules else qupath_rules.by_name(schema)
    if arguments.tiles:
        places = qupath_locations.tiles_of_slides(arguments.tiles, arguments.slide_mpp)
    else:
        places = qupath_locations.images_as_tiles(arguments.images)
    wanted = qupath_rules.measurements_of(rules)
    exports = (qupath.read_export(path, wanted, arguments.decimal_comma) for path in arguments.exports)
    table, notes = qupath_levels.levels_from(exports, places, schema, rules, arguments.cover)
    for note in notes:
        print(note, file=sys.stderr)
    return _finish(table, arguments.out, "without a level")


def _imagefolder(arguments: argparse.Namespace) -> int:
    from data_shards.ingest import tables

    schema = _schema(arguments)
    return _finish(tables.read_imagefolder(arguments.folder, schema, _columns(arguments.column, schema)), arguments.out)


def _table(arguments: argparse.Namespace) -> int:
    from data_shards.ingest import tables

    schema = _schema(arguments)
    return _finish(tables.read_table(arguments.table, schema, _columns(arguments.column, schema)), arguments.out)


def _export(arguments: argparse.Namespace) -> int:
    from data_shards.ingest import tables
    from data_shards.packing.labels import read_labels

    if not arguments.images.is_dir():
        raise ValueError(f"--images: {arguments.images} is not a folder")
    labels = read_labels(arguments.labels, _schema(arguments))
    try:
        out, without = tables.write_imagefolder(labels, arguments.images, arguments.format, arguments.names, arguments.overwrite)
    except OSError as error:
        raise ValueError(f"--images: {arguments.images} can't be written to ({error.strerror})") from error
    tail = f"; {without:,} images of the folder have no row, which datasets may refuse" if without else ""
    print(f"{out}: {len(labels.table):,} images{tail}")
    return 0


def _finish(table: Imported, out: Path, left_out: str = "left out") -> int:
    """Write what is good, list what is bad."""
    for line in table.bad:
        print(line, file=sys.stderr)
    if not table.rows:
        raise ValueError(f"--out: nothing to write to {out}: no tile has a level, {len(table.bad):,} problems are listed above")
    importers.write(table, out)
    tail = f"; {table.left_out:,} {left_out}" if table.left_out else ""
    problems = f"; {len(table.bad):,} problems listed on stderr" if table.bad else ""
    print(f"{out}: {len(table.rows):,} tiles{tail}{problems}")
    return 2 if table.bad else 0
