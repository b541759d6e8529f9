"""Parts shared by the subcommands of ``attributegan-shard`` that write shard sets: options, schema, and the report of what was written."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from attributegan.attributes import PUBLISHED, AttributeSchema

if TYPE_CHECKING:  # slow to import; --help must be fast
    from data_shards.format.index import Header


def add_skip_bad(parser: argparse.ArgumentParser) -> None:
    """Add ``--skip-bad``."""
    parser.add_argument("--skip-bad", action="store_true", help="skip invalid tiles with a message (default: fail)")


def schema_of(attributes: Path | None) -> AttributeSchema:
    """Return the schema of ``--attributes``; without a file, the published one."""
    return AttributeSchema.from_yaml(attributes, "--attributes") if attributes else PUBLISHED


def report(folder: Path, header: Header) -> int:
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

    seen: dict[str, set[int]] = {name: set() for name in header.schema.names}
    for table in index.read_row_groups(folder / index.FILE, header.schema.names):  # at once, they would need memory for each row
        for name, levels in seen.items():
            levels.update(table[name].unique().to_pylist())
    longest = max(map(len, seen.values()))
    return level_counts.absent(header.schema, np.stack([np.resize(sorted(levels), longest) for levels in seen.values()], axis=1))


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
