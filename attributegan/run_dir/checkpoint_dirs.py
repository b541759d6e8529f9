"""Paths and names of checkpoint folders. Their contents are in `attributegan.checkpoint`."""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"images-(\d{12})")


def checkpoints_dir(run: str | Path) -> Path:
    """Returns the folder that holds a run's checkpoints."""
    return Path(run) / "checkpoints"


def name_of(images: int) -> str:
    """Returns the folder name of the checkpoint after ``images`` images; zero-padded, so that names sort by number."""
    return f"images-{images:012d}"


def images_of(checkpoint: Path) -> int:
    """Returns the number of images in a checkpoint's folder name."""
    return int(checkpoint.name.removeprefix("images-"))


def list_checkpoints(run: str | Path) -> list[Path]:
    """Lists the checkpoints of a run, oldest first, by name only (unverified)."""
    return list_in(checkpoints_dir(run))


def list_in(folder: Path) -> list[Path]:
    """Lists the checkpoints in a checkpoints folder, oldest first, by name only (unverified)."""
    return sorted(path for path in folder.glob("images-*") if _NAME.fullmatch(path.name))
