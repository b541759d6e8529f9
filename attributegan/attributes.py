"""The attribute schema: the attributes of a tile and their ordinal levels.

Owns names, level names, the "not assessable" level, parsing and formatting of levels, the YAML form and the comparison of
two schemas. Imports no torch, so that packing and the command lines start quickly.
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

UNKNOWN = -1  # stored instead of a level when the tile has no label. Differs from "not assessable", which is a label

INDEX_PREFIX = "#"  # marks a level given by its index instead of its name: "#0" is the lowest level


def number_in(text: str) -> Decimal | None:
    """Parses a number as people, pandas and spreadsheets write it ("2", "2.0", "+2", "2e0"); returns None for any other text."""
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", text, re.ASCII) or len(text) > 40:
        return None
    return Decimal(text)


@dataclass(frozen=True)
class Attribute:
    """One ordinal attribute.

    Args:
        name: identifier used in files and on command lines, e.g. ``cell_crowding``.
        levels: names of the levels, lowest first; level ``k`` is ``levels[k]``. If names are numbers that differ from their index, as
            in (1, 2, 3), a number always means the name: see `numbered`.
        not_assessable: the level that means "cannot be assessed on this tile", or None. It must be the first or the last.
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
        if wrong := [level for level in self.levels if level != level.strip() or not level or level.startswith(INDEX_PREFIX)]:
            raise ValueError(
                f"attribute {self.name}: level {wrong[0]!r} is empty, has leading or trailing spaces, or starts with {INDEX_PREFIX}; "
                "rename it"
            )
        numbers = [number for level in self.levels if (number := number_in(level)) is not None]
        if len(set(numbers)) != len(numbers):
            raise ValueError(f"attribute {self.name}: two of the level names {list(self.levels)} are the same number")
        if UNKNOWN in numbers:
            raise ValueError(f"attribute {self.name}: a level is named {UNKNOWN}, which stands for an unknown level; rename it")
        if self.not_assessable is not None and not 0 <= self.not_assessable < len(self.levels):
            raise ValueError(f"attribute {self.name}: not_assessable is {self.not_assessable}, levels are 0 to {len(self.levels) - 1}")
        if self.not_assessable not in (None, 0, len(self.levels) - 1):
            raise ValueError(
                f"attribute {self.name}: not_assessable is level {self.not_assessable}, between two others; make it the first or last"
            )

    @property
    def assessable(self) -> tuple[int, ...]:
        """The ordered levels, lowest first, without "not assessable"."""
        return tuple(level for level in range(len(self.levels)) if level != self.not_assessable)

    @cached_property
    def _level_of(self) -> dict[Decimal, int]:
        """Maps each number to a level: by name if names are numbers that differ from their indices, else by index."""
        named = {number: level for level, name in enumerate(self.levels) if (number := number_in(name)) is not None}
        if all(number == level for number, level in named.items()):
            return {Decimal(level): level for level in range(len(self.levels))}
        return named

    @property
    def numbered(self) -> bool:
        """Whether numbers are level names and not indices, as for the levels (1, 2, 3) or (none, 3, 4)."""
        return any(number != level for number, level in self._level_of.items())

    def read(self, value: object) -> int:
        """Parses a whole level from a table, JSON or ``.cls`` file.

        Accepts a name, a number in any spelling (1, 1.0, "1", "1.0"), "#" and an index, and `UNKNOWN` or null for an unknown level.
        Numbers are indices unless the attribute is `numbered`.

        Raises:
            ValueError: no such level; lists the valid ones.
        """
        if value is None:
            return UNKNOWN
        if isinstance(value, bool):
            value = str(value).lower()
        text = value.strip() if isinstance(value, str) else str(value) if isinstance(value, int | float) else None
        if text is None:
            raise ValueError(f"{self.name} is {str(value)[:40]}, neither a number nor a level name")
        if not text:
            raise ValueError(f"{self.name} is empty; write {UNKNOWN} for unknown")
        if text in self.levels:
            return self.levels.index(text)
        number = number_in(text.removeprefix(INDEX_PREFIX))
        if number == UNKNOWN and not text.startswith(INDEX_PREFIX):
            return UNKNOWN
        if text.startswith(INDEX_PREFIX):
            level = _index(number, len(self.levels))
        else:
            level = None if number is None else self._level_of.get(number)
        if level is None:
            raise ValueError(f"{self.name} is {self._invalid(value, number)}")
        return level

    def _invalid(self, value: object, number: Decimal | None) -> str:
        value = f"{value[:40]}…" if isinstance(value, str) and len(value) > 40 else value
        if self.numbered:
            return f"{value!r}, not one of {', '.join(self.levels)}; use {UNKNOWN} for unknown"
        if number is None:
            return f"{value!r}, neither a number nor one of {', '.join(self.levels)}; use {UNKNOWN} for unknown"
        return f"{value}, levels are 0 to {len(self.levels) - 1}, or {UNKNOWN} for unknown"

    def written(self, level: float) -> int | float | str:
        """Formats a level so that `read` and `parse` give the same level back.

        Returns:
            the index; for a `numbered` attribute the name, or "#" and the index for a level between two others.
        """
        whole = int(level) if level == int(level) else None
        if not self.numbered or whole == UNKNOWN:
            return level if whole is None else whole
        return f"{INDEX_PREFIX}{level:.12g}" if whole is None else self.levels[whole]

    def label(self, level: float) -> str:
        """Returns the axis label of a level: `written` as text."""
        return str(self.written(level))

    def check_requested(self, level: float) -> str | None:
        """Checks a level requested from a generator: whole, between two assessable ones, or `UNKNOWN`.

        Returns:
            the problem as a message; None if the level is valid.
        """
        if level == UNKNOWN or level in range(len(self.levels)):
            return None
        lowest, highest = self.assessable[0], self.assessable[-1]
        if lowest <= level <= highest:
            return None
        unordered = "" if self.not_assessable is None else f", or exactly {self.not_assessable} ({self.levels[self.not_assessable]})"
        return f"{self.name} is {level:g}; use a level from {lowest} to {highest}{unordered}"

    def parse(self, text: str) -> float:
        """Parses a level to generate, whole (int) or between two assessable ones (float): a name, a number, or "#" and an index.

        Numbers are indices unless the attribute is `numbered`; then 2.5 is half-way between the neighbours named 2 and 3.

        Raises:
            ValueError: no such level; lists the valid ones.
        """
        if text in self.levels:
            return self.levels.index(text)
        number = number_in(text.removeprefix(INDEX_PREFIX))
        if number is not None and re.fullmatch(rf"{INDEX_PREFIX}?\d+(\.\d+)?", text):
            level = self._level_at(number) if self.numbered and not text.startswith(INDEX_PREFIX) else float(number)
            if level in range(len(self.levels)) or self.assessable[0] <= level <= self.assessable[-1]:
                return int(level) if level.is_integer() else level
        if self.numbered:
            raise ValueError(
                f"{self.name} has the levels {', '.join(self.levels)}; numbers are level names here, or values between two of them"
            )
        levels = ", ".join(f"{level} ({label})" for level, label in enumerate(self.levels))
        raise ValueError(f"{self.name} has the levels {levels}; fractional levels range from {self.assessable[0]} to {self.assessable[-1]}")

    def _level_at(self, number: Decimal) -> float:
        """Returns the level named ``number``, or its position between the two neighbours around it; NaN outside the scale."""
        if number in self._level_of:
            return float(self._level_of[number])
        value_of = {level: value for value, level in self._level_of.items()}
        for low, high in zip(self.assessable, self.assessable[1:], strict=False):
            if low in value_of and high in value_of and min(value_of[low], value_of[high]) < number < max(value_of[low], value_of[high]):
                return low + float((number - value_of[low]) / (value_of[high] - value_of[low]))
        return float("nan")


def _index(number: Decimal | None, count: int) -> int | None:
    """Returns ``number`` if it is a valid index into ``count`` levels."""
    return int(number) if number is not None and number in range(count) else None


@dataclass(frozen=True)
class AttributeSchema:
    """The attributes of a dataset or a model, in the order of their columns in ``levels_BA``."""

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
        """The number of levels of each attribute, including "not assessable"."""
        return tuple(len(attribute.levels) for attribute in self.attributes)

    def check(self, levels: Sequence[int]) -> str | None:
        """Checks the levels of one tile.

        Returns:
            the problem as a message; None if the levels are valid.
        """
        if len(levels) != len(self.attributes):
            return f"{len(levels)} levels for {len(self.attributes)} attributes"
        for attribute, level in zip(self.attributes, levels, strict=True):
            if level != UNKNOWN and not 0 <= level < len(attribute.levels):
                return f"{attribute.name} is {level}, levels are 0 to {len(attribute.levels) - 1}, or {UNKNOWN} for unknown"
        return None

    def written(self, levels: Sequence[float]) -> dict[str, int | float | str]:
        """Formats the levels of a tile, by attribute name; see `Attribute.written`."""
        return {attribute.name: attribute.written(level) for attribute, level in zip(self.attributes, levels, strict=True)}

    def parse(self, text: str) -> dict[str, float]:
        """Parses ``cell_crowding=2.5,mitosis=rare`` to ``{"cell_crowding": 2.5, "mitosis": 1}``; see `Attribute.parse`.

        Raises:
            ValueError: unknown attribute, or a level that it does not have.
        """
        chosen: dict[str, float] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or name not in self.names:
                raise ValueError(f"levels {part!r}: write attribute=level; attributes are {', '.join(self.names)}")
            if name in chosen:
                raise ValueError(f"levels {part!r}: {name} is given more than once")
            try:
                chosen[name] = self.attributes[self.names.index(name)].parse(value)
            except ValueError as error:
                raise ValueError(f"levels {part!r}: {error}") from None
        return chosen

    def difference(self, other: AttributeSchema) -> list[str]:
        """Lists the differences to ``other``, one line each; [] if equal. Lines call self "the model" and other "the data"."""
        if self.names != other.names:
            return [f"the model has the attributes {', '.join(self.names)}; the data has {', '.join(other.names)}"]
        lines = []
        for ours, theirs in zip(self.attributes, other.attributes, strict=True):
            if ours.levels != theirs.levels:
                lines.append(f"{ours.name}: the model has the levels {list(ours.levels)}; the data has {list(theirs.levels)}")
            if ours.not_assessable != theirs.not_assessable:
                lines.append(f"{ours.name}: not_assessable is {ours.not_assessable} in the model, {theirs.not_assessable} in the data")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Returns the YAML/JSON form that `from_dict` reads."""
        return {
            attribute.name: {"levels": list(attribute.levels), "not_assessable": _written_not_assessable(attribute)}
            for attribute in self.attributes
        }

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any], where: str = "attributes") -> AttributeSchema:
        """Reads ``{name: {levels: [names], not_assessable: level or null}}``.

        Args:
            tree: the mapping.
            where: its source, for error messages.

        Raises:
            ValueError: invalid schema; names ``where``, the attribute and the fix.
        """
        if not isinstance(tree, Mapping):
            raise ValueError(f"{where}: expected a mapping of attribute names, got {type(tree).__name__}")
        return cls(tuple(_attribute(name, entry, where) for name, entry in tree.items()))

    @classmethod
    def from_yaml(cls, path: str | Path, option: str = "") -> AttributeSchema:
        """Reads a schema file, or a preset by name; ``configs/attributes/bladder.yaml`` is an example.

        Args:
            option: the option that has this value, for error messages.
        """
        path = presets.resolve("attributes", path, option)
        return cls.from_dict(strict_yaml.read(path, as_text=True), where=str(path))


def _attribute(name: Any, entry: Any, where: str) -> Attribute:
    entry = {"levels": entry} if isinstance(entry, list) else entry
    if not isinstance(name, str) or not isinstance(entry, Mapping) or not isinstance(entry.get("levels"), list):
        raise ValueError(f"{where}: {name}: write `levels: [names, lowest first]` and, where it applies, `not_assessable: 0`")
    if unknown := set(entry) - {"levels", "not_assessable", "measured"}:  # `measured` is read by data_shards.measure
        raise ValueError(f"{where}: {name}: unknown keys {sorted(map(str, unknown))}; known are levels, not_assessable, measured")
    if wrong := [level for level in entry["levels"] if not isinstance(level, str | int | float) or isinstance(level, bool)]:
        raise ValueError(f"{where}: {name}: the level name {wrong[0]!r} is not a string; put it in quotes")
    levels = tuple(str(level) for level in entry["levels"])
    try:
        return Attribute(name, levels, _not_assessable(entry.get("not_assessable"), Attribute(name, levels)))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _not_assessable(value: Any, attribute: Attribute) -> int | None:
    """Returns the index of the level that ``not_assessable`` gives by name or index.

    Raises:
        ValueError: neither, or a number that is the index of one level and the name of another.
    """
    if value is None or value in ("", "~", "null", "Null", "NULL"):
        return None
    text = str(value).removeprefix(INDEX_PREFIX)
    number = number_in(text) if type(value) in (int, str) else None
    by_index = None if number is None or number != int(number) else int(number)
    by_name = attribute.levels.index(text) if text in attribute.levels and not str(value).startswith(INDEX_PREFIX) else None
    if by_name is None and by_index is None:
        raise ValueError(f"{attribute.name}: not_assessable is {value!r}; give the name or index of a level, or omit it")
    if by_name is not None and by_index is not None and by_index in range(len(attribute.levels)) and by_name != by_index:
        raise ValueError(
            f"{attribute.name}: not_assessable: {value} is the name of one level and the index of another; write "
            f"'{INDEX_PREFIX}{by_name}' for the level named {value}, or '{INDEX_PREFIX}{by_index}' for the level at index {by_index}"
        )
    return by_index if by_name is None else by_name


def _written_not_assessable(attribute: Attribute) -> int | str | None:
    """Returns the index in the form that `_not_assessable` reads, with `INDEX_PREFIX` where it could be mistaken for a name."""
    index = attribute.not_assessable
    if index is not None and str(index) in attribute.levels and attribute.levels[index] != str(index):
        return f"{INDEX_PREFIX}{index}"
    return index


def _graded(name: str, grades: Iterable[str]) -> Attribute:
    return Attribute(name, ("insufficient information", *grades), not_assessable=0)


# The five attributes of AttributeGAN (Ye et al., MICCAI 2021) on bladder tiles; level 0 is "insufficient information".
PUBLISHED = AttributeSchema(
    (
        _graded("cell_crowding", ("normal", "mild", "moderate", "severe")),
        _graded("cell_polarity", ("retained", "partial loss", "complete loss")),
        _graded("mitosis", ("rare", "infrequent", "frequent")),
        _graded("nucleoli", ("inconspicuous", "prominent")),
        _graded("pleomorphism", ("normal", "mild", "moderate", "severe")),
    )
)
