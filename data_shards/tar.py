"""Write one shard: a WebDataset tar and the rows that the index has for it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

import pyarrow as pa
import webdataset

from attributegan.attributes import AttributeSchema
from data_shards import format, index
from data_shards.sources import Member


class _Hashed:
    """A stream that counts and hashes what is written."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.sha256, self.size = stream, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.size += len(data)
        return self.stream.write(data)


def write_tar(
    stream: BinaryIO, name: str, split: str, schema: AttributeSchema, tiles: Iterable[tuple[Mapping[str, Any], Member]]
) -> tuple[index.Shard, pa.Table, int | None]:
    """Write a shard; the same tiles give the same bytes.

    Args:
        tiles: rows of a `Labels` table, each with its image.

    Returns:
        what the index says of the shard, its rows, and the size of its images in pixels (None when they are not squares of one size).
    """
    hashed = _Hashed(stream)
    columns: dict[str, list[Any]] = {column: [] for column in index.arrow_schema(schema).names}
    sizes: set[tuple[int, int]] = set()
    with webdataset.TarWriter(hashed, user="", group="", mode=0o644, mtime=0, encoder=False) as tar:
        for row, image in tiles:
            levels = {attribute: row[attribute] for attribute in schema.names}
            tar.write({"__key__": row["key"], image.extension: image.data})
            offset = tar.tarstream.offset - _padded(len(image.data))
            tar.write({"__key__": row["key"], "json": format.to_json(levels, row["group"], row["file"])})
            tar.tarstream.members.clear()  # it would grow with the shard, and is not needed
            entry = {"shard": name, "split": split, "offset": offset, "length": len(image.data), "key": row["key"], "group": row["group"]}
            for column, value in (entry | levels | {"checksum": format.checksum(image.data)}).items():
                columns[column].append(value)
            sizes.add((image.width, image.height))
    table = pa.table(columns, schema=index.arrow_schema(schema))
    shard = index.Shard(name, split, hashed.size, len(table), hashed.sha256.hexdigest())
    return shard, table, format.common_size(sizes)


def _padded(length: int) -> int:
    return (length + 511) // 512 * 512
