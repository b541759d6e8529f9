"""Reads label tables: the levels and group of each file, and every invalid row.

Owns reading the CSVs. Tiles are stored as columns, so that millions fit in memory.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from attributegan.attributes import Attribute, AttributeSchema
from data_shards.format import groups, tables
from data_shards.format.tile import key_of

CHUNK = 1 << 16
HINT = "Map columns with --column file=NAME and --column ATTRIBUTE=NAME"


@dataclass(frozen=True)
class Labels:
    """The tiles to pack.

    Args:
        table: columns ``file``, ``key``, ``group`` ("" for none), ``where`` (file:line), ``more`` (other columns of the CSV as JSON, or
            "") and one int8 for each attribute.
        bad: rejected rows with the reason, one line each.
        grouped: whether tiles of a group must stay in the same split.
    """

    schema: AttributeSchema
    table: pa.Table
    bad: list[str]
    grouped: bool


def table_of(schema: AttributeSchema, columns: Mapping[str, Sequence[str] | pa.Array], levels_NA: np.ndarray) -> pa.Table:
    """Build the table of `Labels` from its columns."""
    arrays = {name: pa.array(values, pa.string()) for name, values in columns.items()}
    return pa.table(arrays | {name: pa.array(levels_N, pa.int8()) for name, levels_N in zip(schema.names, levels_NA.T, strict=True)})


def read_labels(
    paths: Sequence[Path], schema: AttributeSchema, columns: Mapping[str, str] | None = None, group: str | None = None
) -> Labels:
    """Read CSVs with a header line and the columns ``file`` and one for each attribute (level by number or name, -1 if unknown).

    Args:
        columns: column names of ``file`` and attributes, where they differ.
        group: column whose equal entries must stay in the same split, such as the slide.

    Raises:
        ValueError: an unreadable file or a missing column. Invalid rows are collected in the result instead.
    """
    names = {name: name for name in ("file", *schema.names)} | dict(columns or {})
    if unknown := set(names) - {"file", *schema.names}:
        raise ValueError(f"--column {sorted(unknown)[0]}=…: neither `file` nor an attribute; attributes are {', '.join(schema.names)}")
    for column in names.values():
        if len(clashing := [name for name, other in names.items() if other == column]) > 1:
            raise ValueError(f"--column: {' and '.join(clashing)} both map to column {column}; map each to a different column")
    bad: list[str] = []
    chunks = list(_chunks(paths, schema, names, group, bad))
    empty = table_of(schema, {"file": [], "key": [], "group": [], "where": [], "more": []}, np.empty((0, len(schema.names)), np.int8))
    return Labels(schema, _first_of_each_key(pa.concat_tables([empty, *chunks]).combine_chunks(), bad), bad, group is not None)


def _first_of_each_key(table: pa.Table, bad: list[str]) -> pa.Table:
    """Returns the table without rows whose key occurred before; those are appended to ``bad``."""
    if not len(table):
        return table
    code_N = table["key"].combine_chunks().dictionary_encode().indices.to_numpy()  # keys are numbered in order of appearance
    is_first_N = np.zeros(len(table), bool)
    first_K = np.unique(code_N, return_index=True)[1]
    is_first_N[first_K] = True
    for number in np.flatnonzero(~is_first_N).tolist():
        row, before = table.slice(number, 1).to_pylist()[0], table["where"][int(first_K[code_N[number]])]
        first = table["file"][int(first_K[code_N[number]])].as_py()
        of = "" if first == row["file"] else f" ({first})"
        bad.append(f"{row['where']}: {row['file']}: its key {row['key']} is taken by {before}{of}")
    return table.filter(pa.array(is_first_N)).combine_chunks() if bad else table


def _chunks(
    paths: Sequence[Path], schema: AttributeSchema, names: Mapping[str, str], group: str | None, bad: list[str]
) -> Iterator[pa.Table]:
    """Yields valid rows in tables of bounded size; invalid rows are appended to ``bad``."""
    levels_of = [_Levels(attribute) for attribute in schema.attributes]
    required = [names["file"], *(names[name] for name in schema.names), *([group] if group else [])]
    rows: list[tuple[str, str, str, str, str, list[int]]] = []
    for path in paths:
        for row in tables.rows(path, required, HINT):
            (name, *texts), where = row.values, row.where
            try:
                if row.problem:
                    raise ValueError(row.problem)
                file = _file(name)
                levels = [level_of[text] for level_of, text in zip(levels_of, texts, strict=False)]
                of_group = groups.name_of(texts[-1]) if group else ""
                if group and not of_group:
                    raise ValueError(f"{file}: column {group} is {'empty' if not texts[-1] else texts[-1]}")
            except ValueError as error:
                bad.append(f"{where}: {error}")
                continue
            more = {name: _value(text) for name, text in row.others.items()}
            rows.append((file, key_of(file), of_group, where, json.dumps(more, ensure_ascii=False) if more else "", levels))
            if len(rows) == CHUNK:
                yield _table(schema, rows)
                rows = []
    if rows:
        yield _table(schema, rows)


def _table(schema: AttributeSchema, rows: list[tuple[str, str, str, str, str, list[int]]]) -> pa.Table:
    file, key, group, where, more, levels = zip(*rows, strict=True)
    return table_of(schema, {"file": file, "key": key, "group": group, "where": where, "more": more}, np.array(levels, np.int8))


def _value(text: str) -> int | float | str:
    """Convert a text to a number only if JSON would write it the same way; "007" stays text."""
    if re.fullmatch(r"-?(0|[1-9]\d{0,17})", text, re.ASCII):
        return int(text)
    if re.fullmatch(r"-?(0|[1-9]\d*)\.\d+", text, re.ASCII) and repr(float(text)) == text:
        return float(text)
    return text


def _file(text: str) -> str:
    file = posixpath.normpath(text)
    if not text or file.startswith(("/", "../")):
        raise ValueError(f"file {text!r}: not a path relative to the folder of --images")
    return file


class _Levels(dict[str, int]):
    """Cache of `Attribute.read`: text to level."""

    def __init__(self, attribute: Attribute) -> None:
        super().__init__()
        self.attribute = attribute

    def __missing__(self, text: str) -> int:
        self[text] = level = self.attribute.read(text)
        return level
