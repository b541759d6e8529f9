"""Files and folders that are whole or not there: written aside, fsynced, renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def check_new_folder(out: Path) -> None:
    """ValueError unless ``out`` is free for a new folder."""
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out}: is a folder with something in it, and nothing there is overwritten; choose another")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file; give a folder that is not there yet")


def check_file(out: Path, suffix: str) -> None:
    """ValueError unless ``out`` can be a file with the ending ``suffix``."""
    if out.suffix != suffix:
        raise ValueError(f"{out}: give a file name that ends in {suffix}")
    if out.is_dir():
        raise ValueError(f"{out}: is a folder; give a file name")


@contextlib.contextmanager
def atomic_path(out: Path) -> Iterator[Path]:
    """A path for a file or folder that becomes ``out`` when the block ends; when it fails, what stood still stands.

    Raises:
        ValueError: ``out`` can't be made where it is; says why.
    """
    target = out.resolve()
    workplace = target.with_name(f".writing-{target.name}")
    try:
        shutil.rmtree(workplace, ignore_errors=True)  # of a run that was killed
        workplace.mkdir(parents=True)
    except OSError as error:
        raise ValueError(f"{out}: can't be made: {error.strerror}; choose another place") from error
    try:
        yield workplace / target.name
        mode = workplace.stat().st_mode & 0o666  # safetensors makes files for their owner alone
        for path in workplace.rglob("*"):
            if path.is_file():
                path.chmod(mode)
            _fsync(path)
        os.replace(workplace / target.name, target)
        _fsync(target.parent)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
