"""A second process that holds a lock file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOLD = """
import os, sys
from pathlib import Path
from attributegan.utils.file_lock import exclusive_lock
with exclusive_lock(Path(sys.argv[1]), "in use"):
    if "fork" in sys.argv and os.fork() == 0:
        sys.stdin.read()
        os._exit(0)
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def lock_holder(path: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start a process that holds the lock ``path`` until its standard input is closed.

    Args:
        arguments: "fork" starts a child process that also lives until then.
    """
    command = [sys.executable, "-c", HOLD, str(path), *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
