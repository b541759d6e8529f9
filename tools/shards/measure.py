"""``attributegan-shard measure``: command line of `data_shards.measure`, which measures nuclei and stains of tiles."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tools import options as options_module
from tools.options import with_settings

if TYPE_CHECKING:  # slow to import
    from data_shards.measure import levels, stain, table

EXAMPLES = """\
Writes a row per tile to FILE: its name, measurements, and a level for each attribute of --attributes (0: not assessable). The edges
between levels are quantiles of these tiles unless --edges gives them, and are saved in an attributes file. Pack both files with:
  attributegan-shard pack --images tiles --labels measured.csv --attributes measured.yaml --group slide --out shards

Rerun the same command to resume after an interruption. Exit status: 2 if damaged tiles were listed on stderr, else 0. The measurements:
docs/measure.md; their agreement with manual outlines: docs/measure-results.md. Requires: pip install 'attributegan[measure]'

examples:
    attributegan-shard measure --images tiles --mpp 0.5 --out measured.csv       measurements without levels
  attributegan-shard measure --images tiles --attributes crowding=area_fraction,nuclear_size_spread=area_spread --levels 3 --out levels.csv
  attributegan-shard measure --images more --attributes levels.yaml --out more.csv       reuses the edges
  attributegan-shard measure --images crops/images --outlines crops/outlines --out measured.csv
  attributegan-shard measure --images tiles --segment my_stardist:outlines --out measured.csv"""


@dataclass(frozen=True)
class MeasureSettings:
    """Options of ``measure``.

    Raises:
        ValueError: options that exclude each other.
    """

    images: Path | None
    shards: str | None
    out: Path
    overwrite: bool
    mpp: float | None
    attributes: str | None
    levels: int | None
    edges: tuple[str, ...]
    attributes_out: Path | None
    stains: str | None
    segment: str | None
    outlines: Path | None
    workers: int | None
    shards_cache: str
    shards_cache_gb: float

    def __post_init__(self) -> None:
        if self.outlines and (self.segment or not self.images):
            raise ValueError("--outlines requires --images, and replaces --segment")


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of ``attributegan-shard``."""
    parser = commands.add_parser(
        "measure",
        help="measure nuclei and stains of tiles, and derive levels",
        description="Measure nuclei and stains of tiles by image analysis, and derive attribute levels from the measurements.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
    )
    tiles = parser.add_mutually_exclusive_group(required=True)
    tiles.add_argument("--images", type=Path, metavar="DIR", help="folder with the tiles; each subfolder is a slide")
    tiles.add_argument("--shards", metavar="SET", help="shard set with the tiles, a folder or a URL")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="CSV file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing CSV file")
    parser.add_argument(
        "--mpp", type=float, metavar="UM", help="micrometres per pixel of the tiles; required for nuclei_per_mm2 and median_area_um2"
    )
    parser.add_argument(
        "--attributes",
        metavar="NAME=MEASUREMENT,…|FILE",
        help="measurement to derive each attribute from, or the attributes file of an earlier command to reuse its edges",
    )
    parser.add_argument("--levels", type=int, metavar="N", help="number of levels of each attribute, with equally many tiles (default: 4)")
    parser.add_argument(
        "--edges",
        action="append",
        default=[],
        metavar="NAME=X:Y:…",
        help="edges between the levels of an attribute; repeatable (default: quantiles)",
    )
    parser.add_argument(
        "--attributes-out", type=Path, metavar="FILE", help="attributes file to write (default: FILE with the suffix .yaml)"
    )
    parser.add_argument(
        "--stains",
        metavar="VECTORS",
        help="stain vectors: `macenko` to estimate them per tile, or R,G,B,R,G,B of hematoxylin and eosin (default: Ruifrok's)",
    )
    parser.add_argument(
        "--segment",
        metavar="MODULE:FUNCTION",
        help="segmentation function to use: (H, W, 3) uint8 -> instance map (H, W) (default: built in)",
    )
    parser.add_argument(
        "--outlines",
        type=Path,
        metavar="DIR",
        help="folder with the outlines of nuclei to use, an instance map NAME.png for each image (default: nuclei are segmented)",
    )
    options_module.add_workers(parser)
    options_module.add_cache(parser)
    parser.set_defaults(run=with_settings(run, MeasureSettings))


@dataclass(frozen=True)
class Inputs:
    """The tiles, how to measure them, the rules for levels, and the file of the rows measured so far."""

    source: table.Source
    settings: table.Settings
    rules: Sequence[levels.Rule]
    partial: Path


def run(options: MeasureSettings) -> int:
    """Measure the tiles; returns the exit status: 2 if tiles were damaged, else 0.

    Raises:
        ValueError: names the option that is wrong; or no tile could be read.
    """
    lines, bad = measure_tiles(options)
    print("\n".join(lines + ([f"  {len(bad):,} damaged tiles listed on stderr"] if bad else [])))
    return 2 if bad else 0


def inputs(options: MeasureSettings) -> Inputs:
    """Check the options and list the tiles; ValueError names the option that is wrong."""
    from data_shards import measure
    from data_shards.measure import segment, table

    measure.require()
    settings = table.Settings(options.mpp, _stains(options.stains), options.segment, options.outlines is not None)
    if settings.segment:
        segment.load(settings.segment)
    rules = _rules(options, settings)
    partial = _check_out(options.out, options.overwrite)
    if options.images:
        source: table.Source = table.FolderTiles(options.images, options.outlines)
    else:
        assert options.shards is not None
        source = table.ShardTiles(options.shards, options_module.open_cache(options))
    return Inputs(source, settings, rules, partial)


def measure_tiles(options: MeasureSettings) -> tuple[list[str], list[str]]:
    """Measure the tiles and write the files; returns a summary and the damaged tiles, one line each."""
    from data_shards.measure import table
    from tools.progress import TileProgress

    workers, found = options_module.worker_count(options.workers), inputs(options)
    with TileProgress(len(found.source.tiles)) as progress:
        measured = table.measure(found.source, found.settings, found.partial, workers, progress)
    for line in measured.bad:
        print(line, file=sys.stderr)
    if not measured.rows:
        raise ValueError(f"--out: nothing to write: none of {len(measured.bad):,} tiles could be read")
    return _finish(options, found, measured), measured.bad


def _finish(options: MeasureSettings, found: Inputs, measured: table.Measured) -> list[str]:
    """Derive the levels and write both files; returns a summary."""
    from data_shards.measure import table

    rules = [_with_edges(rule, measured, found.settings, options.levels or 4) for rule in found.rules]
    table.write(measured, rules, options.out)
    lines = [f"{options.out}: {len(measured.rows):,} tiles, {len(measured.names)} measurements"]
    if rules:
        from data_shards.measure import levels

        schema_file = options.attributes_out or options.out.with_suffix(".yaml")
        levels.write(rules, schema_file)
        lines.append(f"{schema_file}: {len(rules)} attributes")
    for rule in rules:
        level_N = rule.levels(measured.column(rule.by))
        counts = ", ".join(f"{name} {int((level_N == level).sum()):,}" for level, name in enumerate(rule.schema.levels))
        lines.append(f"  {rule.attribute} by {rule.by}: {counts}; edges {', '.join(f'{edge:g}' for edge in rule.edges)}")
    found.partial.unlink()
    return lines


def _stains(text: str | None) -> stain.Stains | None:
    """Parse ``--stains``; None to estimate the vectors per tile."""
    from data_shards.measure import stain

    return stain.RUIFROK if text is None else None if text == "macenko" else stain.Stains.parse(text)


def _rules(options: MeasureSettings, settings: table.Settings) -> list[levels.Rule]:
    """Return the rules for levels, without quantile edges, which need the measurements.

    Raises:
        ValueError: names the option that is wrong.
    """
    from data_shards.measure import features, levels

    if options.levels is not None and not 2 <= options.levels <= levels.MAX_LEVELS:
        raise ValueError(f"--levels: {options.levels} is not from 2 to {levels.MAX_LEVELS}")
    if not options.attributes:
        if options.edges or options.levels or options.attributes_out:
            raise ValueError("--levels, --edges and --attributes-out require --attributes")
        return []
    if "=" not in options.attributes:
        if options.edges or options.levels:
            raise ValueError(f"--attributes {options.attributes}: already has edges; remove --edges and --levels")
        rules = levels.read(Path(options.attributes), settings.how)
    else:
        rules = levels.parse(options.attributes)
        edges = levels.parse_edges(options.edges, rules)
        rules = [levels.Rule(rule.attribute, rule.by, edges.get(rule.attribute, ())) for rule in rules]
    available = features.names(settings.mpp)
    for rule in rules:
        if rule.by not in available:
            raise ValueError(f"--attributes: {rule.by} requires --mpp, the micrometres per pixel of the tiles")
        if rule.attribute in {"file", "slide", "width", "height", *features.MEASUREMENTS}:
            raise ValueError(f"--attributes {rule.attribute}=…: is the name of another column of the CSV; choose a different name")
    return rules


def _with_edges(rule: levels.Rule, measured: table.Measured, settings: table.Settings, count: int) -> levels.Rule:
    """Return the rule with its edges and the settings that its values depend on.

    Raises:
        ValueError: the edges of an attributes file were made with other settings.
    """
    from data_shards.measure import levels

    how = measured.how(rule.by, settings)
    if rule.how and rule.how != how:
        raise ValueError(f"--attributes: {rule.attribute} was measured with {dict(rule.how)}, now with {how}; its edges don't apply")
    rule = levels.Rule(rule.attribute, rule.by, rule.edges, how)
    return rule if rule.edges else rule.with_quantiles(measured.column(rule.by), count)


def _check_out(out: Path, overwrite: bool) -> Path:
    """Check ``--out``, and return the path of the file with the rows measured so far."""
    if out.is_dir() or not out.parent.is_dir():
        raise ValueError(f"--out: {out} is a folder, or its parent folder does not exist; give the path of a CSV file")
    if out.exists() and not overwrite:
        raise ValueError(f"--out: {out} already exists; use --overwrite or another path")
    return out.with_name(out.name + ".partial")
