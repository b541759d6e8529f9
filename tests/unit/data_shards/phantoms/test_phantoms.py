"""Phantom tiles: levels are exact by construction and visible in pixels, attributes are independent, rendering is pure."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from attributegan.attributes import PUBLISHED
from attributegan.metrics.control import scores
from data_shards.packing.labels import read_labels
from data_shards.packing.sources import phantom_labels
from data_shards.phantoms.measure import measure
from data_shards.phantoms.render import Scene, draw_levels, paint, render, scene
from data_shards.phantoms.scene import FIGURES, NUCLEI, SIZE_SPREAD
from tools.shard import main as shard_main

ATTRIBUTES = range(len(PUBLISHED.attributes))
BASE = (2, 2, 2, 1, 2)


def with_level(attribute: int, level: int, base: tuple[int, ...] = BASE) -> tuple[int, ...]:
    return (*base[:attribute], level, *base[attribute + 1 :])


def tiles(attribute: int, level: int, count: int, size: int = 64, fixed: dict[int, int] | None = None) -> list[np.ndarray]:
    """Render tiles with one attribute at ``level``, and the others random or ``fixed``."""
    rows = draw_levels(count, seed=5)
    for column, value in {**(fixed or {}), attribute: level}.items():
        rows[:, column] = value
    return [render(row, size, seed=5, index=index) for index, row in enumerate(rows)]


def darkness(image_HWC: np.ndarray) -> np.ndarray:
    """Absorbance of red light, mostly by hematoxylin."""
    return -np.log(np.maximum(image_HWC[..., 0], 1) / 255.0)


def test_render_is_a_pure_function_of_its_arguments() -> None:
    first = render(BASE, 64, seed=1, index=2)
    assert first.shape == (64, 64, 3) and first.dtype == np.uint8
    render(with_level(0, 4), 32, seed=9, index=9)
    np.testing.assert_array_equal(render(np.array(BASE, np.int8), 64, seed=1, index=2), first)
    assert (render(BASE, 64, seed=2, index=2) != first).mean() > 0.5
    assert (render(BASE, 64, seed=1, index=3) != first).mean() > 0.5


@pytest.mark.parametrize("size", [32, 100, 512])
def test_any_size_renders(size: int) -> None:
    assert render(BASE, size, seed=0, index=0).shape == (size, size, 3)


def test_tiles_show_the_same_content_at_every_size() -> None:
    truths = [scene(levels, 3, index) for index, levels in enumerate(draw_levels(10, 3))]
    for truth in truths:
        small = paint(truth, 64).astype(float)
        large = paint(truth, 256).astype(float).reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
        assert abs(small - large).mean() < 2.0
        assert np.corrcoef(small.ravel(), large.ravel())[0, 1] > 0.99


def test_ground_truth_matches_every_combination_of_levels() -> None:
    for index, levels in enumerate(itertools.product(*(attribute.assessable for attribute in PUBLISHED.attributes))):
        crowding, polarity, mitosis, nucleoli, pleomorphism = levels
        truth = scene(levels, seed=0, index=index)
        value = truth.measure()
        assert abs(value["cell_crowding"] - NUCLEI[crowding - 1]) <= 1
        assert np.digitize(value["cell_polarity"], [0.1, 0.65]) + 1 == polarity
        assert value["mitosis"] == FIGURES[mitosis - 1]
        assert value["nucleoli"] == nucleoli - 1
        log_sizes = np.log([nucleus.major * nucleus.minor for nucleus in truth.nuclei]) / 2
        assert np.std(log_sizes) == pytest.approx(SIZE_SPREAD[pleomorphism - 1], rel=0.3)
        assert np.digitize(value["pleomorphism"], [0.1, 0.38, 0.64]) + 1 == pleomorphism
        assert all(0 < nucleus.x < 1 and 0 < nucleus.y < 1 for nucleus in (*truth.nuclei, *truth.figures))


def test_stained_area_does_not_grow_with_pleomorphism() -> None:
    def area(level: int) -> float:
        truths = [scene(with_level(4, level), 0, index) for index in range(200)]
        return float(np.mean([nucleus.major * nucleus.minor for truth in truths for nucleus in truth.nuclei]))

    assert area(4) == pytest.approx(area(1), rel=0.03)


# Properties of a nucleus that each attribute may change; mitosis changes none.
MAY_CHANGE = {
    "cell_crowding": set(),
    "cell_polarity": {"angle", "nucleolus_at"},
    "mitosis": set(),
    "nucleoli": {"stain", "nucleolus"},
    "pleomorphism": {"major", "minor", "outline", "nucleolus_at", "nucleolus_width"},
}


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_changing_one_attribute_leaves_the_others(attribute: int) -> None:
    name = PUBLISHED.names[attribute]
    levels = PUBLISHED.attributes[attribute].assessable
    for index in range(20):
        low, high = (scene(with_level(attribute, level), 7, index) for level in (levels[0], levels[-1]))
        assert len(low.nuclei) == len(high.nuclei) or name == "cell_crowding"
        for mine, theirs in zip(low.nuclei, high.nuclei, strict=False):  # crowding appends nuclei
            changed = {f.name for f in dataclasses.fields(mine) if getattr(mine, f.name) != getattr(theirs, f.name)}
            assert changed <= MAY_CHANGE[name]
        assert (low.nuclei != high.nuclei) == (name != "mitosis")
        assert (low.figures != high.figures) == (name == "mitosis")
        for nuisance in ("stains_23", "eosin_GG", "light_GG"):
            np.testing.assert_array_equal(getattr(low, nuisance), getattr(high, nuisance))


def test_mitosis_changes_pixels_at_the_figures_only() -> None:
    truth = scene(with_level(2, 3), 0, 4)
    changed = (paint(truth, 128) != paint(scene(with_level(2, 1), 0, 4), 128)).any(axis=2)
    y, x = (np.argwhere(changed) + 0.5).T / 128
    distance = np.min([np.hypot(x - figure.x, y - figure.y) for figure in truth.figures], axis=0)
    assert changed.any() and distance.max() < 0.2


def test_crowding_from_pixels() -> None:
    covered = [np.mean([(darkness(tile) > 0.6).mean() for tile in tiles(0, level, 40)]) for level in (1, 2, 3, 4)]
    assert covered[0] > 0.05
    assert all(b > 1.2 * a for a, b in itertools.pairwise(covered))


def test_polarity_from_pixels() -> None:
    def coherence(image_HWC: np.ndarray) -> float:
        down, right = np.gradient(darkness(image_HWC))
        xx, yy, xy = (right**2).mean(), (down**2).mean(), (right * down).mean()
        return float(np.hypot(xx - yy, 2 * xy) / (xx + yy))

    values = [np.mean([coherence(tile) for tile in tiles(1, level, 60, fixed={2: 1})]) for level in (1, 2, 3)]
    assert values[0] > values[1] + 0.05 and values[1] > values[2] + 0.05


def test_mitosis_from_pixels() -> None:
    area = [np.mean([(darkness(tile) > 1.7).mean() for tile in tiles(2, level, 40)]) for level in (1, 2, 3)]
    assert area[0] < 0.1 * area[1]
    assert area[2] == pytest.approx(3 * area[1], rel=0.25)


def test_nucleoli_from_pixels() -> None:
    def peak(truth: Scene) -> float:
        """Ratio of the darkest to the median pixel within a nucleus's short axis of its centre."""
        dark = darkness(paint(truth, 128))
        y, x = (np.mgrid[:128, :128] + 0.5) / 128
        inner = [dark[np.hypot(x - nucleus.x, y - nucleus.y) < nucleus.minor] for nucleus in truth.nuclei]
        return float(np.median([values.max() / np.median(values) for values in inner]))

    for index in range(10):
        assert peak(scene((2, 2, 1, 1, 2), 0, index)) < 1.1
        assert peak(scene((2, 2, 1, 2, 2), 0, index)) > 1.4


def test_pleomorphism_from_pixels() -> None:
    def spread(image_HWC: np.ndarray) -> float:
        areas = blob_areas(darkness(image_HWC) > 0.5)
        return float(np.std(np.log(areas)))

    fixed = {0: 1, 1: 1, 2: 1, 3: 1}  # few nuclei, which rarely touch
    values = [np.mean([spread(tile) for tile in tiles(4, level, 30, fixed=fixed)]) for level in (1, 2, 3, 4)]
    assert all(b > a + 0.05 for a, b in itertools.pairwise(values))


def blob_areas(mask_HW: np.ndarray) -> np.ndarray:
    """Areas of 4-connected blobs, by propagating the largest pixel index through each blob until convergence."""
    labels = np.where(mask_HW, np.arange(1, mask_HW.size + 1).reshape(mask_HW.shape), 0)
    while True:
        padded = np.pad(labels, 1)
        spread = np.max([labels, padded[2:, 1:-1], padded[:-2, 1:-1], padded[1:-1, 2:], padded[1:-1, :-2]], axis=0) * mask_HW
        if (spread == labels).all():
            return np.unique(labels[mask_HW], return_counts=True)[1]
        labels = spread


def test_looks_like_hematoxylin_and_eosin() -> None:
    for index, levels in enumerate(draw_levels(20, 11)):
        truth = scene(levels, 11, index)
        image = paint(truth, 128).astype(float)
        centres = np.array([image[int(nucleus.y * 128), int(nucleus.x * 128)] for nucleus in truth.nuclei])
        red, green, blue = centres.mean(axis=0)
        assert blue > red > green  # blue-purple
        red, green, blue = np.median(image[darkness(image) < 0.35], axis=0)
        assert red > blue > green and red > 190  # pink


def test_drawn_levels_are_uniform_independent_and_assessable() -> None:
    levels_NA = draw_levels(20_000, seed=3)
    assert levels_NA.shape == (20_000, 5) and levels_NA.dtype == np.int8
    for column, attribute in zip(levels_NA.T, PUBLISHED.attributes, strict=True):
        shares = [(column == level).mean() for level in attribute.assessable]
        assert shares == pytest.approx([1 / len(shares)] * len(shares), abs=0.015) and sum(shares) == pytest.approx(1)
    correlation = np.corrcoef(levels_NA.T.astype(float)) - np.eye(5)
    assert abs(correlation).max() < 0.03


def test_drawn_levels_depend_only_on_seed_and_index() -> None:
    np.testing.assert_array_equal(draw_levels(10, 1), draw_levels(1000, 1)[:10])
    assert (draw_levels(1000, 1) != draw_levels(1000, 2)).any(axis=1).mean() > 0.9


@pytest.mark.parametrize(
    ("levels", "message"),
    [((0, 1, 1, 1, 1), "cell_crowding: phantoms support levels 1, 2, 3, 4, not 0"), ((1, 1, 1, 3, 1), "nucleoli"), ((1, 1), "got 2")],
)
def test_unsupported_levels_are_rejected(levels: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render(levels, 64, 0, 0)


@pytest.mark.parametrize("size", [31, 1025])
def test_unsupported_sizes_are_rejected(size: int) -> None:
    with pytest.raises(ValueError, match=f"32 to 1024 pixels, not {size}"):
        render(BASE, size, 0, 0)


def test_attributes_can_be_measured_on_pixels() -> None:
    """The order of the levels of every attribute is recovered from pixels alone."""
    levels = draw_levels(200, seed=2)
    values = measure(np.stack([render(row, 64, seed=2, index=index) for index, row in enumerate(levels)]))
    assert values.shape == (200, 5)
    least = {"cell_crowding": 0.95, "cell_polarity": 0.95, "mitosis": 0.9, "nucleoli": 0.8, "pleomorphism": 0.7}
    for a, attribute in enumerate(PUBLISHED.attributes):
        found = scores(levels[:, a].astype(int), values[:, a], attribute.assessable).spearman
        assert found > least[attribute.name], attribute.name


def test_measuring_blank_tiles_gives_numbers() -> None:
    assert np.isfinite(measure(np.stack([np.full((32, 32, 3), value, np.uint8) for value in (0, 128, 255)]))).all()


def test_levels_can_follow_the_frequencies_of_a_table(tmp_path: Path) -> None:
    table = tmp_path / "levels.csv"
    common, rare, unshown = "2,2,1,1,2", "4,3,3,2,4", "0,2,1,1,2"
    rows = [f"{number},{levels}" for number, levels in enumerate([common] * 9 + [rare] + [unshown] * 10)]
    table.write_text("file,cell_crowding,cell_polarity,mitosis,nucleoli,pleomorphism\n" + "\n".join(rows))
    drawn = phantom_labels(2_000, seed=3, like=read_labels([table], PUBLISHED)).table.select(list(PUBLISHED.names)).to_pylist()
    found = Counter(",".join(str(level) for level in row.values()) for row in drawn)
    assert found.keys() == {common, rare} and 140 < found[rare] < 260
    assert phantom_labels(10, seed=3, like=read_labels([table], PUBLISHED)).table.select(list(PUBLISHED.names)).to_pylist() == drawn[:10]


def test_tables_without_supported_levels_are_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "levels.csv"
    table.write_text("file,cell_crowding,cell_polarity,mitosis,nucleoli,pleomorphism\na,0,1,1,1,1\n")
    assert shard_main(["phantom", "--count", "8", "--size", "32", "--out", str(tmp_path / "out"), "--like", str(table)]) == 2
    assert f"--like {table}: no tile has five assessable levels" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
