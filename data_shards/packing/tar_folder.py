"""Sorts the contents of a folder of tars into shards, other files, and tars that would be ignored by mistake."""

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
    """The tars, sorted by name; the names of other files and folders; and of files that are not data."""

    tars: list[Path]
    others: list[str]
    litter: list[str]


def look(folder: Path) -> Found:
    """List the tars and other files in ``folder``.

    Raises:
        ValueError: no tars, or tars that would be ignored, such as compressed ones and those in subfolders.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise ValueError(f"{folder}: can't be read ({error.strerror})") from error
    tars, ignored, others, skipped = [], list[str](), list[str](), list[str]()
    for path in entries:
        if litter.is_litter(path.name):
            skipped.append(path.name)
        elif path.is_dir():
            if path.name.startswith("."):
                continue  # temporary folder of a running or interrupted command
            inside = [inner for inner in sorted(path.rglob("*")) if _TAR.search(inner.name) and not litter.is_litter(inner.name)]
            ignored += [f"{inner.relative_to(folder)}: in a subfolder" for inner in inside]
            others += [] if inside else [f"{path.name}/"]
        elif path.suffix == ".tar":
            tars.append(path)
        elif _TAR.search(path.name):
            ignored.append(f"{path.name}: {_fix(path.name)}")
        elif path.name not in KNOWN:
            others.append(path.name)
    if ignored:
        raise ValueError(
            f"{folder}: {len(ignored):,} tars would be ignored; put all tars of the set into one folder, uncompressed and "
            f"named *.tar:{_lines(ignored)}"
        )
    if not tars:
        raise ValueError(f"{folder}: no .tar files (compressed tars can't be read by offset; decompress them with gunzip)")
    return Found(tars, others, skipped)


def _fix(name: str) -> str:
    end = name.lower().rpartition(".")[2]
    if end in UNPACK:
        return f"compressed, so single tiles can't be read; run {UNPACK[end]} {name}"
    return "rename it to .tar" if end == "tar" else "not a .tar by its name; unpack it, rename it or move it away"


def _lines(lines: Sequence[str], limit: int = 20) -> str:
    more = f"\n  and {len(lines) - limit:,} more" if len(lines) > limit else ""
    return "".join(f"\n  {line}" for line in lines[:limit]) + more
