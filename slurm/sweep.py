"""Reads a sweep: a YAML file with a list of values per option; each combination of values is a run."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import yaml

from attributegan import presets
from attributegan.config import read_yaml


def read(path: str | Path) -> dict[str, list[str]]:
    """Returns the overrides of each run, by the name of its folder.

    Raises:
        ValueError: an entry is not ``section.key: [values]``; the message names the file and the option.
    """
    path = presets.resolve("sweep", path, "--array")
    options = read_yaml(path)
    if not options:
        raise ValueError(f"{path}: is empty; list the values of each option, such as train.seed: [0, 1]")
    for option, values in options.items():
        if not isinstance(values, list) or not values or "." not in str(option):
            raise ValueError(f"{path}: {option}: expected section.key: [values], got {values!r}")
        if option == "run.dir":
            raise ValueError(f"{path}: run.dir: can't be swept; each run gets its own folder in the run.dir of the command line")
    runs = {}
    for combination in itertools.product(*options.values()):
        chosen = dict(zip(options, combination, strict=True))
        name = ",".join(f"{option.partition('.')[2]}={_short(value)}" for option, value in chosen.items())
        if name in runs:
            raise ValueError(f"{path}: two runs would share the folder {name}; remove the duplicate value")
        runs[name] = [f"{option}={_yaml(value)}" for option, value in chosen.items()]
    return runs


def _short(value: Any) -> str:
    """Format ``value`` for use in a file name."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", str(value)).strip("_") or "none"


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()
