"""Suggests the likely file for an image that a table names but the folder lacks.

Spellings are compared without leading folders, letter case, extension, Unicode composition of accents, and kind of slash.
"""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath

from data_shards.format.litter import is_litter

MOST_FILES = 5_000_000  # scanned at most, so that a wrong folder does not cost hours


def suggestions(root: str, missing: Iterable[str]) -> dict[str, str]:
    """Returns the most similar file in ``root`` for each missing file that has exactly one."""
    keys_of = {file: _keys(file) for file in missing}
    if not keys_of:
        return {}
    searched = {key for keys in keys_of.values() for key in keys}
    found: dict[str, list[str]] = defaultdict(list)
    for count, file in enumerate(_files(root)):
        if count == MOST_FILES:
            break
        for key in _keys(file):
            if key in searched:
                found[key].append(file)
    near = {file: next((found[key] for key in keys if found[key]), []) for file, keys in keys_of.items()}
    return {file: files[0] for file, files in near.items() if len(set(files)) == 1}


def _files(root: str) -> Iterable[str]:
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            if not is_litter(name):
                yield os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/")


def _keys(file: str) -> list[str]:
    """Returns the keys that two spellings of a file share, strictest first: path, path without extension, name, name without extension."""
    plain = unicodedata.normalize("NFC", file).replace("\\", "/").strip().casefold()
    path = PurePosixPath(plain)
    stem = str(path.with_suffix("")) if path.name else plain
    return [f"0 {plain}", f"1 {stem}", f"1 {plain}", f"2 {path.name}", f"3 {PurePosixPath(stem).name}", f"3 {path.name}"]
