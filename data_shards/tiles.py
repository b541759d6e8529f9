"""One tile from its place in a tar: read by offset, checked, decoded, turned."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_shards import format

OPEN_FILES = 128


class Damaged(Exception):
    """The bytes of a tile are not those that were packed, or no image."""


class Wanted(NamedTuple):
    """Where a tile is, and how it is to be turned."""

    shard: int
    offset: int
    length: int
    checksum: int
    turn: int  # 0 to 7: quarter turns, plus 4 for a mirror image


class TileFiles:
    """The tars of a set, open for reading at any place; each process has its own.

    Args:
        paths: the shards, in the order of `Wanted.shard`.
        image_size: pixels of the tiles given.
    """

    def __init__(self, paths: Sequence[Path], image_size: int) -> None:
        self.paths, self.image_size = paths, image_size
        self._open: OrderedDict[int, int] = OrderedDict()

    def read(self, wanted: Wanted) -> np.ndarray:
        """The pixels of one tile, (image_size, image_size, 3) uint8.

        Raises:
            Damaged: says what is wrong.
        """
        try:
            data = os.pread(self._descriptor(wanted.shard), wanted.length, wanted.offset)
        except OSError as error:
            raise Damaged(f"can't be read: {error.strerror}") from error
        if len(data) != wanted.length:
            raise Damaged(f"the shard ends after {len(data)} of {wanted.length} bytes")
        if format.checksum(data) != wanted.checksum:
            raise Damaged("checksum")
        try:
            return turned(format.decode(data, self.image_size), wanted.turn)
        except format.DECODING_ERRORS as error:
            raise Damaged(f"not an image: {error}") from error

    def _descriptor(self, shard: int) -> int:
        if shard not in self._open:
            if len(self._open) >= OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
            self._open[shard] = os.open(self.paths[shard], os.O_RDONLY | os.O_CLOEXEC)
        self._open.move_to_end(shard)
        return self._open[shard]

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)


def turned(pixels_HWC: np.ndarray, turn: int) -> np.ndarray:
    """One of the 8 symmetries of the square: quarter turns (0 to 3), or those of the mirror image (4 to 7). Nothing is interpolated."""
    mirrored_HWC = pixels_HWC[:, ::-1] if turn >= 4 else pixels_HWC
    return np.rot90(mirrored_HWC, turn % 4)
