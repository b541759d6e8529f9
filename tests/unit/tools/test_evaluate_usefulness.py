"""Usefulness: real phantoms posing as generated ones help where real tiles are few, shuffled levels hurt; the command and its sentences."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_features import Pooled
from PIL import Image
from untrained_run import untrained_run

from attributegan.attributes import PUBLISHED, Attribute, AttributeSchema
from attributegan.distributed.process_group import Processes
from attributegan.evaluation import reference, usefulness
from attributegan.metrics import control, features, predictor
from data_shards.phantoms import render
from tools import evaluate
from tools.evaluation import usefulness_page
from tools.shard import main as shard_main

SIZE, REAL, HELD_OUT = 32, 400, 250
NETWORK = features.Features("pooled", "1", SIZE, Pooled())
TWO = AttributeSchema((Attribute("size", ("none", "low", "mid", "high"), not_assessable=0), Attribute("tone", ("dark", "light"))))


@pytest.fixture(scope="module", autouse=True)
def one_decay() -> Iterator[None]:
    """One candidate for the weight decay instead of four: a quarter of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictor, "DECAYS", (1e-2,))
        yield


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> reference.FeatureCache:
    return reference.FeatureCache(tmp_path_factory.mktemp("cache"))


def pool(count: int, seed: int, cache: reference.FeatureCache, shuffled: bool = False) -> usefulness.Pool:
    drawn_NA = render.draw_levels(count, seed).astype(np.int64)

    def read(rows: np.ndarray) -> np.ndarray:
        return np.stack([render.render(drawn_NA[row], SIZE, seed, row) for row in rows.tolist()])

    levels_NA = control.shuffle(drawn_NA) if shuffled else drawn_NA
    split = reference.Split(levels_NA, np.arange(count) // 20, read, f"phantoms {seed} {count} {shuffled}")
    found = usefulness.pool_of(split, "tiles", NETWORK, Processes(), cache, lambda description, done, total: None)
    assert found is not None
    return found


def study(cache: reference.FeatureCache, shuffled: bool) -> usefulness.Study:
    generated = pool(REAL, 7, cache, shuffled)
    return usefulness.Study(PUBLISHED, pool(REAL, 0, cache), pool(HELD_OUT, 1, cache), generated, None, NETWORK.identity, cache)


@pytest.fixture(scope="module")
def results(cache: reference.FeatureCache) -> dict[bool, dict[str, Any]]:
    rows = usefulness.training_sets(REAL, REAL, (10, 100))
    return {shuffled: usefulness.run(study(cache, shuffled), rows, seeds=3, replicates=200) for shuffled in (False, True)}


def row_of(result: dict[str, Any], **wanted: Any) -> dict[str, Any]:
    (row,) = [row for row in result["rows"] if all(row[key] == value for key, value in wanted.items())]
    return row


def test_right_levels_help_where_real_tiles_are_few_and_shuffled_ones_hurt(results: dict[bool, dict[str, Any]]) -> None:
    right, wrong = (row_of(results[shuffled], share=10, generated=REAL) for shuffled in (False, True))
    assert right["gain"]["mean"][1] > 0.03 and wrong["gain"]["mean"][2] < 0
    assert row_of(results[True], share=100, generated=REAL, balanced=False)["gain"]["mean"][0] < 0
    real = row_of(results[False], share=100, generated=0)
    alone = row_of(results[False], share=0, balanced=False)
    assert abs(alone["scores"]["mean"][0] - real["scores"]["mean"][0]) < 0.08  # they are real tiles, after all
    assert abs(row_of(results[True], share=0, balanced=False)["scores"]["mean"][0]) < 0.25
    for row in results[False]["rows"]:
        assert all(low <= value <= high for value, low, high in row["scores"].values())
        if "gain" in row and row["real"]:
            base = row_of(results[False], share=row["share"], generated=0)
            assert row["gain"]["mean"][0] == pytest.approx(row["scores"]["mean"][0] - base["scores"]["mean"][0])
    said = usefulness_page.added(results[False]["rows"], 10)
    assert "Adding 400 generated tiles to 10 % of the real tiles (40) helps: mean score" in said
    assert "hurts" in usefulness_page.added(results[True]["rows"], 10)


def test_scores_are_those_of_control(cache: reference.FeatureCache, results: dict[bool, dict[str, Any]]) -> None:
    of = study(cache, False)
    row = usefulness.training_sets(REAL, REAL, (10, 100))[1]
    levels = results[False]["attributes"]["cell_crowding"]
    column = PUBLISHED.names.index("cell_crowding")
    for seed in range(3):
        expected = control.scores(of.held_out.levels_NA[:, column], of.predict(row, seed)[:, column], levels).spearman
        assert row_of(results[False], name=row.name)["by_seed"]["cell_crowding"][seed] == pytest.approx(expected)


def test_finished_predictors_are_not_trained_again(
    cache: reference.FeatureCache, results: dict[bool, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(predictor, "fit_head_on", fail)
    again = usefulness.run(study(cache, False), usefulness.training_sets(REAL, REAL, (10, 100)), seeds=3, replicates=200)
    assert again == results[False]
    with pytest.raises(AssertionError, match="trained again"):
        study(cache, False).predict(usefulness.TrainingSet(20, 100), 0)


def test_training_sets() -> None:
    names = [row.name for row in usefulness.training_sets(200, 200, (5, 10, 100))]
    assert names == [
        "20 real (10 %)",
        "20 real (10 %) + 20 generated",
        "20 real (10 %) + 200 generated",
        "20 real (10 %) + 20 balanced generated",
        "200 real (100 %)",
        "200 real (100 %) + 200 generated",
        "200 real (100 %) + 200 balanced generated",
        "200 generated",
        "200 balanced generated",
    ]  # 5 % are fewer than 20 tiles
    few = usefulness.training_sets(200, 50, (100,))
    assert [(row.real, row.generated) for row in few] == [(200, 0), (200, 50), (200, 50), (0, 50), (0, 50)]
    many = usefulness.training_sets(100, 400, (100,))
    assert [row.generated for row in many] == [0, 100, 400, 100, 100, 400, 100]
    assert usefulness.with_equal(many[2], many) == many[1] and usefulness.with_equal(many[1], many) is None
    assert usefulness.without_generated(many[4], many) == many[0] == usefulness.without_generated(many[1], many)


def test_draws_are_nested_and_paired(cache: reference.FeatureCache) -> None:
    of = study(cache, False)
    small, large = (of.draw(usefulness.TrainingSet(share, 4 * share, 4 * share), 3) for share in (10, 50))
    assert set(small[0]) < set(large[0]) and set(small[2]) < set(large[2]) and len(set(large[2])) == 200
    np.testing.assert_array_equal(of.draw(usefulness.TrainingSet(10, 40), 3)[0], small[0])
    assert not np.array_equal(of.draw(usefulness.TrainingSet(10, 40), 4)[0], small[0])


def test_balanced_weights_make_levels_equally_frequent() -> None:
    rng = np.random.default_rng(0)
    levels_NA = np.stack([rng.choice([0, 1, 2, 3], 2000, p=[0.1, 0.6, 0.2, 0.1]), rng.choice([-1, 0, 1], 2000, p=[0.1, 0.7, 0.2])], axis=1)
    weight_N = usefulness.balanced_weights(TWO, levels_NA)
    assert weight_N.sum() == pytest.approx(1) and weight_N.max() * len(weight_N) <= 10.001
    shares = [weight_N[levels_NA[:, 0] == level].sum() for level in (1, 2, 3)]
    assert max(shares) / min(shares) < 1.02
    assert weight_N[levels_NA[:, 1] == 0].sum() == pytest.approx(weight_N[levels_NA[:, 1] == 1].sum(), rel=0.02)


def test_cnn_without_real_tiles(cache: reference.FeatureCache) -> None:
    of = study(cache, False)
    short = usefulness.Study(**{**vars(of), "kind": "cnn", "steps": 2})
    assert short.predict(usefulness.TrainingSet(0, 0, 40), 0).shape == (HELD_OUT, 5)


def test_too_few_tiles_of_every_level() -> None:
    with pytest.raises(ValueError, match="no attribute has two levels with at least 20 training and 10 held-out tiles"):
        usefulness.scored_levels(TWO, np.ones((30, 2), int), np.ones((30, 2), int))


def write_folder(folder: Path, count: int) -> Path:
    folder.mkdir()
    with (folder / "levels.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", *PUBLISHED.names])
        for row, level_A in enumerate(render.draw_levels(count, 11)):
            Image.fromarray(render.render(level_A, SIZE, 11, row)).save(folder / f"{row:03}.png")
            writer.writerow([f"{row:03}.png", *level_A])
    return folder


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards, out = tmp_path / "shards", tmp_path / "out"
    packing = ["phantom", "--count", "400", "--size", "32", "--val-fraction", "0.4", "--out", str(shards), "--workers", "1"]
    assert shard_main(packing) == 0
    common = ["--shards", str(shards), "--out", str(out), "--features", "tests.helpers.fake_features:pooled", "--feature-size", "32"]
    common += ["--cache", str(tmp_path / "cache"), "--seeds", "2", "--shares", "25", "--precision", "fp32"]
    assert evaluate.main(["usefulness", str(write_folder(tmp_path / "posing", 120)), *common]) == 0
    text, result = capsys.readouterr().out, json.loads((out / "usefulness.json").read_text())
    assert result["model"] == {"name": "posing", "is_model": False, "generated": 120} and result["settings"]["seeds"] == 2
    page = (out / "usefulness.html").read_text()
    for sentence in usefulness_page.sentences(result):
        assert sentence in text and len(sentence) < 500
    assert "In short" in page and "Usefulness: posing" in page and page.count("image/svg+xml") == 1 + len(result["attributes"])
    assert "60 real (25 %) + 60 balanced generated" in page and not list(out.glob(".writing-*"))

    shutil.rmtree(out)
    torch.manual_seed(0)
    untrained_run(tmp_path / "untrained", 1234)
    assert evaluate.main(["usefulness", str(tmp_path / "untrained"), *common]) == 0
    result = json.loads((out / "usefulness.json").read_text())
    assert result["model"]["is_model"] and result["model"]["generated"] == result["data"]["train_tiles"] == 240
    assert result["model"]["name"] == "untrained at 1,234" and "The generator has seen all real" in (out / "usefulness.html").read_text()
    entries = sorted(path.name for path in (tmp_path / "cache").iterdir())
    (out / "usefulness.json").unlink()
    assert evaluate.main(["usefulness", str(tmp_path / "untrained"), *common]) == 0
    assert json.loads((out / "usefulness.json").read_text()) == result
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == entries  # nothing was computed again

    capsys.readouterr()
    assert evaluate.main(["usefulness", str(tmp_path / "untrained"), *common, "--shares", "100"]) == 2
    assert "--shares: 100 must be above 0 and below 100" in capsys.readouterr().err


def estimate(value: float) -> dict[str, list[float]]:
    return {"mean": [value, value - 0.1, value + 0.1], "grade": [value, value - 0.1, value + 0.1]}


def entry(share: int, real: int, generated: int, gain: float = 0, over: float | None = None, balanced: bool = False) -> dict[str, Any]:
    found = {"share": share, "real": real, "generated": generated, "balanced": balanced, "scores": estimate(0.5 + gain)}
    return found | ({"gain": estimate(gain)} if generated else {}) | ({} if over is None else {"over_drawn": estimate(over)})


def test_sentences_by_rule() -> None:
    rows = [entry(100, 200, 0), entry(100, 200, 200, 0.05), entry(100, 200, 800, -0.15, -0.2), entry(100, 200, 200, 0.2, 0.15, True)]
    rows += [entry(0, 0, 200, -0.2), entry(0, 0, 200, -0.2, 0.0, True)]
    assert usefulness_page.added(rows, 100) == (
        "Adding 200 generated tiles to all 200 real tiles makes no measurable difference: mean score 0.50 without, 0.55 with them (+0.05, "
        "-0.05 to +0.15)."
    )
    assert usefulness_page.where(rows, 100).endswith("it makes no measurable difference for grade (+0.05).")
    assert usefulness_page.how_many(rows) == "More generated than real tiles are worse for all 200 real tiles."
    assert usefulness_page.how_many(rows[:2]).startswith("More generated than real tiles were not tried")
    assert usefulness_page.alone(rows).startswith("200 generated tiles alone reach 0.30, 200 real ones 0.50 (-0.20")
    assert usefulness_page.balancing(rows) == "Generating all levels equally often helps for all 200 real tiles (+0.15, +0.05 to +0.25)."
    assert "no measurable" in usefulness_page.balancing([entry(100, 200, 200, 0.2, 0.05, True)])


@pytest.mark.parametrize(("predictor", "fix"), [("features", "--predictor cnn"), ("cnn", "--predictor-steps")])
def test_gains_of_a_weak_predictor_come_with_a_warning(predictor: str, fix: str) -> None:
    settings, poor = {"predictor": predictor}, entry(100, 200, 0) | {"scores": estimate(0.29)}
    (warning,) = usefulness_page.weak({"rows": [entry(10, 20, 0), poor], "settings": settings})
    assert "(mean score 0.29)" in warning and fix in warning
    assert not usefulness_page.weak({"rows": [entry(100, 200, 0)], "settings": settings})
