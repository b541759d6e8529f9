"""Merges over-segmented pieces of nuclei.

A logistic score of five features decides whether two touching pieces are the same nucleus. The best pair is merged first and its neighbours
are scored again, as in region-adjacency merging (Nunez-Iglesias et al. 2013), until no pair scores above 0.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import numpy as np

from data_shards.measure import regions


@dataclass(frozen=True)
class Weights:
    """Weights of the score; above 0, two pieces are one nucleus. Fitted on outlined nuclei of glioma; see docs/measure.md.

    Args:
        neck: inner radius at their border over that of the smaller piece; 1 means no neck.
        ellipse_gain: ellipse fit of the union minus the mean ellipse fit of both.
        valley: stain on the border minus that of the paler piece, over the tile's contrast.
        difference: absolute difference of their stains, over the tile's contrast.
        log_size: logarithm of their total area over the typical area in the tile.
    """

    neck: float = 1.2
    ellipse_gain: float = 5.3
    valley: float = 8.7
    difference: float = -6.1
    log_size: float = -0.9
    intercept: float = 0.8


@dataclass
class _Piece:
    moments: tuple[float, ...]  # area, and sums of y, x, yy, xx, xy
    radius: float  # largest distance to the background
    stain: float  # sum over the pixels
    version: int = 0  # number of merges; -1 if merged into another piece
    touching: dict[int, tuple[float, float, float]] | None = None  # by neighbour: border pixels, sum of stain, maximum distance

    @property
    def area(self) -> float:
        """Area in pixels."""
        return self.moments[0]


def merge(
    labels_HW: np.ndarray, distance_HW: np.ndarray, stain_HW: np.ndarray, contrast: float, weights: Weights | None = None
) -> np.ndarray:
    """Merge pieces of the same nucleus; returns labels (H, W) int32, 0 for background, possibly with gaps.

    Args:
        distance_HW: distance to the background in pixels.
        stain_HW: absorbance.
        contrast: absorbance of nuclei minus that of the background.
    """
    pieces = _pieces(labels_HW, distance_HW, stain_HW)
    if len(pieces) < 3:
        return labels_HW
    weights, typical = weights or Weights(), typical_area(pieces)
    queue: list[tuple[float, int, int, int, int]] = []

    def push(a: int, b: int) -> None:
        value = _score(pieces[a], pieces[b], pieces[a].touching[b], contrast, typical, weights)  # type: ignore[index]
        if value > 0:
            heapq.heappush(queue, (-value, a, b, pieces[a].version, pieces[b].version))

    for a, piece in enumerate(pieces):
        for b in piece.touching or ():
            if a < b:
                push(a, b)
    part_of = list(range(len(pieces)))
    while queue:
        _, a, b, version_a, version_b = heapq.heappop(queue)
        if (pieces[a].version, pieces[b].version) != (version_a, version_b):
            continue
        part_of[b] = a
        _join(pieces, a, b)
        for other in pieces[a].touching or ():
            push(min(a, other), max(a, other))
    for number in range(len(part_of)):  # pieces are merged into smaller labels, which are resolved already
        part_of[number] = part_of[part_of[number]]
    return np.array(part_of, np.int32)[labels_HW]


def typical_area(pieces: list[_Piece]) -> float:
    """Estimate the area of a typical nucleus: 1.3 discs with the pixel-weighted median of the pieces' radii."""
    by_radius = sorted((piece.radius, piece.area) for piece in pieces[1:])
    total = sum(area for _, area in by_radius)
    so_far = 0.0
    for radius, area in by_radius:
        so_far += area
        if so_far >= total / 2:
            return 1.3 * math.pi * radius**2
    return 1.0


def _score(a: _Piece, b: _Piece, border: tuple[float, float, float], contrast: float, typical: float, weights: Weights) -> float:
    pixels, stain, radius = border
    together = tuple(x + y for x, y in zip(a.moments, b.moments, strict=True))
    area = a.area + b.area
    gain = _fit(together) - (_fit(a.moments) * a.area + _fit(b.moments) * b.area) / area
    stain_a, stain_b = a.stain / a.area, b.stain / b.area
    return (
        weights.intercept
        + weights.neck * radius / min(a.radius, b.radius)
        + weights.ellipse_gain * gain
        + weights.valley * (stain / pixels - min(stain_a, stain_b)) / contrast
        + weights.difference * abs(stain_a - stain_b) / contrast
        + weights.log_size * math.log(area / typical)
    )


def _fit(moments: tuple[float, ...]) -> float:
    """Compute `regions.ellipse_fit` of one region."""
    area, y, x, yy, xx, xy = moments
    y, x = y / area, x / area
    yy, xx = yy / area - y * y + regions.PIXEL_MOMENT, xx / area - x * x + regions.PIXEL_MOMENT
    return area / (4 * math.pi * math.sqrt(max(yy * xx - (xy / area - x * y) ** 2, 1e-9)))


def _join(pieces: list[_Piece], a: int, b: int) -> None:
    """Merge b into a."""
    kept, gone = pieces[a], pieces[b]
    assert kept.touching is not None and gone.touching is not None
    kept.moments = tuple(x + y for x, y in zip(kept.moments, gone.moments, strict=True))
    kept.radius, kept.stain = max(kept.radius, gone.radius), kept.stain + gone.stain
    kept.version, gone.version = kept.version + 1, -1
    del kept.touching[b]
    for other, (pixels, stain, radius) in gone.touching.items():
        if other == a:
            continue
        more = kept.touching.get(other, (0.0, 0.0, 0.0))
        border = (pixels + more[0], stain + more[1], max(radius, more[2]))
        neighbour = pieces[other].touching
        assert neighbour is not None
        del neighbour[b]
        kept.touching[other] = neighbour[a] = border
    gone.touching = {}


def _pieces(labels_HW: np.ndarray, distance_HW: np.ndarray, stain_HW: np.ndarray) -> list[_Piece]:
    """Returns the pieces by label; the first entry is a placeholder for the background."""
    count = int(labels_HW.max(initial=0)) + 1
    radius_N = np.zeros(count)
    np.maximum.at(radius_N, labels_HW.ravel(), distance_HW.ravel())
    stain_N = np.bincount(labels_HW.ravel(), stain_HW.ravel(), minlength=count)
    rows = zip(regions.moments(labels_HW).tolist(), radius_N[1:].tolist(), stain_N[1:].tolist(), strict=True)
    pieces = [_Piece((0.0,) * 6, 0.0, 0.0)] + [_Piece(tuple(row), radius, stain, touching={}) for row, radius, stain in rows]
    for a, b, pixels, stain, radius in _borders(labels_HW, distance_HW, stain_HW):
        pieces[a].touching[b] = pieces[b].touching[a] = (pixels, stain, radius)  # type: ignore[index]
    return pieces


def _borders(labels_HW: np.ndarray, distance_HW: np.ndarray, stain_HW: np.ndarray) -> list[tuple[int, int, float, float, float]]:
    """Returns for every two touching regions their labels, and the number of border pixels, sum of stain and maximum distance there."""
    low, high, stain, distance = [], [], [], []
    for first, second in (((slice(1, None),), (slice(None, -1),)), ((slice(None), slice(1, None)), (slice(None), slice(None, -1)))):
        a, b = labels_HW[first], labels_HW[second]
        touch = (a != b) & (a > 0) & (b > 0)
        low.append(np.minimum(a[touch], b[touch]))
        high.append(np.maximum(a[touch], b[touch]))
        stain.append((stain_HW[first][touch] + stain_HW[second][touch]) / 2)
        distance.append(np.minimum(distance_HW[first][touch], distance_HW[second][touch]))
    count = int(labels_HW.max(initial=0)) + 1
    pair, index, pixels = np.unique(
        np.concatenate(low).astype(np.int64) * count + np.concatenate(high), return_inverse=True, return_counts=True
    )
    largest = np.zeros(len(pair))
    np.maximum.at(largest, index, np.concatenate(distance))
    sums = np.bincount(index, np.concatenate(stain), minlength=len(pair))
    columns = (pair // count, pair % count, pixels, sums, largest)
    return list(zip(*(column.tolist() for column in columns), strict=True))
