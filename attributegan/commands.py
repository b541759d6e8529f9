"""The commands by name, for ``python -m attributegan COMMAND``, ``accelerate launch -m attributegan COMMAND`` and the console scripts.

Owns their import: `launch`, `slurm`, `tools` and `data_shards` are those of this installation, whatever the current folder has.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from attributegan.utils import layout

COMMANDS = {
    "train": "launch.train",
    "doctor": "launch.doctor",
    "submit": "slurm.submit",
    "runs": "tools.runs",
    "shard": "tools.shard",
    "sample": "tools.sample",
    "evaluate": "tools.evaluate",
    "export": "tools.export",
    "explore": "tools.explore",
    "label": "tools.label",
    "bench": "tools.bench",
    "study": "tools.study",
    "presets": "tools.presets",
}
USAGE = f"""\
usage: python -m attributegan COMMAND ...
commands: {", ".join(COMMANDS)}
help of a command: python -m attributegan COMMAND --help"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names, and return its exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if arguments[0] not in COMMANDS:
        print(f"error: {arguments[0]}: no such command\n{USAGE}", file=sys.stderr)
        return 2
    return run(arguments[0], arguments[1:])


def run(command: str, arguments: Sequence[str] | None = None) -> int:
    """Run a command with ``arguments`` (the process's by default), and return its exit status."""
    sys.argv = [f"attributegan-{command}", *(sys.argv[1:] if arguments is None else arguments)]
    sys.path.insert(0, str(layout.bundled_root()))
    if problem := foreign_package():
        print(f"error: {problem}", file=sys.stderr)
        return 2
    status: int = importlib.import_module(COMMANDS[command]).main()
    return status


def settings(command: str, arguments: Sequence[str]) -> Any:
    """Return the settings of a command line of `sample` or `evaluate` without running it.

    Raises:
        ValueError: the command refuses the arguments; has its error message.
    """
    output = io.StringIO()
    try:
        with redirect_stderr(output), redirect_stdout(output):
            return importlib.import_module(COMMANDS[command]).settings(arguments)
    except SystemExit as end:
        raise ValueError(output.getvalue().strip().rpartition("error: ")[2] if end.code else "prints its help; remove --help") from None


def foreign_package() -> str:
    """What is wrong when one of our packages would be imported from elsewhere; "" when nothing is."""
    for package in layout.PACKAGES:
        module = sys.modules.get(package)
        found = getattr(module, "__file__", None) if module else getattr(importlib.util.find_spec(package), "origin", None)
        expected = layout.package_dir(package) / "__init__.py"
        if not found or Path(found).resolve() != expected:
            return (
                f"the package {package} comes from {found or 'a folder without __init__.py'}, not from {expected.parent}; start in another "
                "folder, set PYTHONSAFEPATH=1, or remove the other one from PYTHONPATH"
            )
    return ""


def child(command: str, *arguments: str) -> list[str]:
    """The command line of a command in its own process, which the current folder can't interfere with (``-P``)."""
    return [sys.executable, "-P", "-m", "attributegan", command, *arguments]


def module_process(module: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """The command line and the environment of a module in its own process; those in a wheel's bundle need this environment."""
    path = os.pathsep.join(filter(None, [str(layout.bundled_root()), os.environ.get("PYTHONPATH")]))
    return [sys.executable, "-P", "-m", module, *arguments], {**os.environ, "PYTHONPATH": path}


def __getattr__(name: str) -> Callable[[], int]:
    """`train`, `sample` and so on: the entry points of the console scripts."""
    if name in COMMANDS:
        return partial(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
