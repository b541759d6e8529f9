"""One tile inside a shard: its key, its two members, its checksum, and pixels from its bytes (what colours they have is in rgb.py).

A tile is ``{key}.{jpg|png|webp}``, the image as it came, and ``{key}.json`` with its levels by name, its group, the file that it was
made from, and under ``more`` what else the table said of it, such as its place on the slide. Which tiles there are and where they lie is in
index.py.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from data_shards.format.rgb import opened, to_rgb

EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}  # by Pillow's name of the format

# What Pillow raises on bytes that are no image, or only part of one.
DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error, Image.DecompressionBombError)


def key_of(file: str) -> str:
    """``a/b.c.jpg`` -> ``a/b_c``: WebDataset takes everything after the first dot of a name for the member's kind."""
    folder, slash, name = file.rpartition("/")
    stem, dot, _ = name.rpartition(".")
    return folder + slash + (stem if dot else name).replace(".", "_")


def checksum(data: bytes) -> int:
    """CRC-32 of a member's data: finds every damage of up to 32 bits in a row, and all but one in 2^32 of others."""
    return zlib.crc32(data)


def to_json(levels: Mapping[str, int | float | str], group: str, file: str, more: str) -> bytes:
    """The ``.json`` member of a tile.

    Args:
        levels: as `AttributeSchema.written` gives them.
        more: a JSON object of whatever else is known of the tile, or "".
    """
    entry: dict[str, Any] = {"levels": dict(levels), "file": file}
    if group:
        entry["group"] = group
    if more:
        entry["more"] = json.loads(more)
    return json.dumps(entry, ensure_ascii=False, sort_keys=True).encode()


def common_size(sizes: Iterable[tuple[int, int]]) -> int | None:
    """The width of images that are all squares of one size; None when they are not."""
    widths = {width if width == height else None for width, height in sizes}
    return widths.pop() if len(widths) == 1 else None


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of an ordinary JPEG, a tenth of the time that Pillow takes to tell; None for whatever else, which Pillow knows.

    ITU-T T.81, B.2: segments of marker, length and content; a start of frame has precision, height, width and number of components.
    """
    place = 2
    while data[:2] == b"\xff\xd8" and place + 10 <= len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker in (0xC0, 0xC1, 0xC2):
            height, width = struct.unpack_from(">HH", data, place + 5)
            is_ordinary = data[place + 4] == 8 and data[place + 9] in (1, 3) and 0 < width * height <= (Image.MAX_IMAGE_PIXELS or 0)
            return (width, height) if is_ordinary else None
        if not (marker in (0xC4, 0xDB, 0xDD, 0xFE) or 0xE0 <= marker <= 0xEF):
            return None
        place += 2 + length
    return None


class Crop(NamedTuple):
    """A square of an image: its side as a share of the shorter one, and its place among all from the left and the top, in [0, 1)."""

    share: float
    across: float
    down: float


def fit(image: Image.Image, size: int, crop: Crop | None = None) -> Image.Image:
    """A square of ``image``, else the largest centred one, resized to ``size`` pixels with Lanczos windows (no aliasing)."""
    width, height = image.size
    side = max(1, round((crop.share if crop else 1) * min(width, height)))
    spare_x, spare_y = width - side, height - side
    left, top = (int((spare_x + 1) * crop.across), int((spare_y + 1) * crop.down)) if crop else (spare_x // 2, spare_y // 2)
    box = (left, top, left + side, top + side)
    if side == size:
        return image if box == (0, 0, width, height) else image.crop(box)
    return image.resize((size, size), Image.Resampling.LANCZOS, box=box)


def decode(data: bytes, size: int | None = None, crop: Crop | None = None) -> np.ndarray:
    """The pixels of an image member, (size, size, 3) uint8; (H, W, 3) as they are without a size. Transparent ones are on white.

    Raises:
        any of `DECODING_ERRORS`: these bytes are not a whole image.
    """
    pixels_HWC = _fast_jpeg(data)
    if pixels_HWC is not None:
        if size is None or (crop is None and pixels_HWC.shape == (size, size, 3)):
            return pixels_HWC
        return np.asarray(fit(Image.fromarray(pixels_HWC), size, crop))
    with opened(data, tuple(EXTENSIONS)) as image:
        rgb = to_rgb(image)
        return np.asarray(rgb if size is None else fit(rgb, size, crop))


def _fast_jpeg(data: bytes) -> np.ndarray | None:
    """The pixels of an ordinary JPEG; None where Pillow, which forgives more, is to judge."""
    if not jpeg_size(data):
        return None
    try:
        return simplejpeg.decode_jpeg(data)  # the same pixels in four fifths of Pillow's time
    except ValueError:
        return None


def encode_png(pixels: np.ndarray | Image.Image) -> bytes:
    """A PNG of pixels (H, W, 3) uint8; the same bytes for the same pixels."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()
