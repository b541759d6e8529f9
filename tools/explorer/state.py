"""The state of the explorer, and its encoding as the query string of a link."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar
from urllib.parse import urlencode

from attributegan.attributes import INDEX_PREFIX, Attribute, AttributeSchema

LARGEST_SEED = 2**31 - 1
LARGEST_PICTURE = 1024  # pixels, unless the model's own tiles are larger
ENLARGED = (1, 2, 4, 8)  # factors
TRUNCATION = (0.5, 3.0)  # range of the truncation bound

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class State:
    """Everything that a tile depends on.

    Args:
        levels: level of each attribute of the schema, in steps of 0.1.
        seed: seed of the latent.
        mix_seed: seed of a second latent.
        mix: interpolation factor from the first latent to the second, 0 to 1.
        truncation: bound of the latents' values, or None.
        size: width of the picture in pixels; the tile is enlarged to it.
    """

    levels: tuple[float, ...]
    seed: int = 0
    mix_seed: int = 1
    mix: float = 0.0
    truncation: float | None = None
    size: int = 0


def sizes(image_size: int) -> list[int]:
    """Return the available picture sizes in pixels: the model's own and its multiples."""
    return [image_size * times for times in ENLARGED if image_size * times <= max(LARGEST_PICTURE, image_size)]


def middle(attribute: Attribute) -> int:
    """Return the middle assessable level; the lower of two."""
    return attribute.assessable[(len(attribute.assessable) - 1) // 2]


def read(schema: AttributeSchema, image_size: int, query: Mapping[str, str]) -> tuple[State, list[str]]:
    """Parse the query of a link.

    Returns:
        The state, with defaults for missing and invalid values, and an error message for each invalid part.
    """
    problems: list[str] = []

    def parse(parse_value: Callable[[str], Number], key: str, default: Number) -> Number:
        try:
            return parse_value(query[key]) if key in query else default
        except ValueError as error:
            problems.append(f"{key}: {error}")
            return default

    for key in query:
        kind, dot, name = key.partition(".")
        if kind in ("a", "na") and dot and name not in schema.names:
            problems.append(f"{_quoted(name)} is not an attribute of this model; it has {', '.join(schema.names)}")
    levels = []
    for attribute in schema.attributes:
        level = parse(partial(_level, attribute), f"a.{attribute.name}", float(middle(attribute)))
        if f"na.{attribute.name}" in query:
            if query[f"na.{attribute.name}"] != "1":
                problems.append(f"na.{attribute.name}: {_quoted(query[f'na.{attribute.name}'])} is invalid; the only value is 1")
            elif attribute.not_assessable is None:
                problems.append(f"na.{attribute.name}: this attribute has no level “not assessable”")
            else:
                level = attribute.not_assessable
        levels.append(level)
    truncation = parse(lambda text: _within(text, *TRUNCATION), "truncation", math.inf)
    state = State(
        tuple(levels),
        seed=parse(_seed, "seed", 0),
        mix_seed=parse(_seed, "mix_seed", 1),
        mix=parse(lambda text: _within(text, 0, 1), "mix", 0.0),
        truncation=None if math.isinf(truncation) else truncation,
        size=parse(lambda text: _size(image_size, text), "size", image_size),
    )
    return state, problems


def query_of(schema: AttributeSchema, state: State, model: str) -> str:
    """Return the query from which `read` restores the state; ``model``: identity of the model."""
    parts: dict[str, str] = {}
    for attribute, level in zip(schema.attributes, state.levels, strict=True):
        if level == attribute.not_assessable:
            parts[f"na.{attribute.name}"] = "1"
        else:
            parts[f"a.{attribute.name}"] = f"{INDEX_PREFIX if attribute.numbered else ''}{level:g}"
    parts["seed"] = str(state.seed)
    if state.mix:
        parts |= {"mix_seed": str(state.mix_seed), "mix": f"{state.mix:g}"}
    if state.truncation is not None:
        parts["truncation"] = f"{state.truncation:g}"
    return urlencode(parts | {"size": str(state.size), "model": model})


def _level(attribute: Attribute, text: str) -> float:
    level = round(attribute.parse(text), 1)
    return int(level) if level == int(level) else level


def _seed(text: str) -> int:
    if not (text.isdecimal() and len(text) < 11 and int(text) <= LARGEST_SEED):
        raise ValueError(f"{_quoted(text)} is not a valid seed; give an integer from 0 to {LARGEST_SEED}")
    return int(text)


def _within(text: str, lowest: float, highest: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not lowest <= value <= highest:
        raise ValueError(f"{_quoted(text)} is not a number from {lowest} to {highest}")
    return round(value, 2)


def _size(image_size: int, text: str) -> int:
    available = sizes(image_size)
    if text not in map(str, available):
        raise ValueError(f"{_quoted(text)} px is not available; choose one of {', '.join(map(str, available))}")
    return int(text)


def _quoted(text: str) -> str:
    """Quote user input for a message, shortened to 20 characters."""
    return f"“{text[:20]}{'…' if len(text) > 20 else ''}”"
