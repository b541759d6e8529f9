"""What must hold for all rows of a set's index together: each key once, and no group or image on two sides of a split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from data_shards.format import index
from data_shards.storage.shard_files import LocalShardFiles

Read = Callable[[int, int, int], bytes]  # number of a shard, length, offset


def problems(path: Path, header: index.Header, folder: Path) -> Iterator[str]:
    """All that is wrong between the rows of the index at ``path``, whose tars are in ``folder``; a line each, with a remedy."""
    table = index.read_table(path, columns=["shard", "split", "key", "group", "offset", "length", "checksum"])
    for row in repeated(table, ["key"], "shard", "count").to_pylist():
        of_key = table.filter(pc.equal(table["key"], row["key"]))["shard"].to_pylist()
        yield f"key {row['key']} is in {' and '.join(of_key[:3])}; give the samples of each tar names of their own"
    for row in groups_apart(table):
        yield f"group {row['group']} is in {row['split_count_distinct']} splits; choose --val by group, or hold out none (--val '')"
    yield from (f"{line}; leave one of them" for line in same_images(table, header, LocalShardFiles(folder, header.shards).read))


def groups_apart(table: pa.Table) -> list[dict[str, object]]:
    """Groups that are in more than one split."""
    found: list[dict[str, object]] = repeated(
        table.filter(pc.not_equal(table["group"], "")), ["group"], "split", "count_distinct"
    ).to_pylist()
    return found


def repeated(table: pa.Table, by: list[str], column: str, count: str) -> pa.Table:
    """The values of ``by`` that come with more than one (distinct) entry in ``column``."""
    grouped = table.group_by(by).aggregate([(column, count)])
    return grouped.filter(pc.greater(grouped[f"{column}_{count}"], 1)).sort_by([(name, "ascending") for name in by])


def same_images(table: pa.Table, header: index.Header, read: Read) -> Iterator[str]:
    """Images that are in more than one split; equal checksums are followed up to the bytes."""
    number_of = {shard.name: number for number, shard in enumerate(header.shards)}
    suspects = repeated(table, ["length", "checksum"], "split", "count_distinct").select(["length", "checksum"])
    by_bytes: dict[bytes, list[str]] = defaultdict(list)
    for row in table.join(suspects, ["length", "checksum"], join_type="inner").sort_by("key").to_pylist() if len(suspects) else []:
        data = read(number_of[row["shard"]], row["length"], row["offset"])
        by_bytes[data].append(f"{row['split']} {row['key']}")
    for names in by_bytes.values():
        if len({name.split()[0] for name in names}) > 1:
            yield f"one image is in several splits: {', '.join(names)}"
