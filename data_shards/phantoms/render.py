"""Renders phantom tiles: procedural H&E-like images whose five attributes are set by construction.

Renders a `scene.Scene` at any image size, antialiased, so that a tile at 64 and at 256 pixels shows the same content. Stains add up as
absorbance and are converted to light once, at the end (Beer-Lambert). The meaning of levels is in `scene`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from data_shards.phantoms.scene import Nucleus, Scene, draw_levels, scene

__all__ = ["Nucleus", "Scene", "draw_levels", "paint", "render", "scene"]

_EDGE = 0.012  # width of the soft edge of nuclei
_CYTOPLASM = 0.085  # standard deviation of the cell body around a nucleus


def render(levels: Sequence[int], size: int, seed: int, index: int) -> np.ndarray:
    """Render tile ``index`` of the set ``seed``, (size, size, 3) uint8; a pure function of its arguments.

    Args:
        levels: five assessable levels in the order of `attributegan.attributes.PUBLISHED`.
        size: side in pixels, 32 to 1024.
        seed, index: 0 or more.

    Raises:
        ValueError: an unsupported level or size.
    """
    return paint(scene(levels, seed, index), size)


def paint(truth: Scene, size: int) -> np.ndarray:
    """Render ``truth``, (size, size, 3) uint8.

    Raises:
        ValueError: size is not in 32 to 1024.
    """
    if not 32 <= size <= 1024:
        raise ValueError(f"size: phantoms have 32 to 1024 pixels, not {size}")
    hematoxylin_HW, eosin_HW = _tissue(truth, size)
    for figure in truth.figures:
        _add_halo(hematoxylin_HW, eosin_HW, figure)
    for nucleus in (*truth.nuclei, *truth.figures):
        _add_nucleus(hematoxylin_HW, nucleus)
    shade_HW = 0.03 + 0.03 * _smooth(truth.light_GG, size)
    image_HWC = np.empty((size, size, 3), np.uint8)
    for channel, (of_hematoxylin, of_eosin) in enumerate(truth.stains_23.T.astype(np.float32)):
        absorbance_HW = of_hematoxylin * hematoxylin_HW
        absorbance_HW += of_eosin * eosin_HW
        absorbance_HW += shade_HW
        np.exp(np.negative(absorbance_HW, out=absorbance_HW), out=absorbance_HW)
        np.minimum(absorbance_HW, 1, out=absorbance_HW)
        image_HWC[..., channel] = absorbance_HW * np.float32(255) + np.float32(0.5)
    return image_HWC


def _tissue(truth: Scene, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns hematoxylin and eosin of everything except nuclei: stroma, and a cell body around each nucleus."""
    centre_S = (np.arange(size, dtype=np.float32) + 0.5) / size
    xy_2N = np.array([[nucleus.x for nucleus in truth.nuclei], [nucleus.y for nucleus in truth.nuclei]], np.float32)
    x_NW, y_NH = np.exp(-0.5 * ((centre_S - xy_2N[..., None]) / _CYTOPLASM) ** 2)
    body_HW = y_NH.T @ x_NW
    np.exp(-1.5 * body_HW, out=body_HW)  # 1 in the stroma, near 0 in a cell
    eosin_HW = 0.85 + 0.16 * _smooth(truth.eosin_GG, size)
    np.maximum(eosin_HW, 0.1, out=eosin_HW)
    return 0.22 - 0.16 * body_HW, eosin_HW


def _add_halo(hematoxylin_HW: np.ndarray, eosin_HW: np.ndarray, figure: Nucleus) -> None:
    """Add the pale halo of a mitotic figure."""
    window, halo = _coverage(figure, len(eosin_HW), grow=0.04, edge=0.04)
    eosin_HW[window] *= 1 - 0.5 * halo
    hematoxylin_HW[window] *= 1 - 0.7 * halo


def _add_nucleus(hematoxylin_HW: np.ndarray, nucleus: Nucleus) -> None:
    """Add one nucleus; where two overlap, the darker one dominates and the other adds a fraction."""
    size = len(hematoxylin_HW)
    window, stain = _coverage(nucleus, size)
    stain *= np.float32(nucleus.stain)
    if nucleus.nucleolus:
        x, y = _pixels(window, size, *nucleus.nucleolus_at)
        variance = nucleus.nucleolus_width**2
        blurred = variance + 1 / (12 * size**2)  # adds the variance of averaging over a pixel
        dot = np.exp(-0.5 / blurred * y**2) * np.exp(-0.5 / blurred * x**2)
        stain += np.float32(1.2 * nucleus.nucleolus * variance / blurred) * dot
    under = hematoxylin_HW[window]
    hematoxylin_HW[window] = np.maximum(under, stain) + np.float32(0.35) * np.minimum(under, stain)


def _coverage(nucleus: Nucleus, size: int, grow: float = 0.0, edge: float = _EDGE) -> tuple[tuple[slice, slice], np.ndarray]:
    """Returns the coverage of pixels by a nucleus: a window of the tile, and values from 0 to 1 on it.

    The distance to the outline r = R(angle) of the unit circle, in coordinates divided by the semi-axes, is to first order
    (r - R) / |grad r| (Taubin 1994); coverage falls from 1 to 0 over the edge, which is never narrower than a pixel.
    """
    major, minor = nucleus.major + grow, nucleus.minor + grow
    edge = 1.5 * (edge**2 + 1 / size**2) ** 0.5
    reach = 1 + sum(map(abs, nucleus.outline))
    cos, sin = np.cos(nucleus.angle), np.sin(nucleus.angle)
    half_x = reach * np.hypot(major * cos, minor * sin) + edge
    half_y = reach * np.hypot(major * sin, minor * cos) + edge
    window = (_span(nucleus.y, half_y, size), _span(nucleus.x, half_x, size))
    x, y = _pixels(window, size, nucleus.x, nucleus.y)
    # Coordinates of a pixel along the axes of the ellipse.
    along = (np.float32(cos / major) * x) + (np.float32(sin / major) * y)
    across = (np.float32(cos / minor) * y) - (np.float32(sin / minor) * x)
    radius = np.sqrt(along**2 + across**2) + np.float32(1e-6)
    slope = np.sqrt((along / np.float32(major)) ** 2 + (across / np.float32(minor)) ** 2) + np.float32(1e-6)
    distance = radius - _outline(nucleus.outline, along, across, radius)
    distance *= radius
    distance /= slope
    inside = np.clip(np.float32(0.5) - distance / np.float32(edge), 0, 1)
    return window, inside * inside * (3 - 2 * inside)


def _outline(harmonics: tuple[complex, ...], along: np.ndarray, across: np.ndarray, radius: np.ndarray) -> np.ndarray | float:
    """Returns R(angle) = 1 + Re(sum of k_n e^(i n angle)), n = 3, 4, 5, scaled to preserve the area."""
    if not any(harmonics):
        return 1.0
    unit = np.empty(radius.shape, np.complex64)
    unit.real, unit.imag = along / radius, across / radius
    third, fourth, fifth = map(np.complex64, harmonics)
    wave = (unit**2 * unit * (third + unit * (fourth + unit * fifth))).real
    return (1 + wave) * np.float32((1 + sum(abs(k) ** 2 for k in harmonics) / 2) ** -0.5)


def _span(centre: float, half: float, size: int) -> slice:
    return slice(max(0, int((centre - half) * size)), min(size, int((centre + half) * size) + 1))


def _pixels(window: tuple[slice, slice], size: int, x: float, y: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns pixel centres of a window relative to a point: a row of x, a column of y."""
    rows, columns = (np.arange(part.start, part.stop, dtype=np.float32) for part in window)
    return (columns[None] + 0.5) / size - np.float32(x), (rows[:, None] + 0.5) / size - np.float32(y)


def _smooth(grid_GG: np.ndarray, size: int) -> np.ndarray:
    """Upsample a coarse grid to (size, size) by Gaussian interpolation."""
    weights_HG = _weights(len(grid_GG), size)
    return weights_HG @ grid_GG.astype(np.float32) @ weights_HG.T


@lru_cache
def _weights(grid: int, size: int) -> np.ndarray:
    centre_S = (np.arange(size) + 0.5) / size * (grid - 1)
    weights_HG = np.exp(-0.5 * ((centre_S[:, None] - np.arange(grid)) / 0.6) ** 2)
    return (weights_HG / weights_HG.sum(axis=1, keepdims=True)).astype(np.float32)
