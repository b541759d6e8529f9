"""Levels of attributes made of measurements: cut by quantiles or by given edges, and the attributes file that keeps the edges.

The file is one that every command takes as ``--attributes``; its key ``measured`` says by what, and how, so that the next slides are cut at
the same edges. Level 0 is "not assessable".
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
MOST_LEVELS = 20


@dataclass(frozen=True)
class Rule:
    """How an attribute is made of a measurement: level k of 1 to K is edges[k-2] <= value < edges[k-1].

    Args:
        by: name of the measurement.
        edges: K - 1 rising numbers; () until `with_quantiles`.
        how: what else decides a value (mpp, size, stains, segmentation); levels of another ``how`` can't be compared.
    """

    attribute: str
    by: str
    edges: tuple[float, ...] = ()
    how: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.attribute.isidentifier():
            raise ValueError(f"--attributes {self.attribute}=…: an attribute's name has letters, digits and underscores")
        if self.by not in MEASUREMENTS:
            raise ValueError(f"--attributes {self.attribute}={self.by}: no such measurement; there are {', '.join(MEASUREMENTS)}")
        if any(not np.isfinite(edge) for edge in self.edges) or list(self.edges) != sorted(set(self.edges)):
            raise ValueError(f"{self.attribute}: edges {list(self.edges)} do not rise")

    def levels(self, value_N: np.ndarray) -> np.ndarray:
        """Level of each value, int64: 0 for NaN, else 1 to K."""
        return np.where(np.isnan(value_N), 0, 1 + np.searchsorted(self.edges, value_N, side="right"))

    def with_quantiles(self, value_N: np.ndarray, count: int) -> Rule:
        """Edges between ``count`` levels with equally many values each.

        Raises:
            ValueError: too few different values.
        """
        known_N = value_N[~np.isnan(value_N)]
        cuts = np.quantile(known_N, np.arange(1, count) / count).tolist() if len(known_N) else []
        edges = tuple(sorted({edge for edge in (float(f"{cut:.6g}") for cut in cuts) if (known_N < edge).any()}))
        if len(edges) != count - 1:
            raise ValueError(
                f"{self.attribute}: {self.by} has too few different values ({len(np.unique(known_N))} on {len(known_N)} assessable tiles) "
                f"for {count} levels; use fewer --levels, or --edges {self.attribute}=…"
            )
        return Rule(self.attribute, self.by, edges, self.how)

    @property
    def schema(self) -> Attribute:
        count = len(self.edges) + 1
        grades = LEVEL_NAMES.get(count) or tuple(f"{k} of {count}" for k in range(1, count + 1))
        return Attribute(self.attribute, (NOT_ASSESSABLE, *grades), not_assessable=0)


def parse(text: str) -> list[Rule]:
    """``crowding=nuclei_per_mm2,pleomorphism=area_spread``: rules without edges."""
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    rules = [Rule(name.strip(), by.strip()) for name, _, by in pairs]
    if not rules or len({rule.attribute for rule in rules}) < len(rules):
        raise ValueError(f"--attributes {text}: write ATTRIBUTE=MEASUREMENT,…, each attribute once")
    return rules


def parse_edges(texts: Sequence[str], rules: Sequence[Rule]) -> dict[str, tuple[float, ...]]:
    """``crowding=1000:2000:4000``, several times."""
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
    """The rules of an attributes file that `write` wrote.

    Raises:
        ValueError: not such a file, or its edges were made of values measured otherwise than ``how``.
    """
    try:
        tree = strict_yaml.read(path)
        rules = [
            Rule(name, entry["measured"]["by"], tuple(map(float, entry["measured"]["edges"])), dict(entry["measured"]["how"]))
            for name, entry in tree.items()
        ]
    except (OSError, *strict_yaml.YAML_ERRORS) as error:
        raise ValueError(f"--attributes {path}: not an attributes file with `measured: {{by, edges, how}}` for each: {error}") from error
    for rule in rules:
        if other := [key for key in how if rule.how.get(key) != how[key]]:
            was, now = ({key: settings.get(key) for key in other} for settings in (rule.how, how))
            raise ValueError(f"--attributes {path}: {rule.attribute} was measured with {was}, now with {now}; its edges would not fit")
        if not rule.edges:
            raise ValueError(f"--attributes {path}: {rule.attribute} has no edges")
    return rules


def write(rules: Sequence[Rule], path: Path) -> AttributeSchema:
    """Write the attributes file, whole or not at all."""
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
