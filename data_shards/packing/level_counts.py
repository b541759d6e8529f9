"""Reports levels without tiles, which may be a mistake: a table that counts from 1, or a missing data set."""

from __future__ import annotations

import numpy as np

from attributegan.attributes import UNKNOWN, Attribute, AttributeSchema


def absent(schema: AttributeSchema, levels_NA: np.ndarray) -> list[str]:
    """Returns a line for each attribute with levels that no tile has."""
    lines = []
    for attribute, levels_N in zip(schema.attributes, levels_NA.T, strict=True):
        known = {int(level) for level in np.unique(levels_N)} - {UNKNOWN}
        if not known:
            lines.append(f"{attribute.name}: all levels are unknown")
        elif missing := sorted(set(range(len(attribute.levels))) - known):
            lines.append(f"{attribute.name}: no tile has {_listed(attribute, missing)}{_from_one(attribute, missing)}")
    return lines


def _listed(attribute: Attribute, levels: list[int]) -> str:
    names = [f"“{attribute.levels[level]}”" if attribute.numbered else f"{level} ({attribute.levels[level]})" for level in levels]
    return f"level {names[0]}" if len(names) == 1 else f"levels {', '.join(names)}"


def _from_one(attribute: Attribute, missing: list[int]) -> str:
    """Returns a hint if the lowest level never occurs, unless it means "not assessable"."""
    if 0 not in missing or attribute.numbered or attribute.not_assessable == 0:
        return ""
    return "; does the table count levels from 1? They must count from 0"
