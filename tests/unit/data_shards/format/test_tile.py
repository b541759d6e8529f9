"""One tile: names, JSON, sizes, crops and pixels."""

from __future__ import annotations

import io
import json
import struct

import numpy as np
import pytest
from PIL import Image

from data_shards.format import tile
from data_shards.format.tile import Crop


@pytest.mark.parametrize(
    ("file", "key"),
    [("a/b.c.jpg", "a/b_c"), ("a.b/c", "a.b/c"), ("c.png", "c"), ("a/.hidden", "a/"), ("x.y.z.png", "x_y_z"), ("plain", "plain")],
)
def test_keys_have_no_dot_in_their_name(file: str, key: str) -> None:
    assert tile.key_of(file) == key


def test_json_of_a_tile_has_what_is_known() -> None:
    assert tile.to_json({"b": 1, "a": 0}, "", "é.png", "") == '{"file": "é.png", "levels": {"a": 0, "b": 1}}'.encode()
    tree = json.loads(tile.to_json({"a": 0}, "s1", "f", '{"age": 7}'))
    assert tree == {"levels": {"a": 0}, "group": "s1", "file": "f", "more": {"age": 7}}


def test_checksum_is_crc_32() -> None:
    assert tile.checksum(b"123456789") == 0xCBF43926


@pytest.mark.parametrize(
    ("sizes", "width"), [([(4, 4), (4, 4)], 4), ([(4, 4), (5, 5)], None), ([(4, 5), (4, 5)], None), ([], None), ([(4, 4), (4, 5)], None)]
)
def test_common_size_is_that_of_squares(sizes: list[tuple[int, int]], width: int | None) -> None:
    assert tile.common_size(sizes) == width


def jpeg(
    height: int = 5,
    width: int = 7,
    *,
    before: bytes = b"",
    start: int = 0xC0,
    precision: int = 8,
    components: int = 3,
    after: bytes = b"\0",
) -> bytes:
    """The start of a JPEG: segments, a start of frame up to its number of components, and one more byte."""
    frame = struct.pack(">BHHB", precision, height, width, components)
    return b"\xff\xd8" + before + bytes([0xFF, start]) + struct.pack(">H", 2 + len(frame)) + frame + after


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", 2 + len(content)) + content


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (jpeg(), (7, 5)),
        (jpeg(300, 513, start=0xC2, components=1), (513, 300)),
        (jpeg(start=0xC1), (7, 5)),
        (jpeg(before=segment(0xE0, b"JFIF") + segment(0xDB, bytes(65)) + segment(0xC4, b"x") + segment(0xDD, b"")), (7, 5)),
        (jpeg(before=segment(0xFE, b"a comment")), (7, 5)),
        (jpeg(before=segment(0xEF, b"a" * 1000)), (7, 5)),
        (jpeg(after=b""), (7, 5)),  # everything that is read is present
        (jpeg(after=b"")[:-1], None),
        (jpeg(start=0xC3), None),
        (jpeg(before=segment(0xF0, b"")), None),
        (jpeg(before=segment(0xDF, b"")), None),
        (jpeg(precision=12), None),
        (jpeg(components=4), None),
        (jpeg(components=2), None),
        (jpeg(width=0), None),
        (jpeg(height=0), None),
        (b"\xff\xd9" + jpeg()[2:], None),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), None),
        (b"", None),
        (jpeg(before=b"\0\0\0\0"), None),
    ],
)
def test_size_of_a_jpeg(data: bytes, size: tuple[int, int] | None) -> None:
    assert tile.jpeg_size(data) == size


def test_size_of_a_jpeg_has_the_limit_of_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    for most, size in ((35, (7, 5)), (34, None), (None, None)):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        assert tile.jpeg_size(jpeg()) == size


def numbered(width: int, height: int) -> Image.Image:
    """Red encodes the column and green the row."""
    rows, columns = np.indices((height, width))
    return Image.fromarray(np.stack([columns, rows, np.zeros_like(rows)], axis=2).astype(np.uint8))


@pytest.mark.parametrize(
    ("crop", "left", "top", "side"),
    [
        (None, 3, 0, 10),  # 3 of the 7 spare columns are on the left
        (Crop(1.0, 0.0, 0.0), 0, 0, 10),
        (Crop(1.0, 0.999, 0.999), 7, 0, 10),
        (Crop(0.5, 0.5, 0.999), 6, 5, 5),
        (Crop(0.44, 0.0, 0.5), 0, 3, 4),
        (Crop(0.01, 0.0, 0.0), 0, 0, 1),
    ],
)
def test_squares_of_an_image(crop: Crop | None, left: int, top: int, side: int) -> None:
    found = np.asarray(tile.fit(numbered(17, 10), side, crop))
    assert np.array_equal(found, np.asarray(numbered(17, 10))[top : top + side, left : left + side])
    larger = tile.fit(numbered(17, 10), 2 * side, crop)
    assert larger.size == (2 * side, 2 * side)
    expected = numbered(17, 10).resize((2 * side, 2 * side), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
    assert np.array_equal(np.asarray(larger), np.asarray(expected))


def test_upright_images_are_cropped_above_and_below() -> None:
    for height, top in ((9, 1), (10, 2), (12, 3)):
        assert np.asarray(tile.fit(numbered(6, height), 6))[0, 0].tolist() == [0, top, 0]
    image = numbered(6, 6)
    assert tile.fit(image, 6) is image


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_pixels_of_every_kind() -> None:
    image = numbered(24, 16)
    for kind, options, tolerance in (("PNG", {}, 0), ("WEBP", {"lossless": True}, 0), ("JPEG", {"quality": 98, "subsampling": 0}, 6)):
        data = encoded(image, kind, **options)
        for size, crop in ((None, None), (16, None), (8, None), (16, Crop(1.0, 0.999, 0.0)), (24, None)):
            expected = np.asarray(image if size is None else tile.fit(image, size, crop)).astype(int)
            found = tile.decode(data, size, crop)
            assert found.shape == expected.shape and found.dtype == np.uint8
            assert abs(found.astype(int) - expected).max() <= tolerance, (kind, size, crop)
        square = encoded(numbered(16, 16), kind, **options)
        assert tile.decode(square, 16, Crop(0.5, 0.0, 0.0)).max() < 16 and tile.decode(square, 16).shape == (16, 16, 3)
    grey = tile.decode(encoded(Image.new("L", (4, 4), 9), "PNG"))
    assert grey.shape == (4, 4, 3) and (grey == 9).all()


def test_fast_decoding_is_for_whole_ordinary_jpegs(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("simplejpeg", reason="in the extra `fast`")
    data = encoded(numbered(16, 16), "JPEG")
    assert tile._fast_jpeg(data) is not None
    assert tile._fast_jpeg(encoded(Image.new("CMYK", (8, 8)), "JPEG")) is None
    assert tile._fast_jpeg(jpeg()) is None  # no image data: Pillow must raise the error
    assert tile._fast_jpeg(encoded(numbered(4, 4), "PNG")) is None


def test_png_has_the_same_bytes_for_the_same_pixels() -> None:
    image = numbered(8, 8)
    assert tile.encode_png(np.asarray(image)) == tile.encode_png(image)
    assert np.array_equal(tile.decode(tile.encode_png(image)), np.asarray(image))


def test_size_of_a_jpeg_of_one_pixel() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (1, 1)).save(stream, "JPEG")
    assert tile.jpeg_size(stream.getvalue()) == (1, 1)
