"""Exit statuses, error reporting and argument parsers shared by all commands.

Exit status: 0 success, 2 bad input, 3 permanent error (retrying fails again), 128 + n stopped by signal n, 1 any other error.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

from attributegan.errors import PermanentError, TransientError

BAD_INPUT, PERMANENT_ERROR = 2, 3
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]


def exit_status(work: Callable[[], object]) -> int:
    """Runs ``work`` and returns the exit status of the command.

    A ValueError is bad input: its message goes to stderr, without a traceback. Unexpected exceptions propagate.
    """
    try:
        work()
    except TransientError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except PermanentError as error:
        traceback.print_exception(error.__cause__ or error)
        return PERMANENT_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def restrict_umask() -> None:
    """Sets the umask so that files of this process and its children are never world-writable."""
    os.umask(os.umask(0o022) | 0o002)


RENAMED = {"--most": "--max-real", "--raw": "--no-ema", "--judge": "--predictor"}  # old option: new option; accepted for one version


class _Parser(argparse.ArgumentParser):
    """An argument parser that accepts the old names in `RENAMED` for options that it has."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        return super().parse_known_args([self._current_name(arg) for arg in (sys.argv[1:] if args is None else args)], namespace)

    def _current_name(self, arg: str) -> str:
        name, equals, value = arg.partition("=")
        new = RENAMED.get(name, name)
        if new == name or new not in self._option_string_actions or name in self._option_string_actions:
            return arg
        print(f"{name} was renamed to {new}; the old name will be removed in the next version", file=sys.stderr)
        return f"{new}{equals}{value}"


def command(commands: Any, name: str, help: str, description: str, examples: str) -> argparse.ArgumentParser:
    """Adds a subcommand to ``commands`` (from ``add_subparsers``); its help ends with ``examples``."""
    added: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help,
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    return added


def parser(description: str, examples: str, add_help: bool = True) -> argparse.ArgumentParser:
    """Returns an argument parser whose help ends with ``examples``, verbatim."""
    return _Parser(
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=add_help,
    )
