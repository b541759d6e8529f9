"""Names and values of options in earlier versions, found in old checkpoints and configurations; still read in this version."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from attributegan.errors import require

log = logging.getLogger("attributegan")

RENAMED_OPTIONS = {
    "data.known": "data.attributes",
    "data.window": "data.shuffle_window",
    "train.accumulation": "train.grad_accumulation",
    "train.processes": "train.world_size",
    "run.keep": "run.keep_last",
}
RENAMED_VALUES = {
    "model.generator_levels": {"columns": "onehot", "places": "ordinal"},
    "loss.contrastive_over": {"tile": "label"},
    "evaluate.best": {"obeys": "control_score"},
}


def with_current_names(tree: Mapping[str, Any], where: str = "configuration") -> dict[str, Any]:
    """Returns sections of options with old names and values replaced by current ones; logs each replacement.

    Raises:
        ValueError: An option is given by both its old and its new name.
    """
    return {
        section: with_current_keys(branch, f"{section}.", where) if isinstance(branch, Mapping) else branch
        for section, branch in tree.items()
    }


def with_current_keys(branch: Mapping[str, Any], prefix: str, where: str) -> dict[str, Any]:
    """`with_current_names` of one section; ``prefix`` is its name and a dot."""
    result: dict[str, Any] = {}
    for key, value in branch.items():
        name = current_option(f"{prefix}{key}", where)
        current = name.removeprefix(prefix)
        require(current == key or current not in branch, f"{where}: {prefix}{key} is now {name}, which is also given; delete the old name")
        values = RENAMED_VALUES.get(name, {})
        if isinstance(value, str) and value in values:
            log.warning("%s: %s=%s is now %s; the old value is accepted in this version only", where, name, value, values[value])
            value = values[value]
        result[current] = value
    return result


def current_option(name: str, where: str) -> str:
    """Returns the current name of an option; logs the replacement of an old one."""
    if name in RENAMED_OPTIONS:
        log.warning("%s: %s is now %s; the old name is accepted in this version only", where, name, RENAMED_OPTIONS[name])
    return RENAMED_OPTIONS.get(name, name)
