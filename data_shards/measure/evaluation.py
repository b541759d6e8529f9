"""Measures generated and real tiles for an evaluation, one column per attribute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from attributegan.attributes import AttributeSchema
from data_shards.measure import features, levels, require, segment


def by_attribute(text: str, schema: AttributeSchema) -> dict[str, str]:
    """Parse the measurement of each attribute from ``attribute=measurement,…`` or an attributes file of ``attributegan-shard measure``.

    Raises:
        ValueError: unknown attribute or measurement, or a measurement that requires the pixel size, which generated tiles lack.
    """
    require()
    rules = levels.parse(text) if "=" in text else levels.read(Path(text), {})
    for rule in rules:
        if rule.attribute not in schema.names:
            raise ValueError(f"--measure {text}: {rule.attribute} is not an attribute of the tiles; choose from {', '.join(schema.names)}")
        if features.MEASUREMENTS[rule.by].needs_mpp:
            raise ValueError(f"--measure {text}: {rule.by} requires the pixel size; use nuclei_count or median_area")
    return {rule.attribute: rule.by for rule in rules}


def measurer(measurement_of: dict[str, str], schema: AttributeSchema) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function from tiles (N, H, W, 3) uint8 to measurements (N, A) float64, NaN where undefined or not requested."""

    def measure(tiles_NHWC: np.ndarray) -> np.ndarray:
        found = [features.measure(image_HWC, segment.segment(image_HWC)) for image_HWC in np.ascontiguousarray(tiles_NHWC)]
        columns = [[row[measurement_of[name]] if name in measurement_of else np.nan for row in found] for name in schema.names]
        return np.array(columns, np.float64).reshape(len(schema.names), len(found)).T

    return measure
