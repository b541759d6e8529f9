"""The attribute schema: which attributes a tile has, their levels, and what a level means.

Owns names, level names and the "not assessable" level, their YAML form and the comparison of two schemas.
Does not know about tensors: this module imports no torch, so that packing and command lines start at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

from attributegan import presets, strict_yaml
from attributegan.strict_yaml import YAML_ERRORS as YAML_ERRORS

UNKNOWN = -1  # in the place of a level: nobody has said which one the tile has. No level, unlike "not assessable", which somebody has said

BY_PLACE = "#"  # before a level that is given by its place, whatever its name is: "#0" is the lowest


def number_in(text: str) -> Decimal | None:
    """The number that a text is, as people, pandas and spreadsheets write it: "2", "2.0", "+2", "2e0"; None for other texts."""
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", text, re.ASCII) or len(text) > 40:
        return None
    return Decimal(text)


@dataclass(frozen=True)
class Attribute:
    """One ordinal attribute.

    Args:
        name: identifier used in files and on command lines, e.g. ``cell_crowding``.
        levels: names of the levels, lowest first; level ``k`` is ``levels[k]``. Where names are numbers that are not their own places, as
            in (1, 2, 3), a number always means the name: see `numbered`.
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
        if wrong := [level for level in self.levels if level != level.strip() or not level or level.startswith(BY_PLACE)]:
            raise ValueError(
                f"attribute {self.name}: level {wrong[0]!r} is empty, has blanks at an end or begins with {BY_PLACE}; rename it"
            )
        numbers = [number for level in self.levels if (number := number_in(level)) is not None]
        if len(set(numbers)) != len(numbers):
            raise ValueError(f"attribute {self.name}: two of the level names {list(self.levels)} are the same number")
        if UNKNOWN in numbers:
            raise ValueError(f"attribute {self.name}: a level is named {UNKNOWN}, which says that a level is not known; rename it")
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

    @cached_property
    def _level_of(self) -> dict[Decimal, int]:
        """The level that each number means: that of this name, or, where names are no numbers but places, of this place."""
        named = {number: level for level, name in enumerate(self.levels) if (number := number_in(name)) is not None}
        if all(number == level for number, level in named.items()):
            return {Decimal(level): level for level in range(len(self.levels))}
        return named

    @property
    def numbered(self) -> bool:
        """Whether a number means a name and not a place, as for the levels 1, 2, 3, or none, 3, 4."""
        return any(number != level for number, level in self._level_of.items())

    def read(self, value: object) -> int:
        """A whole level as tables, JSON and ``.cls`` have it: a name, a number however it is spelled (1, 1.0, "1", "1.0"), "#" and a place,
        or `UNKNOWN`, which null is too. Numbers are places, unless the attribute is `numbered`.

        Raises:
            ValueError: there is no such level; names those that there are.
        """
        if value is None:
            return UNKNOWN
        if isinstance(value, bool):
            value = str(value).lower()
        text = value.strip() if isinstance(value, str) else str(value) if isinstance(value, int | float) else None
        if text is None:
            raise ValueError(f"{self.name} is {str(value)[:40]}, neither a number nor a name")
        if text in self.levels:
            return self.levels.index(text)
        number = number_in(text.removeprefix(BY_PLACE))
        if number == UNKNOWN and not text.startswith(BY_PLACE):
            return UNKNOWN
        found = _place(number, len(self.levels)) if text.startswith(BY_PLACE) else None if number is None else self._level_of.get(number)
        if found is None:
            raise ValueError(f"{self.name} is {self._refusal(value, number)}")
        return found

    def _refusal(self, value: object, number: Decimal | None) -> str:
        value = f"{value[:40]}…" if isinstance(value, str) and len(value) > 40 else value
        if self.numbered:
            return f"{value!r}, not one of {', '.join(self.levels)}; {UNKNOWN} says that it is not known"
        if number is None:
            return f"{value!r}, neither a number nor one of {', '.join(self.levels)}; {UNKNOWN} says that it is not known"
        return f"{value}, levels are 0 to {len(self.levels) - 1}, or {UNKNOWN} for not known"

    def written(self, level: float) -> int | float | str:
        """A level in the form that every reader takes for the same level: its number; of a `numbered` attribute its name, and between two
        levels "#" and the place."""
        whole = int(level) if level == int(level) else None
        if not self.numbered or whole == UNKNOWN:
            return level if whole is None else whole
        return f"{BY_PLACE}{level:.12g}" if whole is None else self.levels[whole]

    def label(self, level: float) -> str:
        """A level as axes of pictures have it: its number, or what `written` says of a `numbered` attribute."""
        return str(self.written(level))

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
        """A level to make, whole (int) or between two assessable ones (float): by name, by number, or by "#" and its place.

        Numbers are places, unless the attribute is `numbered`: then 2.5 is half-way between the neighbours named 2 and 3.

        Raises:
            ValueError: there is no such level; names those that there are.
        """
        if text in self.levels:
            return self.levels.index(text)
        number = number_in(text.removeprefix(BY_PLACE))
        if number is not None and re.fullmatch(rf"{BY_PLACE}?\d+(\.\d+)?", text):
            level = self._level_at(number) if self.numbered and not text.startswith(BY_PLACE) else float(number)
            if level in range(len(self.levels)) or self.assessable[0] <= level <= self.assessable[-1]:
                return int(level) if level.is_integer() else level
        if self.numbered:
            raise ValueError(
                f"{self.name} has the levels {', '.join(self.levels)}, where a number is a name, and others between two numbers"
            )
        known = ", ".join(f"{level} ({label})" for level, label in enumerate(self.levels))
        raise ValueError(f"{self.name} has the levels {known}, and others between those from {self.assessable[0]} to {self.assessable[-1]}")

    def _level_at(self, number: Decimal) -> float:
        """The level named ``number``, or the place between the two neighbours around it; NaN where there are none."""
        if number in self._level_of:
            return float(self._level_of[number])
        value_of = {level: value for value, level in self._level_of.items()}
        for low, high in zip(self.assessable, self.assessable[1:], strict=False):
            if low in value_of and high in value_of and min(value_of[low], value_of[high]) < number < max(value_of[low], value_of[high]):
                return low + float((number - value_of[low]) / (value_of[high] - value_of[low]))
        return float("nan")


def _place(number: Decimal | None, count: int) -> int | None:
    return int(number) if number is not None and number in range(count) else None


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

    def written(self, levels: Sequence[float]) -> dict[str, int | float | str]:
        """Levels by name, in the form that every reader takes for the same levels (see `Attribute.written`)."""
        return {attribute.name: attribute.written(level) for attribute, level in zip(self.attributes, levels, strict=True)}

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
            if name in chosen:
                raise ValueError(f"levels {part!r}: {name} is given more than once")
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
            attribute.name: {"levels": list(attribute.levels), "not_assessable": _written_not_assessable(attribute)}
            for attribute in self.attributes
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
        """Read a schema file, or a preset by its name; see ``configs/attributes/bladder.yaml`` for the form."""
        path = presets.resolve("attributes", path)
        return cls.from_dict(strict_yaml.read(path, as_text=True), where=str(path))


def _attribute(name: Any, entry: Any, where: str) -> Attribute:
    entry = {"levels": entry} if isinstance(entry, list) else entry
    if not isinstance(name, str) or not isinstance(entry, Mapping) or not isinstance(entry.get("levels"), list):
        raise ValueError(f"{where}: {name}: write `levels: [names, lowest first]` and, where it applies, `not_assessable: 0`")
    if unknown := set(entry) - {"levels", "not_assessable", "measured"}:  # `measured` is read by data_shards.measure
        raise ValueError(f"{where}: {name}: unknown keys {sorted(map(str, unknown))}; known are levels, not_assessable, measured")
    if wrong := [level for level in entry["levels"] if not isinstance(level, str | int | float) or isinstance(level, bool)]:
        raise ValueError(f"{where}: {name}: the level name {wrong[0]!r} is no text; put quotes around it")
    levels = tuple(str(level) for level in entry["levels"])
    try:
        return Attribute(name, levels, _not_assessable(entry.get("not_assessable"), Attribute(name, levels)))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _not_assessable(value: Any, attribute: Attribute) -> int | None:
    """The level that ``not_assessable`` names: its place, or its name.

    Raises:
        ValueError: neither, or a number that is the place of one level and the name of another.
    """
    if value is None or value in ("", "~", "null", "Null", "NULL"):
        return None
    text = str(value).removeprefix(BY_PLACE)
    number = number_in(text) if type(value) in (int, str) else None
    by_place = None if number is None or number != int(number) else int(number)
    by_name = attribute.levels.index(text) if text in attribute.levels and not str(value).startswith(BY_PLACE) else None
    if by_name is None and by_place is None:
        raise ValueError(f"{attribute.name}: not_assessable is {value!r}; give a level's name or number, or leave it out")
    if by_name is not None and by_place is not None and by_place in range(len(attribute.levels)) and by_name != by_place:
        raise ValueError(
            f"{attribute.name}: not_assessable: {value} is the name of one level and the place of another; write "
            f"'{BY_PLACE}{by_name}' for the level named {value}, '{BY_PLACE}{by_place}' for the other one"
        )
    return by_place if by_name is None else by_name


def _written_not_assessable(attribute: Attribute) -> int | str | None:
    """What `_not_assessable` reads back: the place, with its mark where it could be taken for a name."""
    place = attribute.not_assessable
    return f"{BY_PLACE}{place}" if place is not None and str(place) in attribute.levels and attribute.levels[place] != str(place) else place


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
