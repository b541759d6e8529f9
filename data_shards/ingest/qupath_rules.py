"""Rules that map QuPath objects to levels of attributes: derived from class names, or read from a YAML file (docs/labels.md)."""

from __future__ import annotations

import itertools
import re
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from attributegan.attributes import UNKNOWN, YAML_ERRORS, Attribute, AttributeSchema

ALL = "*"  # class name that matches every object
QUANTILES = "quantiles"
STATISTICS: Mapping[str, Callable[[Sequence[float]], float]] = {
    "mean": statistics.fmean,
    "median": statistics.median,
    "min": min,
    "max": max,
    "sum": sum,
    "sd": statistics.pstdev,
}
KEYS = {"classes", "count", "share", "measurement", "statistic", "class", "objects", "edges", "min_objects"}


@dataclass(frozen=True)
class Rule:
    """How the level of one attribute is computed.

    Args:
        classes: level for each set of class names, for annotations that cover the tile; None for a rule on values.
        value: "count", "share" or "measurement".
        of: the class to count (`ALL`: every object), or the measurement.
        only: class of the objects to use.
        edges: ascending; a value of at least ``edges[k]`` is above the k-th assessable level. None uses quantiles of the tiles.
        min_objects: tiles with fewer objects get an unknown level.
    """

    classes: Mapping[frozenset[str], int] | None = None
    value: str = ""
    of: str = ALL
    statistic: str = "mean"
    only: str = ALL
    annotations: bool = False
    edges: tuple[float, ...] | None = None
    min_objects: int = 1


Rules = Mapping[str, Rule]  # by attribute


def class_key(name: str) -> str:
    """Normalize a class name: case, spaces, hyphens, underscores."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def by_name(schema: AttributeSchema) -> dict[str, Rule]:
    """Derive rules from class names: ``attribute: level``, ``attribute level``, or ``level`` if unique among all attributes."""
    uses = Counter(class_key(level) for attribute in schema.attributes for level in attribute.levels)
    rules = {}
    for attribute in schema.attributes:
        classes = {}
        for level, name in enumerate(attribute.levels):
            own, key = class_key(attribute.name), class_key(name)
            classes[frozenset((f"{own} {key}",))] = classes[frozenset((f"{own}={key}",))] = (
                level  # the first also matches two names in turn
            )
            if uses[key] == 1:
                classes[frozenset((key,))] = level
        rules[attribute.name] = Rule(classes)
    return rules


def read_rules(path: Path, schema: AttributeSchema) -> dict[str, Rule]:
    """Read a YAML file of rules; its format is in docs/labels.md.

    Raises:
        ValueError: names the file, the attribute, the key and the fix.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, *YAML_ERRORS) as error:
        raise ValueError(f"{path}: not a readable YAML file: {error}") from error
    if not isinstance(tree, dict) or not tree:
        raise ValueError(f"{path}: no rules; write `attribute: {{classes: {{class name: level}}}}`")
    if unknown := [str(name) for name in tree if name not in schema.names]:
        raise ValueError(f"{path}: {', '.join(unknown)}: unknown attribute; choose from {', '.join(schema.names)}")
    rules = {}
    for attribute in schema.attributes:
        if attribute.name in tree:
            try:
                rules[attribute.name] = _rule(attribute, tree[attribute.name])
            except ValueError as error:
                raise ValueError(f"{path}: {attribute.name}: {error}") from None
    return rules


def _rule(attribute: Attribute, entry: Any) -> Rule:
    kinds = ("classes", "count", "share", "measurement")
    if not isinstance(entry, dict) or sum(kind in entry for kind in kinds) != 1:
        raise ValueError(f"set exactly one of {', '.join(kinds)}")
    if unknown := set(map(str, entry)) - KEYS:
        raise ValueError(f"unknown keys {', '.join(sorted(unknown))}; choose from {', '.join(sorted(KEYS))}")
    if "classes" in entry:
        return Rule(_class_levels(attribute, entry))
    value = next(kind for kind in kinds if kind in entry)
    statistic, objects, min_objects = entry.get("statistic", "mean"), entry.get("objects", "detections"), entry.get("min_objects", 1)
    if statistic not in STATISTICS:
        raise ValueError(f"statistic: {statistic!r} is not one of {', '.join(STATISTICS)}")
    if objects not in ("detections", "annotations"):
        raise ValueError(f"objects: {objects!r} must be detections or annotations")
    if type(min_objects) is not int or min_objects < (0 if value == "count" else 1):
        raise ValueError(f"min_objects: {min_objects!r} must be an integer of at least {0 if value == 'count' else 1}")
    return Rule(
        None,
        value,
        str(entry[value]),
        statistic,
        str(entry.get("class", ALL)),
        objects == "annotations",
        _edges(attribute, entry),
        min_objects,
    )


def _class_levels(attribute: Attribute, entry: Mapping[str, Any]) -> dict[frozenset[str], int]:
    if len(entry) > 1 or not isinstance(entry["classes"], dict) or not entry["classes"]:
        raise ValueError("classes: write {class name: level}, without other keys")
    return {names_of(str(name)): _level(attribute, level) for name, level in entry["classes"].items()}


def _level(attribute: Attribute, level: Any) -> int:
    try:
        found = attribute.read(level)
    except ValueError:
        found = UNKNOWN
    if found == UNKNOWN:
        choices = attribute.levels if attribute.numbered else [f"{number} ({name})" for number, name in enumerate(attribute.levels)]
        raise ValueError(f"{level!r} is not a level; choose from {', '.join(choices)}")
    return found


def _edges(attribute: Attribute, entry: Mapping[str, Any]) -> tuple[float, ...] | None:
    edges, needed = entry.get("edges"), len(attribute.assessable) - 1
    if edges == QUANTILES:
        return None
    if not isinstance(edges, list) or not all(isinstance(edge, int | float) and not isinstance(edge, bool) for edge in edges):
        edges = []
    if len(edges) != needed or any(low >= high for low, high in zip(edges, edges[1:], strict=False)):
        raise ValueError(f"edges: set {needed} ascending numbers between the {needed + 1} levels, or `{QUANTILES}`")
    return tuple(float(edge) for edge in edges)


def names_of(text: str) -> frozenset[str]:
    """Split a classification such as "Tumor: Positive" into normalized names."""
    return frozenset(class_key(part) for part in text.split(":") if part.strip())


def measurements_of(rules: Rules) -> frozenset[str]:
    """Returns the measurements that the rules use."""
    return frozenset(rule.of for rule in rules.values() if rule.value == "measurement")


def levels_of(rule: Rule, classes: Sequence[str]) -> set[int]:
    """Returns the levels that match the names of an object; rules with more names win, so "Tumor: Positive" overrides "Tumor"."""
    assert rule.classes is not None
    keys = [class_key(name) for name in classes]
    names = {*keys, *(f"{first} {second}" for first, second in itertools.pairwise(keys))}
    matches = [(len(key), level) for key, level in rule.classes.items() if key <= names]
    largest = max((size for size, _ in matches), default=0)
    return {level for size, level in matches if size == largest}
