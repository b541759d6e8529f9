"""Describes a tile by one vector of handcrafted features: nuclei, stain and texture, without any neural network.

The feature network ``handcrafted`` of an evaluation. A feature that is undefined for a tile, such as the area of nuclei where there are
none, is NaN.
"""

from __future__ import annotations

import numpy as np

from data_shards.measure import regions, segment, stain

VERSION = 1  # of the vectors; increase it when they change, because scores are then not comparable
SIZE = 128  # pixels that tiles are resized to
PERCENTILES = (1, 10, 25, 50, 75, 90, 99)
BINARY_PATTERNS = ((8, 1.0), (8, 2.0), (8, 4.0))  # neighbours and radius in pixels
OFFSETS, GREY_LEVELS, FULL_ABSORBANCE = (1, 2, 4), 16, 1.2  # of grey-level co-occurrence
CO_OCCURRENCE = ("contrast", "homogeneity", "ASM", "correlation")
BANDS = 8  # of the power spectrum


def vectors(tiles_NHWC: np.ndarray) -> np.ndarray:
    """Describes uint8 tiles: (N, D) float32."""
    return np.stack([vector(image_HWC) for image_HWC in tiles_NHWC])


def vector(image_HWC: np.ndarray) -> np.ndarray:
    """Describes a uint8 tile: (D,) float32."""
    image_HWC = np.ascontiguousarray(image_HWC)
    absorbance_HWC = stain.absorbance(image_HWC)
    hematoxylin_HW, eosin_HW = stain.densities(absorbance_HWC, stain.RUIFROK)
    parts = [
        _nuclei(segment.segment(image_HWC), hematoxylin_HW),
        _stain(absorbance_HWC, hematoxylin_HW, eosin_HW),
        *(_binary_patterns(absorbance_HWC.mean(axis=2), *pattern) for pattern in BINARY_PATTERNS),
        *(_co_occurrence(density_HW) for density_HW in (hematoxylin_HW, eosin_HW)),
        _spectrum(absorbance_HWC.mean(axis=2)),
    ]
    return np.concatenate(parts).astype(np.float32)


def _nuclei(labels_HW: np.ndarray, hematoxylin_HW: np.ndarray) -> np.ndarray:
    """Count, share of area, and mean and spread of area, elongation, concavity and stain; disorder of the long axes."""
    shapes = regions.shapes(labels_HW)
    count, background_HW = len(shapes.area), labels_HW == 0
    outside = float(hematoxylin_HW[background_HW].mean()) if background_HW.any() else np.nan
    if not count:
        return np.array([0, 0, *[np.nan] * 9, outside])
    columns = (np.log(shapes.area), np.log(shapes.elongation), shapes.fit, regions.means(labels_HW, hematoxylin_HW))
    axis_N = shapes.anisotropy * np.exp(2j * shapes.angle)
    disorder = 1 - abs(axis_N.sum()) / max(shapes.anisotropy.sum(), 1e-9)
    spreads = [column_N.std() if count > 1 else np.nan for column_N in columns]
    return np.array([count, (~background_HW).mean(), *(column_N.mean() for column_N in columns), *spreads, disorder, outside])


def _stain(absorbance_HWC: np.ndarray, hematoxylin_HW: np.ndarray, eosin_HW: np.ndarray) -> np.ndarray:
    """Percentiles of both stains, mean and spread of the absorbance of each channel, correlations of the channels."""
    channels_CP = absorbance_HWC.reshape(-1, 3).T
    spread_C = channels_CP.std(axis=1)
    pairs = ((0, 1), (0, 2), (1, 2))
    centred_CP = channels_CP - channels_CP.mean(axis=1, keepdims=True)
    correlations = [(centred_CP[a] * centred_CP[b]).mean() / (spread_C[a] * spread_C[b] + 1e-6) for a, b in pairs]
    percentiles = [np.percentile(density_HW, PERCENTILES) for density_HW in (hematoxylin_HW, eosin_HW)]
    return np.concatenate([*percentiles, channels_CP.mean(axis=1), spread_C, correlations])


def _binary_patterns(grey_HW: np.ndarray, neighbours: int, radius: float) -> np.ndarray:
    """Histogram of uniform local binary patterns, invariant to rotation (Ojala et al., TPAMI 2002)."""
    from skimage.feature import local_binary_pattern

    levels_HW = np.round(np.clip(grey_HW / FULL_ABSORBANCE, 0, 1) * 255).astype(np.uint8)  # comparing floats would count rounding as edges
    codes_HW = local_binary_pattern(levels_HW, neighbours, radius, method="uniform").astype(int)
    return np.bincount(codes_HW.ravel(), minlength=neighbours + 2) / codes_HW.size


def _co_occurrence(density_HW: np.ndarray) -> np.ndarray:
    """Statistics of the co-occurrence of grey levels, mean over four directions (Haralick et al. 1973)."""
    from skimage.feature import graycomatrix, graycoprops

    levels_HW = (np.clip(density_HW / FULL_ABSORBANCE, 0, 1 - 1e-6) * GREY_LEVELS).astype(np.uint8)
    angles = (0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)
    matrix = graycomatrix(levels_HW, OFFSETS, angles, GREY_LEVELS, symmetric=True, normed=True)
    return np.concatenate([graycoprops(matrix, name).mean(axis=1) for name in CO_OCCURRENCE])


def _spectrum(grey_HW: np.ndarray) -> np.ndarray:
    """Logarithm of the mean power in rings of the spatial frequency, of equal ratio from 2 cycles per tile to the Nyquist frequency."""
    window_H = np.hanning(grey_HW.shape[0])
    power_HW = np.abs(np.fft.fft2((grey_HW - grey_HW.mean()) * np.outer(window_H, np.hanning(grey_HW.shape[1])))) ** 2
    radius_HW = np.hypot(*np.meshgrid(*(np.fft.fftfreq(side) * side for side in grey_HW.shape), indexing="ij"))
    ring_HW = np.digitize(radius_HW, np.geomspace(2, min(grey_HW.shape) / 2, BANDS + 1)) - 1
    return np.array([np.log10(power_HW[ring_HW == ring].mean() + 1e-6) for ring in range(BANDS)])
