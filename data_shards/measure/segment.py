"""Segments nuclei by classical image processing: threshold, over-segmenting watershed, and merging of the pieces.

Uses the absorbance of red light, which hematoxylin absorbs and eosin hardly does. Lengths are in pixels, for nuclei of about 12 to 40
pixels (0.2 to 0.5 um per pixel). `load` substitutes a user's own network.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data_shards.measure import merging, regions, stain

VERSION = 1  # of the outlines; increase it when they change, because edges of levels are then not comparable
Segment = Callable[[np.ndarray], np.ndarray]  # (H, W, 3) uint8 -> instance map (H, W), 0 for background


@dataclass(frozen=True)
class Settings:
    """Settings of `segment`.

    Args:
        smoothing: standard deviation of the blur before thresholding, pixels.
        threshold: position between the background (0) and Otsu's threshold (1).
        opening: radius of the disc of the morphological opening, pixels.
        peak_smoothing, peak_distance: smoothing and minimum distance of peaks of the distance map, pixels.
        stain_weight: weight of the stain relative to the distance in the watershed, pixels per contrast.
        min_contrast: minimum contrast to the surrounding background, as a share of the tile's; paler regions are not nuclei.
        surroundings: side of the square used as surroundings, pixels.
        min_area, min_area_at_border: minimum area of whole nuclei and of those cut by the tile's border, pixels.
        max_hole: maximum area of holes in the mask to fill, such as pale chromatin, pixels; larger ones lie between nuclei.
        min_tile_contrast: absorbance of nuclei minus that of the background; tiles below have no nuclei.
    """

    smoothing: float = 1.0
    threshold: float = 0.8
    opening: int = 2
    peak_smoothing: float = 1.0
    peak_distance: int = 3
    stain_weight: float = 5.0
    min_contrast: float = 0.5
    surroundings: int = 31
    min_area: int = 100
    min_area_at_border: int = 40
    max_hole: int = 150
    min_tile_contrast: float = 0.08


def segment(image_HWC: np.ndarray, settings: Settings = Settings(), weights: merging.Weights | None = None) -> np.ndarray:
    """Segment the nuclei of a tile; returns (H, W) int32, 0 for background and k for the k-th nucleus.

    Args:
        image_HWC: (H, W, 3) uint8, H&E on white background.
    """
    from scipy import ndimage

    red_HW = ndimage.gaussian_filter(stain.absorbance(image_HWC[..., 0]), settings.smoothing)
    threshold, background = _otsu(red_HW)
    contrast = 2 * (threshold - background)
    if contrast < settings.min_tile_contrast:
        return np.zeros(red_HW.shape, np.int32)
    mask_HW = red_HW > background + settings.threshold * (threshold - background)
    mask_HW = _fill_holes(ndimage.binary_opening(mask_HW, _disc(settings.opening)), settings.max_hole)
    if not mask_HW.any():
        return np.zeros(red_HW.shape, np.int32)
    distance_HW = ndimage.distance_transform_edt(mask_HW)
    pieces_HW = _watershed(mask_HW, distance_HW, red_HW / contrast, settings)
    labels_HW = regions.relabel(merging.merge(pieces_HW, distance_HW, red_HW, contrast, weights))
    return _remove_pale(labels_HW, red_HW, mask_HW, contrast, settings)


def load(text: str) -> Segment:
    """Import ``MODULE:FUNCTION``, which maps (H, W, 3) uint8 to an integer instance map (H, W), 0 for background.

    Raises:
        ValueError: no such function, or (when called) an invalid return value.
    """
    module, colon, name = text.partition(":")
    try:
        function = getattr(importlib.import_module(module), name) if colon else None
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--segment {text}: {error}") from error
    if not callable(function):
        raise ValueError(f"--segment {text}: write MODULE:FUNCTION, a function from (H, W, 3) uint8 to labels (H, W)")

    def checked(image_HWC: np.ndarray) -> np.ndarray:
        labels_HW = np.asarray(function(image_HWC))
        if labels_HW.shape != image_HWC.shape[:2] or labels_HW.dtype.kind not in "iu" or labels_HW.min(initial=0) < 0:
            raise ValueError(
                f"--segment {text}: returned {labels_HW.dtype} of shape {labels_HW.shape} for an image of {image_HWC.shape}; "
                "return non-negative integers of shape (H, W)"
            )
        return regions.relabel(labels_HW)

    return checked


def _otsu(values_HW: np.ndarray) -> tuple[float, float]:
    """Returns Otsu's threshold and the median of the values below it."""
    from skimage.filters import threshold_otsu

    if values_HW.max() - values_HW.min() < 1e-6:
        return float(values_HW.flat[0]), float(values_HW.flat[0])
    threshold = float(threshold_otsu(values_HW))
    return threshold, float(np.median(values_HW[values_HW <= threshold]))


def _disc(radius: int) -> np.ndarray:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return x * x + y * y <= radius * radius + 0.5


def _fill_holes(mask_HW: np.ndarray, largest: int) -> np.ndarray:
    """Fill holes of up to ``largest`` pixels."""
    from scipy import ndimage

    holes_HW, _ = ndimage.label(ndimage.binary_fill_holes(mask_HW) & ~mask_HW)
    area_N = np.bincount(holes_HW.ravel())
    area_N[0] = largest + 1
    return mask_HW | (area_N <= largest)[holes_HW]


def _watershed(mask_HW: np.ndarray, distance_HW: np.ndarray, stain_HW: np.ndarray, settings: Settings) -> np.ndarray:
    """Over-segment the mask: one piece for every peak of distance and stain."""
    from scipy import ndimage
    from skimage.feature import peak_local_max
    from skimage.segmentation import watershed

    height_HW = ndimage.gaussian_filter(distance_HW, settings.peak_smoothing) + settings.stain_weight * stain_HW
    inside_HW = mask_HW.astype(np.int32)
    peaks_N2 = peak_local_max(height_HW, min_distance=settings.peak_distance, labels=inside_HW, exclude_border=False)
    markers_HW = np.zeros(mask_HW.shape, np.int32)
    markers_HW[tuple(peaks_N2.T)] = np.arange(1, len(peaks_N2) + 1)
    return watershed(-height_HW, markers_HW, mask=mask_HW).astype(np.int32)


def _remove_pale(labels_HW: np.ndarray, red_HW: np.ndarray, mask_HW: np.ndarray, contrast: float, settings: Settings) -> np.ndarray:
    """Remove regions that are too small, or hardly darker than their surroundings: out-of-focus nuclei, cytoplasm."""
    from scipy import ndimage

    outside_HW = (~mask_HW).astype(np.float32)
    share_HW = ndimage.uniform_filter(outside_HW, settings.surroundings)
    around_HW = ndimage.uniform_filter(red_HW * outside_HW, settings.surroundings) / np.maximum(share_HW, 0.02)
    darker_N = (regions.means(labels_HW, red_HW) - regions.means(labels_HW, around_HW)) / contrast
    area_N = np.bincount(labels_HW.ravel(), minlength=len(darker_N) + 1)[1:]
    min_area_N = np.where(regions.at_border(labels_HW), settings.min_area_at_border, settings.min_area)
    return regions.select(labels_HW, (darker_N > settings.min_contrast) & (area_N >= min_area_N))
