"""Statistics of a 2AFC study: share of correct choices with 95 % intervals, by reader and by attribute level, and one sentence by rule."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attributegan.attributes import AttributeSchema

CHANCE = 0.5
Z = 1.959963984540054  # 97.5 % quantile of the standard normal distribution
MIN_PAIRS = 30  # fewer give no sentence about chance: the interval is wider than 0.5 ± 0.17
MIN_LEVEL = 20  # pairs of an attribute level that are needed to report it


@dataclass(frozen=True)
class Choice:
    """One choice: the reader, the pair, and whether the real tile was chosen."""

    reader: str
    pair: int
    correct: bool


@dataclass(frozen=True)
class Rate:
    """Share of correct choices with its 95 % interval, and the numbers of choices and of different pairs."""

    value: float
    low: float
    high: float
    choices: int
    pairs: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON."""
        return {"correct": self.value, "low": self.low, "high": self.high, "choices": self.choices, "pairs": self.pairs}


def wilson(share: float, count: float) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a binomial share (Wilson 1927, JASA 22(158)).

    Args:
        share: of successes.
        count: of trials, above 0; may be an effective number that is not whole.
    """
    centre = share + Z**2 / (2 * count)
    half = Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    total = 1 + Z**2 / count
    return max(0.0, (centre - half) / total), min(1.0, (centre + half) / total)


def rate(choices: Sequence[Choice]) -> Rate:
    """Return the share of correct choices with its Wilson interval; at least one choice is needed.

    Choices of several readers about one pair are correlated, so the interval uses the effective number of choices, p (1 - p) / variance,
    with the variance between pairs (cluster-robust), bounded by the numbers of pairs and of choices. The readers are fixed: the interval is
    for other pairs, not for other readers.
    """
    by_pair: dict[int, list[bool]] = defaultdict(list)
    for choice in choices:
        by_pair[choice.pair].append(choice.correct)
    count, pairs = len(choices), len(by_pair)
    share = sum(choice.correct for choice in choices) / count
    effective = float(count)
    if pairs < count:
        between = sum(sum(correct - share for correct in of_pair) ** 2 for of_pair in by_pair.values())
        variance = between / count**2 * pairs / max(1, pairs - 1)
        effective = min(count, max(pairs, share * (1 - share) / variance)) if variance > 0 else pairs
    return Rate(share, *wilson(share, effective), count, pairs)


def by_reader(choices: Sequence[Choice]) -> dict[str, Rate]:
    """Return the rate of each reader, sorted by name."""
    readers = sorted({choice.reader for choice in choices})
    return {reader: rate([choice for choice in choices if choice.reader == reader]) for reader in readers}


def by_level(schema: AttributeSchema, levels: Sequence[Sequence[int]], choices: Sequence[Choice]) -> dict[str, dict[str, Rate]]:
    """Return the rate by attribute and name of its level, for levels with choices about at least `MIN_LEVEL` pairs.

    Args:
        levels: of each pair, in the order of the attributes.
    """
    found: dict[str, dict[str, Rate]] = {}
    for column, attribute in enumerate(schema.attributes):
        for level in attribute.assessable:
            of_level = [choice for choice in choices if levels[choice.pair][column] == level]
            if len({choice.pair for choice in of_level}) >= MIN_LEVEL:
                found.setdefault(attribute.name, {})[attribute.levels[level]] = rate(of_level)
    return found


def sentence(who: str, found: Rate) -> str:
    """Return one sentence about ``who``: too few pairs, better than chance, worse, or not distinguishable from it, by the interval."""
    text = f"{who} chose the real tile in {_percent(found.value)} of {found.choices} choices"
    text += f" (95 % interval {_percent(found.low)} to {_percent(found.high)})"
    if found.pairs < MIN_PAIRS:
        return f"{text}; {found.pairs} pairs are too few to compare with chance (50 %), at least {MIN_PAIRS} are needed."
    if found.low > CHANCE:
        return f"{text}, more often than by chance (50 %): generated tiles can be distinguished from real ones."
    if found.high < CHANCE:
        return f"{text}, less often than by chance (50 %): generated tiles can be distinguished, but pass for the real ones."
    return f"{text}: not distinguishable from chance (50 %); rates above {_percent(found.high)} are excluded."


def summary(
    schema: AttributeSchema, levels: Sequence[Sequence[int]], choices: Sequence[Choice], total: int, only: str | None = None
) -> Mapping[str, Any]:
    """Return all rates and the sentence as plain JSON.

    Args:
        total: number of pairs of the study.
        only: name of the reader whose choices count; None for all readers.
    """
    counted = [choice for choice in choices if only in (None, choice.reader)]
    if not counted:
        return {"sentence": "No choices yet.", "all": None, "readers": {}, "levels": {}}
    readers, everyone = by_reader(counted), rate(counted)
    who = f"{len(readers)} readers" if len(readers) > 1 else next(iter(readers))
    return {
        "sentence": sentence(who, everyone),
        "all": everyone.to_dict(),
        "readers": {reader: found.to_dict() | {"finished": found.pairs == total} for reader, found in readers.items()},
        "levels": {
            name: {level: found.to_dict() for level, found in of_attribute.items()}
            for name, of_attribute in by_level(schema, levels, counted).items()
        },
    }


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
