"""``attributegan-shard import-qupath``, ``import-imagefolder``, ``import-table`` and ``export-imagefolder``: converts labels."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attributegan.attributes import PUBLISHED, AttributeSchema
from data_shards.ingest import importers
from tools.options import add_attributes, with_settings

if TYPE_CHECKING:
    from data_shards.ingest.importers import Imported

QUPATH_EXAMPLES = """\
Exports are GeoJSON files named after their image (H7.geojson for H7.svs) or measurement tables (TSV, CSV). With --tiles, the images in
QuPath are slides cut by `attributegan-shard tile`; with --images, they are the tiles. Without --rules, classes are matched by name:
`attribute: level`, `attribute level`, or `level` if only one attribute has it. The format of the rules: docs/labels.md.
Exit status: 2 if problems are listed on stderr, else 0. Requires shapely: pip install 'attributegan[qupath]'

examples:
  attributegan-shard import-qupath exports/*.geojson --tiles tiles/tiles.csv --out levels.csv
  attributegan-shard import-qupath cells.tsv --tiles tiles/tiles.csv --rules rules.yaml --attributes my.yaml --out levels.csv
  attributegan-shard import-qupath annotations.tsv --images tiles --out levels.csv"""

FOLDER_EXAMPLES = """\
Reads levels from metadata.csv, .jsonl or .parquet, by number or name; empty and -1 mean "unknown". Other columns are kept.
Exit status: 2 if invalid rows are listed on stderr (the valid rows are written), else 0.

examples:
  attributegan-shard import-imagefolder dataset --attributes my.yaml --out levels.csv
  attributegan-shard pack --images dataset --labels levels.csv --attributes my.yaml --out shards"""

TABLE_EXAMPLES = """\
Reads levels by number or name; empty and -1 mean "unknown". Other columns are kept.
Exit status: 2 if invalid rows are listed on stderr (the valid rows are written), else 0.

examples:
  attributegan-shard import-table levels.parquet --column file=path --column grade=isup --attributes my.yaml --out levels.csv"""

EXPORT_EXAMPLES = """\
examples:
  attributegan-shard export-imagefolder --images tiles --labels levels.csv          writes tiles/metadata.jsonl
  attributegan-shard export-imagefolder --images tiles --labels levels.csv --format csv --names"""


@dataclass(frozen=True)
class QuPathSettings:
    """Options of ``import-qupath``.

    Raises:
        ValueError: names the option that is wrong.
    """

    exports: tuple[Path, ...]
    tiles: Path | None
    images: Path | None
    rules: Path | None
    cover: float
    slide_mpp: float | None
    decimal_comma: bool
    out: Path
    attributes: Path | None

    def __post_init__(self) -> None:
        if not 0 < self.cover <= 1:
            raise ValueError(f"--cover: {self.cover} must be above 0 and at most 1")
        if self.slide_mpp is not None and not 0.01 <= self.slide_mpp <= 100:
            raise ValueError(f"--slide-mpp: {self.slide_mpp} is not from 0.01 to 100 um per pixel")


@dataclass(frozen=True)
class ImportSettings:
    """Options of ``import-imagefolder`` (source: a folder) and ``import-table`` (source: a file)."""

    source: Path
    column: tuple[str, ...]
    out: Path
    attributes: Path | None


@dataclass(frozen=True)
class ExportSettings:
    """Options of ``export-imagefolder``.

    Raises:
        ValueError: names the option that is wrong.
    """

    images: Path
    labels: tuple[Path, ...]
    attributes: Path | None
    format: str
    names: bool
    overwrite: bool

    def __post_init__(self) -> None:
        if not self.images.is_dir():
            raise ValueError(f"--images: {self.images} is not a folder")


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to those of ``attributegan-shard``."""
    qupath = _command(commands, "import-qupath", "convert objects exported from QuPath to levels", QUPATH_EXAMPLES)
    qupath.add_argument(
        "exports", nargs="+", type=Path, metavar="EXPORT", help="export of QuPath 0.2 to 0.6: GeoJSON (also .zip, .gz), TSV or CSV"
    )
    tiles = qupath.add_mutually_exclusive_group(required=True)
    tiles.add_argument(
        "--tiles", type=Path, metavar="CSV", help="tiles.csv of `attributegan-shard tile`, if the images in QuPath are slides"
    )
    tiles.add_argument("--images", type=Path, metavar="DIR", help="folder with the tiles, if the images in QuPath are the tiles")
    qupath.add_argument(
        "--rules", type=Path, metavar="FILE", help="YAML file with the rule for each attribute (default: match classes by name)"
    )
    qupath.add_argument(
        "--cover", type=float, default=0.5, metavar="X", help="minimum fraction of a tile that a class must cover (default: %(default)s)"
    )
    qupath.add_argument("--slide-mpp", type=float, metavar="UM", help="micrometres per pixel of the slides (default: from slide.json)")
    qupath.add_argument("--decimal-comma", action="store_true", help="tables have decimal commas, such as 12,3")
    _common(qupath)
    qupath.set_defaults(run=with_settings(_qupath, QuPathSettings))
    folder = _command(commands, "import-imagefolder", "convert the metadata of a Hugging Face ImageFolder to levels", FOLDER_EXAMPLES)
    folder.add_argument("source", type=Path, metavar="DIR", help="folder with the images and metadata.csv, .jsonl or .parquet")
    _columns_option(folder)
    _common(folder)
    folder.set_defaults(run=with_settings(_imagefolder, ImportSettings))
    table = _command(commands, "import-table", "convert a Parquet or JSON Lines table to levels", TABLE_EXAMPLES)
    table.add_argument("source", type=Path, metavar="FILE", help="table with a column `file` and a column per attribute")
    _columns_option(table)
    _common(table)
    table.set_defaults(run=with_settings(_table, ImportSettings))
    export = _command(
        commands, "export-imagefolder", "write metadata that makes a folder of tiles a Hugging Face ImageFolder", EXPORT_EXAMPLES
    )
    export.add_argument("--images", required=True, type=Path, metavar="DIR", help="folder with the tiles")
    export.add_argument("--labels", required=True, type=Path, action="append", metavar="FILE", help="CSV file with the levels; repeatable")
    add_attributes(export)
    export.add_argument("--format", choices=("jsonl", "csv"), default="jsonl", help="format of the metadata file (default: %(default)s)")
    export.add_argument("--names", action="store_true", help="write level names instead of numbers")
    export.add_argument("--overwrite", action="store_true", help="replace an existing metadata file")
    export.set_defaults(run=with_settings(_export, ExportSettings))


def _command(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, examples: str) -> argparse.ArgumentParser:
    description = f"{text[0].upper()}{text[1:]}."
    return commands.add_parser(
        name, help=text, description=description, formatter_class=argparse.RawDescriptionHelpFormatter, epilog=examples
    )


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="CSV file to write")
    add_attributes(parser)


def _columns_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NAME=COLUMN",
        help="column for `file` or an attribute, if it has another name; repeatable",
    )


def _schema(attributes: Path | None) -> AttributeSchema:
    return AttributeSchema.from_yaml(attributes, "--attributes") if attributes else PUBLISHED


def _columns(texts: Sequence[str], schema: AttributeSchema) -> dict[str, str]:
    """Parse ``NAME=COLUMN`` options.

    Raises:
        ValueError: malformed, or NAME is neither ``file`` nor an attribute.
    """
    pairs = [text.partition("=") for text in texts]
    for text, (name, _, column) in zip(texts, pairs, strict=True):
        if not (name and column) or name not in ("file", *schema.names):
            raise ValueError(f"--column {text}: write NAME=COLUMN, where NAME is one of file, {', '.join(schema.names)}")
    return {name: column for name, _, column in pairs}


def _qupath(settings: QuPathSettings) -> int:
    from data_shards.ingest import qupath, qupath_levels, qupath_locations, qupath_rules

    try:
        import shapely  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError("import-qupath requires shapely: pip install 'attributegan[qupath]'") from error
    schema = _schema(settings.attributes)
    rules = qupath_rules.read_rules(settings.rules, schema) if settings.rules else qupath_rules.by_name(schema)
    if settings.tiles:
        locations = qupath_locations.tiles_of_slides(settings.tiles, settings.slide_mpp)
    else:
        assert settings.images is not None
        locations = qupath_locations.images_as_tiles(settings.images)
    measurements = qupath_rules.measurements_of(rules)
    exports = (qupath.read_export(path, measurements, settings.decimal_comma) for path in settings.exports)
    table, notes = qupath_levels.levels_from(exports, locations, schema, rules, settings.cover)
    for note in notes:
        print(note, file=sys.stderr)
    return _finish(table, settings.out, "without a level")


def _imagefolder(settings: ImportSettings) -> int:
    from data_shards.ingest import tables

    schema = _schema(settings.attributes)
    return _finish(tables.read_imagefolder(settings.source, schema, _columns(settings.column, schema)), settings.out)


def _table(settings: ImportSettings) -> int:
    from data_shards.ingest import tables

    schema = _schema(settings.attributes)
    return _finish(tables.read_table(settings.source, schema, _columns(settings.column, schema)), settings.out)


def _export(settings: ExportSettings) -> int:
    from data_shards.ingest import tables
    from data_shards.packing.labels import read_labels

    labels = read_labels(settings.labels, _schema(settings.attributes))
    try:
        out, without = tables.write_imagefolder(labels, settings.images, settings.format, settings.names, settings.overwrite)
    except OSError as error:
        raise ValueError(f"--images: {settings.images} is not writable ({error.strerror})") from error
    tail = f"; {without:,} images of the folder have no row; the datasets library may reject the folder" if without else ""
    print(f"{out}: {len(labels.table):,} images{tail}")
    return 0


def _finish(table: Imported, out: Path, left_out: str = "left out") -> int:
    """Write the valid rows, list the others on stderr; returns the exit status.

    Raises:
        ValueError: no row is valid.
    """
    for line in table.bad:
        print(line, file=sys.stderr)
    if not table.rows:
        raise ValueError(f"--out: nothing to write to {out}: no tile has a valid level, {len(table.bad):,} problems are listed above")
    importers.write(table, out)
    tail = f"; {table.left_out:,} {left_out}" if table.left_out else ""
    problems = f"; {len(table.bad):,} problems listed on stderr" if table.bad else ""
    print(f"{out}: {len(table.rows):,} tiles{tail}{problems}")
    return 2 if table.bad else 0
