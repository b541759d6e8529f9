"""The index of a shard set: one Parquet file with a row for every tile; its metadata describe the whole set.

Owns the columns, the metadata, and reading both. Packing is in packer.py, the order of tiles in global_order.py.

Columns: ``shard``, ``split``, ``offset`` and ``length`` of the image member's data in bytes, ``key``, ``group`` ("" for none), one int8 for
each attribute under its name (-1 if unknown), ``checksum`` (CRC-32 of the image member's data).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from attributegan.attributes import UNKNOWN, AttributeSchema
from attributegan.utils.files import atomic_write

FILE = "index.parquet"
CARD = "card.html"  # optional dataset card beside the index
VERSION = 1
METADATA = b"attributegan.shards"
ROW_GROUP = 1 << 17
RESERVED = ("shard", "split", "offset", "length", "key", "group", "checksum")


@dataclass(frozen=True)
class Shard:
    """One tar of the set."""

    name: str
    split: str
    size: int  # bytes of the tar
    tiles: int
    sha256: str  # of the tar


@dataclass(frozen=True)
class Header:
    """Metadata of a whole set."""

    schema: AttributeSchema
    shards: tuple[Shard, ...]
    image_size: int | None  # pixels, if all tiles are squares of one size
    source: str  # fingerprint of the tiles and options that the set was packed from
    left_out: tuple[str, ...] = ()  # tiles that could not be packed, with the reason, one line each

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(shard.split for shard in self.shards))


@dataclass(frozen=True)
class Rows:
    """Positions and levels of the N tiles of a split."""

    shard_N: np.ndarray  # int32, index into `Header.shards`
    offset_N: np.ndarray  # int64
    length_N: np.ndarray  # int32
    checksum_N: np.ndarray  # uint32
    levels_NA: np.ndarray  # int8

    def where(self, keep_N: np.ndarray) -> Rows:
        """Returns the rows for which ``keep_N`` is true."""
        return Rows(*(getattr(self, field.name)[keep_N] for field in fields(self)))


def arrow_schema(schema: AttributeSchema) -> pa.Schema:
    """Returns the columns of an index.

    Raises:
        ValueError: an attribute has the name of a reserved column.
    """
    if reserved := set(schema.names) & set(RESERVED):
        raise ValueError(f"attributes: {', '.join(sorted(reserved))}: reserved for columns of the index; rename the attribute")
    fields = {
        "shard": pa.string(),
        "split": pa.string(),
        "offset": pa.int64(),
        "length": pa.int32(),
        "key": pa.string(),
        "group": pa.string(),
    }
    return pa.schema(fields | {attribute: pa.int8() for attribute in schema.names} | {"checksum": pa.uint32()})


def write(path: Path, header: Header, tables: Iterable[pa.Table]) -> None:
    """Write an index atomically; ``tables`` have the columns of `arrow_schema`."""
    tree = asdict(header) | {"version": VERSION, "schema": header.schema.to_dict()}
    columns = arrow_schema(header.schema).with_metadata({METADATA: json.dumps(tree)})
    with atomic_write(path) as stream, pq.ParquetWriter(stream, columns, compression="zstd") as writer:
        for table in _row_groups(tables):
            writer.write_table(table.cast(columns), row_group_size=len(table))


def merge(path: Path, parts: Sequence[Path], source: str, left_out: Sequence[str]) -> Header:
    """Write the index of a set from the indexes of its shards; rows are streamed, so that memory does not depend on their number.

    Args:
        parts: indexes of one shard each.

    Raises:
        ValueError: none of the shards has a tile.
    """
    shards: dict[Path, Shard] = {}
    sizes: set[int | None] = set()
    for part in parts:
        header = read_header(part)
        if header.shards[0].tiles:
            shards[part] = header.shards[0]
            sizes.add(header.image_size)
    if not shards:
        raise ValueError("no usable tiles" + "".join(f"\n  {line}" for line in left_out))
    size = sizes.pop() if len(sizes) == 1 else None
    header = Header(read_header(parts[0]).schema, tuple(shards.values()), size, source, tuple(left_out))
    write(path, header, map(read_table, shards))
    return header


def _row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yields the same rows in tables of at least ROW_GROUP rows, except the last."""
    buffer: list[pa.Table] = []
    for table in tables:
        buffer.append(table)
        if sum(map(len, buffer)) >= ROW_GROUP:
            yield pa.concat_tables(buffer)
            buffer = []
    if sum(map(len, buffer)):
        yield pa.concat_tables(buffer)


def invalid_name(name: str) -> str:
    """Returns why a shard can't have this name, or "". Names become parts of paths, URLs and remote shell commands."""
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._+=,@-]*", name):
        return ""
    return (
        f"{name!r} is not a valid shard name; use ASCII letters, digits and . _ + = , @ - (starting with a letter, digit or _). "
        "Rename the tar and create the index again"
    )


def read_header(path: Path) -> Header:
    """Read the metadata of an index file.

    Raises:
        ValueError: not an index, or one of an unsupported version.
    """
    with _readable(path):
        columns = pq.read_schema(path)
        text = (columns.metadata or {}).get(METADATA)
    if text is None:
        raise ValueError(f"{path}: a Parquet file, but not the index of a shard set; create one with `attributegan-shard pack` or `index`")
    try:
        tree: dict[str, Any] = json.loads(text)
        header = _header(tree) if tree["version"] == VERSION else None
        same_columns = header is not None and columns.remove_metadata() == arrow_schema(header.schema)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: damaged metadata ({type(error).__name__}: {error}); copy the set again") from error
    if header is None:
        raise ValueError(f"{path}: written by an incompatible version of attributegan; pack the set again, or use that version")
    if not same_columns or not all(map(_is_typed, header.shards)) or type(header.image_size) not in (int, type(None)):
        raise ValueError(f"{path}: columns and metadata do not match; copy the set again, or pack it again")
    for number, shard in enumerate(header.shards, 1):
        if problem := invalid_name(shard.name):
            raise ValueError(f"{path}: shard {number} in the metadata: {problem}")
        if not re.fullmatch("[0-9a-f]{64}", shard.sha256):
            raise ValueError(f"{path}: shard {number} in the metadata: {shard.sha256!r} is not a SHA-256; pack the set again")
    return header


def _header(tree: dict[str, Any]) -> Header:
    schema = AttributeSchema.from_dict(tree["schema"], where="attributes")
    shards = tuple(Shard(**shard) for shard in tree["shards"])
    return Header(schema, shards, tree["image_size"], str(tree["source"]), tuple(map(str, tree["left_out"])))


def _is_typed(shard: Shard) -> bool:
    """Returns whether all fields of a shard have their declared types."""
    return all(type(getattr(shard, field.name)).__name__ == field.type for field in fields(shard)) and shard.size >= 0


def read_rows(path: Path, header: Header, split: str) -> Rows:
    """Read the rows of one split, in the order of the index; only the columns needed to read tiles.

    Raises:
        ValueError: rows contradict the metadata.
    """
    names = header.schema.names
    number_of = {shard.name: number for number, shard in enumerate(header.shards)}
    in_split_S = np.array([shard.split == split for shard in header.shards])
    parts: list[Rows] = []
    with _readable(path), pq.ParquetFile(path, memory_map=True, read_dictionary=["shard"]) as file:
        for group in range(file.num_row_groups):
            columns = ["shard", "offset", "length", "checksum", *names]
            table = file.read_row_group(group, columns, use_threads=file.num_row_groups > 1).unify_dictionaries()
            rows = _rows(table, names, number_of, path)
            parts.append(rows.where(in_split_S[rows.shard_N]))
    if not parts:
        raise ValueError(f"{path}: has no rows; pack the set again")
    rows = Rows(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Rows)))
    _check(rows, header, path)
    return rows


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read all rows, in the order of the file."""
    with _readable(path), pq.ParquetFile(path, memory_map=True) as file:
        return file.read(columns, use_threads=file.num_row_groups > 1)


def read_row_groups(path: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yields all rows, in the order of the file, a row group at a time."""
    with _readable(path), pq.ParquetFile(path, memory_map=True) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns, use_threads=False)


def read_shard(path: Path, shard: str) -> pa.Table:
    """Read the rows of one shard; only row groups that may contain it are read."""
    with _readable(path), pq.ParquetFile(path, memory_map=True) as file:
        column = file.schema_arrow.names.index("shard")
        bounds = [file.metadata.row_group(group).column(column).statistics for group in range(file.num_row_groups)]
        groups = [group for group, bound in enumerate(bounds) if bound is None or not bound.has_min_max or bound.min <= shard <= bound.max]
        table = file.read_row_groups(groups, use_threads=False)
    return table.filter(pc.equal(table["shard"], shard))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn errors of reading the file into ValueErrors that name it."""
    try:
        yield
    except FileNotFoundError as error:
        raise ValueError(f"{path}: not found; {path.parent} is not a shard set. Create one with `attributegan-shard pack`") from error
    except (OSError, pa.ArrowException, UnicodeDecodeError, LookupError) as error:
        raise ValueError(f"{path}: not a readable index: {error}") from error


def _rows(table: pa.Table, names: tuple[str, ...], number_of: dict[str, int], path: Path) -> Rows:
    if any(table[name].null_count for name in table.column_names):
        raise ValueError(f"{path}: rows with missing values; pack the set again")
    column = {name: table[name].combine_chunks() for name in table.column_names}
    labels = column["shard"].dictionary.to_pylist()
    if unknown := [label for label in labels if label not in number_of]:
        raise ValueError(f"{path}: rows refer to shards missing from the metadata: {', '.join(map(str, unknown[:3]))}; pack the set again")
    shard_N = np.array([number_of[label] for label in labels], np.int32)[column["shard"].indices.to_numpy()]
    levels_NA = np.stack([column[name].to_numpy() for name in names], axis=1)
    return Rows(shard_N, column["offset"].to_numpy(), column["length"].to_numpy(), column["checksum"].to_numpy(), levels_NA)


def _check(rows: Rows, header: Header, path: Path) -> None:
    for attribute, levels_N in zip(header.schema.attributes, rows.levels_NA.T, strict=True):
        if len(levels_N) and not UNKNOWN <= levels_N.min() <= levels_N.max() < len(attribute.levels):
            raise ValueError(
                f"{path}: levels of {attribute.name} range from {levels_N.min()} to {levels_N.max()}, "
                f"but its schema has 0 to {len(attribute.levels) - 1}; pack the set again"
            )
    size_S = np.array([shard.size for shard in header.shards])
    if ((rows.offset_N < 0) | (rows.length_N < 0) | (rows.offset_N > size_S[rows.shard_N] - rows.length_N)).any():
        raise ValueError(f"{path}: some tiles lie outside their shard; pack the set again")
