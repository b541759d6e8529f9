"""Writes one shard: a WebDataset tar and its rows of the index.

Each member is written in one piece: `webdataset.TarWriter` writes chunks of 10 KiB and imports torch, which makes packing several times
slower than ``tar``.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

import pyarrow as pa

from attributegan.attributes import AttributeSchema
from data_shards.format import index, tile
from data_shards.packing.sources import EncodedImage

ZEROS = bytes(tarfile.RECORDSIZE)
_EMPTY = tarfile.TarInfo("").tobuf(tarfile.PAX_FORMAT)
_EMPTY_SUM = int(_EMPTY[148:154], 8) - 11 * ord("0")  # checksum without the size field


class _Tar:
    """A tar writer that counts and hashes its bytes."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.sha256, self.size = stream, hashlib.sha256(), 0

    def add(self, name: str, data: bytes) -> int:
        """Write one file; returns the offset of its data."""
        self._write(header(name, len(data)))
        offset = self.size
        self._write(data)
        self._write(ZEROS[: -len(data) % tarfile.BLOCKSIZE])
        return offset

    def close(self) -> None:
        """Write the end of the tar: two empty blocks, padded to a whole record."""
        self._write(ZEROS[: 2 * tarfile.BLOCKSIZE])
        self._write(ZEROS[: -self.size % tarfile.RECORDSIZE])

    def _write(self, data: bytes) -> None:
        self.sha256.update(data)
        self.size += len(data)
        self.stream.write(data)


def header(name: str, size: int) -> bytes:
    """Returns the tar header of a file; deterministic, without owner and time.

    `tarfile` builds it. Short ASCII names reuse one block, into which name, size and checksum are written.
    """
    if len(name) > tarfile.LENGTH_NAME or not name.isascii():
        info = tarfile.TarInfo(name)
        info.size = size
        return info.tobuf(tarfile.PAX_FORMAT)
    block, name_bytes, size_bytes = bytearray(_EMPTY), name.encode(), b"%011o" % size
    block[: len(name_bytes)] = name_bytes
    block[124:135] = size_bytes
    block[148:154] = b"%06o" % (_EMPTY_SUM + sum(name_bytes) + sum(size_bytes))
    return bytes(block)


def write_tar(
    stream: BinaryIO, name: str, split: str, schema: AttributeSchema, tiles: Iterable[tuple[Mapping[str, Any], EncodedImage]]
) -> tuple[index.Shard, pa.Table, int | None]:
    """Write a shard; the same tiles give the same bytes.

    Args:
        tiles: rows of a `Labels` table, each with its image.

    Returns:
        The entry of the shard for the header, its rows of the index, and the size of its images in pixels (None unless all are squares of
        one size).
    """
    tar = _Tar(stream)
    columns: dict[str, list[Any]] = {column: [] for column in index.arrow_schema(schema).names}
    sizes: set[tuple[int, int]] = set()
    for row, image in tiles:
        levels = {attribute: row[attribute] for attribute in schema.names}
        offset = tar.add(f"{row['key']}.{image.extension}", image.data)
        tar.add(f"{row['key']}.json", tile.to_json(schema.written(list(levels.values())), row["group"], row["file"], row["more"]))
        entry = {"shard": name, "split": split, "offset": offset, "length": len(image.data), "key": row["key"], "group": row["group"]}
        for column, value in (entry | levels | {"checksum": tile.checksum(image.data)}).items():
            columns[column].append(value)
        sizes.add((image.width, image.height))
    tar.close()
    table = pa.table(columns, schema=index.arrow_schema(schema))
    shard = index.Shard(name, split, tar.size, len(table), tar.sha256.hexdigest())
    return shard, table, tile.common_size(sizes)
