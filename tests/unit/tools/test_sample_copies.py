"""``--filter-copies``: training tiles with noise are dropped, other tiles are kept, and an interrupted command resumes."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_features import Pooled
from PIL import Image
from torch import Tensor, nn

from attributegan.checkpoint.loading import Loaded, load_for_sampling
from attributegan.evaluation import copies, reference
from attributegan.metrics import features
from attributegan.sampling import replacement
from data_shards.loader.shard_set import ShardSet
from data_shards.phantoms import render
from data_shards.storage.cache import Cache
from data_shards.verify import verify
from tools import sample
from tools.evaluation import data
from tools.options import settings_of
from tools.sampling.options import SamplingSettings
from tools.shard import main as shard_main

SIZE = 32
NETWORK = features.Features("pooled", "1", SIZE, Pooled())
Open = Callable[[str], reference.Split]


class Copying(nn.Module):
    """Phantoms as a generator; a share of the latents gives a training tile with noise."""

    def __init__(self, training_NHWC: np.ndarray, share: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.training_NHWC, self.share = training_NHWC, share

    def forward(self, latents_BL: Tensor, levels_BA: Tensor) -> Tensor:
        tiles = []
        for latent_L, level_A in zip(latents_BL, levels_BA, strict=True):
            seed = int.from_bytes(hashlib.sha256(latent_L.numpy().tobytes()).digest()[:4], "little")
            rng = np.random.default_rng(seed)
            tile = render.render(level_A.round().int().tolist(), SIZE, 77, seed)
            if rng.random() < self.share:
                copied = self.training_NHWC[rng.integers(len(self.training_NHWC))]
                tile = (copied + 2 * rng.standard_normal(copied.shape)).clip(0, 255).astype(np.uint8)
            tiles.append(torch.from_numpy(tile))
        return torch.stack(tiles).permute(0, 3, 1, 2) / 127.5 - 1


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "real"
    assert shard_main(["phantom", "--count", "300", "--size", "32", "--val-fraction", "0.4", "--out", str(folder), "--workers", "1"]) == 0
    return folder


def split_of(real: Path, split: str) -> reference.Split:
    return data.open_split(str(real), split, SIZE, 1000, False, Cache.of(), "--train")[2]


@pytest.fixture
def copying(run: Path, real: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Returns a function that makes `attributegan-sample` load a generator that copies with a given share."""
    train = split_of(real, "train")
    training_NHWC = train.read(np.arange(len(train)))

    def use(share: float) -> None:
        def load(settings: object) -> Loaded:
            return dataclasses.replace(load_for_sampling(run), generator=Copying(training_NHWC, share))

        monkeypatch.setattr(sample, "load", load)

    return use


def arguments(run: Path, real: Path, out: Path, *more: str) -> list[str]:
    network = ["--features", "tests.helpers.fake_features:pooled", "--feature-size", "32"]
    return [str(run), "--out", str(out), "--precision", "fp32", "--filter-copies", "--shards", str(real), *network, *more]


def copies_in(tiles_NHWC: np.ndarray, real: Path) -> int:
    """Counts tiles that are a training tile up to noise, by pixels."""
    train = split_of(real, "train")
    training_ND = train.read(np.arange(len(train))).reshape(len(train), -1).astype(float)
    return sum(np.abs(training_ND - tile.reshape(-1)).mean(axis=1).min() < 4 for tile in tiles_NHWC)


def test_copies_are_dropped_and_replaced(run: Path, real: Path, copying: Callable, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    copying(0.5)
    assert sample.main(arguments(run, real, tmp_path / "all")[:5] + ["--count", "60"]) == 0
    plain = np.stack([np.asarray(Image.open(path)) for path in sorted((tmp_path / "all").glob("*.png"))])
    assert 20 <= copies_in(plain, real) <= 40
    capsys.readouterr()
    assert sample.main(arguments(run, real, tmp_path / "filtered", "--count", "60")) == 0
    filtered = np.stack([np.asarray(Image.open(path)) for path in sorted((tmp_path / "filtered").glob("*.png"))])
    assert len(filtered) == 60 and copies_in(filtered, real) == 0
    with (tmp_path / "filtered" / "samples.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    dropped = [int(row["dropped"]) for row in rows]
    assert 30 <= sum(dropped) <= 110 and f"dropped {sum(dropped)} of {60 + sum(dropped)} generated tiles" in capsys.readouterr().out
    same = [k for k, count in enumerate(dropped) if count == 0]
    np.testing.assert_array_equal(filtered[same], plain[same])  # only copies are replaced
    with (tmp_path / "all" / "samples.csv").open(newline="") as stream:
        assert [{**row, "dropped": ""} for row in csv.DictReader(stream)] == [{**row, "dropped": ""} for row in rows]  # with their levels


def test_a_model_that_does_not_copy_loses_few_tiles(run: Path, real: Path, copying: Callable, tmp_path: Path) -> None:
    copying(0)
    assert sample.main(arguments(run, real, tmp_path / "out", "--count", "200")) == 0
    with (tmp_path / "out" / "samples.csv").open(newline="") as stream:
        assert sum(int(row["dropped"]) for row in csv.DictReader(stream)) <= 10  # 2 expected


def test_shards_resume_and_count_the_dropped_tiles_of_all_shards(
    run: Path, real: Path, copying: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from data_shards.packing import shard_writer

    copying(0.5)
    options = ["--count", "40", "--format", "shards", "--shard-count", "16"]
    assert sample.main(arguments(run, real, tmp_path / "whole", *options)) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    write = shard_writer.write
    written: list[object] = []

    def interrupted(*arguments: object) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(arguments[-1])
        write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(shard_writer, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sample.sample(settings_of(SamplingSettings, sample._parser().parse_args(arguments(run, real, tmp_path / "resumed", *options))))
    monkeypatch.setattr(shard_writer, "write", write)
    assert sample.main(arguments(run, real, tmp_path / "resumed", *options)) == 0
    assert capsys.readouterr().out.splitlines()[-1] == line and "dropped" in line
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert all((tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in names)
    assert not list(verify(tmp_path / "whole")) and len(ShardSet.open(tmp_path / "whole")) == 40
    monkeypatch.setattr(sample, "load", lambda settings: load_for_sampling(run))
    assert sample.main(arguments(run, real, tmp_path / "whole")[:5] + options) == 2  # the same model without the filter is another set


def test_a_model_that_always_copies_is_an_error(
    run: Path, real: Path, copying: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    copying(1)
    assert sample.main(arguments(run, real, tmp_path / "out", "--count", "2")) == 2
    assert "32 latents in a row gave copies of training tiles for the levels" in capsys.readouterr().err
    assert not (tmp_path / "out" / "samples.csv").exists()


def test_options_that_do_not_fit(run: Path, real: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def refused(message: str, *options: str) -> None:
        assert sample.main([str(run), "--out", str(tmp_path / "out"), "--precision", "fp32", *options]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "out").exists()

    refused("--filter-copies: requires --shards", "--filter-copies")
    refused("--shards: requires --filter-copies", "--shards", str(real))
    refused("--sweep: its tiles are not filtered", "--filter-copies", "--shards", str(real), "--sweep")
    refused("--held-out: train is also the training split", "--filter-copies", "--shards", str(real), "--held-out", "train")
    refused("--train:", "--filter-copies", "--shards", str(real), "--train", "absent")
    refused("no such file", "--filter-copies", "--shards", str(real), "--features", "absent")


def test_the_filter_in_python(real: Path, tmp_path: Path) -> None:
    train, held_out = split_of(real, "train"), split_of(real, "val")
    cache = reference.FeatureCache(tmp_path)
    found = copies.copy_filter(train, held_out, NETWORK, cache=cache)
    assert found.compared_with == "held-out split"
    assert found(train.read(np.arange(50))).all() and found(held_out.read(np.arange(len(held_out)))).mean() <= 0.02
    same = copies.copy_filter(train, held_out, NETWORK, same_slides=held_out, cache=cache)
    assert same.compared_with == "same slides" and same.threshold == found.threshold
    with pytest.raises(ValueError, match="3 held-out tiles are too few"):
        copies.copy_filter(train, data.open_split(str(real), "val", SIZE, 3, False, Cache.of(), "--held-out")[2], NETWORK, cache=cache)
    with pytest.raises(ValueError, match="held-out tiles are copies of training tiles"):
        copies.copy_filter(train, train, NETWORK, cache=cache)


def test_replacements_depend_on_seed_index_and_draw_only() -> None:
    first = replacement.replacement_latents(0, [3, 7], 1, 8)
    assert torch.equal(replacement.replacement_latents(0, [7], 1, 8)[0], first[1])
    others = [replacement.replacement_latents(*arguments, 8)[0] for arguments in ((0, [3], 2), (1, [3], 1), (0, [4], 1))]
    assert not any(torch.equal(first[0], other) for other in others)


@pytest.mark.slow
def test_many_processes_write_the_same_tiles(run: Path, real: Path, tmp_path: Path) -> None:
    outs = []
    for name, more in (("one", ["--batch", "4"]), ("two", ["--batch", "4", "--workers", "2"])):
        options = ["--count", "10", "--cache", str(tmp_path / "cache"), *more]
        assert sample.main(arguments(run, real, tmp_path / name, *options)) == 0
        outs.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert outs[0] == outs[1] and len(outs[0]) == 11
    assert b",dropped,seed" in outs[0]["samples.csv"]
