"""The run folder's config.yaml: the resolved configuration, and the precision that a resumed run takes from it."""

from __future__ import annotations

from pathlib import Path

from attributegan.strict_yaml import read
from attributegan.utils.files import atomic_write

FILE = "config.yaml"


def write(folder: Path, text: str) -> None:
    """Writes the resolved configuration (YAML text) to the run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / FILE) as stream:
        stream.write(text.encode())


def previous_precision(folder: Path) -> str:
    """Returns the precision of the run in ``folder`` so that resuming on another machine keeps it; "" without checkpoints."""
    if not any((folder / "checkpoints").glob("images-*")):
        return ""
    try:
        found = read(folder / FILE)["train"]["precision"]
    except (ValueError, KeyError, TypeError):
        return ""
    return found if found in ("fp32", "bf16", "fp16", "fp64") else ""
