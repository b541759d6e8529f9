"""One tile inside a shard: its key, its two members, its checksum, and decoding (colour conversion is in rgb.py).

A tile is ``{key}.{jpg|png|webp}``, the original image, and ``{key}.json`` with its levels by attribute name, its group, its source file,
and under ``more`` the other columns of the table, such as its position on the slide. The list of tiles and their offsets is in index.py.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from data_shards.format.rgb import opened, to_rgb

EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}  # by Pillow's format name

# Errors that Pillow raises for bytes that are not an image, or only part of one.
DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error, Image.DecompressionBombError)


def key_of(file: str) -> str:
    """Returns a file's key: ``a/b.c.jpg`` -> ``a/b_c``. WebDataset takes everything after the first dot of a name as the extension."""
    folder, slash, name = file.rpartition("/")
    stem, dot, _ = name.rpartition(".")
    return folder + slash + (stem if dot else name).replace(".", "_")


def checksum(data: bytes) -> int:
    """Returns the CRC-32 of a member's data, which detects every burst error of up to 32 bits and all but 1 in 2^32 others."""
    return zlib.crc32(data)


def to_json(levels: Mapping[str, int | float | str], group: str, file: str, more: str) -> bytes:
    """Returns the ``.json`` member of a tile.

    Args:
        levels: as returned by `AttributeSchema.written`.
        more: other metadata of the tile as a JSON object, or "".
    """
    entry: dict[str, Any] = {"levels": dict(levels), "file": file}
    if group:
        entry["group"] = group
    if more:
        entry["more"] = json.loads(more)
    return json.dumps(entry, ensure_ascii=False, sort_keys=True).encode()


def common_size(sizes: Iterable[tuple[int, int]]) -> int | None:
    """Returns the width if all images are squares of one size, else None."""
    widths = {width if width == height else None for width, height in sizes}
    return widths.pop() if len(widths) == 1 else None


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Returns width and height of a common JPEG, in a tenth of Pillow's time; None for other data, which Pillow must read.

    ITU-T T.81, B.2: segments of marker, length and content; a start of frame has precision, height, width and number of components.
    """
    offset = 2
    while data[:2] == b"\xff\xd8" and offset + 10 <= len(data) and data[offset] == 0xFF:
        marker, length = data[offset + 1], int.from_bytes(data[offset + 2 : offset + 4], "big")
        if marker in (0xC0, 0xC1, 0xC2):
            height, width = struct.unpack_from(">HH", data, offset + 5)
            is_common = data[offset + 4] == 8 and data[offset + 9] in (1, 3) and 0 < width * height <= (Image.MAX_IMAGE_PIXELS or 0)
            return (width, height) if is_common else None
        if not (marker in (0xC4, 0xDB, 0xDD, 0xFE) or 0xE0 <= marker <= 0xEF):
            return None
        offset += 2 + length
    return None


class Crop(NamedTuple):
    """A square crop: its side as a share of the image's shorter side, and its position from left and top among all, in [0, 1)."""

    share: float
    across: float
    down: float


def fit(image: Image.Image, size: int, crop: Crop | None = None) -> Image.Image:
    """Crop ``image`` to ``crop`` (default: the largest centred square) and resize it to ``size`` pixels by Lanczos (no aliasing)."""
    width, height = image.size
    side = max(1, round((crop.share if crop else 1) * min(width, height)))
    spare_x, spare_y = width - side, height - side
    left, top = (int((spare_x + 1) * crop.across), int((spare_y + 1) * crop.down)) if crop else (spare_x // 2, spare_y // 2)
    box = (left, top, left + side, top + side)
    if side == size:
        return image if box == (0, 0, width, height) else image.crop(box)
    return image.resize((size, size), Image.Resampling.LANCZOS, box=box)


def decode(data: bytes, size: int | None = None, crop: Crop | None = None) -> np.ndarray:
    """Decode an image member to (size, size, 3) uint8, or (H, W, 3) if ``size`` is None. Transparent pixels are composited on white.

    Raises:
        any of `DECODING_ERRORS`: not a complete image.
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
    """Decode a common JPEG; None where Pillow, which is more tolerant, must decode."""
    if not jpeg_size(data):
        return None
    import simplejpeg  # not needed for other formats

    try:
        pixels_HWC: np.ndarray = simplejpeg.decode_jpeg(data)  # the same pixels in 4/5 of Pillow's time
    except ValueError:
        return None
    return pixels_HWC


def encode_png(pixels: np.ndarray | Image.Image) -> bytes:
    """Encode pixels (H, W, 3) uint8 as PNG; deterministic."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()
