"""Presets: the files of `configs/` by name, such as ``small`` for ``configs/train/small.yaml``, from any folder.

Owns the rule by which an option takes a name or a path.
"""

from __future__ import annotations

import os
from pathlib import Path

from attributegan.errors import require
from attributegan.utils.layout import configs_dir

SUFFIXES = (".yaml", ".json")


def presets(kind: str) -> dict[str, Path]:
    """Returns the files of ``configs/{kind}`` by name without suffix; not the JSON Schema that editors use."""
    paths = sorted((configs_dir() / kind).glob("*"))
    return {path.stem: path for path in paths if path.suffix in SUFFIXES and path.stem != "schema"}


def resolve(kind: str, value: str | Path, option: str = "") -> Path:
    """The file that ``value`` means: a preset's name, or a path.

    Args:
        kind: folder of `configs/`: train, slurm, attributes, studies, sweep, accelerate or deepspeed.
        value: a name without folder and suffix is a preset; anything else is a path, which need not exist.
        option: the option that has this value, such as ``--array``, for error messages.

    Raises:
        ValueError: a name that is no preset and no file, or is both; lists the presets.
    """
    text, known = str(value), presets(kind)
    shown = f"{option}: {text}" if option else text
    if text in known:
        require(not os.path.isfile(text), f"{shown}: is a preset and also a file here; for the file, give {os.path.abspath(text)}")
        return known[text]
    if os.path.exists(text):
        return Path(value)
    name, suffix = os.path.splitext(os.path.basename(text))
    listed = f"presets are {', '.join(known)}"
    require(bool(suffix) or os.sep in text, f"{shown}: not a preset and not a file; {listed}")
    require(name not in known or suffix not in SUFFIXES, f"{shown}: no such file; for the preset that ships, give {name} ({listed})")
    return Path(value)
