"""A folder that all processes of a cluster should see, tried: each writes a file and looks for those of the others."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

from attributegan.distributed.rendezvous import Rendezvous
from launch.checks import diagnosis
from launch.checks.facts import Facts
from launch.checks.timeout import bounded


def try_out(rendezvous: Rendezvous, folder: Path, everyone: Sequence[Facts], seconds: float) -> list[str]:
    """Problems of the disk, the same on all processes.

    Args:
        seconds: in which a process must see what another has written.
    """
    here = [fact.rank for fact in everyone]
    words = rendezvous.all_gather("word", os.urandom(8).hex(), seconds, here)
    own = folder / f".attributegan-doctor-{words.get(here[0], 'alone')}"
    try:
        done, problem = bounded(lambda: _write(own, rendezvous.rank, words[rendezvous.rank]), seconds)
        wrote = rendezvous.all_gather("wrote", done if done is not None else problem, 2 * seconds, here)
        writers = {rank: words[rank] for rank, problem in wrote.items() if not problem and rank in words}
        unseen = bounded(lambda: _unseen(own, writers, seconds), 2 * seconds)[0] if rendezvous.rank in writers else []
        looked = rendezvous.all_gather("unseen", list(writers) if unseen is None else unseen, 3 * seconds, here)
    finally:
        bounded(lambda: _remove(own / str(rendezvous.rank)), seconds)
    rendezvous.all_gather("removed", True, seconds, here)
    bounded(lambda: _remove(own), seconds)
    silent = "no word of it in time"
    return diagnosis.of_disk(everyone, str(folder), [wrote.get(rank, silent) for rank in here], [looked.get(rank, []) for rank in here])


def _write(folder: Path, rank: int, word: str) -> str:
    """Write this process's file so that a power cut would not lose it; what was wrong, or ""."""
    try:
        folder.mkdir(exist_ok=True)
        with (folder / str(rank)).open("w") as file:
            file.write(word)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return f"{error.strerror} ({error.filename})"
    return ""


def _unseen(folder: Path, words: dict[int, str], seconds: float) -> list[int]:
    """Ranks whose files are not there, or hold something else, after ``seconds``."""
    until = time.monotonic() + seconds
    missing = dict(words)
    while missing:
        for rank, word in list(missing.items()):
            with contextlib.suppress(OSError):
                if (folder / str(rank)).read_text() == word:
                    del missing[rank]
        if time.monotonic() > until:
            break
        time.sleep(0.1)
    return sorted(missing)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # it was never made, or another was faster
        path.rmdir() if path.is_dir() else path.unlink()
