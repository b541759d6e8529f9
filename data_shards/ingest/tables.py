"""Tables of levels that other programs write and read: metadata.csv, .jsonl and .parquet of Hugging Face's ImageFolder, and Parquet tables.

Owns reading them into the CSV that `attributegan-shard pack` takes, and writing an ImageFolder's metadata from such CSVs.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from attributegan.attributes import UNKNOWN, Attribute, AttributeSchema
from attributegan.utils.files import atomic_write
from data_shards.ingest.importers import IMAGES, Imported, Row
from data_shards.packing.labels import Labels

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # of an ImageFolder, at its top and in its folders
FILE_NAME = "file_name"


def read_imagefolder(folder: Path, schema: AttributeSchema, columns: Mapping[str, str]) -> Imported:
    """Read every metadata file of an ImageFolder; names of images are those below ``folder``.

    Args:
        columns: the table's name of an attribute, where it is another one.

    Raises:
        ValueError: no metadata there, or none that can be read. Single bad rows are in the result instead.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: not a folder; give the folder of the images and their metadata")
    tables = sorted(Path(at, name) for at, _, names in os.walk(folder) for name in names if name in METADATA)
    if not tables:
        raise ValueError(f"{folder}: has no {', '.join(METADATA)}, at the top or in a folder")
    parts = [_read(table, table.parent.relative_to(folder).as_posix(), schema, {"file": FILE_NAME} | dict(columns)) for table in tables]
    return _joined(parts)


def read_table(path: Path, schema: AttributeSchema, columns: Mapping[str, str]) -> Imported:
    """Read a table (Parquet, JSON lines or CSV) with a column ``file`` (or what ``columns`` says); raises as `read_imagefolder`."""
    return _joined([_read(path, ".", schema, {"file": "file"} | dict(columns))])


def _read(path: Path, below: str, schema: AttributeSchema, columns: Mapping[str, str]) -> Imported:
    names = {name: columns.get(name, name) for name in ("file", *schema.names)}
    try:
        having, entries = _entries(path)
        if missing := [column for column in names.values() if column not in having]:
            raise ValueError(
                f"{path}: no column {', '.join(missing)}; it has {', '.join(having) or 'nothing'}. "
                "Say which columns to take with --column file=NAME and --column ATTRIBUTE=NAME"
            )
        others = [name for name in having if name not in names.values() and name not in names]
        rows: list[Row] = []
        bad: list[str] = []
        for where, entry in entries:
            try:
                file = _file(below, entry.get(names["file"]))
                levels = {attribute.name: level_of(attribute, entry.get(names[attribute.name])) for attribute in schema.attributes}
            except ValueError as error:
                bad.append(f"{where}: {error}")
                continue
            rows.append({"file": file, **{name: _text(entry.get(name)) for name in others}, **levels})
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise ValueError(f"{path}: not a readable table: {error}") from error
    return Imported(("file", *others, *schema.names), rows, bad)


def _entries(path: Path) -> tuple[list[str], Iterator[tuple[str, Mapping[str, Any]]]]:
    """The columns of a table and its rows, each with its place."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        return _of_parquet(path)
    if kind == ".jsonl":
        entries = list(_of_jsonl(path))
        return list(dict.fromkeys(name for _, entry in entries for name in entry)), iter(entries)
    if kind == ".csv":
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""), restval="", strict=True)
        having = [name for name in reader.fieldnames or () if name]
        return having, ((f"{path.name}:{reader.line_num}", row) for row in reader)
    raise ValueError(f"{path}: not a .parquet, .jsonl or .csv file")


def _of_parquet(path: Path) -> tuple[list[str], Iterator[tuple[str, Mapping[str, Any]]]]:
    opened = pq.ParquetFile(path)
    simple = [one.name for one in opened.schema_arrow if not pa.types.is_nested(one.type) and not _is_binary(one.type)]
    classes = _class_labels(opened.schema_arrow.metadata or {})

    def rows() -> Iterator[tuple[str, Mapping[str, Any]]]:
        number = 0
        for batch in opened.iter_batches(columns=simple):
            for entry in batch.to_pylist():
                number += 1
                for name, labels in classes.items():
                    entry[name] = _class_label(labels, entry.get(name))
                yield f"{path.name}: row {number}", entry

    return simple, rows()


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _class_labels(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Names of the numbers in columns that Hugging Face's datasets wrote as ClassLabel: their order may be another one than ours."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {name: [str(one) for one in about["names"]] for name, about in features.items() if about.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _class_label(names: Sequence[str], number: Any) -> Any:
    """The name of a class by its number; -1 and nothing are "not known" there too."""
    return names[number] if isinstance(number, int) and 0 <= number < len(names) else None if number in (None, -1) else number


def _of_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                try:
                    entry = json.loads(line)
                except (json.JSONDecodeError, RecursionError) as error:
                    raise ValueError(f"{path}:{number}: not a line of JSON: {error}") from error
                if not isinstance(entry, dict):
                    raise ValueError(f"{path}:{number}: not a JSON object")
                yield f"{path.name}:{number}", entry


def _file(below: str, name: Any) -> str:
    file = posixpath.normpath(posixpath.join(below, str(name).strip())) if name else ""
    if not file or file.startswith(("/", "../")) or file == "..":
        raise ValueError(f"file {name!r}: not the name of an image relative to the folder")
    return file


def _text(value: Any) -> str | int:
    """An entry of a column that is no attribute, as CSV has it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict | bool) else str(value).strip()


def level_of(attribute: Attribute, value: Any) -> int:
    """A level by number or name; `UNKNOWN` for -1 and for nothing.

    Raises:
        ValueError: no such level.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)) or (isinstance(value, str) and not value.strip()):
        return UNKNOWN
    if isinstance(value, str) and value.strip() in attribute.levels:
        return attribute.levels.index(value.strip())
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if number == UNKNOWN or number in range(len(attribute.levels)):
        return int(number)
    known = ", ".join(f"{level} ({name})" for level, name in enumerate(attribute.levels))
    raise ValueError(f"{attribute.name} is {value!r}; levels are {known}, and {UNKNOWN} or nothing for not known")


def _joined(parts: Sequence[Imported]) -> Imported:
    """One table of several, without files that came before."""
    columns = list(dict.fromkeys(name for part in parts for name in part.columns))
    rows: dict[str, Row] = {}
    bad = [line for part in parts for line in part.bad]
    for row in (row for part in parts for row in part.rows):
        if rows.setdefault(str(row["file"]), row) is not row:
            bad.append(f"{row['file']}: stands there twice; the first row is taken")
    return Imported(tuple(columns), [{name: row.get(name, "") for name in columns} for row in rows.values()], bad)


def write_imagefolder(labels: Labels, images: Path, kind: str, names: bool, overwrite: bool) -> tuple[Path, int]:
    """Write the metadata file of an ImageFolder beside its images.

    Args:
        labels: whose files are relative to ``images``.
        kind: "jsonl" or "csv".
        names: levels by name instead of by number; nothing where one is not known.

    Returns:
        the file, and how many images of the folder have no row in it.

    Raises:
        ValueError: bad rows, an image that is not there, or a metadata file that is.
    """
    if labels.bad:
        raise ValueError(f"--labels: {len(labels.bad):,} rows are wrong:" + "".join(f"\n  {line}" for line in labels.bad[:10]))
    rows = labels.table.to_pylist()
    if missing := [row["file"] for row in rows if not (images / row["file"]).is_file()]:
        raise ValueError(f"--images: {images} lacks {len(missing):,} images of the table, such as {missing[0]}")
    there = [images / name for name in METADATA if (images / name).exists()]
    if there and not overwrite:
        raise ValueError(f"{there[0]}: is there already; replace it with --overwrite")
    out = images / f"metadata.{kind}"
    if others := [path for path in there if path != out]:
        raise ValueError(f"{others[0]}: is there too, and datasets takes one metadata file alone; remove it")
    entries = [_entry(labels.schema, row, names) for row in rows]
    with atomic_write(out) as stream:
        stream.write(_jsonl(entries) if kind == "jsonl" else _csv(entries))
    having = {row["file"] for row in rows}
    return out, sum(file not in having for file in _images(images))


def _entry(schema: AttributeSchema, row: Mapping[str, Any], names: bool) -> dict[str, Any]:
    levels = {
        attribute.name: None if row[attribute.name] == UNKNOWN else attribute.levels[row[attribute.name]] if names else row[attribute.name]
        for attribute in schema.attributes
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
    for at, _, names in os.walk(folder):
        for name in names:
            if os.path.splitext(name)[1].lower() in IMAGES:
                yield Path(at, name).relative_to(folder).as_posix()
