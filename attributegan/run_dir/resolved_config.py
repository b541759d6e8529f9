"""The run folder's config.yaml: every option as the run uses it, and what a later start takes from there."""

from __future__ import annotations

from pathlib import Path

from attributegan.strict_yaml import read
from attributegan.utils.files import atomic_write

FILE = "config.yaml"


def write(folder: Path, text: str) -> None:
    """Put the resolved configuration, as YAML, into the run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / FILE) as stream:
        stream.write(text.encode())


def previous_precision(folder: Path) -> str:
    """The precision of the run in ``folder``, if it has checkpoints, so that a resumed run keeps it on another machine; else ""."""
    if not any((folder / "checkpoints").glob("images-*")):
        return ""
    try:
        found = read(folder / FILE)["train"]["precision"]
    except (ValueError, KeyError, TypeError):
        return ""
    return found if found in ("fp32", "bf16", "fp16", "fp64") else ""
