"""Parts shared by all benchmarks: contenders in turns, and the result with its ratios."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Result:
    """Result of one benchmark.

    Args:
        name: name of the benchmark.
        unit: unit of the values, such as "images/s" or "ms".
        contenders: values of each contender, one per turn.
        against: pairs (contender, baseline) to report as ratios.
        facts: further measurements and conditions, such as sizes.
    """

    name: str
    unit: str
    contenders: dict[str, list[float]]
    against: list[tuple[str, str]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def ratios(self) -> dict[str, list[float]]:
        """Return contender / baseline for each pair of ``against``, turn by turn."""
        return {f"{a} / {b}": [x / y for x, y in zip(self.contenders[a], self.contenders[b], strict=True)] for a, b in self.against}

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        rows = [_line(contender, values, self.unit) for contender, values in self.contenders.items()]
        return [
            self.name,
            *rows,
            *(_line(name, values, "") for name, values in self.ratios().items()),
            *(f"  {name}: {value}" for name, value in self.facts.items()),
        ]


def _line(name: str, values: Sequence[float], unit: str) -> str:
    return f"  {name:32s} {statistics.median(values):12,.4g} {unit}  ({min(values):,.4g} to {max(values):,.4g})"


def interleaved(contenders: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Run the contenders in turns: one warm-up turn, then ``repeats`` measured ones.

    Args:
        contenders: functions that run once and return their own measurement.

    Returns:
        The values of each contender, one per measured turn.
    """
    values: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name, contender in contenders.items():
            value = contender()
            if turn:
                values[name].append(value)
    return values
