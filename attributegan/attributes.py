"""The attribute schema: which attributes a tile has, their levels, and what a level means.

Owns names, level names and the "not assessable" level, their YAML form and the comparison of two schemas.
Does not know about tensors: this module imports no torch, so that packing and command lines start at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

UNKNOWN = -1  # in the place of a level: nobody has said which one the tile has. No level, unlike "not assessable", which somebody has said


# What yaml.safe_load raises on text that is no YAML, or has tags and values that don't fit together (`!!bool maybe`).
YAML_ERRORS = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True)
class Attribute:
    """One ordinal attribute.

    Args:
        name: identifier used in files and on command lines, e.g. ``cell_crowding``.
        levels: names of the levels, lowest first; level ``k`` is ``levels[k]``.
        not_assessable: the level that says "can't be judged on this tile", or None. It is never between two others.
    """

    name: str
    levels: tuple[str, ...]
    not_assessable: int | None = None

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"attribute name {self.name!r}: use letters, digits and underscores, not starting with a digit")
        if len(self.levels) < 2:
            raise ValueError(f"attribute {self.name}: needs at least 2 levels, has {len(self.levels)}")
        if len(set(self.levels)) != len(self.levels):
            raise ValueError(f"attribute {self.name}: level names {list(self.levels)} are not all different")
        if self.not_assessable is not None and not 0 <= self.not_assessable < len(self.levels):
            raise ValueError(f"attribute {self.name}: not_assessable is {self.not_assessable}, levels are 0 to {len(self.levels) - 1}")
        if self.not_assessable not in (None, 0, len(self.levels) - 1):
            raise ValueError(
                f"attribute {self.name}: not_assessable is level {self.not_assessable}, between two others; make it the first or last"
            )

    @property
    def assessable(self) -> tuple[int, ...]:
        """The levels that are ordered along the attribute, lowest first."""
        return tuple(level for level in range(len(self.levels)) if level != self.not_assessable)

    def check_wanted(self, level: float) -> str | None:
        """What is wrong with a level asked of a generator, in words, or None; it may lie between two assessable ones, or be `UNKNOWN`."""
        if level == UNKNOWN or level in range(len(self.levels)):
            return None
        lowest, highest = self.assessable[0], self.assessable[-1]
        if lowest <= level <= highest:
            return None
        alone = "" if self.not_assessable is None else f", or for {self.not_assessable} alone ({self.levels[self.not_assessable]})"
        return f"{self.name} is {level:g}; ask for a level from {lowest} to {highest}{alone}"

    def parse(self, text: str) -> float:
        """A level by number, whole (int) or between two assessable ones (float), or by name.

        Raises:
            ValueError: there is no such level; names those that there are.
        """
        if text in self.levels:
            return self.levels.index(text)
        if text.isdecimal() and len(text) < 10 and int(text) < len(self.levels):
            return int(text)
        if re.fullmatch(r"\d+\.\d+", text) and self.assessable[0] <= float(text) <= self.assessable[-1]:
            return int(float(text)) if float(text).is_integer() else float(text)
        known = ", ".join(f"{level} ({label})" for level, label in enumerate(self.levels))
        raise ValueError(f"{self.name} has the levels {known}, and others between those from {self.assessable[0]} to {self.assessable[-1]}")


@dataclass(frozen=True)
class AttributeSchema:
    """The attributes of a data set or a model, in the order of their columns in ``levels_BA``."""

    attributes: tuple[Attribute, ...]

    def __post_init__(self) -> None:
        if not self.attributes:
            raise ValueError("attributes: the schema is empty; name at least one attribute")
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"attributes: names {list(self.names)} are not all different")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(attribute.name for attribute in self.attributes)

    @property
    def num_levels(self) -> tuple[int, ...]:
        """Levels of each attribute, "not assessable" included."""
        return tuple(len(attribute.levels) for attribute in self.attributes)

    def check(self, levels: Sequence[int]) -> str | None:
        """What is wrong with one tile's levels, in words; None when nothing is."""
        if len(levels) != len(self.attributes):
            return f"{len(levels)} levels for {len(self.attributes)} attributes"
        for attribute, level in zip(self.attributes, levels, strict=True):
            if level != UNKNOWN and not 0 <= level < len(attribute.levels):
                return f"{attribute.name} is {level}, levels are 0 to {len(attribute.levels) - 1}, or {UNKNOWN} for not known"
        return None

    def parse(self, text: str) -> dict[str, float]:
        """``cell_crowding=2.5,mitosis=rare`` -> ``{"cell_crowding": 2.5, "mitosis": 1}``; levels by number, whole (int) or between two
        assessable ones (float), or by name.

        Raises:
            ValueError: unknown attribute, or a level that it does not have.
        """
        chosen: dict[str, float] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or name not in self.names:
                raise ValueError(f"levels {part!r}: write attribute=level, with attributes {', '.join(self.names)}")
            try:
                chosen[name] = self.attributes[self.names.index(name)].parse(value)
            except ValueError as error:
                raise ValueError(f"levels {part!r}: {error}") from None
        return chosen

    def difference(self, other: AttributeSchema) -> list[str]:
        """Every way in which ``other`` differs, a line each (self is "the model", other "the data"); [] when equal."""
        if self.names != other.names:
            return [f"the model has the attributes {', '.join(self.names)}; the data has {', '.join(other.names)}"]
        lines = []
        for mine, theirs in zip(self.attributes, other.attributes, strict=True):
            if mine.levels != theirs.levels:
                lines.append(f"{mine.name}: the model has the levels {list(mine.levels)}; the data has {list(theirs.levels)}")
            if mine.not_assessable != theirs.not_assessable:
                lines.append(
                    f"{mine.name}: not assessable is level {mine.not_assessable} for the model, {theirs.not_assessable} for the data"
                )
        return lines

    def to_dict(self) -> dict[str, Any]:
        """The YAML/JSON form that `from_dict` reads."""
        return {
            attribute.name: {"levels": list(attribute.levels), "not_assessable": attribute.not_assessable} for attribute in self.attributes
        }

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any], where: str = "attributes") -> AttributeSchema:
        """Read ``{name: {levels: [names], not_assessable: level or null}}``.

        Raises:
            ValueError: names ``where``, the attribute and the fix.
        """
        if not isinstance(tree, Mapping):
            raise ValueError(f"{where}: expected a mapping of attribute names, got {type(tree).__name__}")
        return cls(tuple(_attribute(name, entry, where) for name, entry in tree.items()))

    @classmethod
    def from_yaml(cls, path: str | Path) -> AttributeSchema:
        """Read a schema file; see ``configs/attributes/bladder.yaml`` for the form."""
        try:
            tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, *YAML_ERRORS) as error:
            raise ValueError(f"{path}: not a readable YAML file: {error}") from error
        return cls.from_dict(tree, where=str(path))


def _attribute(name: Any, entry: Any, where: str) -> Attribute:
    entry = {"levels": entry} if isinstance(entry, list) else entry
    if not isinstance(name, str) or not isinstance(entry, Mapping) or not isinstance(entry.get("levels"), list):
        raise ValueError(f"{where}: {name}: write `levels: [names, lowest first]` and, where it applies, `not_assessable: 0`")
    if unknown := set(entry) - {"levels", "not_assessable", "measured"}:  # `measured` is data_shards.measure's
        raise ValueError(f"{where}: {name}: unknown keys {sorted(map(str, unknown))}; known are levels, not_assessable, measured")
    not_assessable = entry.get("not_assessable")
    if not_assessable is not None and type(not_assessable) is not int:
        raise ValueError(f"{where}: {name}: not_assessable is {not_assessable!r}; give a level's number or leave it out")
    return Attribute(name, tuple(str(level) for level in entry["levels"]), not_assessable)


def _graded(name: str, grades: Iterable[str]) -> Attribute:
    return Attribute(name, ("insufficient information", *grades), not_assessable=0)


# The five attributes of AttributeGAN (Ye et al., MICCAI 2021) on bladder tiles; level 0 says "insufficient information".
PUBLISHED = AttributeSchema(
    (
        _graded("cell_crowding", ("normal", "mild", "moderate", "severe")),
        _graded("cell_polarity", ("retained", "partial loss", "complete loss")),
        _graded("mitosis", ("rare", "infrequent", "frequent")),
        _graded("nucleoli", ("inconspicuous", "prominent")),
        _graded("pleomorphism", ("normal", "mild", "moderate", "severe")),
    )
)
