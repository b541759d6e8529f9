"""Whole-slide images: opening, resolution, and reading a region at a given resolution without aliasing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from data_shards.ingest import plain_slides

SCANNER_MPP = (0.05, 20.0)  # um per pixel; values outside are resolutions of screens or printers
BLOCK = 2048  # side of the blocks read, in pixels


class Slide:
    """A whole-slide image, open for reading.

    Args:
        mpp: micrometres per pixel, for slides without resolution metadata.

    Attributes:
        mpp_XY: micrometres per level-0 pixel.
        bounds: left, top, width, height of the scanned area, in level-0 pixels.

    Raises:
        ValueError: not a slide, unknown resolution, or openslide is not installed.
    """

    def __init__(self, path: Path, mpp: float | None = None) -> None:
        try:
            import openslide
        except ImportError as error:
            raise ValueError(f"cutting slides requires openslide: pip install 'attributegan[slides]' ({error})") from error
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
        try:
            self._slide = openslide.OpenSlide(path)
        except openslide.OpenSlideUnsupportedFormatError as error:
            self._slide = _open_plain(path, error)
        except openslide.OpenSlideError as error:
            raise ValueError(f"{path}: not a slide supported by openslide: {error}") from error
        self.path, self._error = path, openslide.OpenSlideError
        properties = self._slide.properties
        self._background = f"#{properties.get('openslide.background-color', 'ffffff')}"
        width, height = self._slide.dimensions
        bounds = (("x", 0), ("y", 0), ("width", width), ("height", height))
        self.bounds = tuple(int(properties.get(f"openslide.bounds-{name}", default)) for name, default in bounds)
        self.has_mpp = all(is_scanner_mpp(properties.get(f"openslide.mpp-{axis}")) for axis in "xy")
        if self.has_mpp:
            self.mpp_XY = (float(properties["openslide.mpp-x"]), float(properties["openslide.mpp-y"]))
        elif mpp is not None:
            self.mpp_XY = (mpp, mpp)
        else:
            given = properties.get("openslide.mpp-x")
            problem = f"implausible {given} um per pixel in its metadata" if given else "no um per pixel in its metadata"
            self.close()
            raise ValueError(f"{path}: {problem}; set it with --slide-mpp (most 40x scans have 0.25)")

    def close(self) -> None:
        self._slide.close()

    def read(self, x: float, y: float, width: float, height: float, size: tuple[int, int]) -> Image.Image:
        """Read the box at ``x``, ``y`` (level-0 pixels) as an RGB image of ``size`` pixels.

        Reads the smallest level with enough resolution, and resamples with Lanczos windows as wide as the reduction requires (no aliasing).

        Raises:
            ValueError: the slide is damaged in this region.
        """
        scale = min(width / size[0], height / size[1])
        level = max(number for number, down in enumerate(self._slide.level_downsamples) if number == 0 or down <= scale * 1.01)
        down = self._slide.level_downsamples[level]
        shrink = max(1, int(scale / down / 3))  # averaging before Lanczos bounds memory; a factor of 3 is accurate enough
        margin = 3 * max(width / size[0], height / size[1]) / down + shrink
        spans = [(x / down, (x + width) / down), (y / down, (y + height) / down)]
        starts = [max(0, math.floor(first - margin)) for first, _ in spans]
        ends = [min(limit, math.ceil(last + margin)) for (_, last), limit in zip(spans, self._slide.level_dimensions[level], strict=True)]
        image = self._shrunk(level, starts, ends, shrink)
        box = [(spans[axis][side] - starts[axis]) / shrink for side in (0, 1) for axis in (0, 1)]
        box[2:] = [
            min(edge, limit) for edge, limit in zip(box[2:], image.size, strict=True)
        ]  # clips less than a pixel, at the slide's edge
        return image.resize(size, Image.Resampling.LANCZOS, box=(box[0], box[1], box[2], box[3]))

    def _shrunk(self, level: int, starts: Sequence[int], ends: Sequence[int], shrink: int) -> Image.Image:
        """Read pixels of a level in blocks, averaged over ``shrink`` x ``shrink``."""
        image = Image.new("RGB", (-(-(ends[0] - starts[0]) // shrink), -(-(ends[1] - starts[1]) // shrink)))
        step = shrink * max(1, BLOCK // shrink)
        down = self._slide.level_downsamples[level]
        for top, left in itertools.product(range(starts[1], ends[1], step), range(starts[0], ends[0], step)):
            size = (min(step, ends[0] - left), min(step, ends[1] - top))
            try:
                block = self._slide.read_region((round(left * down), round(top * down)), level, size)
            except self._error as error:
                raise ValueError(f"{self.path}: damaged at x {round(left * down)}, y {round(top * down)}: {error}") from error
            opaque = Image.new("RGB", size, self._background)  # unscanned areas are transparent
            opaque.paste(block, mask=block.getchannel("A"))
            image.paste(opaque.reduce(shrink), ((left - starts[0]) // shrink, (top - starts[1]) // shrink))
        return image


def _open_plain(path: Path, error: Exception) -> Any:
    """Open an image in an ordinary format; ValueError if it is not an image either."""
    try:
        return plain_slides.open_plain(path)
    except ValueError as plain_error:
        unknown = "Unsupported or missing image file" in str(error)
        raise ValueError(f"{path}: not a slide supported by openslide: {'unknown format' if unknown else error}; {plain_error}") from error


def is_scanner_mpp(text: str | float | None) -> bool:
    """Returns whether a value, or its text, is a plausible resolution of a scanner in um per pixel."""
    return text is not None and SCANNER_MPP[0] <= float(text) <= SCANNER_MPP[1]
