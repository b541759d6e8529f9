"""Atomic writes of files and folders: write to a temporary name, fsync, rename.

Temporary names start with `WRITING`, so that the leftovers of a killed process are recognised.
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
    """Returns this project's folder in the user's cache (``$XDG_CACHE_HOME`` or ``~/.cache``)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "attributegan"


def fsync_path(path: Path) -> None:
    """Fsyncs a file, or a folder (the names in it), so that it survives a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_writable(folder: Path, option: str) -> None:
    """Checks that files can be written to ``folder``, or that it can be created; does not create it.

    Raises:
        ValueError: not writable; names ``option`` and the folder.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ValueError(f"{option}: {folder} can't be written to ({error.strerror}); choose another folder") from error


@contextlib.contextmanager
def atomic_write(path: Path, *, fsync: bool = True, shared: bool = False) -> Iterator[BinaryIO]:
    """Opens a temporary file and renames it to ``path`` when the block succeeds; if it fails, an existing ``path`` is unchanged.

    Args:
        path: the file to create or replace.
        fsync: survive a power failure; costs milliseconds. False for files that can be recreated.
        shared: several processes may write at the same time; the last one wins.

    Yields:
        the binary stream to write to.
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
    """Raises ValueError unless ``out`` does not exist or is an empty folder."""
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out}: the folder is not empty, and nothing is overwritten; choose another")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file; give a new folder")


def check_file(out: Path, suffix: str) -> None:
    """Raises ValueError unless ``out`` can be a file whose name ends in ``suffix``."""
    if out.suffix != suffix:
        raise ValueError(f"{out}: give a file name that ends in {suffix}")
    if out.is_dir():
        raise ValueError(f"{out}: is a folder; give a file name")


@contextlib.contextmanager
def atomic_path(out: Path) -> Iterator[Path]:
    """Yields a temporary path for a file or folder and renames it to ``out`` when the block succeeds.

    If the block fails, an existing ``out`` is unchanged. Files get the permissions of the umask.

    Raises:
        ValueError: ``out`` can't be created; gives the reason.
    """
    target = out.resolve()
    tmp_folder = target.with_name(f"{WRITING}{target.name}")
    try:
        shutil.rmtree(tmp_folder, ignore_errors=True)  # left by a killed process
        tmp_folder.mkdir(parents=True)
    except OSError as error:
        raise ValueError(f"{out}: can't be created: {error.strerror}; choose another path") from error
    try:
        yield tmp_folder / target.name
        mode = tmp_folder.stat().st_mode & 0o666  # safetensors creates files that only their owner can read
        for path in tmp_folder.rglob("*"):
            if path.is_file():
                path.chmod(mode)
            fsync_path(path)
        os.replace(tmp_folder / target.name, target)
        fsync_path(target.parent)
    finally:
        shutil.rmtree(tmp_folder, ignore_errors=True)
