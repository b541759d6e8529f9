"""Recognizes files that operating systems and people leave beside tiles and shards and that are not data; they are skipped and counted."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

# Of macOS, Windows, NAS devices, network file systems and version control; and documents about a set.
_FILES = re.compile(
    r"\._.*|\.DS_Store|Thumbs\.db|ehthumbs\.db|desktop\.ini|\.nfs[0-9a-f]+|\.directory|\.gitattributes|\.gitignore|\.gitkeep"
    r"|(README|LICEN[CS]E|CHANGELOG|CITATION|NOTICE)([_-]\w+)?(\.(md|txt|rst|html|pdf|cff|bib))?|(md5|sha1|sha256|sha512)sums?(\.txt)?",
    re.IGNORECASE,
)
_FOLDERS = frozenset(
    (
        "__MACOSX",
        "@eaDir",
        ".Spotlight-V100",
        ".Trashes",
        ".fseventsd",
        ".TemporaryItems",
        ".git",
        ".cache",
        "lost+found",
        "System Volume Information",
        "$RECYCLE.BIN",
        ".ipynb_checkpoints",
    )
)


def is_litter(path: str) -> bool:
    """Returns whether the file at this path, relative to the set or the tar, is not data."""
    *folders, name = PurePosixPath(path).parts or ("",)
    return any(folder in _FOLDERS for folder in folders) or name in _FOLDERS or bool(_FILES.fullmatch(name))


def counted(paths: Iterable[str]) -> str:
    """Returns ``3 files that are not data (._a.jpg, .DS_Store, …)``, or "" for no files."""
    if not (found := list(paths)):
        return ""
    names = ", ".join(PurePosixPath(path).name for path in found[:3]) + (", …" if len(found) > 3 else "")
    return f"{len(found):,} files that are not data ({names})"
