"""Agreement of measurements with manual outlines of nuclei and with levels assigned by pathologists.

Owns the split of images into development images, for choosing settings, and held-out images, for reporting.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data_shards.format import tile
from data_shards.measure import features, regions

SPLITS = ("development", "held-out")
MIN_PIXELS = 40  # nuclei with fewer pixels inside a crop are ignored


@dataclass(frozen=True)
class Outlined:
    """A crop and its manual instance map of nuclei."""

    file: str
    image_HWC: np.ndarray
    labels_HW: np.ndarray


def split_of(file: str) -> str:
    """Returns "development" if the SHA-256 of the file's name is even, "held-out" if it is odd."""
    return SPLITS[hashlib.sha256(file.encode()).digest()[-1] % 2]


def crops(images: Path, masks: Path, size: int, split: str | None = None) -> Iterator[Outlined]:
    """Yields all complete crops of ``size`` pixels of a split (None for all). The mask of ``a.jpg`` is ``a.png``, 0 for background.

    Raises:
        ValueError: no images, or a mask is missing or of another size.
    """
    files = sorted(path for path in images.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp"))
    if not files:
        raise ValueError(f"--images: no images in {images}")
    for path in files:
        if split in (None, split_of(path.name)):
            image_HWC, labels_HW = _pixels(path, "RGB"), _pixels(masks / f"{path.stem}.png", None)
            if labels_HW.shape != image_HWC.shape[:2]:
                raise ValueError(
                    f"--masks: {path.stem}.png has shape {labels_HW.shape}, its image {image_HWC.shape[:2]}; use masks with one channel"
                )
            for y in range(0, image_HWC.shape[0] - size + 1, size):
                for x in range(0, image_HWC.shape[1] - size + 1, size):
                    part = np.s_[y : y + size, x : x + size]
                    pieces_HW = regions.relabel(labels_HW[part])
                    keep_N = np.bincount(pieces_HW.ravel())[1:] >= MIN_PIXELS
                    yield Outlined(path.name, np.ascontiguousarray(image_HWC[part]), regions.select(pieces_HW, keep_N))


def _pixels(path: Path, mode: str | None) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert(mode) if mode else image)
    except tile.DECODING_ERRORS as error:
        raise ValueError(f"{path}: not a readable image: {error}") from error


def matched(true_HW: np.ndarray, found_HW: np.ndarray, min_iou: float = 0.5) -> tuple[int, int, int]:
    """Count nuclei matched with an IoU above ``min_iou`` (unique from 0.5 on), true nuclei, and segmented nuclei."""
    true, found = int(true_HW.max(initial=0)), int(found_HW.max(initial=0))
    pairs = np.bincount(true_HW.ravel().astype(np.int64) * (found + 1) + found_HW.ravel(), minlength=(true + 1) * (found + 1))
    shared = pairs.reshape(true + 1, found + 1)
    either = shared.sum(axis=1)[1:, None] + shared.sum(axis=0)[None, 1:] - shared[1:, 1:]
    return int((shared[1:, 1:] > min_iou * either).sum()), true, found


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Returns Spearman's rank correlation over pairs of finite values; NaN for fewer than 3 pairs."""
    from scipy.stats import spearmanr

    pairs = [(x, y) for x, y in zip(a, b, strict=True) if np.isfinite(x) and np.isfinite(y)]
    if len(pairs) < 3 or any(len(set(side)) < 2 for side in zip(*pairs, strict=True)):
        return float("nan")
    return float(spearmanr(*zip(*pairs, strict=True)).statistic)


def by_measurement(true: Sequence[dict[str, float]], found: Sequence[dict[str, float]]) -> dict[str, float]:
    """Returns Spearman's correlation over crops of each measurement on manual outlines with that on the segmentation."""
    return {name: spearman([row[name] for row in true], [row[name] for row in found]) for name in features.names(None)}
