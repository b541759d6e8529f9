"""The five attributes of phantoms measured on pixels, by image arithmetic alone: a second opinion beside any trained judge.

Each number grows with its level. They are for phantoms, whose stain and shapes are known; on real tissue they mean little.
"""

from __future__ import annotations

import numpy as np

NUCLEUS, FIGURE = 0.45, 1.5  # absorbance of red light from which on a pixel is in a nucleus, in a mitotic figure
EDGE = (0.3, 0.6)  # clipped to this, every nucleus has an edge of one height
SMALLEST = 0.0015  # of the tile's area: smaller blobs are not nuclei


def measure(tiles_NHWC: np.ndarray) -> np.ndarray:
    """(N, 5) float64, in the order of `attributegan.attributes.PUBLISHED`.

    Share of the tile that is nuclei; 1 - coherence of the edges (0 aligned, 1 without direction); share that is darker than any
    nucleus; how much darker the darkest spots of nuclei are than the rest; spread of the logarithm of the blobs' areas.
    """
    dark_NHW = -np.log(np.maximum(tiles_NHWC[..., 0], 1) / 255.0)
    figures_NHW = _grown(dark_NHW > FIGURE)
    nuclei_NHW = (dark_NHW > NUCLEUS) & ~_grown(figures_NHW)
    columns = (
        nuclei_NHW.mean(axis=(1, 2)),
        1 - _coherence(np.clip(dark_NHW, *EDGE)),
        (dark_NHW > FIGURE).mean(axis=(1, 2)),
        _spots(dark_NHW, nuclei_NHW),
        np.array([_size_spread(mask_HW) for mask_HW in nuclei_NHW]),
    )
    return np.stack(columns, axis=1)


def _coherence(dark_NHW: np.ndarray) -> np.ndarray:
    """Length of the mean doubled-angle gradient over the mean gradient."""
    down, right = np.gradient(dark_NHW, axis=(1, 2))
    strength = np.hypot(down, right) + 1e-9
    along, across = (right**2 - down**2) / strength, 2 * right * down / strength
    return np.hypot(along.mean(axis=(1, 2)), across.mean(axis=(1, 2))) / strength.mean(axis=(1, 2))


def _spots(dark_NHW: np.ndarray, nuclei_NHW: np.ndarray) -> np.ndarray:
    """95th percentile over the pixels of a tile's nuclei, over their median."""
    return np.array(
        [
            np.quantile(dark_HW[mask_HW], 0.95) / np.median(dark_HW[mask_HW]) if mask_HW.any() else 1.0
            for dark_HW, mask_HW in zip(dark_NHW, nuclei_NHW, strict=True)
        ]
    )


def _grown(mask_NHW: np.ndarray) -> np.ndarray:
    """The mask and the pixels beside it."""
    padded = np.pad(mask_NHW, ((0, 0), (1, 1), (1, 1)))
    return padded[:, 1:-1, 1:-1] | padded[:, 2:, 1:-1] | padded[:, :-2, 1:-1] | padded[:, 1:-1, 2:] | padded[:, 1:-1, :-2]


def _size_spread(mask_HW: np.ndarray) -> float:
    areas = _blob_areas(mask_HW)
    areas = areas[areas > SMALLEST * mask_HW.size]
    return float(np.log(areas).std()) if len(areas) > 1 else 0.0


def _blob_areas(mask_HW: np.ndarray) -> np.ndarray:
    """Pixels of each 4-connected blob: the largest pixel number spreads through a blob until nothing changes."""
    labels = np.where(mask_HW, np.arange(1, mask_HW.size + 1).reshape(mask_HW.shape), 0)
    while True:
        padded = np.pad(labels, 1)
        spread = np.maximum.reduce([labels, padded[2:, 1:-1], padded[:-2, 1:-1], padded[1:-1, 2:], padded[1:-1, :-2]]) * mask_HW
        if (spread == labels).all():
            return np.unique(labels[mask_HW], return_counts=True)[1]
        labels = spread
