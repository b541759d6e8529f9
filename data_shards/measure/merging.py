"""Joins the pieces of a nucleus that a watershed cut too finely.

Two touching pieces are one nucleus or two; a logistic score of five things that can be seen on them says which. Pairs are joined best
first, and their neighbours are scored again, as in region-adjacency merging (Nunez-Iglesias et al. 2013), until no pair scores above 0.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import numpy as np

from data_shards.measure import regions


@dataclass(frozen=True)
class Weights:
    """Of the score: above 0, two pieces are one nucleus. Fitted on outlined nuclei of glioma; see docs/measure.md.

    Args:
        neck: inner radius of the border between both over that of the smaller one; 1 has no neck.
        ellipse_gain: fit of both together to an ellipse, less the mean fit of each.
        valley: stain on the border less that of the paler piece, over the tile's contrast.
        difference: of the stain of both, over the tile's contrast.
        log_size: logarithm of the joint area over the area that is usual in the tile.
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
    version: int = 0  # counts the merges; -1 when it is part of another
    touching: dict[int, tuple[float, float, float]] | None = None  # by neighbour: border pixels, sum of stain, largest distance

    @property
    def area(self) -> float:
        return self.moments[0]


def merge(
    labels_HW: np.ndarray, distance_HW: np.ndarray, stain_HW: np.ndarray, contrast: float, weights: Weights | None = None
) -> np.ndarray:
    """Labels (H, W) int32 with pieces of one nucleus joined; 0 stays background, numbers may have gaps.

    Args:
        distance_HW: pixels to the background.
        stain_HW: absorbance.
        contrast: absorbance of nuclei less that of the background.
    """
    pieces = _pieces(labels_HW, distance_HW, stain_HW)
    if len(pieces) < 3:
        return labels_HW
    weights, usual = weights or Weights(), usual_area(pieces)
    queue: list[tuple[float, int, int, int, int]] = []

    def push(a: int, b: int) -> None:
        value = _score(pieces[a], pieces[b], pieces[a].touching[b], contrast, usual, weights)  # type: ignore[index]
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
    for number in range(len(part_of)):  # a piece joins one with a smaller number, which is settled already
        part_of[number] = part_of[part_of[number]]
    return np.array(part_of, np.int32)[labels_HW]


def usual_area(pieces: list[_Piece]) -> float:
    """Area of a typical nucleus: 1.3 discs of the radius that half of all nuclear pixels lie in pieces of at most."""
    by_radius = sorted((piece.radius, piece.area) for piece in pieces[1:])
    total = sum(area for _, area in by_radius)
    so_far = 0.0
    for radius, area in by_radius:
        so_far += area
        if so_far >= total / 2:
            return 1.3 * math.pi * radius**2
    return 1.0


def _score(a: _Piece, b: _Piece, border: tuple[float, float, float], contrast: float, usual: float, weights: Weights) -> float:
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
        + weights.log_size * math.log(area / usual)
    )


def _fit(moments: tuple[float, ...]) -> float:
    """`regions.ellipse_fit` of one region."""
    area, y, x, yy, xx, xy = moments
    y, x = y / area, x / area
    yy, xx = yy / area - y * y + regions.PIXEL_MOMENT, xx / area - x * x + regions.PIXEL_MOMENT
    return area / (4 * math.pi * math.sqrt(max(yy * xx - (xy / area - x * y) ** 2, 1e-9)))


def _join(pieces: list[_Piece], a: int, b: int) -> None:
    """Make b a part of a."""
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
    """By label; the first is the background's and never used."""
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
    """For every two touching regions: their labels, pairs of pixels on the border, sum of stain and largest distance there."""
    low, high, stain, distance = [], [], [], []
    for first, second in (((slice(1, None),), (slice(None, -1),)), ((slice(None), slice(1, None)), (slice(None), slice(None, -1)))):
        a, b = labels_HW[first], labels_HW[second]
        touch = (a != b) & (a > 0) & (b > 0)
        low.append(np.minimum(a[touch], b[touch]))
        high.append(np.maximum(a[touch], b[touch]))
        stain.append((stain_HW[first][touch] + stain_HW[second][touch]) / 2)
        distance.append(np.minimum(distance_HW[first][touch], distance_HW[second][touch]))
    count = int(labels_HW.max(initial=0)) + 1
    pair, place, pixels = np.unique(
        np.concatenate(low).astype(np.int64) * count + np.concatenate(high), return_inverse=True, return_counts=True
    )
    largest = np.zeros(len(pair))
    np.maximum.at(largest, place, np.concatenate(distance))
    sums = np.bincount(place, np.concatenate(stain), minlength=len(pair))
    columns = (pair // count, pair % count, pixels, sums, largest)
    return list(zip(*(column.tolist() for column in columns), strict=True))
