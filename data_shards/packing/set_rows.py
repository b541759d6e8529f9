"""Checks across all rows of a set's index: keys are unique, and no group or image is in two splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from data_shards.format import index
from data_shards.storage.shard_files import LocalShardFiles

Read = Callable[[int, int, int], bytes]  # index of the shard, length, offset


def problems(path: Path, header: index.Header, folder: Path) -> Iterator[str]:
    """Yields the problems across the rows of the index at ``path``, whose tars are in ``folder``: one line each, with the fix."""
    table = index.read_table(path, columns=["shard", "split", "key", "group", "offset", "length", "checksum"])
    for row in repeated(table, ["key"], "shard", "count").to_pylist():
        of_key = table.filter(pc.equal(table["key"], row["key"]))["shard"].to_pylist()
        yield f"key {row['key']} is in {' and '.join(of_key[:3])}; give samples unique names across tars"
    for row in split_groups(table):
        yield f"group {row['group']} is in {row['split_count_distinct']} splits; choose --val by group, or hold out nothing (--val '')"
    yield from (f"{line}; keep one of them" for line in same_images(table, header, LocalShardFiles(folder, header.shards).read))


def split_groups(table: pa.Table) -> list[dict[str, object]]:
    """Returns the groups that are in more than one split."""
    found: list[dict[str, object]] = repeated(
        table.filter(pc.not_equal(table["group"], "")), ["group"], "split", "count_distinct"
    ).to_pylist()
    return found


def repeated(table: pa.Table, by: list[str], column: str, count: str) -> pa.Table:
    """Returns the values of ``by`` with more than one (distinct) entry in ``column``."""
    grouped = table.group_by(by).aggregate([(column, count)])
    return grouped.filter(pc.greater(grouped[f"{column}_{count}"], 1)).sort_by([(name, "ascending") for name in by])


def same_images(table: pa.Table, header: index.Header, read: Read) -> Iterator[str]:
    """Yields the images that are in more than one split; images with equal checksums are compared by bytes."""
    number_of = {shard.name: number for number, shard in enumerate(header.shards)}
    suspects = repeated(table, ["length", "checksum"], "split", "count_distinct").select(["length", "checksum"])
    by_bytes: dict[bytes, list[str]] = defaultdict(list)
    for row in table.join(suspects, ["length", "checksum"], join_type="inner").sort_by("key").to_pylist() if len(suspects) else []:
        data = read(number_of[row["shard"]], row["length"], row["offset"])
        by_bytes[data].append(f"{row['split']} {row['key']}")
    for names in by_bytes.values():
        if len({name.split()[0] for name in names}) > 1:
            yield f"the same image is in several splits: {', '.join(names)}"
