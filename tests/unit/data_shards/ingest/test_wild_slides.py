"""Slides in ordinary image formats: tiles are exact pixels of the image."""

from __future__ import annotations

import math
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_shards.ingest.slide import Slide
from tools import shard
from tools.shards import tile as tile_slides

pytest.importorskip("openslide", reason="needs the extra `slides`")

PIXELS_HWC = np.random.default_rng(0).integers(60, 200, (150, 300, 3)).astype(np.uint8)


def smooth() -> Image.Image:
    return Image.fromarray(PIXELS_HWC[::10, ::10]).resize((300, 150), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "jpg"])
def test_one_image_is_read_like_a_slide(tmp_path: Path, suffix: str) -> None:
    image = smooth()
    image.save(tmp_path / f"core.{suffix}", **({"quality": 98, "subsampling": 0} if suffix == "jpg" else {}))
    with closing(Slide(tmp_path / f"core.{suffix}", 0.5)) as slide:
        assert slide.bounds == (0, 0, 300, 150) and slide.mpp_XY == (0.5, 0.5) and not slide.has_mpp
        read_HWC = np.asarray(slide.read(40, 20, 64, 64, (64, 64))).astype(int)
        assert np.abs(read_HWC - np.asarray(image)[20:84, 40:104]).max() <= (6 if suffix == "jpg" else 0)
    with pytest.raises(ValueError, match="no um per pixel in its metadata; set it with --slide-mpp"):
        Slide(tmp_path / f"core.{suffix}")


def test_transparent_parts_are_white_and_16_bits_scaled(tmp_path: Path) -> None:
    Image.new("RGBA", (64, 64), (200, 0, 0, 0)).save(tmp_path / "a.png")
    Image.fromarray(np.full((64, 64), 40_000, np.uint16)).save(tmp_path / "b.png")
    for name, value in (("a.png", 255), ("b.png", 40_000 / 257)):
        with closing(Slide(tmp_path / name, 0.5)) as slide:
            assert np.abs(np.asarray(slide.read(0, 0, 32, 32, (32, 32))) - value).max() <= 1


def test_ome_tiffs_have_their_resolution(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    image = np.asarray(smooth())
    meta = {"axes": "YXS", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
    tifffile.imwrite(tmp_path / "rgb.ome.tif", image, photometric="rgb", metadata=meta)
    planes = {"axes": "CYX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
    tifffile.imwrite(tmp_path / "planes.ome.tif", np.moveaxis(image, 2, 0), photometric="minisblack", metadata=planes)
    for name in ("rgb.ome.tif", "planes.ome.tif"):
        with closing(Slide(tmp_path / name)) as slide:
            assert slide.has_mpp and slide.mpp_XY == (0.25, 0.25)
            assert np.array_equal(slide.read(8, 8, 64, 64, (64, 64)), image[8:72, 8:72]), name
    tifffile.imwrite(tmp_path / "stack.ome.tif", np.stack([image] * 3), photometric="rgb", metadata={"axes": "ZYXS"})
    tifffile.imwrite(tmp_path / "four.ome.tif", np.zeros((4, 64, 64), np.uint8), photometric="minisblack", metadata={"axes": "CYX"})
    for name, message in (("stack.ome.tif", "3 planes along Z"), ("four.ome.tif", "expected red, green and blue")):
        with pytest.raises(ValueError, match=f"{name}.*{message}"):
            Slide(tmp_path / name, 0.5)


def write_deep_zoom(path: Path, image: Image.Image, tile: int = 64, overlap: int = 1) -> Path:
    """Write a Deep Zoom image as `vips dzsave` does, with tiles as PNG."""
    highest = math.ceil(math.log2(max(image.size)))
    for down in range(highest + 1):
        level = image.resize(tuple(-(-side // 2**down) for side in image.size), Image.Resampling.BOX)  # type: ignore[arg-type]
        folder = path.with_name(f"{path.stem}_files") / str(highest - down)
        folder.mkdir(parents=True)
        for row in range(-(-level.height // tile)):
            for column in range(-(-level.width // tile)):
                box = (
                    max(0, column * tile - overlap),
                    max(0, row * tile - overlap),
                    min(level.width, (column + 1) * tile + overlap),
                    min(level.height, (row + 1) * tile + overlap),
                )
                level.crop(box).save(folder / f"{column}_{row}.png")
    path.write_text(
        f'<?xml version="1.0"?><Image xmlns="http://schemas.microsoft.com/deepzoom/2008" Format="png" Overlap="{overlap}" '
        f'TileSize="{tile}"><Size Height="{image.height}" Width="{image.width}"/></Image>'
    )
    return path


@pytest.mark.parametrize("overlap", [0, 1])
def test_deep_zoom(tmp_path: Path, overlap: int) -> None:
    image = smooth()
    path = write_deep_zoom(tmp_path / "slide.dzi", image, overlap=overlap)
    with closing(Slide(path, 0.5)) as slide:
        assert slide.bounds == (0, 0, 300, 150)
        assert np.array_equal(slide.read(50, 30, 100, 100, (100, 100)), np.asarray(image)[30:130, 50:150])
        small_HWC = np.asarray(slide.read(0, 0, 300, 150, (75, 38))).astype(int)
        assert np.abs(small_HWC - np.asarray(image.resize((75, 38), Image.Resampling.LANCZOS))).max() < 25
    (tmp_path / "slide_files" / "9" / "1_1.png").unlink()
    with closing(Slide(path, 0.5)) as slide, pytest.raises(ValueError, match="1_1.png"):
        slide.read(50, 30, 100, 100, (100, 100))


def test_tiles_of_plain_images_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slides, out = tmp_path / "slides", tmp_path / "tiles"
    slides.mkdir()
    smooth().save(slides / "core.png")
    write_deep_zoom(slides / "zoom.dzi", smooth())
    (slides / "README.md").write_text("two cores")
    arguments = [
        "--out",
        str(out),
        "--mpp",
        "0.5",
        "--size",
        "64",
        "--slide-mpp",
        "0.5",
        "--tissue",
        "0",
        "--sharpness",
        "0",
        "--workers",
        "1",
    ]
    assert shard.main(["tile", *map(str, sorted(slides.iterdir())), *arguments]) == 0
    printed = capsys.readouterr()
    assert (
        "skipped, not a slide" in printed.err and "README.md" in printed.err and "zoom_files" in printed.err and "16 tiles" in printed.out
    )
    for name in ("core", "zoom"):
        with Image.open(out / name / "64_64.png") as tile:
            assert np.array_equal(tile, np.asarray(smooth())[64:128, 64:128])


def test_the_data_folder_of_an_mrxs_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a.mrxs").write_bytes(b"")
    (tmp_path / "b.svs").write_bytes(b"")
    assert tile_slides.find_slides([tmp_path / "a", tmp_path / "a.mrxs", tmp_path / "b.svs"]) == (
        [tmp_path / "a.mrxs", tmp_path / "b.svs"],
        [tmp_path / "a"],
    )


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff\xe0 half of a JPEG"])
def test_files_that_are_not_images_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "slide.jpg").write_bytes(content)
    with pytest.raises(ValueError, match="slide.jpg: not a slide supported by openslide") as refused:
        Slide(tmp_path / "slide.jpg", 0.5)
    assert "BytesIO" not in str(refused.value)
