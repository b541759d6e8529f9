"""Child processes that do not outlive their parent."""

from __future__ import annotations

import ctypes
import signal
import sys

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with_parent() -> None:
    """Make this child process die with its parent; for ``preexec_fn`` of `subprocess.Popen`. Only on Linux."""
    if _LIBC:
        _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
