"""What lies in a folder of tars: which are shards, what else is there, and what must not be overlooked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data_shards.format import checksums, index, litter

KNOWN = (index.FILE, index.CARD, checksums.FILE)
UNPACK = {"gz": "gunzip", "tgz": "gunzip -S .tgz", "bz2": "bunzip2", "xz": "unxz", "zst": "unzstd", "lz4": "unlz4"}
_TAR = re.compile(r"\.(tar([._-].*)?|tgz|tbz2?|txz|tzst|zip|7z)$", re.IGNORECASE)


class Found(NamedTuple):
    """The tars, by name; the names of other files and folders; and of those that are nobody's data."""

    tars: list[Path]
    others: list[str]
    litter: list[str]


def look(folder: Path) -> Found:
    """Sort what is in ``folder``.

    Raises:
        ValueError: there are no tars; or some that would be left out, such as compressed ones and those in subfolders.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise ValueError(f"{folder}: can't be read ({error.strerror})") from error
    tars, overlooked, others, nothing = [], list[str](), list[str](), list[str]()
    for path in entries:
        if litter.is_litter(path.name):
            nothing.append(path.name)
        elif path.is_dir():
            if path.name.startswith("."):
                continue  # of a command that is running or was stopped
            inside = [inner for inner in sorted(path.rglob("*")) if _TAR.search(inner.name) and not litter.is_litter(inner.name)]
            overlooked += [f"{inner.relative_to(folder)}: in a subfolder" for inner in inside]
            others += [] if inside else [f"{path.name}/"]
        elif path.suffix == ".tar":
            tars.append(path)
        elif _TAR.search(path.name):
            overlooked.append(f"{path.name}: {_remedy(path.name)}")
        elif path.name not in KNOWN:
            others.append(path.name)
    if overlooked:
        raise ValueError(
            f"{folder}: {len(overlooked):,} tars would be left out; put all tars of the set into one folder, uncompressed and "
            f"named *.tar:{_lines(overlooked)}"
        )
    if not tars:
        raise ValueError(f"{folder}: has no .tar files (compressed tars can't be read by offset; unpack them with gunzip)")
    return Found(tars, others, nothing)


def _remedy(name: str) -> str:
    end = name.lower().rpartition(".")[2]
    if end in UNPACK:
        return f"compressed, so that single tiles can't be read; {UNPACK[end]} {name}"
    return "rename it to .tar" if end == "tar" else "no tar by its name; unpack it, rename it or move it away"


def _lines(lines: Sequence[str], most: int = 20) -> str:
    more = f"\n  and {len(lines) - most:,} more" if len(lines) > most else ""
    return "".join(f"\n  {line}" for line in lines[:most]) + more
