"""Crops of images and of the outlines of their nuclei, and measuring by these outlines."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_shards.ingest import outlines
from tools import shard

SIDE = 96


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images of pink tissue with round nuclei in rows, their instance maps, and the table of their cases."""
    for name in ("images", "nuclei"):
        (tmp_path / name).mkdir()
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for number, radius in enumerate((4, 7)):
        labels_HW = np.zeros((SIDE, SIDE), np.uint16)
        for k, (y, x) in enumerate([(y, x) for y in range(8, SIDE, 16) for x in range(8, SIDE, 16)]):
            labels_HW[(rows - y) ** 2 + (columns - x) ** 2 <= radius**2] = 300 + k  # above 8 bits
        image_HWC = np.where(labels_HW[..., None] > 0, (90, 60, 130), (230, 170, 200)).astype(np.uint8)
        image_HWC += np.random.default_rng(number).integers(0, 20, image_HWC.shape, np.uint8)  # in focus
        Image.fromarray(image_HWC).save(tmp_path / "images" / f"s{number}.png")
        Image.fromarray(labels_HW).save(tmp_path / "nuclei" / f"s{number}.png")
    (tmp_path / "images.csv").write_text("file,case\ns0.png,A\ns1.png,B\n")
    return tmp_path


def crop(folder: Path, *words: str | Path) -> int:
    given = ["--images", folder / "images", "--out", folder / "crops", "--size", 64, "--stride", 16, *words]
    return shard.main(["crop", *map(str, given)])


def outlined(folder: Path) -> list[str | Path]:
    return ["--outlines", folder / "nuclei", "--labels", folder / "images.csv", "--group", "case"]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_crops_are_cut_from_images_and_outlines_alike(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert crop(folder, *outlined(folder)) == 0
    assert "18 crops of 2 images, 2 slides" in capsys.readouterr().out
    rows = table(folder / "crops" / "crops.csv")
    assert len(rows) == 18 and {row["slide"] for row in rows} == {"A", "B"}
    for row in rows:
        x, y = int(row["x"]), int(row["y"])
        image, nuclei = (np.asarray(Image.open(folder / name / row["image"])) for name in ("images", "nuclei"))
        image_crop, labels_crop = (np.asarray(Image.open(folder / "crops" / name / row["file"])) for name in ("images", "outlines"))
        assert np.array_equal(image_crop, image[y : y + 64, x : x + 64])
        whole = nuclei[y : y + 64, x : x + 64]
        assert np.array_equal(labels_crop > 0, whole > 0) and len(np.unique(labels_crop)) == len(np.unique(whole))
        assert labels_crop.max() == len(np.unique(labels_crop)) - 1


def test_measurements_are_those_of_the_outlines(folder: Path) -> None:
    """From images to a shard set: areas are exact, the split is by case."""
    pytest.importorskip("skimage", reason="needs attributegan[measure]")
    assert crop(folder, *outlined(folder)) == 0
    crops, out = folder / "crops", folder / "m.csv"
    words = ["--images", crops / "images", "--outlines", crops / "outlines", "--out", out, "--attributes", "size=median_area"]
    assert shard.main(["measure", *map(str, words), "--levels", "2", "--workers", "1"]) == 0
    for row in table(out):
        labels_HW = np.asarray(Image.open(crops / "outlines" / row["file"]))
        assert float(row["area_fraction"]) == pytest.approx((labels_HW > 0).mean(), rel=1e-4)
        assert float(row["nuclei_count"]) == labels_HW.max()
        assert row["median_area"] == {"A": "49", "B": "149"}[row["slide"]] and row["size"] == {"A": "1", "B": "2"}[row["slide"]]
    assert "instance maps" in (folder / "m.yaml").read_text()
    packed = ["--images", crops / "images", "--labels", out, "--attributes", folder / "m.yaml", "--group", "slide", "--val-fraction", 0.5]
    assert shard.main(["pack", *map(str, packed), "--size", "32", "--out", str(folder / "shards"), "--workers", "1"]) == 0


def test_a_changed_outline_is_measured_again(folder: Path) -> None:
    pytest.importorskip("skimage", reason="needs attributegan[measure]")
    from data_shards.measure import table as measure_table

    source = measure_table.FolderTiles(folder / "images", folder / "nuclei")
    labels_HW = np.asarray(Image.open(folder / "nuclei" / "s0.png"))
    Image.fromarray(np.where(labels_HW == 300, 0, labels_HW).astype(np.uint16)).save(folder / "nuclei" / "s0.png")
    again = measure_table.FolderTiles(folder / "images", folder / "nuclei")
    assert source.tiles[0].identity != again.tiles[0].identity and source.tiles[1].identity == again.tiles[1].identity


def test_folders_are_slides_without_a_table(folder: Path) -> None:
    (folder / "images" / "T1").mkdir()
    (folder / "images" / "s0.png").rename(folder / "images" / "T1" / "a.b.png")
    assert crop(folder) == 0
    assert {(row["slide"], row["image"]) for row in table(folder / "crops" / "crops.csv")} == {("T1", "T1/a.b.png"), ("", "s1.png")}
    assert not (folder / "crops" / "outlines").exists() and (folder / "crops" / "images" / "T1" / "a_b_x0_y0.png").is_file()


def test_bad_input_is_refused_and_nothing_is_left(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(message: str, *words: str | Path) -> None:
        assert crop(folder, *words) == 2
        assert message in capsys.readouterr().err and not (folder / "crops").exists()

    refused("s0.png: has 96 x 96 pixels, less than --size 128", "--size", "128")
    refused("--stride: 0 must be at least 1", "--stride", "0")
    refused("--labels and --group: give both", "--group", "case")
    (folder / "images.csv").write_text("file,case\ns0.png,\nnone.png,A\n")
    refused("2 invalid rows:\n  images.csv:2: case is ''", *outlined(folder))
    (folder / "nuclei" / "s1.png").unlink()
    refused(f"no instance map {folder / 'nuclei' / 's1.png'} of s1.png", "--outlines", folder / "nuclei")
    Image.new("I;16", (SIDE, SIDE - 1)).save(folder / "nuclei" / "s1.png")
    refused("s1.png: has shape (95, 96), its image (96, 96)", "--outlines", folder / "nuclei")
    Image.new("RGB", (SIDE, SIDE)).save(folder / "nuclei" / "s1.png")
    refused("s1.png: has mode RGB; instance maps have one channel", "--outlines", folder / "nuclei")
    labels_HW = np.asarray(Image.open(folder / "nuclei" / "s0.png"))
    Image.fromarray((255 * (labels_HW > 0)).astype(np.uint8)).save(folder / "nuclei" / "s1.png")
    refused("s1.png: is a mask, with one number for all nuclei", "--outlines", folder / "nuclei")
    (folder / "crops").mkdir()
    (folder / "crops" / "mine.txt").write_text("mine")
    assert crop(folder) == 2 and (folder / "crops" / "mine.txt").read_text() == "mine"


def test_a_mask_is_recognised_by_its_regions() -> None:
    labels_HW = np.zeros((20, 20), np.int32)
    labels_HW[2:6, 2:6] = labels_HW[10:14, 2:6] = 1
    assert not outlines.is_mask(labels_HW)  # one nucleus in two pieces
    labels_HW[2:6, 10:14] = 1
    assert outlines.is_mask(labels_HW)
    labels_HW[2:6, 10:14] = 2
    assert not outlines.is_mask(labels_HW) and not outlines.is_mask(np.zeros((5, 5), np.int32))
    ring_HW = np.pad(np.zeros((6, 6), np.int32), 3, constant_values=1)
    assert not outlines.is_mask(ring_HW)
