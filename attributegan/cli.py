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

BAD_INPUT, PERMANENT_ERROR = 2, 3
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]


class TransientError(Exception):
    """Nobody's mistake, and another start may go well; told in words, status 1."""


class PermanentError(RuntimeError):
    """Starting again as before would end in the same error; the cause says which."""


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


def parser(description: str, examples: str) -> argparse.ArgumentParser:
    """An argument parser whose help ends with ``examples`` as they are typed."""
    return argparse.ArgumentParser(
        description=description, epilog=f"examples:\n{examples}", formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
