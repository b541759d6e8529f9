"""Where the images of a set come from when it is packed: a folder of files, or drawn phantoms."""

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


class Member(NamedTuple):
    """An image as it goes into a shard."""

    data: bytes
    extension: str
    width: int
    height: int


class Source(Protocol):
    """Gives the image of each row of a `Labels` table; travels to worker processes."""

    @property
    def recipe(self) -> str:
        """What makes the images of one source differ from those of another, given the same rows."""

    def sizes(self, table: pa.Table) -> np.ndarray:
        """About how many bytes each image will have, int64; -1 for an image that is not there."""

    def near_names(self, missing: Sequence[str]) -> dict[str, str]:
        """For files that are not there, what they are called there, where that can be seen."""

    def read(self, row: Mapping[str, Any]) -> Member:
        """The image of one row; ValueError says what is wrong with it."""


@dataclass(frozen=True)
class Folder:
    """Image files, taken byte for byte when every reader sees the same in them (see rgb.py), else stored as PNG, which loses nothing.

    Args:
        size: crop to centred squares of so many pixels, stored as PNG.
        quick: look at the ends of JPEG, PNG and WebP files alone, and not whether they are whole in between.
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
        except (OSError, ValueError):  # ValueError: a name with a null character
            return -1

    def near_names(self, missing: Sequence[str]) -> dict[str, str]:
        return near_names.suggestions(self.root, missing)

    def read(self, row: Mapping[str, Any]) -> Member:
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

    def _member(self, data: bytes) -> Member:
        if self.size is None and (size := tile.jpeg_size(data)) and (not self.quick or _ends_well(data, "JPEG")):
            if not self.quick:
                intact.check(data)
            return Member(data, "jpg", *size)
        with rgb.opened(data) as image:
            rgb.check_one_picture(image)
            if self.size is None and image.format in tile.EXTENSIONS and rgb.is_plain(image):
                if not (self.quick and _ends_well(data, image.format)):
                    intact.check(data)
                return Member(data, tile.EXTENSIONS[image.format], *image.size)
            intact.check(data)
            pixels = rgb.to_rgb(image) if self.size is None else tile.fit(rgb.to_rgb(image), self.size)
            return Member(tile.encode_png(pixels), "png", *pixels.size)


def _ends_well(data: bytes, kind: str) -> bool:
    """Whether an image file ends as its format wants: a cheap sign that it is not cut off."""
    if kind == "WEBP":
        return len(data) == int.from_bytes(data[4:8], "little") + 8
    return data.endswith(b"\xff\xd9" if kind == "JPEG" else b"IEND\xaeB`\x82")


@dataclass(frozen=True)
class Phantoms:
    """Drawn tiles; the file name of each is its number (see `data_shards.phantoms.render`)."""

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

    def read(self, row: Mapping[str, Any]) -> Member:
        from data_shards.phantoms import render

        levels = [row[name] for name in self.schema.names]
        pixels_HWC = render.render(levels, self.size, self.seed, int(row["file"]))
        return Member(tile.encode_png(pixels_HWC), "png", self.size, self.size)


def phantom_labels(count: int, seed: int, like: Labels | None = None) -> Labels:
    """The levels of ``count`` phantoms, in invented slides of up to 64 tiles.

    Args:
        like: of the published attributes; every phantom has the levels of one of these tiles, so that levels and their combinations are
            as rare as there. By default all levels are equally frequent.

    Raises:
        ValueError: no tile of ``like`` has levels that phantoms show.
    """
    from data_shards.phantoms import render

    levels_NA = render.draw_levels(count, seed) if like is None else _levels_like(like, count, seed)
    of_a_slide = max(1, min(64, count // 10))
    columns = {
        "file": [f"{number:07d}" for number in range(count)],
        "key": [f"phantom-{number:07d}" for number in range(count)],
        "group": [f"phantoms-{number // of_a_slide:05d}" for number in range(count)],
        "where": [f"phantom {number}" for number in range(count)],
        "more": [""] * count,
    }
    return Labels(PUBLISHED, table_of(PUBLISHED, columns, levels_NA), [], grouped=True)


def _levels_like(like: Labels, count: int, seed: int) -> np.ndarray:
    """Rows of ``like`` drawn with replacement, of those whose attributes are all assessable; row k depends on ``seed`` and k only."""
    levels_NA = np.stack([like.table[name].to_numpy() for name in like.schema.names], axis=1)
    shown_NA = [np.isin(levels_N, attribute.assessable) for levels_N, attribute in zip(levels_NA.T, like.schema.attributes, strict=True)]
    levels_NA = levels_NA[np.all(shown_NA, axis=0)]
    if not len(levels_NA):
        raise ValueError("no tile has five assessable levels, which is what phantoms show")
    uniform_N = np.random.default_rng(seed).random(count)
    return levels_NA[(uniform_N * len(levels_NA)).astype(np.int64)]
