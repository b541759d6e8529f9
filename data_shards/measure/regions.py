"""Computes shapes of labelled regions from their moments, vectorized.

Labels are (H, W) int32, 0 for background and 1 to N for regions; arrays over regions have N entries, without label 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PIXEL_MOMENT = 1 / 12  # variance of a unit square, added so that lines one pixel wide have a width


@dataclass(frozen=True)
class Shapes:
    """Shapes of N regions.

    ``area`` in pixels, ``y`` and ``x`` of the centres, ``angle`` of the long axis (radians from the x axis towards y), ``elongation`` (long
    over short axis), ``anisotropy`` (0 for round, 1 for a line), ``fit`` (area over that of the ellipse with the same moments: 1 for an
    ellipse, less for concave regions) and ``at_border`` (cut by the tile's border).
    """

    area: np.ndarray
    y: np.ndarray
    x: np.ndarray
    angle: np.ndarray
    elongation: np.ndarray
    anisotropy: np.ndarray
    fit: np.ndarray
    at_border: np.ndarray


def shapes(labels_HW: np.ndarray) -> Shapes:
    """Compute the shapes of all regions."""
    area, y_sum, x_sum, yy_sum, xx_sum, xy_sum = moments(labels_HW).T
    area = np.maximum(area, 1)
    y, x = y_sum / area, x_sum / area
    yy, xx, xy = yy_sum / area - y * y + PIXEL_MOMENT, xx_sum / area - x * x + PIXEL_MOMENT, xy_sum / area - x * y
    spread = np.hypot(xx - yy, 2 * xy)
    long, short = (xx + yy + spread) / 2, np.maximum(xx + yy - spread, PIXEL_MOMENT / 8) / 2
    angle = np.arctan2(2 * xy, xx - yy) / 2
    return Shapes(area, y, x, angle, np.sqrt(long / short), spread / (xx + yy), ellipse_fit(area, yy, xx, xy), at_border(labels_HW))


def moments(labels_HW: np.ndarray) -> np.ndarray:
    """Returns area and sums of y, x, yy, xx and xy of each region, (N, 6) float64; additive when regions are merged."""
    index_P = np.flatnonzero(labels_HW)
    label_P = labels_HW.ravel()[index_P]
    y_P, x_P = (axis_P.astype(np.float64) for axis_P in np.divmod(index_P, labels_HW.shape[1]))
    count = int(labels_HW.max(initial=0)) + 1
    weights = (None, y_P, x_P, y_P * y_P, x_P * x_P, x_P * y_P)
    return np.stack([np.bincount(label_P, weight_P, minlength=count) for weight_P in weights], axis=1)[1:].astype(np.float64)


def ellipse_fit(area: np.ndarray, yy: np.ndarray, xx: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Area over that of the ellipse with these central second moments, which is 4 pi sqrt(yy xx - xy^2)."""
    return area / (4 * np.pi * np.sqrt(np.maximum(yy * xx - xy * xy, 1e-9)))


def at_border(labels_HW: np.ndarray) -> np.ndarray:
    """Returns which regions touch the tile's border, (N,) bool."""
    reaches = np.zeros(int(labels_HW.max(initial=0)) + 1, bool)
    for line in (labels_HW[0], labels_HW[-1], labels_HW[:, 0], labels_HW[:, -1]):
        reaches[line] = True
    return reaches[1:]


def means(labels_HW: np.ndarray, values_HW: np.ndarray) -> np.ndarray:
    """Returns the mean of the values over each region, (N,)."""
    count = int(labels_HW.max(initial=0)) + 1
    pixels = np.bincount(labels_HW.ravel(), minlength=count)
    return (np.bincount(labels_HW.ravel(), values_HW.ravel(), minlength=count) / np.maximum(pixels, 1))[1:]


def select(labels_HW: np.ndarray, keep_N: np.ndarray) -> np.ndarray:
    """Keep some regions, renumbered 1, 2, …; returns (H, W) int32."""
    number = np.zeros(len(keep_N) + 1, np.int32)
    number[1:][keep_N] = np.arange(1, int(keep_N.sum()) + 1)
    return number[labels_HW]


def relabel(labels_HW: np.ndarray) -> np.ndarray:
    """Renumber an instance map of a network or a file to 1, 2, … with 0 for background, (H, W) int32."""
    found, index = np.unique(labels_HW, return_inverse=True)
    number = np.cumsum(found > 0)
    return np.where(found > 0, number, 0).astype(np.int32)[index].reshape(labels_HW.shape)
