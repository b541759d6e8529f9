"""Images that a table names and a folder has under another spelling: what the name is there.

Compared without folders in front, letter case, extension, composed or decomposed accents, and with either slash.
"""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath

from data_shards.format.litter import is_litter

MOST_FILES = 5_000_000  # looked at, so that a wrong folder costs no hours


def suggestions(root: str, missing: Iterable[str]) -> dict[str, str]:
    """For each missing file the one in ``root`` that is most like it, where there is one."""
    wanted = {file: _keys(file) for file in missing}
    if not wanted:
        return {}
    looked_for = {key for keys in wanted.values() for key in keys}
    found: dict[str, list[str]] = defaultdict(list)
    for count, file in enumerate(_files(root)):
        if count == MOST_FILES:
            break
        for key in _keys(file):
            if key in looked_for:
                found[key].append(file)
    near = {file: next((found[key] for key in keys if found[key]), []) for file, keys in wanted.items()}
    return {file: files[0] for file, files in near.items() if len(set(files)) == 1}


def _files(root: str) -> Iterable[str]:
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            if not is_litter(name):
                yield os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/")


def _keys(file: str) -> list[str]:
    """What two spellings of one file share, the strictest first: the path, the path without extension, the name, the name without one."""
    plain = unicodedata.normalize("NFC", file).replace("\\", "/").strip().casefold()
    path = PurePosixPath(plain)
    stem = str(path.with_suffix("")) if path.name else plain
    return [f"0 {plain}", f"1 {stem}", f"1 {plain}", f"2 {path.name}", f"3 {PurePosixPath(stem).name}", f"3 {path.name}"]
