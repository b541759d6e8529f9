"""What every command line shares: exit statuses and how errors are told.

0 done, 2 bad input, 3 an error that would come again, 128 + n stopped by signal n, 1 any other error.
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
    """Run ``work``; a ValueError is the user's (its message goes to stderr, status 2) or `TransientError`; others are ours and raise."""
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
    """Whatever the umask is: what this process and its children make can't be written by everyone."""
    os.umask(os.umask(0o022) | 0o002)


RENAMED = {"--most": "--max-real", "--raw": "--no-ema", "--judge": "--predictor"}  # options of earlier versions, read in this one


class _Parser(argparse.ArgumentParser):
    """An argument parser that still reads the names of `RENAMED` where it has the new one."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        return super().parse_known_args([self._current(word) for word in (sys.argv[1:] if args is None else args)], namespace)

    def _current(self, word: str) -> str:
        name, equals, value = word.partition("=")
        new = RENAMED.get(name, name)
        if new == name or new not in self._option_string_actions or name in self._option_string_actions:
            return word
        print(f"{name} is now {new}; the old name is read in this version only", file=sys.stderr)
        return f"{new}{equals}{value}"


def command(commands: Any, name: str, help: str, description: str, examples: str) -> argparse.ArgumentParser:
    """Add a subcommand to ``commands`` (of ``add_subparsers``), whose help ends with ``examples`` too."""
    return commands.add_parser(
        name,
        help=help,
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def parser(description: str, examples: str, add_help: bool = True) -> argparse.ArgumentParser:
    """An argument parser whose help ends with ``examples`` as they are typed."""
    return _Parser(
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=add_help,
    )
