"""Converts measurements to levels of attributes by quantiles or given edges, and stores the edges in an attributes file.

All commands accept the file as ``--attributes``; its key ``measured`` records measurement, edges and settings, so that other slides use the
same edges. Level 0 is "not assessable".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from attributegan import strict_yaml
from attributegan.attributes import Attribute, AttributeSchema
from attributegan.utils.files import atomic_write
from data_shards.measure.features import MEASUREMENTS

NOT_ASSESSABLE = "not assessable"
LEVEL_NAMES = {
    2: ("low", "high"),
    3: ("low", "medium", "high"),
    4: ("lowest", "low", "high", "highest"),
    5: ("lowest", "low", "medium", "high", "highest"),
}
MAX_LEVELS = 20


@dataclass(frozen=True)
class Rule:
    """Maps a measurement to an attribute: level k of 1 to K is edges[k-2] <= value < edges[k-1].

    Args:
        by: name of the measurement.
        edges: K - 1 ascending numbers; () until `with_quantiles`.
        how: settings that affect values (mpp, size, stains, segmentation); levels with different ``how`` are not comparable.
    """

    attribute: str
    by: str
    edges: tuple[float, ...] = ()
    how: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.attribute.isidentifier():
            raise ValueError(f"--attributes {self.attribute}=…: use letters, digits and underscores in attribute names")
        if self.by not in MEASUREMENTS:
            raise ValueError(f"--attributes {self.attribute}={self.by}: unknown measurement; choose from {', '.join(MEASUREMENTS)}")
        if any(not np.isfinite(edge) for edge in self.edges) or list(self.edges) != sorted(set(self.edges)):
            raise ValueError(f"{self.attribute}: edges {list(self.edges)} are not ascending")

    def levels(self, value_N: np.ndarray) -> np.ndarray:
        """Returns the level of each value, int64: 0 for NaN, else 1 to K."""
        return np.where(np.isnan(value_N), 0, 1 + np.searchsorted(self.edges, value_N, side="right"))

    def with_quantiles(self, value_N: np.ndarray, count: int) -> Rule:
        """Returns a rule whose edges divide the values into ``count`` levels of equal size.

        Raises:
            ValueError: too few distinct values.
        """
        finite_N = value_N[~np.isnan(value_N)]
        cuts = np.quantile(finite_N, np.arange(1, count) / count).tolist() if len(finite_N) else []
        edges = tuple(sorted({edge for edge in (float(f"{cut:.6g}") for cut in cuts) if (finite_N < edge).any()}))
        if len(edges) != count - 1:
            raise ValueError(
                f"{self.attribute}: {self.by} has too few distinct values ({len(np.unique(finite_N))} on {len(finite_N)} assessable tiles) "
                f"for {count} levels; use fewer --levels, or --edges {self.attribute}=…"
            )
        return Rule(self.attribute, self.by, edges, self.how)

    @property
    def schema(self) -> Attribute:
        """The attribute with its level names."""
        count = len(self.edges) + 1
        grades = LEVEL_NAMES.get(count) or tuple(f"{k} of {count}" for k in range(1, count + 1))
        return Attribute(self.attribute, (NOT_ASSESSABLE, *grades), not_assessable=0)


def parse(text: str) -> list[Rule]:
    """Parse ``crowding=nuclei_per_mm2,nuclear_size_spread=area_spread`` into rules without edges."""
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    rules = [Rule(name.strip(), by.strip()) for name, _, by in pairs]
    if not rules or len({rule.attribute for rule in rules}) < len(rules):
        raise ValueError(f"--attributes {text}: write ATTRIBUTE=MEASUREMENT,…, with each attribute once")
    return rules


def parse_edges(texts: Sequence[str], rules: Sequence[Rule]) -> dict[str, tuple[float, ...]]:
    """Parse texts like ``crowding=1000:2000:4000`` into edges by attribute."""
    found: dict[str, tuple[float, ...]] = {}
    for text in texts:
        name, _, numbers = text.partition("=")
        try:
            found[name] = tuple(float(number) for number in numbers.split(":"))
        except ValueError:
            raise ValueError(f"--edges {text}: write ATTRIBUTE=NUMBER:NUMBER:…, such as crowding=1000:2000:4000") from None
        if name not in {rule.attribute for rule in rules}:
            raise ValueError(f"--edges {text}: {name} is not in --attributes ({', '.join(rule.attribute for rule in rules)})")
    return found


def read(path: Path, how: Mapping[str, Any]) -> list[Rule]:
    """Read the rules of an attributes file written by `write`.

    Raises:
        ValueError: not such a file, or its edges were computed with settings other than ``how``.
    """
    try:
        tree = strict_yaml.read(path)
        rules = [
            Rule(name, entry["measured"]["by"], tuple(map(float, entry["measured"]["edges"])), dict(entry["measured"]["how"]))
            for name, entry in tree.items()
        ]
    except (OSError, *strict_yaml.YAML_ERRORS) as error:
        raise ValueError(
            f"--attributes {path}: not an attributes file with `measured: {{by, edges, how}}` for each attribute: {error}"
        ) from error
    for rule in rules:
        if other := [key for key in how if rule.how.get(key) != how[key]]:
            was, now = ({key: settings.get(key) for key in other} for settings in (rule.how, how))
            raise ValueError(f"--attributes {path}: {rule.attribute} was measured with {was}, now with {now}; its edges are not comparable")
        if not rule.edges:
            raise ValueError(f"--attributes {path}: {rule.attribute} has no edges")
    return rules


def write(rules: Sequence[Rule], path: Path) -> AttributeSchema:
    """Write the attributes file, atomically."""
    schema = AttributeSchema(tuple(rule.schema for rule in rules))
    tree = schema.to_dict()
    for rule in rules:
        unit = MEASUREMENTS[rule.by].unit
        tree[rule.attribute]["measured"] = {
            "by": rule.by,
            "unit": unit,
            "edges": [float(edge) for edge in rule.edges],
            "how": dict(rule.how),
        }
    with atomic_write(path) as stream:
        stream.write(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode())
    return schema
