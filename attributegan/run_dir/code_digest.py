"""A digest of the running code, to detect processes or resumed runs with different code."""

from __future__ import annotations

import hashlib

from attributegan.utils import layout

PACKAGES = ("attributegan", "data_shards", "launch")


def code_digest() -> str:
    """Returns a short SHA-256 of the Python files of `PACKAGES`, independent of the install location."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        folder = layout.package_dir(package)
        for path in sorted(folder.rglob("*.py")):
            if layout.BUNDLE not in path.relative_to(folder).parts:  # those of a wheel are hashed as packages of their own
                digest.update(f"{path.relative_to(folder.parent)}\n".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
