"""A lock between processes: a lock file that the kernel releases when its owner dies."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout


class LockedError(ValueError):
    """Another process holds the lock; a later try may succeed."""


@contextlib.contextmanager
def exclusive_lock(path: Path, in_use: str, timeout_s: float = 0.0) -> Iterator[None]:
    """Hold the lock file ``path`` while the block runs.

    Forked workers inherit the lock, so those of a killed process hold it until they have noticed and exited.

    Args:
        in_use: error message if another process holds the lock.
        timeout_s: how long to wait for that process; 0 does not wait.

    Raises:
        LockedError: another process holds the lock.
        ValueError: the file can't be locked.
    """
    inherited: list[int] = []  # filelock closes its own descriptor in forked children
    # Soft locks, the fallback where flock is missing, outlive a killed owner.
    lock = FileLock(path, fallback_to_soft=False, on_acquired=lambda descriptor: inherited.append(os.dup(descriptor)))
    try:
        lock.acquire(timeout=timeout_s)
    except Timeout:
        raise LockedError(in_use) from None
    except OSError as error:
        raise ValueError(f"{path}: can't be locked ({error.strerror}); choose a folder on a file system with flock") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # a waiting process notices that its file has no name any more, and retries
        lock.release()
        for descriptor in inherited:
            os.close(descriptor)
