"""Slides in ordinary image formats: one large JPEG, PNG or TIFF, OME-TIFF, and Deep Zoom.

Images are decoded completely, once in each process, with 3 bytes of memory per pixel. Resampling is in slide.py.
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_shards.format import intact, rgb
from data_shards.format.tile import DECODING_ERRORS

MAX_PIXELS = 2_200_000_000  # pixels; a section at 0.25 um has up to 2 gigapixels
DESCRIPTION = 270  # TIFF tag with the XML of OME
MPP = ("openslide.mpp-x", "openslide.mpp-y")
DZI = ".dzi"


def open_plain(path: Path) -> Any:
    """Open an image with the interface of `openslide.AbstractSlide`.

    Raises:
        ValueError: not a supported image, or unreadable.
    """
    return _DeepZoom(path) if path.suffix.lower() == DZI else _opened(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)  # the tiles of one slide are cut consecutively
def _opened(path: Path, changed: int) -> Any:
    from openslide import ImageSlide

    try:
        image, found = _decoded(path)
    except DECODING_ERRORS as error:
        raise ValueError(str(error)) from error

    class OneImage(ImageSlide):
        properties = found

        def close(self) -> None:
            """Keep the pixels for the next tiles."""

    return OneImage(image)


def _decoded(path: Path) -> tuple[Image.Image, dict[str, str]]:
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MAX_PIXELS
    try:
        data = path.read_bytes()
        if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return _tiff(path, data)
        intact.check(data)
        with rgb.opened(data) as image:
            rgb.check_one_picture(image)
            return _loaded(image), {}
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _tiff(path: Path, data: bytes) -> tuple[Image.Image, dict[str, str]]:
    """Decode a TIFF with Pillow, or with tifffile if Pillow does not support it."""
    try:
        with rgb.opened(data) as image:
            rgb.check_one_picture(image)
            description = image.tag_v2.get(DESCRIPTION, "")  # type: ignore[attr-defined]
            return _loaded(image), _mpp(str(description))
    except DECODING_ERRORS as error:
        try:
            import tifffile
        except ImportError:
            raise ValueError(f"{error}; tifffile may be able to read it: pip install 'attributegan[slides]'") from error
    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            pixels, axes, description = series.levels[0].asarray(), series.axes, file.ome_metadata or ""
    except Exception as error:  # tifffile raises many types
        raise ValueError(f"tifffile: {error}") from error
    return Image.fromarray(_as_rgb(pixels, axes)), _mpp(description)


def _as_rgb(pixels: np.ndarray, axes: str) -> np.ndarray:
    """Convert an array with axes named by tifffile to (H, W, 3) uint8."""
    for axis in [axis for axis in axes if axis not in "YXSC"]:
        if pixels.shape[axes.index(axis)] != 1:
            raise ValueError(f"has {pixels.shape[axes.index(axis)]} planes along {axis}; save one as a separate file")
        pixels, axes = pixels.squeeze(axes.index(axis)), axes.replace(axis, "")
    if "S" in axes and "C" in axes and pixels.shape[axes.index("C")] == 1:
        pixels, axes = pixels.squeeze(axes.index("C")), axes.replace("C", "")
    if "S" not in axes and "C" not in axes:
        pixels, axes = np.stack([pixels] * 3, axis=-1), f"{axes}S"
    channel = axes.index("S" if "S" in axes else "C")
    pixels = np.moveaxis(pixels, channel, -1)
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"has axes {axes} of shape {'x'.join(map(str, pixels.shape))}, expected red, green and blue")
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(f"has {pixels.dtype} pixels; {rgb.CONVERT}")
    return np.ascontiguousarray(pixels)


def _loaded(image: Image.Image) -> Image.Image:
    image.load()
    return rgb.to_rgb(image).copy()


def _mpp(description: str) -> dict[str, str]:
    """Returns the micrometres per pixel in OME's XML under openslide's property names; {} if missing."""
    found = {}
    for axis, name in zip("XY", MPP, strict=True):
        size, unit = (re.search(rf'PhysicalSize{axis}{of}="([^"]+)"', description) for of in ("", "Unit"))
        if size and (unit is None or unit[1] in ("µm", "μm", "um", "micrometer")):
            found[name] = size[1]
    return found if len(found) == len(MPP) else {}


class _DeepZoom:
    """A Deep Zoom image: ``NAME.dzi``, and its tiles in ``NAME_files/LEVEL/COLUMN_ROW.jpg``."""

    def __init__(self, path: Path) -> None:
        try:
            tree = ElementTree.fromstring(path.read_bytes())  # noqa: S314  # expat does not load external entities
            size = next(part for part in tree if part.tag.endswith("Size"))
            self.width, self.height = int(size.attrib["Width"]), int(size.attrib["Height"])
            self.tile, self.overlap, self.suffix = int(tree.attrib["TileSize"]), int(tree.attrib["Overlap"]), tree.attrib["Format"]
        except (OSError, ElementTree.ParseError, StopIteration, KeyError, ValueError) as error:
            raise ValueError(f"not a Deep Zoom image: {error}") from error
        if not (self.tile > 0 and self.overlap >= 0 and self.width * self.height > 0 and self.suffix.isalnum()):
            raise ValueError("not a Deep Zoom image: invalid sizes")
        self.folder, self.properties = path.with_name(f"{path.stem}_files"), dict[str, str]()
        self.highest = math.ceil(math.log2(max(self.width, self.height, 1)))
        levels = [down for down in range(self.highest + 1) if (self.folder / str(self.highest - down)).is_dir()]
        if not levels or levels[0] != 0:
            raise ValueError(f"{self.folder}: no tiles in full resolution, expected in the folder {self.highest}")
        self._levels = levels[: next((k for k, down in enumerate(levels) if down != k), len(levels))]
        self.level_downsamples = [float(2**down) for down in self._levels]
        self.level_dimensions = [(-(-self.width // 2**down), -(-self.height // 2**down)) for down in self._levels]
        self.dimensions = (self.width, self.height)
        self._cached_tile: Callable[[int, int, int], Image.Image] = lru_cache(64)(self._tile)

    def close(self) -> None:
        """Does nothing; no file is kept open."""

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        """Read RGBA pixels of a level at ``location`` (level-0 pixels); pixels outside the slide are transparent."""
        left, top = (round(start / self.level_downsamples[level]) for start in location)
        region = Image.new("RGBA", size)
        width, height = self.level_dimensions[level]
        right, bottom = min(left + size[0], width), min(top + size[1], height)
        for row in range(max(0, top) // self.tile, -(-bottom // self.tile)):
            for column in range(max(0, left) // self.tile, -(-right // self.tile)):
                tile = self._cached_tile(level, column, row)
                inner = (self.overlap if column else 0, self.overlap if row else 0)
                tile = tile.crop((*inner, min(inner[0] + self.tile, tile.width), min(inner[1] + self.tile, tile.height)))
                region.paste(tile, (column * self.tile - left, row * self.tile - top))
        return region

    def _tile(self, level: int, column: int, row: int) -> Image.Image:
        path = self.folder / str(self.highest - level) / f"{column}_{row}.{self.suffix}"
        try:
            data = path.read_bytes()
            intact.check(data)
            with rgb.opened(data) as image:
                return _loaded(image)
        except DECODING_ERRORS as error:
            raise ValueError(f"{path}: {error}") from error
