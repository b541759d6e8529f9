"""Small sets, numeric level names in all commands, repacked shards, and the output of commands."""

from __future__ import annotations

import csv
import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shards import pixels_of, rows_of, write_csv

from attributegan.attributes import Attribute, AttributeSchema
from attributegan.evaluation import reference, scores, small_sets
from attributegan.utils.files import require_writable
from tools.explorer import state
from tools.shard import main as shard

NOTTINGHAM = "nottingham: [1, 2, 3]\n"


def small_set(folder: Path, count: int = 12, size: int = 32) -> Path:
    """A shard set of one attribute with numeric level names."""
    (folder / "images").mkdir(parents=True)
    for number in range(count):
        Image.fromarray(pixels_of(number, size)).save(folder / "images" / f"t{number:02d}.png")
    write_csv(folder / "levels.csv", ["file", "nottingham"], [[f"t{number:02d}.png", 1 + number % 3] for number in range(count)])
    (folder / "schema.yaml").write_text(NOTTINGHAM)
    assert (
        shard(
            [
                "pack",
                "--images",
                str(folder / "images"),
                "--labels",
                str(folder / "levels.csv"),
                "--attributes",
                str(folder / "schema.yaml"),
                "--out",
                str(folder / "set"),
                "--workers",
                "1",
                "--val-fraction",
                "0.25",
            ]
        )
        == 0
    )
    return folder / "set"


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An untrained run of an attribute with numeric level names, and its shards."""
    from launch.train import main as train

    folder = tmp_path_factory.mktemp("numbered")
    shards = small_set(folder)
    from runs import TINY

    options = [
        f"{section}.{key}={json.dumps(value)}"
        for section, tree in TINY.items()
        for key, value in tree.items()
        if section not in ("data", "run")
    ]
    (folder / "c.yaml").write_text("{}")
    chosen = [f"data.shards={shards}", f"run.dir={folder / 'run'}", "data.workers=0", "train.images=8", "train.batch=8"]
    assert train(["--config", str(folder / "c.yaml"), *options, *chosen]) == 0
    return folder / "run", shards


def test_samples_are_packed_with_the_levels_that_they_were_made_with(numbered: tuple[Path, Path], tmp_path: Path) -> None:
    """Tests the round trip of `attributegan-sample --help`, and one through shards."""
    from tools.sample import main as sample

    run, _ = numbered
    for spelled in ("2", "2.0", "#1"):
        assert sample([str(run), "--out", str(tmp_path / spelled), "--count", "3", "--levels", f"nottingham={spelled}"]) == 0
        with (tmp_path / spelled / "samples.csv").open() as stream:
            assert [row["nottingham"] for row in csv.DictReader(stream)] == ["2"] * 3
    assert sample([str(run), "--out", str(tmp_path / "drawn"), "--count", "9"]) == 0
    with (tmp_path / "drawn" / "samples.csv").open() as stream:
        said = {row["file"].removesuffix(".png"): row["nottingham"] for row in csv.DictReader(stream)}
    (tmp_path / "schema.yaml").write_text(NOTTINGHAM)
    assert (
        shard(
            [
                "pack",
                "--images",
                str(tmp_path / "drawn"),
                "--labels",
                str(tmp_path / "drawn" / "samples.csv"),
                "--out",
                str(tmp_path / "set"),
                "--attributes",
                str(tmp_path / "schema.yaml"),
                "--val-fraction",
                "0",
                "--workers",
                "1",
            ]
        )
        == 0
    )
    assert {row["key"]: str(1 + row["nottingham"]) for row in rows_of(tmp_path / "set")} == said
    assert sample([str(run), "--out", str(tmp_path / "made"), "--count", "9", "--format", "shards"]) == 0
    assert shard(["verify", str(tmp_path / "made"), "--workers", "1"]) == 0
    assert sorted(str(1 + row["nottingham"]) for row in rows_of(tmp_path / "made")) == sorted(said.values())


def test_the_index_of_our_own_tars_is_the_same_set(numbered: tuple[Path, Path], tmp_path: Path) -> None:
    _, shards = numbered
    (tmp_path / "schema.yaml").write_text(NOTTINGHAM)
    assert (
        shard(["index", str(shards), "--out", str(tmp_path / "again"), "--attributes", str(tmp_path / "schema.yaml"), "--workers", "1"])
        == 0
    )
    levels = [{row["key"]: row["nottingham"] for row in rows_of(folder)} for folder in (shards, tmp_path / "again")]
    assert levels[0] == levels[1] == {f"t{number:02d}": number % 3 for number in range(12)}


@pytest.mark.parametrize("names", [("1", "2", "3"), ("low", "mid", "high"), ("benign", "3", "4")])
def test_links_of_the_explorer_are_read_back(names: tuple[str, ...]) -> None:
    from urllib.parse import parse_qsl

    schema = AttributeSchema((Attribute("grade", names),))
    for level in (0.0, 0.4, 1.0, 1.7, 2.0):
        query = dict(parse_qsl(state.query_of(schema, state.State((level,), size=32), "model")))
        found, problems = state.read(schema, 32, query)
        assert not problems and found.levels == (level,), query
        named, problems = state.read(schema, 32, {"a.grade": str(schema.attributes[0].written(level)), "size": "32"})
        assert not problems and named.levels == (level,)


# Repacked shards, and resumed runs with a smaller train.images


def test_a_set_that_was_packed_anew_is_reported(numbered: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    from attributegan.run_dir import status
    from launch.train import main as train

    run, shards = numbered
    shutil.copytree(run, tmp_path / "run")
    other = small_set(tmp_path / "other", 15)
    options = ["--config", str(tmp_path / "run" / "config.yaml"), f"run.dir={tmp_path / 'run'}"]
    assert train([*options, f"data.shards={other}", "train.images=16"]) == 0
    assert "has changed since the checkpoint: from 8 images on, training uses the new tiles" in (tmp_path / "run" / "train.log").read_text()
    assert train([*options, f"data.shards={other}", "train.images=2"]) == 2
    assert "train.images: 2 is below the 16 that" in capsys.readouterr().err
    now = status.read(tmp_path / "run")
    assert now and now.state == "finished" and now.total == 16


# Evaluation of very small sets


class Features:
    def __init__(self, train_ND: np.ndarray, held_out_ND: np.ndarray) -> None:
        self.train_ND, self.held_out_ND = train_ND, held_out_ND


@pytest.mark.parametrize(
    ("train", "held_out", "why"),
    [
        (1, 10, "too few training tiles: 1, at least 20 are needed"),
        (2, 9, "too few training tiles: 2,"),
        (30, 2, "too few held-out tiles: 2, at least 6 are needed"),
        (30, 9, ""),
    ],
)
def test_few_tiles_are_not_judged(train: int, held_out: int, why: str) -> None:
    rng = np.random.default_rng(0)
    known = Features(rng.normal(size=(train, 5)), rng.normal(size=(held_out, 5)))
    assert small_sets.quality_problem(known).startswith(why) and bool(why) == bool(small_sets.quality_problem(known))  # type: ignore[arg-type]
    memory = small_sets.memorisation(known, rng.normal(size=(8, 5)))  # type: ignore[arg-type]
    assert (memory is None) == bool(why) and (memory is None or 0.1 < memory.ratio < 10)


def test_tiles_that_are_all_alike_are_not_judged() -> None:
    same_ND, rng = np.ones((30, 5)), np.random.default_rng(0)
    assert small_sets.quality_problem(Features(same_ND, same_ND[:9])) == "all training tiles are identical"  # type: ignore[arg-type]
    mixed_ND = rng.normal(size=(30, 5))
    copied = Features(mixed_ND, mixed_ND[:9])
    assert small_sets.memorisation(copied, rng.normal(size=(8, 5))) is None  # type: ignore[arg-type]  # held-out tiles are the training tiles
    assert math.isfinite(scores.FORMAT) and reference.MIN_TRAIN == 20


@pytest.mark.parametrize("count", [2, 4, 12])
def test_the_command_on_very_small_sets(
    numbered: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    from tools import evaluate

    run, _ = numbered
    shards = small_set(tmp_path / "few", count)
    arguments = [
        str(run),
        "--shards",
        str(shards),
        "--out",
        str(tmp_path / "report"),
        "--count",
        "16",
        "--sweeps",
        "2",
        "--cache",
        str(tmp_path / "cache"),
        "--features",
        "tests.helpers.fake_features:pooled",
        "--feature-size",
        "32",
        "--predictor",
        "features",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert evaluate.main(arguments) == 0
    printed = capsys.readouterr()
    assert "Image quality is not assessed:" in printed.out and "not assessed" in printed.out and "Warning" not in printed.err
    row = next(row for row in json.loads((tmp_path / "report" / "result.json").read_text())["rows"] if row["kind"] == "generator")
    assert row["quality"] == {} and "memory" not in row


# Read-only folders, and output


def test_folders_that_can_not_be_written_to_are_refused_first(
    tmp_path: Path, numbered: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from tools import evaluate
    from tools.sample import main as sample

    run, shards = numbered
    (tmp_path / "file").write_text("")
    bad = tmp_path / "file" / "out"
    assert sample([str(run), "--out", str(bad)]) == 2
    assert "--out" in capsys.readouterr().err
    assert shard(["card", str(shards), "--out", str(bad / "card.html")]) == 2
    assert "--out" in capsys.readouterr().err
    assert evaluate.main([str(run), "--shards", str(shards), "--out", str(bad)]) == 2
    assert f"--out: {bad} can't be written to" in capsys.readouterr().err
    assert evaluate.main([str(run), "--shards", str(shards), "--out", str(tmp_path / "ok"), "--cache", str(bad)]) == 2
    assert f"--cache: {bad} can't be written to" in capsys.readouterr().err
    require_writable(tmp_path / "new" / "deep", "--out")
    assert not (tmp_path / "new").exists()


def test_a_percent_sign_in_a_run_folder_is_no_pattern_of_slurm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from slurm import submit

    root = Path(__file__).parents[2]
    arguments = [
        "--config",
        str(root / "configs/train/small.yaml"),
        "--cluster",
        str(root / "configs/slurm/gpu.yaml"),
        "--dry-run",
        "train.batch=16",
        f"run.dir={tmp_path / 'run%j'}",
    ]
    assert submit.main(arguments) == 2
    assert "run%j contains %, which Slurm replaces in the names of logs" in capsys.readouterr().err
