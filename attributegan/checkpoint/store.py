"""The checkpoint format: a folder that is either complete or absent.

Files are written to a temporary folder with a manifest of checksums, fsynced, and the folder is renamed. Weights are safetensors,
everything else is JSON; nothing is unpickled. Owns committing, verifying, finding and reading; how tensors are written is in writer.py.
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
    """An incomplete, damaged or invalid checkpoint; the message names the file."""


def commit(tmp_path: Path, folder: Path, images: int, state: Mapping[str, Any], keep: int) -> Path:
    """Turns the files in ``tmp_path`` into the checkpoint after ``images`` images: adds state and manifest, fsyncs, renames.

    Args:
        tmp_path: temporary folder with the tensor files, on the same disk as ``folder``.
        folder: the run's checkpoint folder.
        images: training images so far.
        state: JSON-like content of state.json.
        keep: number of latest checkpoints to keep (0: all); older ones are deleted after the rename.

    Returns:
        the path of the checkpoint.

    Raises:
        OSError: disk full or not writable; earlier checkpoints are unchanged.
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
    # Checkpoints with more images are corrupted ones that were skipped on resume: they don't count towards ``keep``.
    for old in [path for path in reversed(list_in(folder)) if path.name <= target.name][keep:] if keep else []:
        _remove(old)
    return target


def verify(checkpoint: Path) -> None:
    """Verifies the size and checksum of every file against the manifest.

    Raises:
        CheckpointCorrupted: a missing, truncated or altered file, or not a checkpoint.
    """
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        entries = [(str(name), int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest.items()]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointCorrupted(f"{checkpoint}: incomplete checkpoint: {MANIFEST} can't be read: {error}") from error
    if "state.json" not in manifest:
        raise CheckpointCorrupted(f"{checkpoint / MANIFEST}: does not list state.json; not the manifest of a checkpoint")
    for name, size, digest in entries:
        path = checkpoint / Path(name).name
        if not path.is_file():
            raise CheckpointCorrupted(f"{path}: is missing")
        if path.stat().st_size != size:
            raise CheckpointCorrupted(f"{path}: has {path.stat().st_size} bytes, expected {size}")
        try:
            matches = _sha256(path) == digest
        except OSError as error:
            raise CheckpointCorrupted(f"{path}: can't be read: {error}") from error
        if not matches:
            raise CheckpointCorrupted(f"{path}: checksum mismatch; the file was altered or corrupted")


def latest(folder: Path) -> Path | None:
    """Returns the latest complete checkpoint in ``folder``; logs and skips corrupted ones. None if there is none."""
    for checkpoint in reversed(list_in(folder)):
        try:
            verify(checkpoint)
            return checkpoint
        except CheckpointCorrupted as error:
            log.warning("skipping corrupted checkpoint: %s", error)
    return None


def load_state(checkpoint: Path) -> dict[str, Any]:
    """Reads ``state.json`` of a verified checkpoint."""
    try:
        state = json.loads((checkpoint / "state.json").read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointCorrupted(f"{checkpoint}: can't be read: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointCorrupted(f"{checkpoint / 'state.json'}: is not a JSON object")
    if state.get("format") != FORMAT:
        raise CheckpointCorrupted(f"{checkpoint}: format {state.get('format')!r} is not supported; this version reads format {FORMAT}")
    return state


@contextlib.contextmanager
def open_tensors(checkpoint: Path, name: str) -> Iterator[tuple[frozenset[str], Callable[[str], Tensor]]]:
    """Opens ``{name}.safetensors`` for reading tensor by tensor, so that the file need not fit into memory.

    Yields:
        the names of its tensors, and a function that reads one.
    """
    path = checkpoint / f"{name}.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            yield frozenset(file.keys()), file.get_tensor
    except (OSError, SafetensorError) as error:
        raise CheckpointCorrupted(f"{path}: can't be read: {error}") from error


def load(checkpoint: Path, *names: str) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Reads the state and all tensors of the named files of a verified checkpoint: (state, {file: {tensor name: tensor}})."""
    tensors = {}
    for name in names:
        with open_tensors(checkpoint, name) as (keys, read):
            tensors[name] = {key: read(key) for key in keys}
    return load_state(checkpoint), tensors


def resolve(path: str | Path) -> Path:
    """Resolves a path given by a user to a checkpoint: itself, or the latest complete one of a run folder.

    Raises:
        ValueError: no complete checkpoint.
    """
    path = Path(path)
    if (path / MANIFEST).is_file():
        verify(path)
        return path
    if found := latest(checkpoints_dir(path)):
        return found
    raise ValueError(f"{path}: neither a checkpoint nor a run folder with a complete one; give RUN or RUN/checkpoints/images-…")


def _remove(checkpoint: Path) -> None:
    """Renames a checkpoint before deleting it, so that a partly deleted one is never found."""
    if checkpoint.exists():
        tmp_path = checkpoint.with_name(f".deleting-{checkpoint.name}")
        shutil.rmtree(tmp_path, ignore_errors=True)
        os.rename(checkpoint, tmp_path)
        shutil.rmtree(tmp_path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
