"""One tile from its place in a tar: read by offset, checked, decoded, cropped, turned."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from data_shards.format import tile
from data_shards.storage.shard_files import ShardFiles


class TileCorrupted(Exception):
    """The bytes of a tile are not those that were packed, or no image."""


class TileRequest(NamedTuple):
    """Where a tile is, what of it is wanted, and how it is to be turned."""

    shard: int
    offset: int
    length: int
    checksum: int
    turn: int  # 0 to 7: quarter turns, plus 4 for a mirror image
    crop: tile.Crop | None = None


class TileReader:
    """Tiles out of the tars of a set; each process has its own.

    Args:
        tars: the shards, in the order of `TileRequest.shard`.
        image_size: pixels of the tiles given.
    """

    def __init__(self, tars: ShardFiles, image_size: int) -> None:
        self.tars, self.image_size = tars, image_size

    def read(self, wanted: TileRequest) -> np.ndarray:
        """The pixels of one tile, (image_size, image_size, 3) uint8.

        Raises:
            Damaged: says what is wrong.
            cache.StoreError: a remote shard can't be had.
        """
        try:
            data = self.tars.read(wanted.shard, wanted.length, wanted.offset)
        except OSError as error:
            raise TileCorrupted(f"can't be read: {error.strerror}") from error
        if len(data) != wanted.length:
            raise TileCorrupted(f"the shard ends after {len(data)} of {wanted.length} bytes")
        if tile.checksum(data) != wanted.checksum:
            raise TileCorrupted("checksum")
        try:
            return turned(tile.decode(data, self.image_size, wanted.crop), wanted.turn)
        except tile.DECODING_ERRORS as error:
            raise TileCorrupted(f"not an image: {error}") from error


def turned(pixels_HWC: np.ndarray, turn: int) -> np.ndarray:
    """One of the 8 symmetries of the square: quarter turns (0 to 3), or those of the mirror image (4 to 7). Nothing is interpolated."""
    pixels_HW = np.ascontiguousarray(pixels_HWC).view("V3")[..., 0]  # whole pixels move in half the time of single bytes
    mirrored_HW = pixels_HW[:, ::-1] if turn >= 4 else pixels_HW
    turned_HW = np.ascontiguousarray(np.rot90(mirrored_HW, turn % 4))
    return turned_HW.view(np.uint8).reshape(*turned_HW.shape, 3)
