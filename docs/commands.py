"""Put the help of each command into the commands reference: a hook of MkDocs.

A comment `<!-- help: attributegan-shard pack -->` in a page is replaced by the output of that command's --help.
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
MARKER = re.compile(r"<!-- help: ([\w -]+?) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each marker by a fenced block (called by MkDocs for every page)."""
    return MARKER.sub(lambda match: f"```text\n{help_of(match[1])}```\n", markdown)


def modules() -> dict[str, str]:
    """Return the module of each command, from setup.cfg."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    scripts = config["options.entry_points"]["console_scripts"].strip().splitlines()
    return {name: target.partition(":")[0] for name, target in (script.split(" = ") for script in scripts)}


def help_of(command: str) -> str:
    """Return what `command --help` prints, 100 columns wide."""
    name, *subcommand = command.split()
    main, output = importlib.import_module(modules()[name]).main, io.StringIO()
    with (
        mock.patch.object(sys, "argv", [name, *subcommand, "--help"]),
        mock.patch.dict(os.environ, COLUMNS="100"),
        contextlib.redirect_stdout(output),
        contextlib.suppress(SystemExit),
    ):
        main([*subcommand, "--help"])
    return output.getvalue()


def subcommands(command: str) -> list[str]:
    """Return the subcommands that the help of a command lists."""
    listed = re.search(r"^  (?:COMMAND|BENCHMARK)\n((?:    .*\n)+)", help_of(command), re.MULTILINE)
    return re.findall(r"^ {4}(\w[\w-]*)", listed[1], re.MULTILINE) if listed else []
