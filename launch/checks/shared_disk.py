"""Checks that a folder is shared: each rank writes a file and looks for the files of the other ranks."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

from attributegan.distributed.rendezvous import Rendezvous
from launch.checks import diagnosis
from launch.checks.facts import Facts
from launch.checks.timeout import run_with_timeout


def check(rendezvous: Rendezvous, folder: Path, all_facts: Sequence[Facts], seconds: float) -> list[str]:
    """Returns the problems of the disk, the same on all ranks.

    Args:
        seconds: time limit for a file written by one rank to become visible to the others.
    """
    ranks = [fact.rank for fact in all_facts]
    tokens = rendezvous.all_gather("token", os.urandom(8).hex(), seconds, ranks)
    own = folder / f".attributegan-doctor-{tokens.get(ranks[0], 'alone')}"
    try:
        done, problem = run_with_timeout(lambda: _write(own, rendezvous.rank, tokens[rendezvous.rank]), seconds)
        written = rendezvous.all_gather("written", done if done is not None else problem, 2 * seconds, ranks)
        writers = {rank: tokens[rank] for rank, problem in written.items() if not problem and rank in tokens}
        missing = run_with_timeout(lambda: _missing(own, writers, seconds), 2 * seconds)[0] if rendezvous.rank in writers else []
        missing_on = rendezvous.all_gather("missing", list(writers) if missing is None else missing, 3 * seconds, ranks)
    finally:
        run_with_timeout(lambda: _remove(own / str(rendezvous.rank)), seconds)
    rendezvous.all_gather("removed", True, seconds, ranks)
    run_with_timeout(lambda: _remove(own), seconds)
    no_answer = "no answer within the time limit"
    return diagnosis.check_disk(
        all_facts, str(folder), [written.get(rank, no_answer) for rank in ranks], [missing_on.get(rank, []) for rank in ranks]
    )


def _write(folder: Path, rank: int, token: str) -> str:
    """Write and fsync this rank's file; returns the error, or ""."""
    try:
        folder.mkdir(exist_ok=True)
        with (folder / str(rank)).open("w") as file:
            file.write(token)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return f"{error.strerror} ({error.filename})"
    return ""


def _missing(folder: Path, tokens: dict[int, str], seconds: float) -> list[int]:
    """Returns the ranks whose files are still absent or differ after ``seconds``."""
    until = time.monotonic() + seconds
    missing = dict(tokens)
    while missing:
        for rank, token in list(missing.items()):
            with contextlib.suppress(OSError):
                if (folder / str(rank)).read_text() == token:
                    del missing[rank]
        if time.monotonic() > until:
            break
        time.sleep(0.1)
    return sorted(missing)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # never created, or already removed by another rank
        path.rmdir() if path.is_dir() else path.unlink()
