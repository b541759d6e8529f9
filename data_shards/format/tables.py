"""CSV tables as people have them: separators, encodings, blank rows, quotes, and columns that are there twice.

Owns reading rows; what the columns mean is the caller's.
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
INVISIBLE = "\u200b\ufeff"  # zero-width blanks, which `str.strip` keeps


class Row(NamedTuple):
    """One row of a table."""

    where: str  # file:line
    wanted: list[str]  # entries of the wanted columns, stripped; "" where a short row has none
    others: dict[str, str]  # entries of all other columns with a name, without empty ones
    problem: str  # what is wrong with the row as such, or ""


def rows(path: Path, wanted: Sequence[str], hint: str) -> Iterator[Row]:
    """The rows of a CSV with a header line; blank ones are passed over.

    The separator is what a first line ``sep=`` says, or the one of , ; tab and | that gives the wanted columns. Encodings are UTF-8 and,
    with its mark, UTF-16.

    Args:
        hint: what to do when a wanted column is not there, for the message.

    Raises:
        ValueError: not a readable table, a column that is not there or there twice, or a quote that is not closed; names the line.
    """
    line = 0
    try:
        with path.open(encoding=_encoding(path), newline="") as stream, _naming_lines(path):
            separator, skipped = _separator(stream, wanted)
            reader = csv.reader(stream, delimiter=separator, strict=True)
            header = [_clean(name) for name in next(reader, [])]
            places = _places(path, header, wanted, hint)
            others = [(name, place) for place, name in enumerate(header) if name and place not in places]
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
                    yield _row(f"{path.name}:{last}", entries, len(header), places, others, separator)
    except csv.Error as error:
        unclosed = "unexpected end of data" in str(error)
        what = "a quote is opened in this row and never closed" if unclosed else f"{error}; are the quotes of this row in pairs?"
        raise ValueError(f"{path}:{line}: {what}") from error


def header_of(path: Path) -> list[str]:
    """The names of a table's columns."""
    with path.open(encoding=_encoding(path), newline="") as stream, _naming_lines(path):
        separator, _ = _separator(stream, ())
        return [_clean(name) for name in next(csv.reader(stream, delimiter=separator), [])]


@contextmanager
def _naming_lines(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeError) as error:
        raise ValueError(f"{path}: not a readable CSV in UTF-8: {error}") from error


def _encoding(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            start = stream.read(4)
    except OSError as error:
        raise ValueError(f"{path}: not a readable CSV in UTF-8: {error}") from error
    return "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


def _separator(stream: TextIO, wanted: Sequence[str]) -> tuple[str, int]:
    """The separator of a table, and how many lines stand before its header; ``stream`` is at the header afterwards."""
    first = stream.readline()
    if said := re.fullmatch(r'"?sep=(.)"?', first.strip("\r\n"), re.IGNORECASE):
        return said[1], 1
    stream.seek(0)

    def found(separator: str) -> tuple[int, int]:
        try:
            names = [_clean(name) for name in next(csv.reader([first], delimiter=separator), [])]
        except csv.Error:
            return 0, 0
        return sum(name in names for name in wanted), len(names)

    return max(SEPARATORS, key=found), 0


def _clean(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip().strip(INVISIBLE).strip()


def _places(path: Path, header: list[str], wanted: Sequence[str], hint: str) -> list[int]:
    """Where each wanted column is."""
    if missing := [name for name in wanted if name not in header]:
        raise ValueError(f"{path}: no column {', '.join(missing)}; it has {', '.join(header) or 'nothing'}. {hint}")
    for name in dict.fromkeys(filter(None, [*wanted, *header])):
        same = [place for place, other in enumerate(header) if (is_same(name, other) if name in wanted else name == other)]
        if len(same) > 1:
            where = ", ".join(f"{header[place]!r} (column {place + 1})" for place in same)
            raise ValueError(f"{path}: the column {name} is there {len(same)} times: {where}; leave one, or rename the others")
    return [header.index(name) for name in wanted]


def is_same(name: str, other: str) -> bool:
    """Whether two headers are one column's, but for letter case, blanks, or the number that pandas gives to a second one ("grade.1")."""
    plain, plain_other = ("".join(unicodedata.normalize("NFKC", text).casefold().split()) for text in (name, other))
    return plain == plain_other or bool(re.fullmatch(rf"{re.escape(plain)}\.\d+", plain_other))


def _row(where: str, entries: list[str], columns: int, places: list[int], others: list[tuple[str, int]], separator: str) -> Row:
    problem = ""
    if any(entries[columns:]):
        problem = f"has {len(entries)} entries for {columns} columns; put quotes around an entry with {separator!r} in it"
    count = len(entries)
    wanted = [entries[place] if place < count else "" for place in places]
    return Row(where, wanted, {name: entries[place] for name, place in others if place < count and entries[place]}, problem)


def _check_no_rows_inside(path: Path, row: Sequence[str], columns: int, separator: str, line: int, last: int) -> None:
    """Refuse an entry of several lines that look like rows: a quote too many at its start would hide them."""
    inner = [text for entry in row for text in entry.splitlines()[1:]]
    if columns > 1 and any(text.count(separator) >= columns - 1 for text in inner):
        raise ValueError(
            f"{path}:{line}: a quote opened in this row is closed in line {last}, and between look to be rows; close it in "
            "its own row, or take the line breaks out of the entry"
        )
