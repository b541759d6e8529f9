"""``--help`` of commands that take ``section.key=value``: all options, one section, or one option in full.

Owns the text. The options and their help are the fields of the dataclasses (`attributegan.options`).
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

from attributegan.config import Config
from attributegan.old_names import RENAMED_OPTIONS
from attributegan.options import Option, list_options, section_doc, sections, suggestion

_METAVARS = {int: "INT", float: "FLOAT", bool: "BOOL", str: "TEXT"}


def add_option_help(parser: argparse.ArgumentParser) -> None:
    """Replace ``--help`` of ``parser`` by a help text that lists all options, or explains the option or section that follows it.

    Args:
        parser: A parser that was built with ``add_help=False``.
    """
    parser.add_argument(
        "-h",
        "--help",
        nargs="?",
        action=_Help,
        metavar="OPTION",
        default=argparse.SUPPRESS,
        help="show this message, or the full help of an option (--help data.shards) or a section (--help data)",
    )


class _Help(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if values is None:
            text = f"{parser.format_help()}\n{list_all()}"
        else:
            try:
                text = explain(str(values).partition("=")[0])
            except ValueError as error:
                parser.error(str(error))
        with contextlib.suppress(BrokenPipeError):  # of `--help | head`
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()
        parser.exit()


def list_all() -> str:
    """Returns a line per option with its type, its default and the first sentence of its help, grouped by section."""
    lines = ["options of the configuration (section.key=value; --help section.key explains one in full):"]
    for name, cls in sections(Config):
        lines += ["", f"{name}: {_summary(cls)}"]
        for option in list_options(cls, f"{name}."):
            lines += _columns(f"  {option.name}={metavar(option)}", f"{option.short_help} (default: {option.shown_default})")
    return "\n".join(lines)


def explain(name: str) -> str:
    """Returns the full help of one option, or of all options of a section.

    Args:
        name: ``section.key``, ``section``, or a key that only one section has; old names are read too.

    Raises:
        ValueError: There is no such option; names the most similar one.
    """
    known = {option.name: option for option in list_options(Config)}
    classes = dict(sections(Config))
    name = RENAMED_OPTIONS.get(name, name)
    if name in classes:
        entries = [_entry(option) for option in known.values() if option.section == name]
        return "\n\n".join([f"{name}: {section_doc(classes[name])}", *entries])
    found = known.get(name) or known.get("" if "." in name else suggestion(name, [], known))
    if found is None:
        section = name.rpartition(".")[0]
        siblings = [option.key for option in known.values() if option.section == section] or list(classes)
        similar = suggestion(name, siblings, known)
        hint = (
            f"did you mean {similar}?"
            if similar
            else f"{f'options of {section}' if section in classes else 'sections'}: {', '.join(siblings)}"
        )
        raise ValueError(f"--help {name}: unknown option; {hint}")
    return _entry(found)


def metavar(option: Option) -> str:
    """Returns the type as a short placeholder, such as INT or hinge|relativistic."""
    if option.spec.choices:
        return "|".join(map(str, option.spec.choices))
    if get_origin(option.hint) is Literal:
        return "|".join(map(str, get_args(option.hint)))
    return _METAVARS.get(option.hint, "LIST" if get_origin(option.hint) is tuple else "MAPPING")


def _entry(option: Option) -> str:
    facts = {"values": option.values, "default": option.shown_default, "source": option.spec.source}
    facts["old name"] = ", ".join(old for old, new in RENAMED_OPTIONS.items() if new == option.name)
    lines = [option.name, *_wrapped(option.spec.help, "    ")]
    for label, text in facts.items():
        if text:
            lines += _wrapped(f"{label + ':':<9} {text}", "    ", hanging=10)
    return "\n".join(lines)


def _columns(left: str, right: str) -> Iterator[str]:
    """Yields ``left``, and ``right`` on an indented line below it."""
    yield left
    yield from _wrapped(right, " " * 6)


def _wrapped(text: str, indent: str, hanging: int = 0) -> Sequence[str]:
    width = max(60, min(shutil.get_terminal_size().columns, 120) - 2)
    text = text.replace("`", "")
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent + " " * hanging, break_long_words=False, break_on_hyphens=False
    )


def _summary(cls: type) -> str:
    return section_doc(cls).partition(". ")[0].rstrip(".") + "."
