"""Reads CSV tables from spreadsheets and other programs: separators, encodings, blank rows, quotes and duplicate columns.

Owns parsing rows; callers interpret the columns.
"""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO

SEPARATORS = ",;\t|"
INVISIBLE = "\u200b\ufeff"  # zero-width characters that `str.strip` keeps


class Row(NamedTuple):
    """One row of a table."""

    where: str  # file:line
    values: list[str]  # entries of the required columns, stripped; "" where the row is too short
    others: dict[str, str]  # non-empty entries of all other named columns
    problem: str  # why the row is malformed, or ""


def rows(path: Path, required: Sequence[str], hint: str) -> Iterator[Row]:
    """Yields the rows of a CSV with a header line; blank rows are skipped.

    The separator is given by a first line ``sep=``, else it is whichever of , ; tab and | yields the required columns. The encoding is
    UTF-8, or UTF-16 with a byte order mark.

    Args:
        required: names of columns that must exist.
        hint: fix to suggest when a column is missing.

    Raises:
        ValueError: an unreadable table, a missing or duplicate column, or an unclosed quote; names the line.
    """
    line = 0
    try:
        with path.open(encoding=_encoding(path), newline="") as stream, _naming_file(path):
            separator, skipped = _separator(stream, required)
            reader = csv.reader(stream, delimiter=separator, strict=True)
            header = [_clean(name) for name in next(reader, [])]
            columns = _columns(path, header, required, hint)
            others = [(name, column) for column, name in enumerate(header) if name and column not in columns]
            while True:
                line = skipped + reader.line_num + 1
                row = next(reader, None)
                if row is None:
                    return
                last = skipped + reader.line_num
                if last > line:
                    _check_no_rows_inside(path, row, len(header), separator, line, last)
                entries = [entry.strip().strip(INVISIBLE) for entry in row]
                if any(entries):
                    yield _row(f"{path.name}:{last}", entries, len(header), columns, others, separator)
    except csv.Error as error:
        unclosed = "unexpected end of data" in str(error)
        problem = "a quote opened in this row is never closed" if unclosed else f"{error}; check that quotes come in pairs"
        raise ValueError(f"{path}:{line}: {problem}") from error


def header_of(path: Path) -> list[str]:
    """Returns the names of a table's columns."""
    with path.open(encoding=_encoding(path), newline="") as stream, _naming_file(path):
        separator, _ = _separator(stream, ())
        return [_clean(name) for name in next(csv.reader(stream, delimiter=separator), [])]


@contextmanager
def _naming_file(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"{path}: can't be read: {error.strerror}") from error
    except UnicodeError as error:
        raise ValueError(f"{path}: not a readable CSV in UTF-8: {error}") from error


def _encoding(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            start = stream.read(4)
    except OSError as error:
        raise ValueError(f"{path}: can't be read: {error.strerror}") from error
    return "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


def _separator(stream: TextIO, required: Sequence[str]) -> tuple[str, int]:
    """Returns the separator and the number of lines before the header; leaves ``stream`` at the header."""
    first = stream.readline()
    if declared := re.fullmatch(r'"?sep=(.)"?', first.strip("\r\n"), re.IGNORECASE):
        return declared[1], 1
    stream.seek(0)

    def score(separator: str) -> tuple[int, int]:
        try:
            names = [_clean(name) for name in next(csv.reader([first], delimiter=separator), [])]
        except csv.Error:
            return 0, 0
        return sum(name in names for name in required), len(names)

    return max(SEPARATORS, key=score), 0


def _clean(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip().strip(INVISIBLE).strip()


def _columns(path: Path, header: list[str], required: Sequence[str], hint: str) -> list[int]:
    """Returns the index of each required column."""
    if missing := [name for name in required if name not in header]:
        raise ValueError(f"{path}: no column {', '.join(missing)}; found {', '.join(header) or 'none'}. {hint}")
    for name in dict.fromkeys(filter(None, [*required, *header])):
        same = [column for column, other in enumerate(header) if (is_same(name, other) if name in required else name == other)]
        if len(same) > 1:
            where = ", ".join(f"{header[column]!r} (column {column + 1})" for column in same)
            raise ValueError(f"{path}: {len(same)} columns named {name}: {where}; keep one, or rename the others")
    return [header.index(name) for name in required]


def is_same(name: str, other: str) -> bool:
    """Returns whether two headers are equal up to letter case, blanks, or the number that pandas appends to duplicates ("grade.1")."""
    plain, plain_other = ("".join(unicodedata.normalize("NFKC", text).casefold().split()) for text in (name, other))
    return plain == plain_other or bool(re.fullmatch(rf"{re.escape(plain)}\.\d+", plain_other))


def _row(where: str, entries: list[str], width: int, columns: list[int], others: list[tuple[str, int]], separator: str) -> Row:
    problem = ""
    if any(entries[width:]):
        problem = f"has {len(entries)} entries for {width} columns; put quotes around entries that contain {separator!r}"
    count = len(entries)
    values = [entries[column] if column < count else "" for column in columns]
    return Row(where, values, {name: entries[column] for name, column in others if column < count and entries[column]}, problem)


def _check_no_rows_inside(path: Path, row: Sequence[str], columns: int, separator: str, line: int, last: int) -> None:
    """Reject a multi-line entry whose lines look like rows: a stray opening quote would hide them."""
    inner = [text for entry in row for text in entry.splitlines()[1:]]
    if columns > 1 and any(text.count(separator) >= columns - 1 for text in inner):
        raise ValueError(
            f"{path}:{line}: a quote opened in this row is closed only in line {last}, and the lines between look like rows; "
            "close it in the same row, or remove the line breaks from the entry"
        )
