"""The diffusion model of the benchmarks, at a tiny size: trained, resumed, sampled, and its tiles opened for an evaluation."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from shards import TWO, make_set
from untrained_run import untrained_run

from data_shards.storage.cache import Cache
from tools import shard
from tools.bench import main
from tools.benchmarks.diffusion_settings import DiffusionSettings
from tools.evaluation.tiles import open_tiles

TINY = ["--channels", "8", "16", "--batch", "4", "--steps", "2", "--repeats", "1", "--precision", "fp32"]


def needs_diffusers() -> None:
    pytest.importorskip("diffusers", reason="needs the extra `bench`: pip install 'attributegan[bench]'")


def trained(shards: Path, out: Path, images: int, *options: str, size: int = 16) -> int:
    return main(["diffusion", "--shards", str(shards), "--out", str(out), "--size", str(size), "--images", str(images), *TINY, *options])


def test_a_resumed_model_is_the_same_as_one_trained_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs_diffusers()
    shards, options = make_set(tmp_path, 12), ["--count", "6", "--label-dropout", "0.5"]
    assert trained(shards, tmp_path / "once", 16, *options) == 0
    assert trained(shards, tmp_path / "twice", 8, *options) == 0
    assert trained(shards, tmp_path / "twice", 16, *options) == 2 and "exists; move it away" in capsys.readouterr().err
    (tmp_path / "twice" / "tiles").rename(tmp_path / "first-tiles")
    assert trained(shards, tmp_path / "twice", 16, *options, "--learning-rate", "0.1") == 2
    assert "--learning-rate" in capsys.readouterr().err
    assert trained(shards, tmp_path / "twice", 16, *options) == 0 and "resuming at 8 images" in capsys.readouterr().out
    once, twice = (load_file(tmp_path / name / "diffusion.safetensors") for name in ("once", "twice"))
    assert once.keys() == twice.keys() and all(torch.equal(tensor, twice[name]) for name, tensor in once.items())
    assert any(not torch.equal(once[name], once[name.replace("weight.", "ema.", 1)]) for name in once if name.startswith("weight."))
    tiles = [
        open_tiles(folder, Cache.of(str(tmp_path / "cache"))).open(TWO, 10, 16)
        for folder in (tmp_path / "once/tiles", tmp_path / "twice/tiles")
    ]
    read = [split.read(np.arange(6)) for split in tiles]
    assert read[0].shape == (6, 16, 16, 3) and np.array_equal(read[0], read[1])
    assert np.array_equal(tiles[0].levels_NA, tiles[1].levels_NA) and tiles[0].levels_NA.shape == (6, 2)
    assert not np.array_equal(read[0][0], read[0][1])


def test_seconds_per_tile_beside_a_generator(tmp_path: Path) -> None:
    needs_diffusers()
    shards, run = tmp_path / "shards", tmp_path / "run"
    assert shard.main(["phantom", "--count", "8", "--size", "32", "--out", str(shards), "--val-fraction", "0"]) == 0
    untrained_run(run, 0)
    result = tmp_path / "result.json"
    options = ["--count", "1", "--guidance", "2", "--generator", str(run), "--json", str(result)]
    assert trained(shards, tmp_path / "out", 4, *options, size=32) == 0
    values = json.loads(result.read_text())
    assert set(values["contenders"]) == {"diffusion, 2 steps", "generator"} and values["facts"]["images"] == 4
    assert values["ratios"]["diffusion, 2 steps / generator"][0] > 0 and values["facts"]["parameters of the generator"] > 0


def test_a_generator_of_other_attributes_is_refused_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs_diffusers()
    untrained_run(tmp_path / "run", 0)
    assert trained(make_set(tmp_path, 12), tmp_path / "out", 4, "--generator", str(tmp_path / "run")) == 2
    assert "does not fit the shards" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_every_level_has_its_own_embedding_also_the_unknown_one() -> None:
    needs_diffusers()
    from tools.benchmarks.diffusion_model import LevelUNet

    torch.manual_seed(0)
    network = LevelUNet(TWO, 16, (8, 16)).eval()
    levels_BA = torch.tensor([[grade, size] for grade in (-1, 0, 1, 2) for size in (-1, 0, 1)])
    with torch.no_grad():
        predicted_BCHW = network(torch.ones(1, 3, 16, 16).expand(12, -1, -1, -1), torch.full((12,), 500), levels_BA)
    assert predicted_BCHW.shape == (12, 3, 16, 16)
    assert torch.pdist(predicted_BCHW.flatten(1)).min() > 1e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "--cpu-minutes or --images is required"),
        ({"images": 1, "label_dropout": 1.5}, "--label-dropout: 1.5 must be at most 1"),
        ({"images": 1, "channels": (16, 20)}, "--channels: 20 must be a multiple of 8"),
        ({"images": 1, "size": 20}, "--size: 20 must be a multiple of 8 with 4 --channels"),
        ({"images": 1, "steps": 0}, "--steps: 0 must be at least 1"),
    ],
)
def test_options_are_checked(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusionSettings(repeats=1, shards="shards", out=Path("out"), **changes)


def test_without_diffusers_the_fix_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert trained(tmp_path / "none", tmp_path / "out", 4) == 2 and "pip install 'attributegan[bench]'" in capsys.readouterr().err
