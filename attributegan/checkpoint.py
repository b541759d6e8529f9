"""A checkpoint: a directory that is either whole or not there.

Written aside, with a manifest of checksums, fsynced and renamed; weights in safetensors, everything else in JSON; nothing is
unpickled. Owns the layout and the finding of the newest whole one. Does not know what the tensors mean.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from attributegan import config as config_module
from attributegan.attributes import AttributeSchema
from attributegan.config import Config
from attributegan.models import Generator

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
FORMAT = 1
_NAME = re.compile(r"images-(\d{12})")


class Damaged(ValueError):
    """A checkpoint that is not whole, or not one; the message names the file."""


def save(folder: Path, images: int, *, keep: int = 0, state: Mapping[str, Any], **tensors: Mapping[str, Tensor]) -> Path:
    """Write ``folder/images-…`` whole: each keyword of ``tensors`` becomes ``{keyword}.safetensors``, ``state`` ``state.json``.

    Args:
        folder: the run's checkpoint folder.
        images: real images seen; names the checkpoint.
        keep: newest checkpoints that stay (0: all); older ones go once this one stands.

    Raises:
        OSError: disk full or not writable; what stood before still stands.
    """
    target = folder / f"images-{images:012d}"
    aside = folder / f".writing-{target.name}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        for name, table in tensors.items():
            save_file({key: tensor.detach().cpu().contiguous() for key, tensor in table.items()}, aside / f"{name}.safetensors")
        (aside / "state.json").write_text(json.dumps({"format": FORMAT, "images": images, **state}, indent=1))
        manifest = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(aside.iterdir())}
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=1))
        mode = aside.stat().st_mode & 0o666  # safetensors makes files for their owner alone
        for path in aside.iterdir():
            path.chmod(mode)
            _fsync(path)
        _fsync(aside)
        _remove(target)
        os.rename(aside, target)
        _fsync(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    for old in list(_newest_first(folder))[keep:] if keep else []:
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
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise Damaged(f"{checkpoint}: not a whole checkpoint: {MANIFEST} can't be read: {error}") from error
    if "state.json" not in manifest:
        raise Damaged(f"{checkpoint / MANIFEST}: names no state.json; not a checkpoint's manifest")
    for name, size, digest in entries:
        path = checkpoint / Path(name).name
        if not path.is_file():
            raise Damaged(f"{path}: is missing")
        if path.stat().st_size != size:
            raise Damaged(f"{path}: has {path.stat().st_size} bytes, was written with {size}")
        if _sha256(path) != digest:
            raise Damaged(f"{path}: its content is not what was written (checksum)")


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint in ``folder``; damaged ones are named in the log and passed over."""
    for checkpoint in _newest_first(folder):
        try:
            verify(checkpoint)
            return checkpoint
        except Damaged as error:
            log.warning("passing over a damaged checkpoint: %s", error)
    return None


def load(checkpoint: Path, *names: str) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """``state.json`` and the named safetensors files of a checkpoint that `verify` has passed."""
    try:
        state = json.loads((checkpoint / "state.json").read_text())
        tensors = {name: load_file(checkpoint / f"{name}.safetensors") for name in names}
    except (OSError, ValueError, SafetensorError) as error:
        raise Damaged(f"{checkpoint}: can't be read: {error}") from error
    if state.get("format") != FORMAT:
        raise Damaged(f"{checkpoint}: format {state.get('format')!r}; this version reads {FORMAT}")
    return state, tensors


def find(path: str | Path) -> Path:
    """The checkpoint that a user means by ``path``: itself, or the newest whole one of a run folder.

    Raises:
        ValueError: there is none.
    """
    path = Path(path)
    if (path / MANIFEST).is_file():
        verify(path)
        return path
    if found := newest(path / "checkpoints"):
        return found
    raise ValueError(f"{path}: neither a checkpoint nor a run folder with a whole one; give a run's folder or RUN/checkpoints/images-…")


@dataclass(frozen=True)
class Loaded:
    """A generator ready to sample from, in eval mode on the CPU."""

    generator: Generator
    schema: AttributeSchema
    config: Config
    images: int


def load_for_sampling(path: str | Path, ema: bool = True) -> Loaded:
    """Load the (averaged, by default) generator of a run or checkpoint.

    Raises:
        ValueError: no whole checkpoint there, or its tensors don't fit its configuration.
    """
    checkpoint = find(path)
    name = "generator_ema" if ema else "generator"
    state, tensors = load(checkpoint, name)
    config = config_module.from_dict(state["config"], where=str(checkpoint / "state.json"))
    schema = AttributeSchema.from_dict(state["schema"], where=str(checkpoint / "state.json"))
    generator = Generator(config.model, schema)
    try:
        generator.load_state_dict(tensors[name])
    except RuntimeError as error:
        raise Damaged(f"{checkpoint / name}.safetensors: does not fit the configuration in state.json: {error}") from error
    return Loaded(generator.eval(), schema, config, int(state["images"]))


def _newest_first(folder: Path) -> Iterator[Path]:
    found = [path for path in folder.glob("images-*") if _NAME.fullmatch(path.name)]
    return iter(sorted(found, reverse=True))


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


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
