"""Evaluation of tiles without their generator: real phantoms posing as generated ones, noise, and tables that are refused."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fake_features import Pooled
from PIL import Image
from untrained_run import untrained_run

from attributegan import evaluation
from attributegan.attributes import PUBLISHED
from attributegan.distributed.process_group import Processes
from attributegan.evaluation import reference
from attributegan.metrics import features
from data_shards.phantoms import measure, render
from data_shards.storage.cache import Cache
from tools import evaluate
from tools.evaluation import tiles as tiles_module
from tools.shard import main as shard_main

SIZE = 32
NETWORK = features.Features("pooled", "1", SIZE, Pooled())


def split(count: int, seed: int, noise: bool = False) -> reference.Split:
    levels_NA = render.draw_levels(count, seed).astype(np.int64)

    def read(rows: np.ndarray) -> np.ndarray:
        if noise:
            return np.stack([np.random.default_rng(row).integers(0, 256, (SIZE, SIZE, 3), np.uint8) for row in rows.tolist()])
        return np.stack([render.render(levels_NA[row], SIZE, seed, row) for row in rows.tolist()])

    return reference.Split(levels_NA, np.arange(count) // 20, read, f"phantoms {seed} {count} {noise}")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> reference.FeatureCache:
    return reference.FeatureCache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def real(cache: reference.FeatureCache) -> reference.ReferenceSet:
    found = reference.analyze_reference(PUBLISHED, split(300, 0), split(120, 1), NETWORK, Processes(), cache, kind="features")
    assert found is not None
    return found


def test_real_tiles_score_like_the_ceiling_and_noise_badly(real: reference.ReferenceSet, cache: reference.FeatureCache) -> None:
    found = {}
    for noise in (False, True):
        rows = evaluation.evaluate(split(120, 2, noise), real, NETWORK, name="posing", cache=cache, measure=measure.measure)
        found[noise] = [json.loads(json.dumps(row.numbers, allow_nan=False)) for row in rows]
    ceiling, posing, floor = found[False]
    assert [row["name"] for row in found[False]] == ["real held-out tiles", "posing", "posing, shuffled labels"]
    assert set(posing["control"]) == set(ceiling["control"]) and len(posing["control"]) >= 2
    assert abs(posing["obeys"] - ceiling["obeys"]) < 0.15 and posing["obeys"] > 0.4
    assert abs(floor["obeys"]) < 0.25
    intervals = [row["quality"]["kid"][1:] for row in (posing, ceiling)]
    assert max(low for low, _ in intervals) < min(high for _, high in intervals) and posing["quality"]["coverage"][0] > 0.7
    assert posing["memory"]["membership"][1] <= 0.5 < posing["memory"]["membership"][2]
    assert 0.8 < posing["memory"]["ratio"] < 1.25 and 0.7 < posing["diversity"] < 1.4
    assert min(posing["measured"].values()) > 0.3
    assert {"leak", "paths", "monotone"}.isdisjoint(posing) and "sweeps" in posing["left_out"]
    _, noisy, _ = found[True]
    assert noisy["quality"]["precision"][0] == 0 and noisy["quality"]["kid"][1] > 3 * max(high for _, high in intervals)
    assert abs(noisy["obeys"]) < 0.3


def test_training_tiles_with_noise_are_caught(real: reference.ReferenceSet, cache: reference.FeatureCache) -> None:
    train, rng = real.train, np.random.default_rng(0)

    def read(rows: np.ndarray) -> np.ndarray:
        tiles = train.read(rows)
        return (tiles + 3 * rng.standard_normal(tiles.shape)).clip(0, 255).astype(np.uint8)

    copies = reference.Split(train.levels_NA, train.group_N, read, "copies")
    memory = evaluation.evaluate(copies, real, NETWORK, cache=cache)[1].numbers["memory"]
    assert memory["membership"][1] > 0.6 and memory["ratio"] < 0.5 and memory["nearer"] > 0.2


def test_levels_of_few_tiles_are_not_scored(real: reference.ReferenceSet, cache: reference.FeatureCache) -> None:
    every, name = split(120, 2), "cell_crowding"
    rare_N = np.flatnonzero(every.levels_NA[:, PUBLISHED.names.index(name)] == 2)
    assert len(rare_N) > 10

    def spearman(rare: int) -> float | None:
        kept_N = np.setdiff1d(np.arange(len(every)), rare_N[rare:])
        kept = reference.Split(every.levels_NA[kept_N], every.group_N[kept_N], lambda rows: every.read(kept_N[rows]), f"{rare} of level 2")
        control = evaluation.evaluate(kept, real, NETWORK, cache=cache)[1].numbers["control"]
        return control[name]["spearman"][0] if name in control else None

    assert spearman(9) == spearman(0) != spearman(10)


def test_the_example_of_the_python_api_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[3] / "docs" / "reference" / "python-api.md").read_text(encoding="utf-8")
    code = re.search(r"^## Evaluation\n.*?```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert code
    arrays: dict[str, np.ndarray] = {}
    for name, tiles in (("train", split(200, 0)), ("held_out", split(80, 1)), ("generated", split(80, 2))):
        read = tiles.read(np.arange(len(tiles)))
        arrays |= {f"{name}_tiles": read, f"{name}_levels": tiles.levels_NA, f"{name}_slides": tiles.group_N}
    np.savez(tmp_path / "tiles.npz", **arrays)
    (tmp_path / "attributes.yaml").write_text(yaml.safe_dump(PUBLISHED.to_dict()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(features, "load", lambda name: NETWORK)  # a cheaper network
    found: dict[str, Any] = {}
    exec(compile(code[1], "python-api.md", "exec"), found)
    assert found["scores"].numbers["name"] == "ours" and found["shuffled"].numbers["kind"] == "floor" and found["scores"].numbers["control"]
    assert found["real"].numbers["kind"] == "ceiling" and capsys.readouterr().out.startswith("[")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "real"
    assert shard_main(["phantom", "--count", "160", "--size", "32", "--val-fraction", "0.4", "--out", str(folder), "--workers", "1"]) == 0
    return folder


def write_folder(folder: Path, count: int = 40, seed: int = 5, without: str = "") -> Path:
    """Images with a table, as any generator may write them; levels by name in one column."""
    folder.mkdir(parents=True)
    names = [name for name in PUBLISHED.names if name != without]
    with (folder / "levels.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", *names])
        for row, level_A in enumerate(render.draw_levels(count, seed)):
            Image.fromarray(render.render(level_A, SIZE, seed, row)).save(folder / f"{row:03}.png")
            levels = dict(zip(PUBLISHED.names, level_A.tolist(), strict=True))
            writer.writerow([f"{row:03}.png", *(levels[name] for name in names)])
    return folder


def arguments(subject: Path, shards: Path, out: Path) -> list[str]:
    common = ["--count", "40", "--sweeps", "2", "--features", "tests.helpers.fake_features:pooled", "--feature-size", "32"]
    more = ["--predictor", "features", "--precision", "fp32", "--cache", str(out / "cache")]
    return [str(subject), "--shards", str(shards), "--out", str(out), *common, *more]


def test_folder_and_set_beside_a_checkpoint(shards: Path, tmp_path: Path) -> None:
    folder, generated = write_folder(tmp_path / "stylegan"), tmp_path / "diffusion"
    packing = [
        "phantom",
        "--count",
        "50",
        "--size",
        "32",
        "--seed",
        "9",
        "--val-fraction",
        "0.2",
        "--out",
        str(generated),
        "--workers",
        "1",
    ]
    assert shard_main(packing) == 0
    untrained_run(tmp_path / "untrained", 1234)
    out = tmp_path / "report"
    baselines = ["--baseline", str(generated), "--baseline", str(tmp_path / "untrained")]
    rate = {"correct": 0.5, "low": 0.4, "high": 0.6, "choices": 100, "pairs": 100}
    source = {"generated": "stylegan", "shards": "real", "split": "val"}
    readers = {"format": 1, "study": source, "sentence": "Ann chose <well>.", "all": rate, "readers": {"Ann": rate}, "levels": {}}
    (tmp_path / "study.json").write_text(json.dumps(readers))
    assert evaluate.main([*arguments(folder, shards, out), *baselines, "--reader-study", str(tmp_path / "study.json")]) == 0
    result = json.loads((out / "result.json").read_text())
    assert result["reader_study"] == readers and "Ann chose &lt;well&gt;." in (out / "report.html").read_text()
    rows = {row["name"]: row for row in result["rows"] if row["kind"] == "generator"}
    assert list(rows) == ["stylegan", "diffusion", "untrained"] and list(result["models"]) == ["untrained"]
    assert {name: found["tiles"] for name, found in result["tile_sets"].items()} == {"stylegan": 40, "diffusion": 40}  # --count
    assert rows["stylegan"]["tiles"] == rows["diffusion"]["tiles"] == 40 and "paths" in rows["untrained"]
    kids = {name: row["quality"]["kid"][0] for name, row in rows.items()}
    assert max(kids["stylegan"], kids["diffusion"]) < kids["untrained"] / 5
    page = (out / "report.html").read_text()
    assert "stylegan, diffusion: tiles without their generator" in page and "Not computed, since it needs the generator: sweeps" in page
    assert f"40 tiles of {folder}" in page and "Evaluation: stylegan, diffusion, untrained" in page
    assert "In short" in page and "Tiles of stylegan are" in page and "They " in page.partition("In short")[2]
    assert list((out / "tensorboard").iterdir())


def test_tiles_of_a_set_come_from_all_splits(shards: Path) -> None:
    source = tiles_module.open_tiles(shards, Cache.of())
    tiles = source.open(PUBLISHED, 1000, 16)
    assert len(tiles) == 160 and tiles.read(np.array([3, 159])).shape == (2, 16, 16, 3) and source.image_size == 32
    few = source.open(PUBLISHED, 10, 32)
    assert len(few) == 10 and few.identity != tiles.identity
    values_NA = measure.measure(source.open(PUBLISHED, 160, 32).read(np.arange(160)))
    crowding = PUBLISHED.names.index("cell_crowding")
    assert np.corrcoef(tiles.levels_NA[:, crowding], values_NA[:, crowding])[0, 1] > 0.4  # pixels stay with their levels


def test_what_is_a_tile_set(shards: Path, tmp_path: Path) -> None:
    untrained_run(tmp_path / "run", 1)
    (tmp_path / "run" / "notes.csv").write_text("a,b\n")
    assert not tiles_module.is_tiles(tmp_path / "run") and not tiles_module.is_tiles(tmp_path / "absent")
    assert not tiles_module.is_tiles(next((tmp_path / "run" / "checkpoints").glob("images-*")))
    assert tiles_module.is_tiles(shards) and tiles_module.is_tiles("https://example.org/set")
    assert tiles_module.is_tiles(write_folder(tmp_path / "images", 1))


def test_bad_tiles_are_refused_by_name(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(folder: Path, message: str) -> None:
        out = tmp_path / "out"
        assert evaluate.main(arguments(folder, shards, out)) == 2
        assert message in capsys.readouterr().err and not (out / "result.json").exists()

    lacking = write_folder(tmp_path / "lacking", 3, without="pleomorphism" if "pleomorphism" in PUBLISHED.names else PUBLISHED.names[1])
    absent = next(name for name in PUBLISHED.names if name not in (lacking / "levels.csv").read_text())
    refused(lacking, f"{lacking / 'levels.csv'}: lacks the attributes {absent}; add a column for each")
    two = write_folder(tmp_path / "two", 3)
    (two / "other.csv").write_text("file\n")
    refused(two, f"{two}: needs one CSV with the levels of its images; found levels.csv, other.csv")
    missing = write_folder(tmp_path / "missing", 3)
    (missing / "001.png").unlink()
    refused(missing, f"{missing / '001.png'}: not a readable image")
    odd = write_folder(tmp_path / "odd", 3)
    Image.new("RGB", (32, 30)).save(odd / "002.png")
    refused(odd, f"{odd / '002.png'}: not a square of 32 pixels like the first image")
    invalid = write_folder(tmp_path / "invalid", 3)
    with (invalid / "levels.csv").open("a") as stream:
        stream.write("003.png,99,1,1,1,1\n")
    refused(invalid, f"{invalid / 'levels.csv'}: 1 invalid rows:")
