"""Renders a page of tables and images as one self-contained HTML file or as Markdown.

Owns the style and the escaping: any text may come from file names or a schema, so none is trusted. The content of the dataset
card is in data_shards/dataset_card.py.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field


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
    """A number on a background whose opacity is ``share``, 0 to 1."""

    value: int | float
    share: float


@dataclass(frozen=True)
class Code:
    """Text in a monospace font, such as a checksum."""

    text: str


@dataclass(frozen=True)
class Figure:
    """A number with an annotation, such as an interval; never wrapped."""

    text: str
    small: str = ""  # below the number


Cell = Figure | str | int | float | Picture | Tinted | Code


@dataclass(frozen=True)
class Table:
    """Rows below a header row; ``spans`` is an optional row above the header, as (text, columns)."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    spans: Sequence[tuple[str, int]] = ()
    title: str = ""


@dataclass(frozen=True)
class Section:
    """A heading, an explanation and tables."""

    title: str
    text: str
    tables: Sequence[Table] = field(default_factory=tuple)


STYLE = """
:root { color-scheme: light }
body { font: 15px/1.5 system-ui, sans-serif; color: #24212b; background: #faf8fb; margin: 0 }
main { max-width: 1180px; margin: 0 auto; padding: 2rem 1.5rem 4rem }
h1 { font-size: 1.8rem; margin: 0 0 .3rem; overflow-wrap: anywhere } h2 { font-size: 1.2rem; margin: 2.6rem 0 .2rem; color: #5b2a6e }
p { margin: .2rem 0 .8rem; color: #5a5563; max-width: 75ch; overflow-wrap: anywhere }
nav a { color: #5b2a6e; margin-right: 1em }
.tables { display: flex; flex-wrap: wrap; gap: 1.2rem 2rem; align-items: flex-start }
.wide { overflow-x: auto; max-width: 100% }
table { border-collapse: collapse; background: #fff; box-shadow: 0 1px 3px #0002; font-variant-numeric: tabular-nums }
caption { text-align: left; font-weight: 600; padding: .2rem 0 }
th, td { padding: .22rem .6rem; border-bottom: 1px solid #ece8ef; text-align: left; vertical-align: top }
td { overflow-wrap: anywhere } thead th { background: #f1ebf4; font-weight: 600; vertical-align: bottom } td.n, th.n { text-align: right }
td.n { white-space: nowrap } td small { display: block; color: #7a7482 }
td:first-child:not(.n) { min-width: 8em }
thead tr.spans th { border-left: 2px solid #fff; text-align: center }
td img { display: block; border-radius: 3px } code { font-size: .8em }
""".strip()

RIGHT = ' class="n"'


def to_html(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Renders the page as HTML that loads no resources and runs no scripts."""
    links = "".join(f'<a href="#s{number}">{_text(section.title)}</a>' for number, section in enumerate(sections))
    body = "\n".join(_html_section(number, section) for number, section in enumerate(sections))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{_text(title)}</h1>\n<p>{_text(lead)}</p>\n<nav>{links}</nav>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _html_section(number: int, section: Section) -> str:
    tables = "\n".join(_html_table(table) for table in section.tables)
    return (
        f'<section id="s{number}">\n<h2>{_text(section.title)}</h2>\n<p>{_text(section.text)}</p>\n'
        f'<div class="tables">\n{tables}\n</div>\n</section>'
    )


def _html_table(table: Table) -> str:
    caption = f"<caption>{_text(table.title)}</caption>" if table.title else ""
    spans = "".join(f'<th colspan="{columns}">{_text(text)}</th>' for text, columns in table.spans)
    right_aligned = [
        all(isinstance(row[column], int | float | Tinted | Figure) for row in table.rows) for column in range(len(table.header))
    ]
    header = "".join(f"<th{RIGHT * right}>{_text(text)}</th>" for text, right in zip(table.header, right_aligned, strict=True))
    rows = "\n".join("<tr>" + "".join(map(_html_cell, row)) + "</tr>" for row in table.rows)
    above = f'<tr class="spans">{spans}</tr>' if spans else ""
    return f'<div class="wide"><table>{caption}\n<thead>{above}<tr>{header}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>'


def _html_cell(cell: Cell) -> str:
    if isinstance(cell, Picture):
        return f'<td><img src="{cell.url}" alt="{_text(cell.alt)}"></td>'
    if isinstance(cell, Tinted):
        return f'<td class="n" style="background:rgba(142,68,173,{0.75 * cell.share:.2f})">{_number(cell.value)}</td>'
    if isinstance(cell, Figure):
        below = f"<small>{_text(cell.small)}</small>" if cell.small else ""
        return f"<td{RIGHT}>{_text(cell.text)}{below}</td>"
    if isinstance(cell, Code):
        return f"<td><code>{_text(cell.text)}</code></td>"
    return f"<td{RIGHT * (not isinstance(cell, str))}>{_text(_number(cell))}</td>"


def _text(text: str) -> str:
    return html.escape(text, quote=True)


def _number(cell: str | int | float) -> str:
    if isinstance(cell, str):
        return cell
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:,.3f}"


def to_markdown(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Renders the page as GitHub-flavoured Markdown."""
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
    """Escapes Markdown and HTML."""
    return re.sub(r"([\\`*_\[\]|~#!])", r"\\\1", html.escape(re.sub(r"\s+", " ", text), quote=False))
