"""Imports and exports label tables: metadata.csv, .jsonl and .parquet of Hugging Face's ImageFolder, and single tables.

Owns the conversion to the CSV of `attributegan-shard pack`, and writing an ImageFolder's metadata from such CSVs.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from attributegan.attributes import UNKNOWN, Attribute, AttributeSchema
from attributegan.utils.files import atomic_write
from data_shards.ingest.importers import IMAGES, Imported, Row
from data_shards.packing.labels import Labels

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # of an ImageFolder, at any depth
FILE_NAME = "file_name"


def read_imagefolder(folder: Path, schema: AttributeSchema, columns: Mapping[str, str]) -> Imported:
    """Read every metadata file of an ImageFolder; file names are relative to ``folder``.

    Args:
        columns: column names of attributes, where they differ.

    Raises:
        ValueError: no metadata, or unreadable. Invalid rows are reported in the result instead.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: not a folder; pass the folder of the images and their metadata")
    tables = sorted(Path(parent, name) for parent, _, names in os.walk(folder) for name in names if name in METADATA)
    if not tables:
        raise ValueError(f"{folder}: no {', '.join(METADATA)} found")
    parts = [_read(table, table.parent.relative_to(folder).as_posix(), schema, {"file": FILE_NAME} | dict(columns)) for table in tables]
    return _joined(parts)


def read_table(path: Path, schema: AttributeSchema, columns: Mapping[str, str]) -> Imported:
    """Read a table (Parquet, JSON lines or CSV) with a column ``file``, or as mapped by ``columns``; raises as `read_imagefolder`."""
    return _joined([_read(path, ".", schema, {"file": "file"} | dict(columns))])


def _read(path: Path, below: str, schema: AttributeSchema, columns: Mapping[str, str]) -> Imported:
    names = {name: columns.get(name, name) for name in ("file", *schema.names)}
    try:
        found, entries = _entries(path)
        if missing := [column for column in names.values() if column not in found]:
            raise ValueError(
                f"{path}: no column {', '.join(missing)}; found {', '.join(found) or 'none'}. "
                "Map columns with --column file=NAME and --column ATTRIBUTE=NAME"
            )
        others = [name for name in found if name not in names.values() and name not in names]
        rows: list[Row] = []
        bad: list[str] = []
        for where, entry in entries:
            try:
                file = _file(below, entry.get(names["file"]))
                levels = schema.written([level_of(attribute, entry.get(names[attribute.name])) for attribute in schema.attributes])
            except ValueError as error:
                bad.append(f"{where}: {error}")
                continue
            rows.append({"file": file, **{name: _text(entry.get(name)) for name in others}, **levels})
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise ValueError(f"{path}: not a readable table: {error}") from error
    return Imported(("file", *others, *schema.names), rows, bad)


def _entries(path: Path) -> tuple[list[str], Iterator[tuple[str, Mapping[str, Any]]]]:
    """Returns the columns of a table, and its rows with their locations for messages."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        return _of_parquet(path)
    if kind == ".jsonl":
        entries = list(_of_jsonl(path))
        return list(dict.fromkeys(name for _, entry in entries for name in entry)), iter(entries)
    if kind == ".csv":
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""), restval="", strict=True)
        found = [name for name in reader.fieldnames or () if name]
        return found, ((f"{path.name}:{reader.line_num}", row) for row in reader)
    raise ValueError(f"{path}: not a .parquet, .jsonl or .csv file")


def _of_parquet(path: Path) -> tuple[list[str], Iterator[tuple[str, Mapping[str, Any]]]]:
    opened = pq.ParquetFile(path)
    scalars = [field.name for field in opened.schema_arrow if not pa.types.is_nested(field.type) and not _is_binary(field.type)]
    classes = _class_labels(opened.schema_arrow.metadata or {})

    def rows() -> Iterator[tuple[str, Mapping[str, Any]]]:
        number = 0
        for batch in opened.iter_batches(columns=scalars):
            for entry in batch.to_pylist():
                number += 1
                for name, labels in classes.items():
                    entry[name] = _class_label(labels, entry.get(name))
                yield f"{path.name}: row {number}", entry

    return scalars, rows()


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _class_labels(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Returns the names of columns that Hugging Face's datasets wrote as ClassLabel, whose order may differ from the schema's."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {name: [str(one) for one in about["names"]] for name, about in features.items() if about.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _class_label(names: Sequence[str], number: Any) -> Any:
    """Returns the name of a class by its number; -1 and missing mean unknown."""
    return names[number] if isinstance(number, int) and 0 <= number < len(names) else None if number in (None, -1) else number


def _of_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                try:
                    entry = json.loads(line)
                except (json.JSONDecodeError, RecursionError) as error:
                    raise ValueError(f"{path}:{number}: not valid JSON: {error}") from error
                if not isinstance(entry, dict):
                    raise ValueError(f"{path}:{number}: not a JSON object")
                yield f"{path.name}:{number}", entry


def _file(below: str, name: Any) -> str:
    file = posixpath.normpath(posixpath.join(below, str(name).strip())) if name else ""
    if not file or file.startswith(("/", "../")) or file == "..":
        raise ValueError(f"file {name!r}: not a path relative to the folder")
    return file


def _text(value: Any) -> str | int:
    """Convert an entry of another column for CSV."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict | bool) else str(value).strip()


def level_of(attribute: Attribute, value: Any) -> int:
    """Parse a level as `Attribute.read` does; `UNKNOWN` also for empty cells and NaN.

    Raises:
        ValueError: no such level.
    """
    if (isinstance(value, float) and math.isnan(value)) or (isinstance(value, str) and not value.strip()):
        return UNKNOWN
    return attribute.read(str(value) if isinstance(value, Decimal) else value)


def _joined(parts: Sequence[Imported]) -> Imported:
    """Concatenate tables, without duplicate files."""
    columns = list(dict.fromkeys(name for part in parts for name in part.columns))
    rows: dict[str, Row] = {}
    bad = [line for part in parts for line in part.bad]
    for row in (row for part in parts for row in part.rows):
        if rows.setdefault(str(row["file"]), row) is not row:
            bad.append(f"{row['file']}: duplicate; using the first row")
    return Imported(tuple(columns), [{name: row.get(name, "") for name in columns} for row in rows.values()], bad)


def write_imagefolder(labels: Labels, images: Path, kind: str, names: bool, overwrite: bool) -> tuple[Path, int]:
    """Write the metadata file of an ImageFolder beside its images.

    Args:
        labels: with files relative to ``images``.
        kind: "jsonl" or "csv".
        names: write levels by name instead of number, as for attributes whose level names are numbers; unknown levels are empty.

    Returns:
        The file, and the number of images in the folder without a row.

    Raises:
        ValueError: invalid rows, a missing image, or an existing metadata file.
    """
    if labels.bad:
        raise ValueError(f"--labels: {len(labels.bad):,} invalid rows:" + "".join(f"\n  {line}" for line in labels.bad[:10]))
    rows = labels.table.to_pylist()
    if missing := [row["file"] for row in rows if not (images / row["file"]).is_file()]:
        raise ValueError(f"--images: {len(missing):,} images of the table are not in {images}, such as {missing[0]}")
    existing = [images / name for name in METADATA if (images / name).exists()]
    if existing and not overwrite:
        raise ValueError(f"{existing[0]}: exists already; use --overwrite to replace it")
    out = images / f"metadata.{kind}"
    if others := [path for path in existing if path != out]:
        raise ValueError(f"{others[0]}: exists too, but datasets accepts only one metadata file; remove it")
    entries = [_entry(labels.schema, row, names) for row in rows]
    with atomic_write(out) as stream:
        stream.write(_jsonl(entries) if kind == "jsonl" else _csv(entries))
    listed = {row["file"] for row in rows}
    return out, sum(file not in listed for file in _images(images))


def _entry(schema: AttributeSchema, row: Mapping[str, Any], names: bool) -> dict[str, Any]:
    levels = {
        attribute.name: None if level == UNKNOWN else attribute.levels[level] if names else attribute.written(level)
        for attribute, level in ((attribute, row[attribute.name]) for attribute in schema.attributes)
    }
    more = json.loads(row["more"]) if row["more"] else {}
    return {FILE_NAME: row["file"]} | levels | {name: value for name, value in more.items() if name != FILE_NAME}


def _jsonl(entries: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries).encode()


def _csv(entries: Sequence[Mapping[str, Any]]) -> bytes:
    columns = list(dict.fromkeys(name for entry in entries for name in entry))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(entries)
    return text.getvalue().encode()


def _images(folder: Path) -> Iterator[str]:
    for parent, _, names in os.walk(folder):
        for name in names:
            if os.path.splitext(name)[1].lower() in IMAGES:
                yield Path(parent, name).relative_to(folder).as_posix()
