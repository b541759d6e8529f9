"""Queries the states of Slurm jobs from squeue; needs no accounting database."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Collection


def states(jobs: Collection[str]) -> dict[str, str] | None:
    """Returns the states, such as PENDING, of those ``jobs`` (IDs such as 45 or 45_3) that are in the queue; None if squeue fails."""
    if not jobs or shutil.which("squeue") is None:
        return None if jobs else {}
    try:
        # All jobs of this user, because squeue --jobs fails as a whole if one ID is no longer known.
        result = subprocess.run(["squeue", "--me", "--noheader", "--array", "--format=%i %T"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if result.returncode:
        return None
    rows = (line.split() for line in result.stdout.splitlines())
    return {row[0]: row[1] for row in rows if len(row) == 2 and row[0] in jobs}
