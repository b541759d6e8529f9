"""Converts any image file to 8-bit RGB, or raises an error that says how to convert it.

Transparent pixels are composited on white, as `attributegan-shard tile` does with unscanned areas. 16-bit samples are divided by 256.
32-bit and floating-point samples have no defined range and are rejected. Orientation tags (EXIF) and colour profiles are not applied.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageCms, ImageSequence, TiffImagePlugin, UnidentifiedImageError

BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # tags of TIFF 6.0
WHITE_IS_ZERO = 0
CONVERT = "convert it to 8-bit RGB first, with an intensity range that suits the stain"


@contextmanager
def opened(data: bytes, formats: tuple[str, ...] | None = None) -> Iterator[Image.Image]:
    """Open an image from the bytes of a file.

    Raises:
        any of `tile.DECODING_ERRORS`: not an image, or an image that Pillow decodes wrongly.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError as error:  # its message names the stream instead of the file
        supported = "Pillow" if formats is None else ", ".join(formats)
        raise ValueError(f"{len(data):,} bytes in no supported image format ({supported})" if data else "the file is empty") from error
    with image:
        if image.mode == "RGB" and "transparency" in image.info and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())):
            raise ValueError(f"16-bit colour with a transparent value can't be decoded exactly; {CONVERT}")  # Pillow drops 8 bits
        yield image


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an open image to 8-bit RGB; returns ``image`` itself if it is RGB already.

    Raises:
        ValueError: 32-bit or floating-point samples.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _from_16_bits(image)
    if image.mode in ("I", "F"):
        raise ValueError(
            f"has {'floating-point' if image.mode == 'F' else '32-bit integer'} pixels without a defined range of values; {CONVERT}"
        )
    if image.mode == "LAB":
        image.load()
        return ImageCms.applyTransform(image, _lab_to_srgb())  # type: ignore[return-value]
    if is_transparent(image):
        return _on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def is_transparent(image: Image.Image) -> bool:
    """Returns whether an image has an alpha channel, or a palette or colour with transparency, even if all pixels are opaque."""
    if image.mode == "P":
        image.load()  # the transparency of some palettes is known only then
    return bool(image.has_transparency_data) or image.mode in ("La", "RGBa")


def is_plain(image: Image.Image) -> bool:
    """Returns whether every decoder gives the colours of `to_rgb`: at most 8 bits, and opaque."""
    if image.mode not in ("1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr"):
        return False
    return not is_transparent(image) or _alpha(image).getextrema() == (255, 255)


def check_one_picture(image: Image.Image) -> None:
    """Reject a file with several pages or frames, of which any could be the tile.

    Smaller images after the first (pyramids, thumbnails) and the second image of phone cameras (MPO) are allowed.

    Raises:
        ValueError: several pages or frames.
    """
    count = getattr(image, "n_frames", 1)
    if count < 2 or image.format == "MPO":
        return
    sizes = [frame.size for frame in ImageSequence.Iterator(image)]
    image.seek(0)
    if any(size >= sizes[0] for size in sizes[1:]):
        raise ValueError(f"has {count} pages or frames; save the tile as a separate file")


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert({"La": "LA"}.get(image.mode, "RGBA")).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _alpha(image: Image.Image) -> Image.Image:
    if "A" in image.getbands():
        return image.getchannel("A")
    return image.convert("RGBA").getchannel("A")


def _from_16_bits(image: Image.Image) -> Image.Image:
    bits, inverted = 16, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits, inverted = image.tag_v2.get(BITS_PER_SAMPLE, (16,))[0], image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO
    values_HW = np.asarray(image).astype(np.int64)
    grey_HW = (values_HW >> (bits - 8)).clip(0, 255).astype(np.uint8)
    if inverted:
        grey_HW = 255 - grey_HW
    if (transparent := image.info.get("transparency")) is not None:
        grey_HW = np.where(values_HW == transparent, np.uint8(255), grey_HW)
    return Image.fromarray(grey_HW).convert("RGB")


def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
