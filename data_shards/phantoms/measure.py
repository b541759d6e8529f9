"""Measures the five attributes of phantoms on pixels, by image processing alone, independently of any trained predictor.

Each value increases with its level. Valid for phantoms only, whose stain and shapes are known; not meaningful on real tissue.
"""

from __future__ import annotations

import numpy as np

NUCLEUS, FIGURE = 0.45, 1.5  # minimum absorbance of red light of nuclei, of mitotic figures
EDGE = (0.3, 0.6)  # clipping range that gives all nuclei edges of equal height
MIN_AREA = 0.0015  # share of the tile; smaller blobs are not nuclei


def measure(tiles_NHWC: np.ndarray) -> np.ndarray:
    """Measure tiles; returns (N, 5) float64, in the order of `attributegan.attributes.PUBLISHED`.

    The columns are: share of the tile covered by nuclei; 1 - coherence of the edges (0 aligned, 1 without direction); share of pixels
    darker than any nucleus; ratio of the darkest spots of nuclei to the rest; standard deviation of the logarithm of the blobs' areas.
    """
    dark_NHW = -np.log(np.maximum(tiles_NHWC[..., 0], 1) / 255.0)
    figures_NHW = _dilate(dark_NHW > FIGURE)
    nuclei_NHW = (dark_NHW > NUCLEUS) & ~_dilate(figures_NHW)
    columns = (
        nuclei_NHW.mean(axis=(1, 2)),
        1 - _coherence(np.clip(dark_NHW, *EDGE)),
        (dark_NHW > FIGURE).mean(axis=(1, 2)),
        _spots(dark_NHW, nuclei_NHW),
        np.array([_size_spread(mask_HW) for mask_HW in nuclei_NHW]),
    )
    return np.stack(columns, axis=1)


def _coherence(dark_NHW: np.ndarray) -> np.ndarray:
    """Returns the length of the mean doubled-angle gradient over the mean gradient."""
    down, right = np.gradient(dark_NHW, axis=(1, 2))
    strength = np.hypot(down, right) + 1e-9
    along, across = (right**2 - down**2) / strength, 2 * right * down / strength
    return np.hypot(along.mean(axis=(1, 2)), across.mean(axis=(1, 2))) / strength.mean(axis=(1, 2))


def _spots(dark_NHW: np.ndarray, nuclei_NHW: np.ndarray) -> np.ndarray:
    """Returns the ratio of the 95th percentile to the median of the pixels of each tile's nuclei."""
    return np.array(
        [
            np.quantile(dark_HW[mask_HW], 0.95) / np.median(dark_HW[mask_HW]) if mask_HW.any() else 1.0
            for dark_HW, mask_HW in zip(dark_NHW, nuclei_NHW, strict=True)
        ]
    )


def _dilate(mask_NHW: np.ndarray) -> np.ndarray:
    """Dilate the mask by one pixel (4-connected)."""
    padded = np.pad(mask_NHW, ((0, 0), (1, 1), (1, 1)))
    return padded[:, 1:-1, 1:-1] | padded[:, 2:, 1:-1] | padded[:, :-2, 1:-1] | padded[:, 1:-1, 2:] | padded[:, 1:-1, :-2]


def _size_spread(mask_HW: np.ndarray) -> float:
    areas = _blob_areas(mask_HW)
    areas = areas[areas > MIN_AREA * mask_HW.size]
    return float(np.log(areas).std()) if len(areas) > 1 else 0.0


def _blob_areas(mask_HW: np.ndarray) -> np.ndarray:
    """Returns the area of each 4-connected blob, by propagating the largest pixel index through each blob until convergence."""
    labels = np.where(mask_HW, np.arange(1, mask_HW.size + 1).reshape(mask_HW.shape), 0)
    while True:
        padded = np.pad(labels, 1)
        spread = np.maximum.reduce([labels, padded[2:, 1:-1], padded[:-2, 1:-1], padded[1:-1, 2:], padded[1:-1, :-2]]) * mask_HW
        if (spread == labels).all():
            return np.unique(labels[mask_HW], return_counts=True)[1]
        labels = spread
