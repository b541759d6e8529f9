"""Slides that are no whole-slide format: one large JPEG, PNG or TIFF, OME-TIFF, and Deep Zoom.

Images are decoded whole, once in each process: 3 bytes of memory for a pixel. Owns no resampling; tiling.py reads regions.
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

LARGEST = 2_200_000_000  # pixels; a section at 0.25 um has up to 2 gigapixels
DESCRIPTION = 270  # tag of TIFF that has the XML of OME
MPP = ("openslide.mpp-x", "openslide.mpp-y")
DZI = ".dzi"


def open_plain(path: Path) -> Any:
    """An object with the interface of `openslide.AbstractSlide`.

    Raises:
        ValueError: not such an image, or one that can't be read; says why.
    """
    return _DeepZoom(path) if path.suffix.lower() == DZI else _opened(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)  # the places of one slide are cut one after the other
def _opened(path: Path, changed: int) -> Any:
    from openslide import ImageSlide

    try:
        image, says = _decoded(path)
    except DECODING_ERRORS as error:
        raise ValueError(str(error)) from error

    class OneImage(ImageSlide):
        properties = says

        def close(self) -> None:
            """Keep the pixels for the next places."""

    return OneImage(image)


def _decoded(path: Path) -> tuple[Image.Image, dict[str, str]]:
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, LARGEST
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
    """Pillow's reading, or tifffile's of what Pillow doesn't know."""
    try:
        with rgb.opened(data) as image:
            rgb.check_one_picture(image)
            described = image.tag_v2.get(DESCRIPTION, "")  # type: ignore[attr-defined]
            return _loaded(image), _mpp(str(described))
    except DECODING_ERRORS as error:
        try:
            import tifffile
        except ImportError:
            raise ValueError(f"{error}; tifffile may read it: pip install 'attributegan[slides]'") from error
    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            pixels, axes, described = series.levels[0].asarray(), series.axes, file.ome_metadata or ""
    except Exception as error:  # tifffile raises many kinds
        raise ValueError(f"tifffile: {error}") from error
    return Image.fromarray(_as_rgb(pixels, axes)), _mpp(described)


def _as_rgb(pixels: np.ndarray, axes: str) -> np.ndarray:
    """(H, W, 3) uint8 of an array with the axes that tifffile names."""
    for axis in [axis for axis in axes if axis not in "YXSC"]:
        if pixels.shape[axes.index(axis)] != 1:
            raise ValueError(f"has {pixels.shape[axes.index(axis)]} planes along {axis}; save one as a file of its own")
        pixels, axes = pixels.squeeze(axes.index(axis)), axes.replace(axis, "")
    if "S" in axes and "C" in axes and pixels.shape[axes.index("C")] == 1:
        pixels, axes = pixels.squeeze(axes.index("C")), axes.replace("C", "")
    if "S" not in axes and "C" not in axes:
        pixels, axes = np.stack([pixels] * 3, axis=-1), f"{axes}S"
    channel = axes.index("S" if "S" in axes else "C")
    pixels = np.moveaxis(pixels, channel, -1)
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"has the axes {axes} of {'x'.join(map(str, pixels.shape))}, and not red, green and blue")
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(f"has {pixels.dtype} for pixels; {rgb.CONVERT}")
    return np.ascontiguousarray(pixels)


def _loaded(image: Image.Image) -> Image.Image:
    image.load()
    return rgb.to_rgb(image).copy()


def _mpp(described: str) -> dict[str, str]:
    """Micrometres per pixel that the XML of OME says, under openslide's names; {} without them."""
    found = {}
    for axis, name in zip("XY", MPP, strict=True):
        size, unit = (re.search(rf'PhysicalSize{axis}{of}="([^"]+)"', described) for of in ("", "Unit"))
        if size and (unit is None or unit[1] in ("µm", "μm", "um", "micrometer")):
            found[name] = size[1]
    return found if len(found) == len(MPP) else {}


class _DeepZoom:
    """A Deep Zoom image: ``NAME.dzi``, and its tiles in ``NAME_files/LEVEL/COLUMN_ROW.jpg``."""

    def __init__(self, path: Path) -> None:
        try:
            tree = ElementTree.fromstring(path.read_bytes())  # noqa: S314  # without external entities, which expat has off
            size = next(part for part in tree if part.tag.endswith("Size"))
            self.width, self.height = int(size.attrib["Width"]), int(size.attrib["Height"])
            self.tile, self.overlap, self.suffix = int(tree.attrib["TileSize"]), int(tree.attrib["Overlap"]), tree.attrib["Format"]
        except (OSError, ElementTree.ParseError, StopIteration, KeyError, ValueError) as error:
            raise ValueError(f"not a Deep Zoom image: {error}") from error
        if not (self.tile > 0 and self.overlap >= 0 and self.width * self.height > 0 and self.suffix.isalnum()):
            raise ValueError("not a Deep Zoom image: sizes that can't be")
        self.folder, self.properties = path.with_name(f"{path.stem}_files"), dict[str, str]()
        self.highest = math.ceil(math.log2(max(self.width, self.height, 1)))
        levels = [down for down in range(self.highest + 1) if (self.folder / str(self.highest - down)).is_dir()]
        if not levels or levels[0] != 0:
            raise ValueError(f"{self.folder}: has no tiles in full resolution, which would be in {self.highest}")
        self._levels = levels[: next((k for k, down in enumerate(levels) if down != k), len(levels))]
        self.level_downsamples = [float(2**down) for down in self._levels]
        self.level_dimensions = [(-(-self.width // 2**down), -(-self.height // 2**down)) for down in self._levels]
        self.dimensions = (self.width, self.height)
        self._read: Callable[[int, int, int], Image.Image] = lru_cache(64)(self._tile)

    def close(self) -> None:
        """Nothing is open."""

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        """RGBA pixels of a level from ``location`` on, in level-0 pixels; what is outside is transparent."""
        left, top = (round(at / self.level_downsamples[level]) for at in location)
        region = Image.new("RGBA", size)
        width, height = self.level_dimensions[level]
        right, bottom = min(left + size[0], width), min(top + size[1], height)
        for row in range(max(0, top) // self.tile, -(-bottom // self.tile)):
            for column in range(max(0, left) // self.tile, -(-right // self.tile)):
                tile = self._read(level, column, row)
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
