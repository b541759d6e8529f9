"""What every command line shares: exit statuses (0 done, 2 bad input, 130 interrupted) and how errors are told."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable


def exit_status(work: Callable[[], object]) -> int:
    """Run ``work``; a ValueError is the user's (its message goes to stderr, status 2), anything else is ours and raises."""
    try:
        work()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def parser(description: str, examples: str) -> argparse.ArgumentParser:
    """An argument parser whose help ends with ``examples`` as they are typed."""
    return argparse.ArgumentParser(
        description=description, epilog=f"examples:\n{examples}", formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
