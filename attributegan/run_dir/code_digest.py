"""A digest of the running code, to detect processes or resumed runs with different code."""

from __future__ import annotations

import hashlib
from pathlib import Path

PACKAGES = ("attributegan", "data_shards", "launch")


def code_digest() -> str:
    """Returns a short SHA-256 of the Python files of `PACKAGES`, independent of the install location."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
