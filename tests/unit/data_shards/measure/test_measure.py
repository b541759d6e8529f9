"""Measurements of tiles: stains, shapes, nuclei of phantoms and of annotated tissue, levels, and the command."""

from __future__ import annotations

import csv
import json
import math
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import runs
import yaml
from browser import served
from PIL import Image
from time_limits import seconds

from attributegan.attributes import PUBLISHED, AttributeSchema
from data_shards.phantoms import render as phantom
from tools import shard

pytest.importorskip("skimage", reason="needs attributegan[measure]")

from data_shards.measure import agreement, evaluation, features, levels, merging, regions, segment, stain, table

SIZE = 160
GLIOMA = Path(__file__).parents[4] / ".." / "shared" / "real" / "glioma"


def stained(hematoxylin_HW: np.ndarray, eosin_HW: np.ndarray, stains: stain.Stains = stain.RUIFROK) -> np.ndarray:
    """Render an image with these densities."""
    vectors = [np.array(vector) / np.linalg.norm(vector) for vector in (stains.hematoxylin, stains.eosin)]
    absorbance = hematoxylin_HW[..., None] * vectors[0] + eosin_HW[..., None] * vectors[1]
    return np.round(255 * 10**-absorbance).clip(0, 255).astype(np.uint8)


def ellipse(size: int, y: float, x: float, long: float, short: float, angle: float) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    along = (columns - x) * math.cos(angle) + (rows - y) * math.sin(angle)
    across = (rows - y) * math.cos(angle) - (columns - x) * math.sin(angle)
    return (along / long) ** 2 + (across / short) ** 2 <= 1


def test_densities_are_recovered() -> None:
    hematoxylin_HW, eosin_HW = np.random.default_rng(0).uniform(0.1, 0.9, (2, 40, 50))
    found = stain.densities(stain.absorbance(stained(hematoxylin_HW, eosin_HW)), stain.RUIFROK)
    assert np.abs(found[0] - hematoxylin_HW).max() < 0.05 and np.abs(found[1] - eosin_HW).max() < 0.05


def test_macenko_finds_the_stains_of_an_image() -> None:
    rng = np.random.default_rng(0)
    mine = stain.Stains((0.55, 0.76, 0.35), (0.15, 0.95, 0.28))
    share = rng.random((80, 80)) ** 3
    strength = rng.uniform(0.4, 1.0, (80, 80))
    found = stain.macenko(stain.absorbance(stained(strength * share, strength * (1 - share), mine)))
    assert found is not None
    for name in ("hematoxylin", "eosin"):
        a, b = np.array(getattr(found, name)), np.array(getattr(mine, name))
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > math.cos(math.radians(6)), name
    assert stain.macenko(np.zeros((80, 80, 3), np.float32)) is None


def test_shapes_of_ellipses() -> None:
    labels_HW = np.zeros((SIZE, SIZE), np.int32)
    labels_HW[ellipse(SIZE, 40, 50, 24, 10, 0.5)] = 1
    labels_HW[ellipse(SIZE, 110, 100, 15, 15, 0.0)] = 2
    labels_HW[ellipse(SIZE, 60, 159, 12, 6, 0.0)] = 3
    found = regions.shapes(labels_HW)
    assert found.area[:2] == pytest.approx([math.pi * 240, math.pi * 225], rel=0.02)
    assert found.elongation[:2] == pytest.approx([2.4, 1.0], rel=0.03)
    assert found.angle[0] == pytest.approx(0.5, abs=0.02)
    assert found.fit[:2] == pytest.approx([1, 1], abs=0.01)
    assert found.at_border.tolist() == [False, False, True]


def test_pieces_of_one_ellipse_are_merged_and_two_discs_are_not() -> None:
    from scipy import ndimage

    whole, left, right = (np.zeros((80, 120), bool) for _ in range(3))
    whole[:, :80] = ellipse(80, 40, 40, 26, 12, 0.0)
    left[:, :80], right[:, 40:] = ellipse(80, 40, 30, 14, 14, 0.0), ellipse(80, 40, 17, 14, 14, 0.0)
    for mask, expected in ((whole, 1), (left | right, 2)):
        middle = 40 if expected == 1 else 43
        labels = np.where(mask, np.where(np.arange(120) < middle, 1, 2), 0).astype(np.int32)
        dark: np.ndarray = mask * 0.8
        if expected == 2:
            dark = np.where(np.abs(np.arange(120) - middle) < 2, 0.55, 0.8) * mask
        joined = merging.merge(labels, ndimage.distance_transform_edt(mask), dark, contrast=0.6)
        assert len(np.unique(joined)) - 1 == expected


@pytest.fixture(scope="module")
def scenes() -> list[tuple[phantom.Scene, dict[str, float], np.ndarray]]:
    """Phantoms of all levels except the most crowded ones (their nuclei overlap), and their measurements."""
    found = []
    for number, levels_A in enumerate(phantom.draw_levels(40, 3)):
        scene = phantom.scene([min(int(levels_A[0]), 3), *levels_A[1:].tolist()], 5, number)
        image_HWC = phantom.paint(scene, SIZE)
        labels_HW = segment.segment(image_HWC)
        found.append((scene, features.measure(image_HWC, labels_HW, mpp=0.5), labels_HW))
    return found


@pytest.mark.parametrize(
    ("attribute", "measurement", "least"),
    [
        ("cell_crowding", "nuclei_count", 0.75),
        ("cell_polarity", "orientation_disorder", 0.7),
        ("pleomorphism", "area_spread", 0.6),
        ("mitosis", "mitosis_like", 0.5),
    ],
)
def test_measurements_of_phantoms_correlate_with_ground_truth(scenes: list, attribute: str, measurement: str, least: float) -> None:
    true = [scene.measure()[attribute] for scene, _, _ in scenes]
    assert agreement.spearman(true, [found[measurement] for _, found, _ in scenes]) > least


def test_nuclei_lie_where_they_were_drawn(scenes: list) -> None:
    """Most centres of nuclei are inside an outline, and few outlines contain none."""
    inside = drawn = empty = outlined = 0
    for scene, _, labels_HW in scenes:
        at = [(int(nucleus.y * SIZE), int(nucleus.x * SIZE)) for nucleus in (*scene.nuclei, *scene.figures)]
        hit = [labels_HW[y, x] for y, x in at]
        inside, drawn = inside + sum(label > 0 for label in hit), drawn + len(hit)
        empty, outlined = empty + labels_HW.max() - len(set(hit) - {0}), outlined + labels_HW.max()
    assert inside > 0.85 * drawn and empty < 0.1 * outlined


def test_units(scenes: list) -> None:
    for _, found, labels_HW in scenes[:5]:
        shapes = regions.shapes(labels_HW)
        area = (SIZE * 0.5e-3) ** 2
        assert found["nuclei_per_mm2"] == pytest.approx((len(shapes.area) - shapes.at_border.sum() / 2) / area)
        assert math.isnan(found["median_area"]) or found["median_area_um2"] == pytest.approx(found["median_area"] / 4)
    assert set(features.names(None)) == set(features.MEASUREMENTS) - {"nuclei_per_mm2", "median_area_um2"}


def test_glass_and_blur_are_not_assessable() -> None:
    glass = np.full((SIZE, SIZE, 3), 245, np.uint8)
    blurred = np.asarray(Image.fromarray(phantom.render([2, 1, 1, 1, 1], 32, 0, 0)).resize((512, 512), Image.Resampling.BICUBIC))
    for image_HWC in (glass, blurred):
        labels_HW = segment.segment(image_HWC)
        found = features.measure(image_HWC, labels_HW)
        assert math.isnan(found["nuclei_count"]) and math.isnan(found["hyperchromasia"]) and not math.isnan(found["white_share"])
    assert segment.segment(glass).max() == 0
    few = features.measure(phantom.render([1, 1, 1, 1, 1], SIZE, 0, 0), segment.segment(phantom.render([1, 1, 1, 1, 1], SIZE, 0, 0)))
    assert few["nuclei_count"] < features.MIN_NUCLEI and math.isnan(few["area_spread"])


def test_blood_is_red_and_eosin_is_not() -> None:
    for colour, expected in (((200, 35, 40), 1.0), ((230, 130, 170), 0.0), ((90, 60, 140), 0.0)):
        image_HWC = np.broadcast_to(np.array(colour, np.uint8), (20, 20, 3))
        assert features._blood(stain.absorbance(image_HWC)) == expected


def test_levels_by_quantiles_and_their_file(tmp_path: Path) -> None:
    values_N = np.append(np.random.default_rng(0).permutation(120.0 + np.arange(100)), np.nan)
    rule = levels.Rule("crowding", "nuclei_count", how={"mpp": None}).with_quantiles(values_N, 4)
    level_N = rule.levels(values_N)
    assert np.bincount(level_N).tolist() == [1, 25, 25, 25, 25] and level_N[-1] == 0
    assert all(np.diff(level_N[np.argsort(values_N)][:100]) >= 0)
    schema = levels.write([rule], tmp_path / "a.yaml")
    assert AttributeSchema.from_yaml(tmp_path / "a.yaml") == schema
    assert schema.attributes[0].not_assessable == 0 and schema.attributes[0].levels[1:] == ("lowest", "low", "high", "highest")
    again = levels.read(tmp_path / "a.yaml", {"mpp": None})
    assert again[0].levels(values_N).tolist() == level_N.tolist()
    with pytest.raises(ValueError, match="are not comparable"):
        levels.read(tmp_path / "a.yaml", {"mpp": 0.5})


def test_invalid_levels_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too few distinct values"):
        levels.Rule("spots", "mitosis_like").with_quantiles(np.array([0.0] * 9 + [1.0]), 4)
    with pytest.raises(ValueError, match="too few distinct values"):
        levels.Rule("spots", "mitosis_like").with_quantiles(np.full(5, np.nan), 2)
    with pytest.raises(ValueError, match="are not ascending"):
        levels.Rule("spots", "mitosis_like", (2.0, 1.0))
    with pytest.raises(ValueError, match="unknown measurement; choose from nuclei_count"):
        levels.parse("crowding=cells")
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(PUBLISHED.to_dict()))
    with pytest.raises(ValueError, match="not an attributes file with `measured"):
        levels.read(tmp_path / "plain.yaml", {})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Phantoms of two slides, in folders."""
    for number, levels_A in enumerate(phantom.draw_levels(24, 3)):
        file = tmp_path / "tiles" / f"slide{number % 2}" / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(phantom.render(levels_A.tolist(), SIZE, 5, number)).save(file)
    return tmp_path / "tiles"


def measured(*words: str | Path) -> int:
    return shard.main(["measure", *map(str, words), "--workers", "1"])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_folder_without_a_table_becomes_a_shard_set(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Measure, pack the original files; other tiles use the same edges; the set's own tiles give the same measurements."""
    out = tmp_path / "m.csv"
    assert (
        measured("--images", folder, "--out", out, "--attributes", "crowding=area_fraction,stain=hematoxylin_density", "--levels", 3) == 0
    )
    assert "crowding by area_fraction: not assessable 1, low 8, medium 7, high 8" in capsys.readouterr().out
    found = rows(out)
    assert [row["file"] for row in found] == sorted(row["file"] for row in found) and {row["slide"] for row in found} == {
        "slide0",
        "slide1",
    }
    assert {row["crowding"] for row in found} == {"0", "1", "2", "3"}  # one is blurred
    shards = tmp_path / "shards"
    words = ["pack", "--images", folder, "--labels", out, "--attributes", tmp_path / "m.yaml", "--group", "slide", "--val-fraction", 0.5]
    assert shard.main([*map(str, words), "--out", str(shards), "--workers", "1"]) == 0
    again = tmp_path / "again.csv"
    assert measured("--shards", shards, "--out", again, "--attributes", tmp_path / "m.yaml") == 0
    by_key = {row["file"]: row for row in rows(again)}
    for row in found:
        other = by_key[row["file"].removesuffix(".png")]
        assert all(row[name] == other[name] for name in (*features.names(None), "crowding", "stain", "slide"))
    assert yaml.safe_load((tmp_path / "again.yaml").read_text()) == yaml.safe_load((tmp_path / "m.yaml").read_text())


@pytest.mark.slow
def test_a_folder_without_a_table_becomes_a_model_on_a_page(folder: Path, tmp_path: Path) -> None:
    """The steps of docs/measure.md: measure, pack, train, explore, without writing a CSV."""
    pytest.importorskip("starlette", reason="needs attributegan[explore]")
    out, shards, run = tmp_path / "m.csv", tmp_path / "shards", tmp_path / "run"
    assert measured("--images", folder, "--out", out, "--attributes", "crowding=area_fraction,stain=hematoxylin_density") == 0
    words = ["--images", folder, "--labels", out, "--attributes", tmp_path / "m.yaml", "--group", "slide", "--val-fraction", 0.5]
    assert shard.main(["pack", *map(str, words), "--out", str(shards), "--workers", "1"]) == 0
    runs.train(shards, run, "train.images=16")
    with served(run) as at, urllib.request.urlopen(at.address, timeout=seconds(60)) as answer:
        page = answer.read().decode()
    assert "crowding" in page and "stain" in page and "highest" in page


def test_an_interrupted_command_resumes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, out = tmp_path / "whole.csv", tmp_path / "m.csv"
    assert measured("--images", folder, "--out", whole) == 0
    settings, partial = table.Settings(), tmp_path / "m.csv.partial"
    first = table.FolderTiles(folder)
    read: list[int] = []

    def stops(self: table.FolderTiles, number: int) -> np.ndarray:
        if len(read) == 2 * table.JOB_TILES:
            raise KeyboardInterrupt
        read.append(number)
        return original(self, number)

    original = table.FolderTiles.read
    monkeypatch.setattr(table.FolderTiles, "read", stops)
    with pytest.raises(KeyboardInterrupt):
        table.measure(first, settings, partial)
    with partial.open("ab") as stream:
        stream.write(b'{"file": "slide1/23.png", "ident')  # as left by a killed process
    monkeypatch.setattr(table.FolderTiles, "read", lambda self, number: read.append(number) or original(self, number))
    read.clear()
    assert not out.exists() and measured("--images", folder, "--out", out) == 0
    assert len(read) == 24 - 2 * table.JOB_TILES
    assert out.read_bytes() == whole.read_bytes() and not partial.exists()


def test_rows_of_other_settings_are_not_mixed(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "m.csv"
    table.measure(table.FolderTiles(folder), table.Settings(), tmp_path / "m.csv.partial")
    assert measured("--images", folder, "--out", out, "--mpp", "0.5") == 2
    assert "remove it to start again" in capsys.readouterr().err and not out.exists()


def test_damaged_tiles_are_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "slide0" / "00.png").write_bytes((folder / "slide0" / "00.png").read_bytes()[:2000])
    (folder / "slide1" / "text.jpg").write_text("no image")
    out = tmp_path / "m.csv"
    assert measured("--images", folder, "--out", out) == 2
    streams = capsys.readouterr()
    assert "slide0/00.png: not a readable image" in streams.err and "slide1/text.jpg: not a readable image" in streams.err
    assert "2 damaged tiles" in streams.out and len(rows(out)) == 23


def test_a_custom_network_segments_the_nuclei(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "m.csv"
    assert measured("--images", folder, "--out", out, "--segment", "fake_segmenter:halves") == 0
    assert {(row["nuclei_count"], row["area_fraction"], row["area_spread"]) for row in rows(out)} == {("2", "1", ""), ("", "", "")}
    for name, message in (("wrong", "return non-negative integers"), ("nothing", "has no attribute")):
        assert measured("--images", folder, "--out", tmp_path / "n.csv", "--segment", f"fake_segmenter:{name}") == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mpp", "0"], "--mpp: 0.0 must be between 0 and 100"),
        (["--attributes", "crowding=nuclei_per_mm2"], "nuclei_per_mm2 requires --mpp"),
        (["--attributes", "area_spread=area_spread"], "is the name of another column"),
        (["--attributes", "a=area_spread", "--edges", "b=1"], "b is not in --attributes"),
        (["--attributes", "a=area_spread", "--edges", "a=x"], "write ATTRIBUTE=NUMBER"),
        (["--levels", "3"], "require --attributes"),
        (["--attributes", "a=area_spread", "--levels", "1"], "is not from 2"),
        (["--stains", "1,2,3"], "write six non-negative numbers"),
        (["--stains", "1,0,0,1,0,0"], "parallel or opposite"),
        (["--images", "nowhere"], "not a folder"),
    ],
)
def test_invalid_options_are_rejected_before_any_work(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.setattr(table, "measure", None)
    assert measured("--images", folder, "--out", tmp_path / "m.csv", *words) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.glob("m.*"))


def test_a_table_is_not_replaced_without_the_option(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.csv").write_text("mine")
    assert measured("--images", folder, "--out", tmp_path / "m.csv") == 2
    assert "already exists" in capsys.readouterr().err and (tmp_path / "m.csv").read_text() == "mine"


def test_without_the_extra_the_fix_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_shards.measure.find_spec", lambda name: None)
    assert measured("--images", folder, "--out", tmp_path / "m.csv") == 2
    assert "pip install 'attributegan[measure]'" in capsys.readouterr().err


def test_evaluations_measure_the_requested_attributes() -> None:
    wanted = evaluation.by_attribute("cell_crowding=area_fraction", PUBLISHED)
    tiles = np.stack([phantom.render([level, 1, 1, 1, 1], SIZE, 0, 3) for level in (1, 4)])
    found_NA = evaluation.measurer(wanted, PUBLISHED)(tiles)
    assert found_NA.shape == (2, 5) and found_NA[0, 0] < found_NA[1, 0] and np.isnan(found_NA[:, 1:]).all()
    with pytest.raises(ValueError, match="is not an attribute of the tiles"):
        evaluation.by_attribute("crowd=area_fraction", PUBLISHED)
    with pytest.raises(ValueError, match="requires the pixel size"):
        evaluation.by_attribute("cell_crowding=nuclei_per_mm2", PUBLISHED)


def test_matched_counts_nuclei_by_overlap() -> None:
    true, found = (np.zeros((SIZE, SIZE), np.int32) for _ in range(2))
    true[ellipse(SIZE, 40, 40, 20, 15, 0)], true[ellipse(SIZE, 110, 110, 20, 15, 0)] = 1, 2
    found[ellipse(SIZE, 42, 41, 20, 15, 0)], found[ellipse(SIZE, 110, 135, 20, 15, 0)], found[ellipse(SIZE, 20, 140, 9, 9, 0)] = 1, 2, 3
    assert agreement.matched(true, found) == (1, 2, 3)
    assert agreement.matched(true, np.zeros_like(true)) == (0, 2, 0)


@pytest.mark.skipif(not (GLIOMA / "nuclei").is_dir(), reason="../shared/real/glioma with the outlined nuclei is missing")
def test_annotated_nuclei_are_found(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """On a few held-out images; the full table is in docs/measure.md."""
    from tools import bench

    for name in ("images", "nuclei"):
        (tmp_path / name).mkdir()
    held_out = [path for path in sorted((GLIOMA / "images").iterdir()) if agreement.split_of(path.name) == "held-out"]
    for path in held_out[:: len(held_out) // 8]:
        (tmp_path / "images" / path.name).symlink_to(path.resolve())
        (tmp_path / "nuclei" / f"{path.stem}.png").symlink_to((GLIOMA / "nuclei" / f"{path.stem}.png").resolve())
    out = tmp_path / "result.json"
    assert bench.main(["measure", "--images", str(tmp_path / "images"), "--masks", str(tmp_path / "nuclei"), "--json", str(out)]) == 0
    facts = json.loads(out.read_text())["facts"]
    assert facts["F1"] > 0.75
    for name, least in (("area_fraction", 0.75), ("orientation_disorder", 0.6), ("hyperchromasia", 0.75), ("nuclei_count", 0.5)):
        assert facts[f"Spearman, {name}"] > least, name
