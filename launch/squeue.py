"""Which jobs Slurm has, asked of its queue: no accounting needed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Collection


def states(jobs: Collection[str]) -> dict[str, str] | None:
    """The states of those of ``jobs`` (ids such as 45 or 45_3) that wait or run, such as PENDING; None when Slurm can't be asked."""
    if not jobs or shutil.which("squeue") is None:
        return None if jobs else {}
    try:
        # All jobs of this user: the whole answer fails when one of the ids asked for is no longer known.
        answer = subprocess.run(["squeue", "--me", "--noheader", "--array", "--format=%i %T"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode:
        return None
    rows = (line.split() for line in answer.stdout.splitlines())
    return {row[0]: row[1] for row in rows if len(row) == 2 and row[0] in jobs}
