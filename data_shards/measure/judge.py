"""Measures arrays of tiles for an evaluation: a column for each attribute of a schema."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from attributegan.attributes import AttributeSchema
from data_shards.measure import features, levels, require, segment


def by_attribute(text: str, schema: AttributeSchema) -> dict[str, str]:
    """The measurement of each attribute, from ``attribute=measurement,…`` or an attributes file that ``attributegan-shard measure`` wrote.

    Raises:
        ValueError: no such attribute or measurement, or one that needs the size of a pixel, which generated tiles don't have.
    """
    require()
    rules = levels.parse(text) if "=" in text else levels.read(Path(text), {})
    for rule in rules:
        if rule.attribute not in schema.names:
            raise ValueError(f"--measure {text}: {rule.attribute} is not an attribute of the tiles; those are {', '.join(schema.names)}")
        if features.MEASUREMENTS[rule.by].needs_mpp:
            raise ValueError(f"--measure {text}: {rule.by} needs the size of a pixel; use nuclei_count or median_area")
    return {rule.attribute: rule.by for rule in rules}


def measurer(wanted: dict[str, str], schema: AttributeSchema) -> Callable[[np.ndarray], np.ndarray]:
    """A function of tiles (N, H, W, 3) uint8 that returns (N, A) float64; NaN where a tile or the choice has no measurement."""

    def measure(tiles_NHWC: np.ndarray) -> np.ndarray:
        found = [features.measure(image_HWC, segment.segment(image_HWC)) for image_HWC in np.ascontiguousarray(tiles_NHWC)]
        columns = [[row[wanted[name]] if name in wanted else np.nan for row in found] for name in schema.names]
        return np.array(columns, np.float64).reshape(len(schema.names), len(found)).T

    return measure
