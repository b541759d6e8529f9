"""Files and folders that are either whole or not there: written under another name, made durable, renamed.

That name begins with `WRITING`, which marks what a killed process left behind.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

WRITING = ".writing-"


def user_cache() -> Path:
    """The user's cache folder of this project."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "attributegan"


def fsync_path(path: Path) -> None:
    """Make a file's content, or the names in a folder, last through a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_writable(folder: Path, option: str) -> None:
    """Refuse a folder in which files can't be written, or that can't be made; before any work, and without making it.

    Raises:
        ValueError: names ``option`` and the folder.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ValueError(f"{option}: {folder} can't be written to ({error.strerror}); choose another folder") from error


@contextlib.contextmanager
def atomic_write(path: Path, *, fsync: bool = True, shared: bool = False) -> Iterator[BinaryIO]:
    """A file to write that takes the name ``path`` when the block ends; when it fails, what stood there still stands.

    Args:
        fsync: whether it must also last through a power cut, which takes milliseconds; for what can't be made again.
        shared: whether several processes may write it at a time; the last one wins.
    """
    owner = f"-{socket.gethostname()}-{os.getpid()}" if shared else ""
    tmp_path = path.with_name(f"{WRITING}{path.name}{owner}")
    try:
        with tmp_path.open("wb") as stream:
            yield stream
            if fsync:
                stream.flush()
                os.fsync(stream.fileno())
        os.replace(tmp_path, path)
    finally:
        tmp_path.unlink(missing_ok=True)
    if fsync:
        fsync_path(path.parent)


def replace_folder(tmp_path: Path, out: Path) -> None:
    """Rename a finished folder, whose files are durable, to ``out``; an older folder there is removed afterwards."""
    fsync_path(tmp_path)
    old = out.with_name(f".{out.name}.replaced")
    if old.exists():
        shutil.rmtree(old)
    if out.exists():
        os.replace(out, old)
    os.replace(tmp_path, out)
    fsync_path(out.parent)
    if old.exists():
        shutil.rmtree(old)


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
    workplace = target.with_name(f"{WRITING}{target.name}")
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
            fsync_path(path)
        os.replace(workplace / target.name, target)
        fsync_path(target.parent)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
