"""Converts the published label table and caption files into the CSV of `attributegan-shard pack`.

Owns the two file formats, the parsing of tile names (slide, image file) and writing the CSV. Captions are parsed in captions.py.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from attributegan.attributes import PUBLISHED
from attributegan.utils.files import atomic_write
from data_shards.format import tables
from data_shards.ingest.captions import DIAGNOSES, DIAGNOSIS, read_tile

PUBLISHED_PREFIX = "/data/AttributeGAN/data/Images/"
IMAGES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"))

Row = dict[str, str | int | float]


@dataclass(frozen=True)
class Imported:
    """An imported table.

    Args:
        columns: ``file``, ``slide``, the five attributes, and the other columns of the file.
        bad: problems of the tiles that are not in ``rows``, one line each.
        left_out: number of tiles excluded on request.
    """

    columns: tuple[str, ...]
    rows: list[Row]
    bad: list[str]
    left_out: int = 0


def read_captions(path: Path) -> Imported:
    """Read ``{tile: {"caption": [texts], …}}``; ``file`` is the tile's name, without extension.

    Raises:
        ValueError: not such a file. Captions without levels are reported in the result instead.
    """
    rows: list[Row] = []
    bad: list[str] = []
    for tile, entry in _tiles(path, bad):
        texts = entry.get("caption") if isinstance(entry, dict) else None
        if not (tile.strip() and isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts)):
            bad.append(f"{path.name}: {tile!r}: no list of captions; the format is {{tile: {{caption: [texts]}}}}")
            continue
        levels, problems = read_tile(tile, texts)
        bad += [f"{path.name}: {problem}" for problem in problems]
        if not problems:
            diagnosis = DIAGNOSES[levels[DIAGNOSIS]] if DIAGNOSIS in levels else ""
            rows.append({"file": tile, "slide": slide_of(tile), **{name: levels[name] for name in PUBLISHED.names}, DIAGNOSIS: diagnosis})
    return Imported(("file", "slide", *PUBLISHED.names, DIAGNOSIS), rows, bad)


def _tiles(path: Path, bad: list[str]) -> Iterator[tuple[str, Any]]:
    """Yields the entries of the captions file; duplicate names are appended to ``bad``."""
    try:
        pairs = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_Pairs)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not a readable JSON file: {error}") from error
    if not isinstance(pairs, _Pairs) or not pairs:
        raise ValueError(f"{path}: no tiles; the format is {{tile: {{caption: [texts]}}}}")
    entries: dict[str, list[Any]] = defaultdict(list)
    for tile, entry in pairs:
        entries[tile].append(dict(entry) if isinstance(entry, _Pairs) else entry)
    bad += [f"{path.name}: {tile}: given {len(found)} times" for tile, found in entries.items() if len(found) > 1]
    yield from ((tile, found[0]) for tile, found in entries.items() if len(found) == 1)


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as pairs, which keep duplicate names."""


def read_published(path: Path, prefix: str = PUBLISHED_PREFIX, without_rare: bool = False) -> Imported:
    """Read the published table: ``path``, ``{attribute}_level`` for each attribute, ``freq_id`` and ``cl_labels``.

    Args:
        prefix: removed from the start of every ``path`` to get ``file``.
        without_rare: leave out the tiles with ``freq_id`` 1, as the published training does.

    Raises:
        ValueError: not such a file. Invalid rows are reported in the result instead.
    """
    rows: dict[str, Row] = {}
    bad: list[str] = []
    for where, entries in _csv_rows(path, ["path", *(f"{name}_level" for name in PUBLISHED.names), "freq_id", "cl_labels"]):
        try:
            if "problem" in entries:
                raise ValueError(entries["problem"])
            row = _published_row(entries, prefix)
            if row["file"] in rows:
                raise ValueError(f"{row['file']} is given twice")
        except ValueError as error:
            bad.append(f"{where}: {error}")
            continue
        rows[str(row["file"])] = row
    kept = [row for row in rows.values() if not (without_rare and row["freq_id"])]
    return Imported(("file", "slide", *PUBLISHED.names, "freq_id", "cl_labels"), kept, bad, len(rows) - len(kept))


def _csv_rows(path: Path, required: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    hint = "This is not the published table; use `attributegan-shard pack --labels` for other tables"
    for row in tables.rows(path, required, hint):
        yield row.where, dict(zip(required, row.values, strict=True)) | ({"problem": row.problem} if row.problem else {})


def _published_row(entries: dict[str, str], prefix: str) -> Row:
    file = entries["path"].removeprefix(prefix)
    if not entries["path"].startswith(prefix) or not file or file.startswith("/") or ".." in PurePosixPath(file).parts:
        raise ValueError(f"path {entries['path']!r} is not a file below {prefix!r}; set --prefix to the start of the paths")
    levels = {name: _integer(entries, f"{name}_level") for name in PUBLISHED.names}
    if problem := PUBLISHED.check(list(levels.values())):
        raise ValueError(f"{file}: {problem}")
    rare, combination = _integer(entries, "freq_id"), _integer(entries, "cl_labels")
    if rare not in (0, 1):
        raise ValueError(f"{file}: freq_id is {rare}, expected 0 or 1")
    return {"file": file, "slide": slide_of(PurePosixPath(file).stem), **levels, "freq_id": rare, "cl_labels": combination}


def _integer(entries: dict[str, str], column: str) -> int:
    text = entries[column]
    if not re.fullmatch(r"\d+(\.0*)?", text, re.ASCII):
        raise ValueError(f"{entries['path']}: {column} is {text!r}, expected an integer")
    return int(text.split(".")[0])


def slide_of(tile: str) -> str:
    """Returns the slide in a tile's name: ``H7_19_2`` -> ``H7``, ``1_00061_sub0_009`` -> ``1_00061``; "" if none."""
    if found := re.match(r"(\d+_\d+)_sub\d+_", tile):
        return found[1]
    first, separator, _ = tile.partition("_")
    return first if separator else ""


def with_images(table: Imported, folder: Path) -> Imported:
    """Keep only tiles with an image in ``folder`` or below, with any extension; ``file`` becomes the path of the image.

    Raises:
        ValueError: no such folder, or it has no image of any tile.
    """
    if not folder.is_dir():
        raise ValueError(f"--images: {folder} is not a folder")
    found: dict[str, list[str]] = defaultdict(list)
    for parent, _, names in os.walk(folder):
        for name in names:
            if os.path.splitext(name)[1].lower() in IMAGES:
                found[os.path.splitext(name)[0]].append(Path(parent, name).relative_to(folder).as_posix())
    rows, bad, without = [], list(table.bad), 0
    for row in table.rows:
        files = sorted(found.get(_stem(str(row["file"])), ()))
        if len(files) == 1:
            rows.append(row | {"file": files[0]})
        elif files:
            bad.append(f"{row['file']}: {len(files)} images with this name in {folder}: {', '.join(files[:3])}")
        else:
            without += 1
    if not rows and not bad:
        raise ValueError(f"--images: {folder} has no image of any tile of the table")
    return replace(table, rows=rows, bad=bad, left_out=table.left_out + without)


def _stem(file: str) -> str:
    name = PurePosixPath(file).name
    return os.path.splitext(name)[0] if os.path.splitext(name)[1].lower() in IMAGES else name


def with_suffix(table: Imported, suffix: str) -> Imported:
    """Append ``suffix`` to every file name."""
    return replace(table, rows=[row | {"file": f"{row['file']}{suffix}"} for row in table.rows])


def write(table: Imported, path: Path) -> None:
    """Write the table as a CSV, atomically."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, table.columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table.rows)
    try:
        with atomic_write(path) as stream:
            stream.write(text.getvalue().encode())
    except OSError as error:
        raise ValueError(f"--out: {path} can't be written ({error.strerror})") from error
