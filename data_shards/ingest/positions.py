"""Options of cutting tiles, and the grid of tile positions with enough tissue."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from data_shards.ingest.slide import SCANNER_MPP, Slide
from data_shards.ingest.tissue import SHARPNESS, tissue_mask

MAX_UPSAMPLING = 1.1  # nominal 0.5 um/pixel is 0.45 to 0.55 in practice


@dataclass(frozen=True)
class Options:
    """How to cut tiles.

    Args:
        mpp: micrometres per pixel of the tiles.
        size, overlap: pixels of the tiles.
        tissue: minimum share of tissue, in [0, 1].
        sharpness: minimum variance of the Laplacian; 0 keeps blurred tiles.
        jpeg: JPEG quality; None for PNG (lossless).
    """

    mpp: float
    size: int
    overlap: int = 0
    tissue: float = 0.5
    sharpness: float = SHARPNESS
    jpeg: int | None = None

    def __post_init__(self) -> None:
        limits = {"mpp": (SCANNER_MPP[0], 100), "size": (16, 8192), "overlap": (0, self.size - 1), "tissue": (0, 1)}
        for name, (least, most) in (limits | {"sharpness": (0, 1e6), "jpeg": (1, 100)}).items():
            if (value := getattr(self, name)) is not None and not least <= value <= most:
                raise ValueError(f"--{name}: {value} is not between {least} and {most}")


def find_positions(slide: Slide, options: Options) -> tuple[np.ndarray, int]:
    """Find the positions of tiles with enough tissue, on a grid from the corner of the scanned area; tiles must fit completely.

    Returns:
        (N, 3) float64 of x, y (level-0 pixels) and share of tissue, row by row; and the number of positions with and without tissue.

    Raises:
        ValueError: the slide is damaged, or its resolution is lower than that of the tiles.
    """
    if max(slide.mpp_XY) > options.mpp * MAX_UPSAMPLING:
        raise ValueError(f"{slide.path}: {max(slide.mpp_XY):g} um per pixel is too coarse for --mpp {options.mpp:g}; increase --mpp")
    left, top, width, height = slide.bounds
    tile_X = extent(slide, options, options.size)
    stride_X = extent(slide, options, options.size - options.overlap)
    x_C, y_R = (_starts(*of_axis) for of_axis in zip((width, height), tile_X, stride_X, strict=True))
    if not (len(x_C) and len(y_R)):
        return np.empty((0, 3)), 0
    mask_HW = tissue_mask(slide)
    scale_X = mask_HW.shape[1] / width, mask_HW.shape[0] / height
    by_row_RW = _means(mask_HW, y_R * scale_X[1], tile_X[1] * scale_X[1])
    share_RC = _means(by_row_RW.T, x_C * scale_X[0], tile_X[0] * scale_X[0]).T
    row_N, column_N = np.nonzero(share_RC >= options.tissue - 1e-9)
    return np.stack([left + x_C[column_N], top + y_R[row_N], share_RC[row_N, column_N]], axis=1), share_RC.size


def extent(slide: Slide, options: Options, pixels: int) -> tuple[float, float]:
    """Convert ``pixels`` of a tile to level-0 pixels in x and y."""
    return pixels * options.mpp / slide.mpp_XY[0], pixels * options.mpp / slide.mpp_XY[1]


def _starts(length: int, tile: float, stride: float) -> np.ndarray:
    """Returns the starts of tiles along an axis, in whole pixels."""
    starts_N = np.round(np.arange(max(0, math.floor((length - tile) / stride) + 2)) * stride)
    return starts_N[starts_N + tile <= length + 1e-6]


def _means(values_HW: np.ndarray, start_N: np.ndarray, length: float) -> np.ndarray:
    """Returns means over rows ``start`` to ``start + length``, with fractional rows weighted, (N, W) float64."""
    sums_HW = np.concatenate([np.zeros((1, values_HW.shape[1])), np.cumsum(values_HW, axis=0, dtype=np.float64)])

    def until(end_N: np.ndarray) -> np.ndarray:
        row_N = np.minimum(end_N.astype(int), len(values_HW) - 1)
        part_N1 = np.minimum(end_N - row_N, 1)[:, None]
        sums_NW: np.ndarray = sums_HW[row_N] * (1 - part_N1) + sums_HW[row_N + 1] * part_N1
        return sums_NW

    means_NW: np.ndarray = (until(start_N + length) - until(start_N)) / length
    return means_NW
