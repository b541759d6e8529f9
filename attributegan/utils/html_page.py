"""Renders pages of tables and pictures as a self-contained HTML file, or as Markdown.

Owns layout and escaping: texts may come from file names or schemas and are not trusted. The HTML is the Jinja template
templates/page.html; the contents of a dataset card are in data_shards/dataset_card.py.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True)
class Picture:
    """An image embedded in the page."""

    data: bytes
    alt: str
    kind: str = "jpeg"  # or png, or svg+xml, whose scripts don't run in an <img>

    @property
    def url(self) -> str:
        return f"data:image/{self.kind};base64,{base64.b64encode(self.data).decode()}"


@dataclass(frozen=True)
class Tinted:
    """A number on a background shaded by ``share``, 0 to 1."""

    value: int | float
    share: float


@dataclass(frozen=True)
class Code:
    """A text in monospace, such as a checksum."""

    text: str


@dataclass(frozen=True)
class Figure:
    """A number with an annotation, such as an interval; not wrapped over lines."""

    text: str
    small: str = ""  # shown below it


Cell = Figure | str | int | float | Picture | Tinted | Code


@dataclass(frozen=True)
class Table:
    """Rows with column headings; ``spans`` is a line of headings above them, as (text, columns)."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    spans: Sequence[tuple[str, int]] = ()
    title: str = ""

    @property
    def numeric(self) -> list[bool]:
        """Whether each column has only numbers, which are aligned right."""
        return [all(isinstance(row[column], int | float | Tinted | Figure) for row in self.rows) for column in range(len(self.header))]


@dataclass(frozen=True)
class Section:
    """A heading, an explanation, and tables."""

    title: str
    text: str
    tables: Sequence[Table] = field(default_factory=tuple)


def require_jinja2() -> None:
    """Check that jinja2, which HTML pages need, is installed.

    Raises:
        ValueError: it is not installed; the message contains the pip command.
    """
    if find_spec("jinja2") is None:
        raise ValueError("HTML pages require jinja2: pip install 'attributegan[explore]'")


def to_html(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Render the page as HTML, which loads no other file and runs no script.

    Raises:
        ValueError: jinja2 is not installed.
    """
    require_jinja2()
    return _environment().get_template("page.html").render(title=title, lead=lead, sections=sections)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    for kind in (Picture, Tinted, Figure, Code):
        environment.tests[kind.__name__.lower()] = _instance_test(kind)
    return environment


def _instance_test(kind: type) -> Callable[[Cell], bool]:
    def is_instance(cell: Cell) -> bool:
        return isinstance(cell, kind)

    return is_instance


def _number(cell: str | int | float) -> str:
    if isinstance(cell, str):
        return cell
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:,.3f}"


def to_markdown(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Render the page as Markdown with tables (GitHub's syntax)."""
    parts = [f"# {_plain(title)}", _plain(lead)]
    for section in sections:
        parts += [f"## {_plain(section.title)}", _plain(section.text), *map(_markdown_table, section.tables)]
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    names = [name for name, columns in table.spans for _ in range(columns)] or [""] * len(table.header)
    header = [f"{name} {text}".strip() for name, text in zip(names, table.header, strict=True)]
    lines = [map(_plain, header), ["---"] * len(header), *(map(_markdown_cell, row) for row in table.rows)]
    title = f"**{_plain(table.title)}**\n\n" if table.title else ""
    return title + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _markdown_cell(cell: Cell) -> str:
    if isinstance(cell, Picture):
        return f"![{_plain(cell.alt)}]({cell.url})"
    if isinstance(cell, Tinted):
        return _number(cell.value)
    if isinstance(cell, Figure):
        return _plain(f"{cell.text} {cell.small}".strip())
    if isinstance(cell, Code):
        return _plain(cell.text)
    return _plain(_number(cell))


def _plain(text: str) -> str:
    """Escape Markdown and HTML markup."""
    return re.sub(r"([\\`*_\[\]|~#!])", r"\\\1", html.escape(re.sub(r"\s+", " ", text), quote=False))
