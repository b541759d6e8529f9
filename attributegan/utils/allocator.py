"""Settings of the C library's memory allocator."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Makes malloc reuse freed tensor memory instead of returning it to the OS; for processes that compute on the CPU.

    glibc maps every block of more than 32 MB separately and unmaps it when freed. Each training step would then page-fault and
    zero-fill the memory of its feature maps again. Does nothing without glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
