"""How this process's memory is handed out: the only file that talks to the C library about it."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Keep what tensors free for the next ones, instead of giving it back and asking again; for processes that compute on a CPU.

    glibc takes every block of more than 32 MB from the system and gives it back when it is freed, so that each step meets its feature maps
    as new pages, which the system fills with zeros one by one. Does nothing where there is no glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
