"""Any image file as 8-bit RGB, or a refusal that says how to convert it.

Transparent pixels are composited on white, as `attributegan-shard tile` does with what was never scanned. 16-bit samples are divided by
256. 32-bit and floating-point samples have no range of their own and are refused. Orientation tags (EXIF) and colour profiles are not
applied.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageCms, ImageSequence, TiffImagePlugin, UnidentifiedImageError

BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # tags of TIFF 6.0
WHITE_IS_ZERO = 0
CONVERT = "convert it to 8-bit RGB first, with the range of values that the stain needs"


@contextmanager
def opened(data: bytes, formats: tuple[str, ...] | None = None) -> Iterator[Image.Image]:
    """An image from the bytes of a file; any of `format.DECODING_ERRORS` when it is none, or one that Pillow reads wrong."""
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError as error:  # which names the stream and not the file
        known = "that Pillow reads" if formats is None else f"of a kind that shards hold ({', '.join(formats)})"
        raise ValueError(f"the {len(data):,} bytes are not an image {known}" if data else "the file is empty") from error
    with image:
        if image.mode == "RGB" and "transparency" in image.info and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())):
            raise ValueError(f"16-bit colour of which one value is transparent can't be read exactly; {CONVERT}")  # Pillow halves the bits
        yield image


def to_rgb(image: Image.Image) -> Image.Image:
    """The pixels of an open image as 8-bit RGB; ``image`` itself when it is that already.

    Raises:
        ValueError: samples of 32 bits or floats.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _from_16_bits(image)
    if image.mode in ("I", "F"):
        raise ValueError(
            f"has {'floating-point numbers' if image.mode == 'F' else 'whole numbers of more than 16 bits'} for pixels, and "
            f"nothing says which is black and which white; {CONVERT}"
        )
    if image.mode == "LAB":
        image.load()
        return ImageCms.applyTransform(image, _lab_to_srgb())  # type: ignore[return-value]
    if is_transparent(image):
        return _on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def is_transparent(image: Image.Image) -> bool:
    """Whether an image has a channel, a palette or a colour of transparency, opaque ones too."""
    if image.mode == "P":
        image.load()  # some palettes say it only then
    return bool(image.has_transparency_data) or image.mode in ("La", "RGBa")


def is_plain(image: Image.Image) -> bool:
    """Whether every reader sees the colours that `to_rgb` gives: 8 bits or fewer, and opaque."""
    if image.mode not in ("1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr"):
        return False
    return not is_transparent(image) or _alpha(image).getextrema() == (255, 255)


def check_one_picture(image: Image.Image) -> None:
    """Refuse a file of several pictures, of which none is the tile more than the others.

    Smaller ones beside the first, as pyramids and thumbnails are, and the second picture of a phone (MPO) are no such case.

    Raises:
        ValueError: says how many there are.
    """
    count = getattr(image, "n_frames", 1)
    if count < 2 or image.format == "MPO":
        return
    sizes = [frame.size for frame in ImageSequence.Iterator(image)]
    image.seek(0)
    if any(size >= sizes[0] for size in sizes[1:]):
        raise ValueError(f"has {count} pages or frames; save the one that is the tile as a file of its own")


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
