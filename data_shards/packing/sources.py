"""Sources of images to pack: a folder of files, or procedural phantoms."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from attributegan.attributes import PUBLISHED, AttributeSchema
from data_shards.format import intact, near_names, rgb, tile
from data_shards.packing.labels import Labels, table_of

log = logging.getLogger("attributegan.data")


class EncodedImage(NamedTuple):
    """An image file as stored in a shard."""

    data: bytes
    extension: str
    width: int
    height: int


class Source(Protocol):
    """Provides the image of each row of a `Labels` table; pickled to worker processes."""

    @property
    def recipe(self) -> str:
        """Description of the images that enters the fingerprint of the set; never change these strings."""

    def sizes(self, table: pa.Table) -> np.ndarray:
        """Returns the approximate size of each image in bytes, int64; -1 for a missing image."""

    def near_names(self, missing: Sequence[str]) -> dict[str, str]:
        """Returns the likely spelling of missing files, where there is one."""

    def read(self, row: Mapping[str, Any]) -> EncodedImage:
        """Read the image of one row; ValueError if it is invalid."""


@dataclass(frozen=True)
class Folder:
    """Image files, stored byte for byte if all decoders agree on their colours (see rgb.py), else as PNG (lossless).

    Args:
        size: crop to centred squares and resize to this many pixels, stored as PNG.
        quick: check only the last bytes of JPEG, PNG and WebP files instead of decoding them.
    """

    root: str
    size: int | None = None
    quick: bool = False

    @property
    def recipe(self) -> str:
        return "files as they are" if self.size is None else f"squares of {self.size} pixels"

    def sizes(self, table: pa.Table) -> np.ndarray:
        files = np.fromiter((self._file_size(file.as_py()) for file in table["file"]), np.int64, len(table))
        return files if self.size is None else np.where(files >= 0, 3 * self.size**2, -1)

    def _file_size(self, file: str) -> int:
        try:
            return os.stat(os.path.join(self.root, file)).st_size
        except (OSError, ValueError):  # ValueError: null character in the name
            return -1

    def near_names(self, missing: Sequence[str]) -> dict[str, str]:
        return near_names.suggestions(self.root, missing)

    def read(self, row: Mapping[str, Any]) -> EncodedImage:
        try:
            with open(os.path.join(self.root, row["file"]), "rb", buffering=0) as stream:
                data = stream.readall()
            with warnings.catch_warnings(record=True) as warned:
                member = self._member(data)
        except tile.DECODING_ERRORS as error:
            raise ValueError(f"{row['file']}: not a readable image: {error}") from error
        for warning in warned:
            log.warning("%s: %s", row["file"], warning.message)
        return member

    def _member(self, data: bytes) -> EncodedImage:
        if self.size is None and (size := tile.jpeg_size(data)) and (not self.quick or _ends_well(data, "JPEG")):
            if not self.quick:
                intact.check(data)
            return EncodedImage(data, "jpg", *size)
        with rgb.opened(data) as image:
            rgb.check_one_picture(image)
            if self.size is None and image.format in tile.EXTENSIONS and rgb.is_plain(image):
                if not (self.quick and _ends_well(data, image.format)):
                    intact.check(data)
                return EncodedImage(data, tile.EXTENSIONS[image.format], *image.size)
            intact.check(data)
            pixels = rgb.to_rgb(image) if self.size is None else tile.fit(rgb.to_rgb(image), self.size)
            return EncodedImage(tile.encode_png(pixels), "png", *pixels.size)


def _ends_well(data: bytes, kind: str) -> bool:
    """Returns whether an image file has the end that its format requires; a cheap check against truncation."""
    if kind == "WEBP":
        return len(data) == int.from_bytes(data[4:8], "little") + 8
    return data.endswith(b"\xff\xd9" if kind == "JPEG" else b"IEND\xaeB`\x82")


@dataclass(frozen=True)
class Phantoms:
    """Procedural tiles (see `data_shards.phantoms.render`); the file name of each is its index."""

    schema: AttributeSchema
    size: int
    seed: int

    @property
    def recipe(self) -> str:
        return f"phantoms of {self.size} pixels, seed {self.seed}"

    def sizes(self, table: pa.Table) -> np.ndarray:
        return np.full(len(table), 3 * self.size**2, np.int64)

    def near_names(self, missing: Sequence[str]) -> dict[str, str]:
        return {}

    def read(self, row: Mapping[str, Any]) -> EncodedImage:
        from data_shards.phantoms import render

        levels = [row[name] for name in self.schema.names]
        pixels_HWC = render.render(levels, self.size, self.seed, int(row["file"]))
        return EncodedImage(tile.encode_png(pixels_HWC), "png", self.size, self.size)


def phantom_labels(count: int, seed: int, like: Labels | None = None) -> Labels:
    """Draw the levels of ``count`` phantoms, in artificial slides of up to 64 tiles.

    Args:
        like: labels of the published attributes; phantoms sample the levels of these tiles, so that levels and combinations have the same
            frequencies. By default all levels are equally frequent.

    Raises:
        ValueError: no tile of ``like`` has levels that phantoms can show.
    """
    from data_shards.phantoms import render

    levels_NA = render.draw_levels(count, seed) if like is None else _levels_like(like, count, seed)
    tiles_per_slide = max(1, min(64, count // 10))
    columns = {
        "file": [f"{number:07d}" for number in range(count)],
        "key": [f"phantom-{number:07d}" for number in range(count)],
        "group": [f"phantoms-{number // tiles_per_slide:05d}" for number in range(count)],
        "where": [f"phantom {number}" for number in range(count)],
        "more": [""] * count,
    }
    return Labels(PUBLISHED, table_of(PUBLISHED, columns, levels_NA), [], grouped=True)


def _levels_like(like: Labels, count: int, seed: int) -> np.ndarray:
    """Sample rows of ``like`` whose attributes are all assessable, with replacement; row k depends only on ``seed`` and k."""
    levels_NA = np.stack([like.table[name].to_numpy() for name in like.schema.names], axis=1)
    assessable_AN = [
        np.isin(levels_N, attribute.assessable) for levels_N, attribute in zip(levels_NA.T, like.schema.attributes, strict=True)
    ]
    levels_NA = levels_NA[np.all(assessable_AN, axis=0)]
    if not len(levels_NA):
        raise ValueError("no tile has five assessable levels, as phantoms require")
    uniform_N = np.random.default_rng(seed).random(count)
    return levels_NA[(uniform_N * len(levels_NA)).astype(np.int64)]
