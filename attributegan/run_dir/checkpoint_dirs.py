"""Where a run's checkpoints are and what their folders are called. What is in them is `attributegan.checkpoint`'s."""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"images-(\d{12})")


def checkpoints_dir(run: str | Path) -> Path:
    """The folder of a run's checkpoints."""
    return Path(run) / "checkpoints"


def name_of(images: int) -> str:
    """The name of the checkpoint after ``images`` images; names sort as numbers do."""
    return f"images-{images:012d}"


def images_of(checkpoint: Path) -> int:
    """The number of images in a checkpoint's name."""
    return int(checkpoint.name.removeprefix("images-"))


def list_checkpoints(run: str | Path) -> list[Path]:
    """The checkpoints in a run folder, oldest first, by their names alone."""
    return list_in(checkpoints_dir(run))


def list_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder of them, oldest first, by their names alone."""
    return sorted(path for path in folder.glob("images-*") if _NAME.fullmatch(path.name))
