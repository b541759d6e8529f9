"""Images of all kinds are read as their format defines, composited on white where transparent, or rejected."""

from __future__ import annotations

import io
import logging
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from shards import pixels_of, rows_of, write_csv

from data_shards.format import index, intact, rgb, tile
from data_shards.loader.tile_reader import TileReader, TileRequest
from data_shards.storage.shard_files import open_location
from tools.shard import main

GRADE = "grade: [low, mid, high]\n"
SIZE = 16
RGB_HWC = pixels_of(7, SIZE)
ALPHA_HW = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE), np.uint8)
ALPHA_HW[:4], ALPHA_HW[4:8] = 0, 255
DEEP_HW = np.random.default_rng(2).integers(0, 65536, (SIZE, SIZE)).astype(np.uint16)


def trained_on(folder: Path, name: str, *more: str) -> np.ndarray:
    """Pack one image of ``folder`` with the command, verify the set, and read its tile as training does."""
    write_csv(folder / "labels.csv", ["file", "grade"], [[name, 1]])
    (folder / "grade.yaml").write_text(GRADE)
    paths = ["--images", str(folder), "--labels", str(folder / "labels.csv"), "--out", str(folder / "set")]
    common = ["--attributes", str(folder / "grade.yaml"), "--val-fraction", "0", "--workers", "1", "--overwrite"]
    assert main(["pack", *paths, *common, *more]) == 0
    assert main(["verify", str(folder / "set"), "--workers", "1"]) == 0
    [row] = rows_of(folder / "set")
    _, _, header, tars = open_location(folder / "set")
    return TileReader(tars, header.image_size or SIZE).read(TileRequest(0, row["offset"], row["length"], row["checksum"], 0))


def refusal(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> str:
    write_csv(folder / "labels.csv", ["file", "grade"], [[name, 1]])
    (folder / "grade.yaml").write_text(GRADE)
    paths = ["--images", str(folder), "--labels", str(folder / "labels.csv"), "--out", str(folder / "set")]
    assert main(["pack", *paths, "--attributes", str(folder / "grade.yaml"), "--val-fraction", "0", "--workers", "1"]) == 2
    assert not (folder / "set").exists()
    printed = capsys.readouterr().err
    assert name in printed and "BytesIO" not in printed
    return printed


def on_white(colour_HWC: np.ndarray, alpha_HW: np.ndarray) -> np.ndarray:
    share_HW1 = alpha_HW[..., None] / 255
    return colour_HWC * share_HW1 + 255 * (1 - share_HW1)


def rgba() -> Image.Image:
    return Image.fromarray(np.dstack([RGB_HWC, ALPHA_HW]))


def grey_with_alpha() -> Image.Image:
    return Image.merge("LA", [Image.fromarray(RGB_HWC[..., 2]), Image.fromarray(ALPHA_HW)])


@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "tga", "jp2"])
def test_transparent_pixels_are_on_white(tmp_path: Path, suffix: str) -> None:
    options = {"webp": {"lossless": True, "exact": True}, "jp2": {"irreversible": False}}.get(suffix, {})
    rgba().save(tmp_path / f"t.{suffix}", **options)
    assert np.abs(trained_on(tmp_path, f"t.{suffix}") - on_white(RGB_HWC, ALPHA_HW)).max() <= 1


def test_transparent_grey_and_premultiplied_colour(tmp_path: Path) -> None:
    grey_with_alpha().save(tmp_path / "grey.png")
    grey_HWC = np.repeat(RGB_HWC[..., 2:], 3, axis=2)
    assert np.abs(trained_on(tmp_path, "grey.png") - on_white(grey_HWC, ALPHA_HW)).max() <= 1
    tifffile = pytest.importorskip("tifffile")
    premultiplied_HWC = (RGB_HWC * (ALPHA_HW[..., None] / 255)).round().astype(np.uint8)
    tifffile.imwrite(
        tmp_path / "premultiplied.tif", np.dstack([premultiplied_HWC, ALPHA_HW]), photometric="rgb", extrasamples=["assocalpha"]
    )
    with Image.open(tmp_path / "premultiplied.tif") as image:
        assert image.tag_v2[338] == (1,)  # type: ignore[attr-defined]
    assert np.abs(trained_on(tmp_path, "premultiplied.tif") - on_white(RGB_HWC, ALPHA_HW)).max() <= 3


@pytest.mark.parametrize("transparency", [3, bytes([0, 128, 255, 10])])
@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_transparent_palettes(tmp_path: Path, transparency: int | bytes, suffix: str) -> None:
    palette = Image.fromarray(RGB_HWC).quantize(8)
    if suffix == "gif" and isinstance(transparency, bytes):
        pytest.skip("GIF has one transparent colour")
    palette.save(tmp_path / f"p.{suffix}", transparency=transparency)
    with Image.open(tmp_path / f"p.{suffix}") as image:
        colour_HWC, alpha_HW = np.split(np.asarray(image.convert("RGBA")).astype(float), [3], axis=2)
    assert alpha_HW.min() < 255
    assert np.abs(trained_on(tmp_path, f"p.{suffix}") - on_white(colour_HWC, alpha_HW[..., 0])).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "I;16"])
def test_one_transparent_colour(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(DEEP_HW) if mode == "I;16" else Image.fromarray(RGB_HWC).convert(mode)
    image.save(tmp_path / "t.png", transparency=image.getpixel((5, 5)))
    tile_HWC = trained_on(tmp_path, "t.png")
    values = np.asarray(image.convert("L") if mode == "1" else image)
    is_it_HW = (values == values[5, 5]).reshape(SIZE, SIZE, -1).all(axis=2)
    plain_HWC = np.asarray(image.convert("RGB")) if mode != "I;16" else np.repeat((DEEP_HW >> 8)[..., None], 3, axis=2)
    assert (tile_HWC[is_it_HW] == 255).all() and np.array_equal(tile_HWC[~is_it_HW], plain_HWC[~is_it_HW])


def test_size_crops_after_compositing(tmp_path: Path) -> None:
    hidden = Image.new("RGBA", (64, 64), (255, 0, 0, 0))  # red under transparent pixels
    hidden.save(tmp_path / "t.png")
    assert (trained_on(tmp_path, "t.png", "--size", "16") == 255).all()


@pytest.mark.parametrize("suffix", ["png", "tif", "jp2", "pgm"])
def test_16_bits_are_scaled_by_the_range_of_the_format(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(DEEP_HW).save(tmp_path / f"t.{suffix}", **({"irreversible": False} if suffix == "jp2" else {}))
    tile_HWC = trained_on(tmp_path, f"t.{suffix}")
    assert np.abs(tile_HWC - (DEEP_HW / 257)[..., None]).max() <= 1


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_16(values_HWC: np.ndarray, colour_type: int, more: bytes = b"") -> bytes:
    """A 16-bit PNG with any number of channels, which Pillow can't write."""
    height, width, channels = values_HWC.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values_HWC.reshape(height, width * channels))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))
    return intact.PNG_SIGNATURE + head + more + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def test_16_bit_colour(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deep_HWC = np.random.default_rng(3).integers(0, 65536, (SIZE, SIZE, 4)).astype(np.uint16)
    (tmp_path / "rgb.png").write_bytes(png_16(deep_HWC[..., :3], 2))
    assert np.abs(trained_on(tmp_path, "rgb.png") - deep_HWC[..., :3] / 257).max() <= 1
    (tmp_path / "rgba.png").write_bytes(png_16(deep_HWC, 6))
    wanted_HWC = on_white(deep_HWC[..., :3] / 257, deep_HWC[..., 3] / 257)
    assert np.abs(trained_on(tmp_path, "rgba.png") - wanted_HWC).max() <= 2
    (tmp_path / "key.png").write_bytes(png_16(deep_HWC[..., :3], 2, chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3))))
    (tmp_path / "set").rename(tmp_path / "other")
    assert "16-bit colour with a transparent value" in refusal(tmp_path, "key.png", capsys)


@pytest.mark.parametrize(("bits", "photometric"), [(12, 1), (16, 0), (16, 1)])
def test_tiffs_say_their_range(tmp_path: Path, bits: int, photometric: int) -> None:
    """12 bits packed, and 16 bits with 0 as white."""
    values_HW = DEEP_HW >> (16 - bits)
    if bits == 12:
        flat = values_HW.reshape(-1, 2).astype(np.uint32)
        data = b"".join(int(a << 12 | b).to_bytes(3, "big") for a, b in flat)
    else:
        data = values_HW.astype("<u2").tobytes()
    entries = [(256, SIZE), (257, SIZE), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, SIZE), (279, len(data))]
    head = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    folder = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    (tmp_path / "t.tif").write_bytes(head + data + folder + bytes(4))
    grey_HW = values_HW / (2**bits - 1) * 255
    wanted_HW = 255 - grey_HW if photometric == 0 else grey_HW
    assert np.abs(trained_on(tmp_path, "t.tif") - wanted_HW[..., None]).max() <= 1


@pytest.mark.parametrize(("mode", "dtype"), [("F", np.float32), ("I", np.int32)])
def test_pixels_without_a_range_are_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str, dtype: type) -> None:
    Image.fromarray((RGB_HWC[..., 2] / 255 if mode == "F" else RGB_HWC[..., 2]).astype(dtype)).save(tmp_path / "t.tif")
    assert "convert it to 8-bit RGB first" in refusal(tmp_path, "t.tif", capsys)


def test_other_colour_spaces(tmp_path: Path) -> None:
    smooth = Image.fromarray(RGB_HWC // 4 + np.uint8(120)).resize((4, 4)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    smooth.convert("CMYK").save(tmp_path / "cmyk.tif")
    smooth.convert("YCbCr").save(tmp_path / "ycc.tif")
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    ImageCms.applyTransform(smooth, to_lab).save(tmp_path / "lab.tif")  # type: ignore[union-attr]
    for name, most in (("cmyk.tif", 0), ("ycc.tif", 4), ("lab.tif", 8)):
        assert np.abs(trained_on(tmp_path, name).astype(int) - np.asarray(smooth)).max() <= most, name


def test_unambiguous_files_are_stored_byte_for_byte(tmp_path: Path) -> None:
    images = {
        "rgb.png": Image.fromarray(RGB_HWC),
        "grey.png": Image.fromarray(RGB_HWC[..., 0]),
        "p.png": Image.fromarray(RGB_HWC).quantize(9),
        "opaque.png": Image.fromarray(RGB_HWC).convert("RGBA"),
        "t.jpg": Image.fromarray(RGB_HWC),
        "t.webp": Image.fromarray(RGB_HWC),
    }
    for name, image in images.items():
        image.save(tmp_path / name)
        trained_on(tmp_path, name)
        [row] = rows_of(tmp_path / "set")
        assert (tmp_path / name).read_bytes() == (tmp_path / "set" / row["shard"]).read_bytes()[row["offset"] :][: row["length"]], name
    rgba().save(tmp_path / "t.png")
    trained_on(tmp_path, "t.png")
    [row] = rows_of(tmp_path / "set")
    with Image.open(io.BytesIO((tmp_path / "set" / row["shard"]).read_bytes()[row["offset"] :][: row["length"]])) as stored:
        assert stored.mode == "RGB"  # so that other programs show it on white too


def test_old_sets_with_such_files_are_read_correctly() -> None:
    for image, wanted_HWC in ((rgba(), on_white(RGB_HWC, ALPHA_HW)), (Image.fromarray(DEEP_HW), (DEEP_HW / 257)[..., None])):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        assert np.abs(tile.decode(buffer.getvalue(), SIZE) - wanted_HWC).max() <= 1


@pytest.mark.parametrize("suffix", ["tif", "gif", "webp", "png"])
def test_files_with_several_pages_are_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str) -> None:
    frames = [Image.fromarray(pixels_of(number, SIZE)) for number in range(3)]
    frames[0].save(tmp_path / f"t.{suffix}", save_all=True, append_images=frames[1:])
    assert "has 3 pages or frames" in refusal(tmp_path, f"t.{suffix}", capsys)


def test_a_pyramid_is_one_image(tmp_path: Path) -> None:
    first = Image.fromarray(RGB_HWC)
    first.save(tmp_path / "t.tif", save_all=True, append_images=[first.resize((8, 8)), first.resize((4, 4))])
    assert np.array_equal(trained_on(tmp_path, "t.tif"), RGB_HWC)


def saved(suffix: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(5).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(buffer, {"jpg": "JPEG", "webp": "WEBP", "png": "PNG"}[suffix], **options)
    return buffer.getvalue()


def recut(png: bytes) -> bytes:
    """Keep half of the pixels of a PNG, in valid chunks."""
    at = png.index(b"IDAT")
    length = int.from_bytes(png[at - 4 : at], "big")
    return png[: at - 4] + chunk(b"IDAT", png[at + 4 : at + 4 + length // 2]) + chunk(b"IEND", b"")


HALVES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[: len(data) // 2],
    "cut and ended": lambda data: data[: len(data) // 2] + (recut(data)[-12:] if data[:1] == b"\x89" else b"\xff\xd9"),
    "zeros": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "zeros and ended": lambda data: data[: len(data) // 2] + bytes(99) + (recut(data)[-12:] if data[:1] == b"\x89" else b"\xff\xd9"),
}


@pytest.mark.parametrize("how", HALVES)
@pytest.mark.parametrize("name", ["t.jpg", "progressive.jpg", "grey.jpg", "cmyk.jpg", "t.png", "t.webp"])
def test_truncated_images_are_named_by_pack_and_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, how: str) -> None:
    data = saved(name.rpartition(".")[2], **({"progressive": True} if "progressive" in name else {}))
    if name in ("grey.jpg", "cmyk.jpg"):
        with Image.open(io.BytesIO(saved("png"))) as image:
            buffer = io.BytesIO()
            image.convert("L" if name == "grey.jpg" else "CMYK").save(buffer, "JPEG")
            data = buffer.getvalue()
    intact.check(data)
    (tmp_path / name).write_bytes(HALVES[how](data))
    assert "not a readable image" in refusal(tmp_path, name, capsys)
    for more in (["--size", "16"],):
        assert (
            main(
                [
                    "pack",
                    "--images",
                    str(tmp_path),
                    "--labels",
                    str(tmp_path / "labels.csv"),
                    "--out",
                    str(tmp_path / "set"),
                    "--attributes",
                    str(tmp_path / "grade.yaml"),
                    "--workers",
                    "1",
                    *more,
                ]
            )
            == 2
        )


def test_missing_pixels_in_valid_chunks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.png").write_bytes(recut(saved("png")))
    assert "the PNG is truncated" in refusal(tmp_path, "t.png", capsys)


def test_verify_names_a_truncated_image_of_an_old_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.jpg").write_bytes(HALVES["cut and ended"](saved("jpg")))
    with monkeypatch.context() as patched:
        patched.setattr(intact, "check", lambda data: None)  # as earlier versions packed it
        trained_on(tmp_path, "t.jpg")
    assert main(["verify", str(tmp_path / "set"), "--workers", "1"]) == 1
    assert "the JPEG is truncated or damaged" in capsys.readouterr().out


def test_bytes_after_the_end_are_ignored(tmp_path: Path) -> None:
    for suffix in ("jpg", "png"):
        (tmp_path / f"t.{suffix}").write_bytes(saved(suffix) + b"a camera's own data")
        trained_on(tmp_path, f"t.{suffix}")


def test_warnings_of_pillow_name_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder) -> None:
    with monkeypatched_limit(300):
        Image.fromarray(pixels_of(1, 20)).save(tmp_path / "large.tif")
        with caplog.at_level(logging.WARNING):
            trained_on(tmp_path, "large.tif")
    assert any("large.tif: " in record.getMessage() for record in caplog.records)


class monkeypatched_limit:
    def __init__(self, pixels: int) -> None:
        self.pixels = pixels

    def __enter__(self) -> None:
        self.before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, self.pixels

    def __exit__(self, *_: object) -> None:
        Image.MAX_IMAGE_PIXELS = self.before


def test_empty_files_and_texts_are_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.png").write_bytes(b"")
    assert "the file is empty" in refusal(tmp_path, "t.png", capsys)
    (tmp_path / "t.png").write_bytes(b"<html>no such page</html>")
    assert "in no supported image format (Pillow)" in refusal(tmp_path, "t.png", capsys)


def test_is_plain() -> None:
    assert rgb.is_plain(Image.fromarray(RGB_HWC)) and rgb.is_plain(Image.fromarray(RGB_HWC).convert("RGBA"))
    assert not rgb.is_plain(rgba()) and not rgb.is_plain(Image.fromarray(DEEP_HW)) and index.FILE
