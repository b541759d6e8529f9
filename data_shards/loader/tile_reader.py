"""Reads one tile by its offset in a tar: verify, decode, crop, flip."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from data_shards.format import tile
from data_shards.storage.shard_files import ShardFiles


class TileCorrupted(Exception):
    """The bytes of a tile fail their checksum or are not an image."""


class TileRequest(NamedTuple):
    """The position of a tile, its crop, and its symmetry."""

    shard: int
    offset: int
    length: int
    checksum: int
    symmetry: int  # 0 to 7: quarter turns, plus 4 for mirrored
    crop: tile.Crop | None = None


class TileReader:
    """Reads tiles from the tars of a set; each process has its own.

    Args:
        tars: the shards, indexed by `TileRequest.shard`.
        image_size: size of the returned tiles in pixels.
    """

    def __init__(self, tars: ShardFiles, image_size: int) -> None:
        self.tars, self.image_size = tars, image_size

    def read(self, request: TileRequest) -> np.ndarray:
        """Read one tile; returns (image_size, image_size, 3) uint8.

        Raises:
            TileCorrupted: the tile can't be read, fails its checksum or is not an image.
            cache.StoreError: a remote shard is unavailable.
        """
        try:
            data = self.tars.read(request.shard, request.length, request.offset)
        except OSError as error:
            raise TileCorrupted(f"can't be read: {error.strerror}") from error
        if len(data) != request.length:
            raise TileCorrupted(f"truncated after {len(data)} of {request.length} bytes")
        if tile.checksum(data) != request.checksum:
            raise TileCorrupted("wrong checksum")
        try:
            return apply_symmetry(tile.decode(data, self.image_size, request.crop), request.symmetry)
        except tile.DECODING_ERRORS as error:
            raise TileCorrupted(f"not an image: {error}") from error


def apply_symmetry(pixels_HWC: np.ndarray, symmetry: int) -> np.ndarray:
    """Apply one of the 8 symmetries of the square: quarter turns (0 to 3), or those of the mirror image (4 to 7). No interpolation."""
    pixels_HW = np.ascontiguousarray(pixels_HWC).view("V3")[..., 0]  # moving whole pixels takes half the time of single bytes
    mirrored_HW = pixels_HW[:, ::-1] if symmetry >= 4 else pixels_HW
    turned_HW = np.ascontiguousarray(np.rot90(mirrored_HW, symmetry % 4))
    return turned_HW.view(np.uint8).reshape(*turned_HW.shape, 3)
