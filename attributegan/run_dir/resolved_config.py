"""The run folder's config.yaml: every option as the run uses it, and what a later start takes from there."""

from __future__ import annotations

from pathlib import Path

from attributegan.config import Config, RunConfig, dump, read_yaml
from attributegan.utils.files import atomic_write

FILE = "config.yaml"


def write(config: Config) -> None:
    """Put the resolved configuration into the run folder."""
    folder = Path(config.run.dir)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / FILE) as stream:
        stream.write(dump(config).encode())


def previous_precision(run: RunConfig) -> str:
    """The precision of the run that this start resumes, which stays the same on another machine; "" when there is nothing to resume."""
    folder = Path(run.dir)
    if run.resume == "never" or not any((folder / "checkpoints").glob("images-*")):
        return ""
    try:
        found = read_yaml(folder / FILE).get("train", {}).get("precision", "")
    except (ValueError, AttributeError):
        return ""
    return found if found in ("fp32", "bf16", "fp16", "fp64") else ""
