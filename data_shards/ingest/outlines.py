"""Reads outlines of nuclei as instance maps: images of one channel with 0 for background and k for the pixels of the k-th nucleus."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from data_shards.format import tile

MODES = ("L", "P", "I", "I;16", "I;16L", "I;16B", "I;16N")
MAX_NUMBER = 65_535
MASK_PARTS = 3  # separate regions with the same number, from which an image with one number is a mask


class Outlines:
    """A folder with the instance map of each image: ``a/b.png`` for ``a/b.jpg``."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise ValueError(f"--outlines: {root} is not a folder")
        self.root = root

    def path(self, file: str) -> Path:
        """Returns the path of the instance map of an image."""
        return (self.root / file).with_suffix(".png")

    def identity(self, file: str) -> str:
        """Returns text that changes with the instance map of an image.

        Raises:
            ValueError: the image has no instance map.
        """
        try:
            status = self.path(file).stat()
        except OSError as error:
            raise ValueError(f"--outlines: no instance map {self.path(file)} of {file}") from error
        return f"{status.st_size} {status.st_mtime_ns}"

    def read(self, file: str, shape: tuple[int, ...]) -> np.ndarray:
        """Read the instance map of an image of this shape (H, W, …): (H, W) int32.

        Raises:
            ValueError: damaged, of another size, or not an instance map.
        """
        path = self.path(file)
        try:
            with Image.open(path) as image:
                mode, labels_HW = image.mode, np.asarray(image)
        except tile.DECODING_ERRORS as error:
            raise ValueError(f"{path}: not a readable image: {error}") from error
        if mode not in MODES:
            raise ValueError(f"{path}: has mode {mode}; instance maps have one channel of whole numbers, 8 or 16 bits")
        if labels_HW.shape != tuple(shape[:2]):
            raise ValueError(f"{path}: has shape {labels_HW.shape}, its image {tuple(shape[:2])}")
        if labels_HW.min(initial=0) < 0 or labels_HW.max(initial=0) > MAX_NUMBER:
            raise ValueError(f"{path}: has numbers from {labels_HW.min()} to {labels_HW.max()}; expected 0 to {MAX_NUMBER:,}")
        if is_mask(labels_HW):
            raise ValueError(f"{path}: is a mask, with one number for all nuclei; number the nuclei 1, 2, …")
        return labels_HW.astype(np.int32)


def is_mask(labels_HW: np.ndarray) -> bool:
    """Returns whether all nuclei have one number."""
    if np.count_nonzero(np.bincount(labels_HW.ravel())[1:]) != 1:
        return False
    edges_HW = np.diff(np.pad(labels_HW > 0, 1).astype(np.int8), axis=1) == 1  # where a run of pixels of a row begins
    above_HW = np.pad(labels_HW > 0, 1)[:-1] & np.pad(labels_HW > 0, 1)[1:]
    joins_HW = np.diff(above_HW.astype(np.int8), axis=1) == 1  # where a run that continues in the next row begins
    return int(edges_HW.sum()) - int(joins_HW.sum()) >= MASK_PARTS  # Euler's number: regions minus holes
