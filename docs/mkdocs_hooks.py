"""Prepare the pages for the site: hooks of MkDocs.

A comment `<!-- help: attributegan-shard pack -->` is replaced by the output of that command's --help. Links to files outside of docs/,
which work on GitHub only, become plain text.
"""

import contextlib
import importlib
import io
import os
import re
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
MARKER = re.compile(r"<!-- help: ([\w -]+?) -->")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((\.\./[^)#\s]+)\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return the page with its markers and outside links replaced (called by MkDocs for every page)."""
    folder = (DOCS / page.file.src_uri).parent

    def plain(match: re.Match[str]) -> str:
        target = (folder / match[2]).resolve()
        return match[1] if target.exists() and not target.is_relative_to(DOCS) else match[0]

    return MARKER.sub(lambda match: f"```text\n{help_of(match[1])}```\n", LINK.sub(plain, markdown))


def entry_points() -> dict[str, str]:
    """Return the entry point of each command (`module:function`), from setup.cfg."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    scripts = config["options.entry_points"]["console_scripts"].strip().splitlines()
    return dict(script.split(" = ") for script in scripts)


def help_of(command: str) -> str:
    """Return what `command --help` prints, 100 columns wide."""
    name, *subcommand = command.split()
    module, _, function = entry_points()[name].partition(":")
    main, output = getattr(importlib.import_module(module), function), io.StringIO()
    with (
        mock.patch.object(sys, "argv", [name, *subcommand, "--help"]),
        mock.patch.dict(os.environ, COLUMNS="100"),
        contextlib.redirect_stdout(output),
        contextlib.suppress(SystemExit),
    ):
        main()
    return output.getvalue()


def subcommands(command: str) -> list[str]:
    """Return the subcommands that the help of a command lists."""
    listed = re.search(r"^  (?:COMMAND|BENCHMARK)\n((?:    .*\n)+)", help_of(command), re.MULTILINE)
    return re.findall(r"^ {4}(\w[\w-]*)", listed[1], re.MULTILINE) if listed else []
