"""A checkpoint: a directory that is either whole or not there.

Written aside, with a manifest of checksums, fsynced and renamed; weights in safetensors, everything else in JSON; nothing is
unpickled. Owns what makes one whole, and the finding and reading of the newest. How its tensors get there is in writer.py;
what they mean is not known here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from attributegan.run_dir.checkpoint_dirs import checkpoints_dir, list_in, name_of
from attributegan.utils.files import fsync_path

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
FORMAT = 1


class CheckpointCorrupted(ValueError):
    """A checkpoint that is not whole, or not one; the message names the file."""


def commit(tmp_path: Path, folder: Path, images: int, state: Mapping[str, Any], keep: int) -> Path:
    """Make the files in ``aside`` the checkpoint after ``images`` images: add ``state`` and a manifest, force all to the disk, rename.

    Args:
        keep: newest checkpoints that stay (0: all); older ones go once this one stands.

    Raises:
        OSError: disk full or not writable; what stood before still stands.
    """
    target = folder / name_of(images)
    (tmp_path / "state.json").write_text(json.dumps({"format": FORMAT, "images": images, **state}, indent=1))
    manifest = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(tmp_path.iterdir())}
    (tmp_path / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in tmp_path.iterdir():
        fsync_path(path)
    fsync_path(tmp_path)
    _remove(target)
    os.rename(tmp_path, target)
    fsync_path(folder)
    # Those with more images are damaged ones, passed over at the start: they don't count, and this one must not make room for them.
    for old in [path for path in reversed(list_in(folder)) if path.name <= target.name][keep:] if keep else []:
        _remove(old)
    return target


def verify(checkpoint: Path) -> None:
    """Check every byte against the manifest.

    Raises:
        Damaged: a missing, short or altered file, or no checkpoint at all.
    """
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        entries = [(str(name), int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest.items()]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointCorrupted(f"{checkpoint}: not a whole checkpoint: {MANIFEST} can't be read: {error}") from error
    if "state.json" not in manifest:
        raise CheckpointCorrupted(f"{checkpoint / MANIFEST}: names no state.json; not a checkpoint's manifest")
    for name, size, digest in entries:
        path = checkpoint / Path(name).name
        if not path.is_file():
            raise CheckpointCorrupted(f"{path}: is missing")
        if path.stat().st_size != size:
            raise CheckpointCorrupted(f"{path}: has {path.stat().st_size} bytes, was written with {size}")
        try:
            same = _sha256(path) == digest
        except OSError as error:
            raise CheckpointCorrupted(f"{path}: can't be read: {error}") from error
        if not same:
            raise CheckpointCorrupted(f"{path}: its content is not what was written (checksum)")


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint in ``folder``; damaged ones are named in the log and passed over."""
    for checkpoint in reversed(list_in(folder)):
        try:
            verify(checkpoint)
            return checkpoint
        except CheckpointCorrupted as error:
            log.warning("skipping corrupted checkpoint: %s", error)
    return None


def load_state(checkpoint: Path) -> dict[str, Any]:
    """``state.json`` of a checkpoint that `verify` has passed."""
    try:
        state = json.loads((checkpoint / "state.json").read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointCorrupted(f"{checkpoint}: can't be read: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointCorrupted(f"{checkpoint / 'state.json'}: is no mapping")
    if state.get("format") != FORMAT:
        raise CheckpointCorrupted(f"{checkpoint}: format {state.get('format')!r}; this version reads {FORMAT}")
    return state


@contextlib.contextmanager
def open_tensors(checkpoint: Path, name: str) -> Iterator[tuple[frozenset[str], Callable[[str], Tensor]]]:
    """The names of the tensors in ``{name}.safetensors``, and a function that reads one, so that no file needs to fit into memory."""
    path = checkpoint / f"{name}.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            yield frozenset(file.keys()), file.get_tensor
    except (OSError, SafetensorError) as error:
        raise CheckpointCorrupted(f"{path}: can't be read: {error}") from error


def load(checkpoint: Path, *names: str) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """The state and all tensors of the named files, of a checkpoint that `verify` has passed."""
    tables = {}
    for name in names:
        with open_tensors(checkpoint, name) as (keys, read):
            tables[name] = {key: read(key) for key in keys}
    return load_state(checkpoint), tables


def resolve(path: str | Path) -> Path:
    """The checkpoint that a user means by ``path``: itself, or the newest whole one of a run folder.

    Raises:
        ValueError: there is none.
    """
    path = Path(path)
    if (path / MANIFEST).is_file():
        verify(path)
        return path
    if found := latest(checkpoints_dir(path)):
        return found
    raise ValueError(f"{path}: neither a checkpoint nor a run folder with a whole one; give a run's folder or RUN/checkpoints/images-…")


def _remove(checkpoint: Path) -> None:
    """Delete so that a half-deleted checkpoint is never seen under its name."""
    if checkpoint.exists():
        doomed = checkpoint.with_name(f".deleting-{checkpoint.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        os.rename(checkpoint, doomed)
        shutil.rmtree(doomed)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
