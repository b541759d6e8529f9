"""``attributegan-shard measure``: options and report of measuring tiles, which is in data_shards.measure."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tools import options as options_module

if TYPE_CHECKING:  # these import slowly
    from data_shards.measure import levels, stain, table

EXAMPLES = """\
FILE gets a row for each tile: its name, measurements, and a level for each attribute of --attributes (0: not assessable). The edges
between levels are quantiles of these tiles, or given, and are kept in an attributes file. Both go to `pack` as they are:
  attributegan-shard pack --images tiles --labels measured.csv --attributes measured.yaml --group slide --out shards

A stopped command resumes when it is given again. Damaged tiles are listed on stderr, and the status is then 2. What each measurement is,
and how far it agrees with outlines drawn by hand: docs/measure.md. Needs: pip install 'attributegan[measure]'

examples:
  attributegan-shard measure --images tiles --mpp 0.5 --out measured.csv
  attributegan-shard measure --images tiles --attributes crowding=area_fraction,pleomorphism=area_spread --levels 3 --out measured.csv
  attributegan-shard measure --images more --attributes measured.yaml --out more.csv       levels by the edges of measured.yaml
  attributegan-shard measure --images tiles --segment my_stardist:outlines --out measured.csv"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``measure``."""
    parser = commands.add_parser(
        "measure",
        help="measure nuclei and stains, and make levels of them",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
    )
    tiles = parser.add_mutually_exclusive_group(required=True)
    tiles.add_argument("--images", type=Path, metavar="DIR", help="folder of the tiles; subfolders are slides")
    tiles.add_argument("--shards", metavar="SET", help="shard set with the tiles: a folder or a URL")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="CSV to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a CSV that is there")
    parser.add_argument(
        "--mpp", type=float, metavar="UM", help="micrometres per pixel of the tiles, for nuclei_per_mm2 and median_area_um2"
    )
    parser.add_argument(
        "--attributes",
        metavar="NAME=MEASUREMENT,…|FILE",
        help="attributes to make levels of; or the attributes file of an earlier command, to use its edges",
    )
    parser.add_argument("--levels", type=int, metavar="N", help="levels of each attribute, with equally many tiles (4)")
    parser.add_argument(
        "--edges", action="append", default=[], metavar="NAME=X:Y:…", help="edges between the levels of one attribute; may be repeated"
    )
    parser.add_argument("--attributes-out", type=Path, metavar="FILE", help="attributes file to write (the CSV's name with .yaml)")
    parser.add_argument(
        "--stains", metavar="VECTORS", help="stain vectors: `macenko` for each tile's own, or R,G,B,R,G,B of hematoxylin and eosin"
    )
    parser.add_argument("--segment", metavar="MODULE:FUNCTION", help="outlines nuclei instead: (H, W, 3) uint8 -> instance map (H, W)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (one for each core)")
    options_module.add(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure; 2 when tiles were damaged."""
    from data_shards import measure, worker_pool
    from data_shards.measure import segment, table
    from tools.progress import TileProgress

    measure.require()
    if arguments.workers is not None and arguments.workers < 1:
        raise ValueError(f"--workers: {arguments.workers} must be above 0")
    settings = table.Settings(arguments.mpp, _stains(arguments.stains), arguments.segment)
    if settings.segment:
        segment.load(settings.segment)
    rules = _rules(arguments, settings)
    partial = _check_out(arguments.out, arguments.overwrite)
    source = (
        table.FolderTiles(arguments.images) if arguments.images else table.ShardTiles(arguments.shards, options_module.cache_of(arguments))
    )
    with TileProgress(len(source.tiles)) as progress:
        measured = table.measure(source, settings, partial, arguments.workers or worker_pool.available(), progress)
    for line in measured.bad:
        print(line, file=sys.stderr)
    if not measured.rows:
        raise ValueError(f"--out: nothing to write, none of {len(measured.bad):,} tiles could be read")
    return _finish(arguments, settings, measured, rules, partial)


def _finish(
    arguments: argparse.Namespace, settings: table.Settings, measured: table.Measured, rules: Sequence[levels.Rule], partial: Path
) -> int:
    """Cut the levels, write both files and say what is in them."""
    from data_shards.measure import table

    rules = [_with_edges(rule, measured, settings, arguments.levels or 4) for rule in rules]
    table.write(measured, rules, arguments.out)
    lines = [f"{arguments.out}: {len(measured.rows):,} tiles, {len(measured.names)} measurements"]
    if rules:
        from data_shards.measure import levels

        schema_file = arguments.attributes_out or arguments.out.with_suffix(".yaml")
        levels.write(rules, schema_file)
        lines.append(f"{schema_file}: {len(rules)} attributes")
    for rule in rules:
        level_N = rule.levels(measured.column(rule.by))
        counts = ", ".join(f"{name} {int((level_N == level).sum()):,}" for level, name in enumerate(rule.schema.levels))
        lines.append(f"  {rule.attribute} by {rule.by}: {counts}; edges {', '.join(f'{edge:g}' for edge in rule.edges)}")
    partial.unlink()
    print("\n".join(lines + ([f"  {len(measured.bad):,} damaged tiles listed on stderr"] if measured.bad else [])))
    return 2 if measured.bad else 0


def _stains(text: str | None) -> stain.Stains | None:
    from data_shards.measure import stain

    return stain.RUIFROK if text is None else None if text == "macenko" else stain.Stains.parse(text)


def _rules(arguments: argparse.Namespace, settings: table.Settings) -> list[levels.Rule]:
    """Rules as far as they are known before anything is measured; every mistake in the options is found here."""
    from data_shards.measure import features, levels

    if arguments.levels is not None and not 2 <= arguments.levels <= levels.MAX_LEVELS:
        raise ValueError(f"--levels: {arguments.levels} is not from 2 to {levels.MAX_LEVELS}")
    if not arguments.attributes:
        if arguments.edges or arguments.levels or arguments.attributes_out:
            raise ValueError("--levels, --edges and --attributes-out need --attributes")
        return []
    if "=" not in arguments.attributes:
        if arguments.edges or arguments.levels:
            raise ValueError(f"--attributes {arguments.attributes}: has edges already; leave out --edges and --levels")
        rules = levels.read(Path(arguments.attributes), settings.how)
    else:
        rules = levels.parse(arguments.attributes)
        edges = levels.parse_edges(arguments.edges, rules)
        rules = [levels.Rule(rule.attribute, rule.by, edges.get(rule.attribute, ())) for rule in rules]
    known = features.names(settings.mpp)
    for rule in rules:
        if rule.by not in known:
            raise ValueError(f"--attributes: {rule.by} needs --mpp, the micrometres per pixel of the tiles")
        if rule.attribute in {"file", "slide", "width", "height", *features.MEASUREMENTS}:
            raise ValueError(f"--attributes {rule.attribute}=…: the table has a column of that name; choose another")
    return rules


def _with_edges(rule: levels.Rule, measured: table.Measured, settings: table.Settings, count: int) -> levels.Rule:
    """The rule with its edges and what its values depend on."""
    from data_shards.measure import levels

    how = measured.how(rule.by, settings)
    if rule.how and rule.how != how:
        raise ValueError(f"--attributes: {rule.attribute} was measured with {dict(rule.how)}, now with {how}; its edges would not fit")
    rule = levels.Rule(rule.attribute, rule.by, rule.edges, how)
    return rule if rule.edges else rule.with_quantiles(measured.column(rule.by), count)


def _check_out(out: Path, overwrite: bool) -> Path:
    """Where rows are kept until all are there."""
    if out.is_dir() or not out.parent.is_dir():
        raise ValueError(f"--out: {out} is a folder, or its folder is not there; name a CSV")
    if out.exists() and not overwrite:
        raise ValueError(f"--out: {out} is there already; use --overwrite, or another name")
    return out.with_name(out.name + ".partial")
