"""What a visitor has set, and its form as the query of a link."""

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
ENLARGED = (1, 2, 4, 8)
TRUNCATION = (0.5, 3.0)  # lowest and highest bound of a latent's numbers

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class State:
    """Everything that a tile depends on.

    Args:
        levels: one for each attribute of the schema, whole or in tenths between.
        seed: of the latent.
        mix_seed: of another latent, mixed in.
        mix: how far from the first latent to the other, 0 to 1.
        truncation: bound of the latents' numbers, or None.
        size: pixels of the picture; the tile is enlarged to it.
    """

    levels: tuple[float, ...]
    seed: int = 0
    mix_seed: int = 1
    mix: float = 0.0
    truncation: float | None = None
    size: int = 0


def sizes(image_size: int) -> list[int]:
    """Pixels that pictures of a model's tiles can have: its own and enlarged."""
    return [image_size * times for times in ENLARGED if image_size * times <= max(LARGEST_PICTURE, image_size)]


def middle(attribute: Attribute) -> int:
    """Its middle assessable level, the lower of two."""
    return attribute.assessable[(len(attribute.assessable) - 1) // 2]


def read(schema: AttributeSchema, image_size: int, query: Mapping[str, str]) -> tuple[State, list[str]]:
    """The state that a link means, and what is wrong with the link, a sentence each; what is wrong has its usual value."""
    problems: list[str] = []

    def known(of: Callable[[str], Number], key: str, usual: Number) -> Number:
        try:
            return of(query[key]) if key in query else usual
        except ValueError as error:
            problems.append(f"{key}: {error}")
            return usual

    for key in query:
        kind, dot, name = key.partition(".")
        if kind in ("a", "na") and dot and name not in schema.names:
            problems.append(f"{_shown(name)} is no attribute of this model; it has {', '.join(schema.names)}")
    levels = []
    for attribute in schema.attributes:
        level = known(partial(_level, attribute), f"a.{attribute.name}", float(middle(attribute)))
        if f"na.{attribute.name}" in query:
            if query[f"na.{attribute.name}"] != "1":
                problems.append(f"na.{attribute.name}: {_shown(query[f'na.{attribute.name}'])} is neither 1 nor left out")
            elif attribute.not_assessable is None:
                problems.append(f"na.{attribute.name}: this attribute has no level for “not assessable”")
            else:
                level = attribute.not_assessable
        levels.append(level)
    truncation = known(lambda text: _within(text, *TRUNCATION), "truncation", math.inf)
    state = State(
        tuple(levels),
        seed=known(_seed, "seed", 0),
        mix_seed=known(_seed, "mix_seed", 1),
        mix=known(lambda text: _within(text, 0, 1), "mix", 0.0),
        truncation=None if math.isinf(truncation) else truncation,
        size=known(lambda text: _size(image_size, text), "size", image_size),
    )
    return state, problems


def query_of(schema: AttributeSchema, state: State, model: str) -> str:
    """The query that `read` turns into the same state; ``model`` says which model it was made with."""
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
        raise ValueError(f"{_shown(text)} is no seed; give a whole number from 0 to {LARGEST_SEED}")
    return int(text)


def _within(text: str, lowest: float, highest: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not lowest <= value <= highest:
        raise ValueError(f"{_shown(text)} is not a number from {lowest} to {highest}")
    return round(value, 2)


def _size(image_size: int, text: str) -> int:
    known = sizes(image_size)
    if text not in map(str, known):
        raise ValueError(f"{_shown(text)} px can't be had; there are {', '.join(map(str, known))}")
    return int(text)


def _shown(text: str) -> str:
    """What somebody wrote, cut short for a message."""
    return f"“{text[:20]}{'…' if len(text) > 20 else ''}”"
