"""Detects truncated, zero-padded and damaged image files, which many decoders accept and show as grey or stripes.

JPEGs are decoded by libjpeg-turbo with warnings as errors, PNGs are checked by their checksums, other formats by decoding.
"""

from __future__ import annotations

import zlib

from PIL import Image

from data_shards.format.rgb import opened

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by PNG colour type
ZEROS = 1 / 8  # minimum share of zeros at the end of a truncated WebP; large blank ones have 1/20
DAMAGED = "is truncated or damaged"


def check(data: bytes) -> None:
    """Check that an image file is complete.

    Raises:
        ValueError: the file is truncated or damaged; or another of `tile.DECODING_ERRORS`.
    """
    if data[:2] == b"\xff\xd8" and _check_jpeg(data):
        return
    if data.startswith(PNG_SIGNATURE) and _check_png(data):
        return
    with opened(data) as image:
        if image.format == "WEBP" and len(data) < int.from_bytes(data[4:8], "little") + 8:
            raise ValueError(
                f"the WebP {DAMAGED}: has {len(data):,} bytes, but its header says {int.from_bytes(data[4:8], 'little') + 8:,}"
            )
        if image.format == "WEBP" and len(data.rstrip(b"\0")) < len(data) * (1 - ZEROS):
            raise ValueError(f"the WebP {DAMAGED}: ends in zeros")
        image.load()


def _check_jpeg(data: bytes) -> bool:
    """Returns True for a complete JPEG; False for a JPEG that only Pillow supports."""
    import simplejpeg  # not needed for other formats

    try:
        _, _, colours, _ = simplejpeg.decode_jpeg_header(data)
        simplejpeg.decode_jpeg(data, "CMYK" if colours in ("CMYK", "YCCK") else "GRAY", min_height=1, min_width=1, min_factor=8)
    except ValueError as error:
        if "remature end" in str(error) or "orrupt JPEG" in str(error):
            raise ValueError(f"the JPEG {DAMAGED}: {error}") from error
        return False
    return True


def _check_png(data: bytes) -> bool:
    """Returns True for a complete PNG; False for an interlaced or very large one, which Pillow must check."""
    pixels, at = [], len(PNG_SIGNATURE)
    kind = b""
    while kind != b"IEND":
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        content, at = data[at + 8 : at + 8 + length], at + 12 + length
        if at > len(data):
            raise ValueError(f"the PNG {DAMAGED}: ends inside a chunk")
        if zlib.crc32(content, zlib.crc32(kind)) != int.from_bytes(data[at - 4 : at], "big"):
            raise ValueError(f"the PNG {DAMAGED}: wrong chunk checksum")
        if kind == b"IDAT":
            pixels.append(content)
    width, height, bits, colours = (int.from_bytes(data[first:last], "big") for first, last in ((16, 20), (20, 24), (24, 25), (25, 26)))
    expected = height * (1 + (width * bits * CHANNELS.get(colours, 0) + 7) // 8)
    if data[28] or not 0 < width * height <= (Image.MAX_IMAGE_PIXELS or 0):  # Pillow decodes interlaced ones and refuses very large ones
        return False
    inflating = zlib.decompressobj()
    found = len(inflating.decompress(b"".join(pixels), expected))
    if found < expected:
        raise ValueError(f"the PNG {DAMAGED}: has {found:,} of {expected:,} bytes of pixels")
    inflating.decompress(inflating.unconsumed_tail, 64)  # zlib's own checksum
    if not inflating.eof:
        raise ValueError(f"the PNG {DAMAGED}: its compressed data have no end")
    return True
