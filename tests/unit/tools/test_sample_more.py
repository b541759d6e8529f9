"""Sampling: formats, shards, several processes, levels of real tiles, pair grids, movies, truncation, projection."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.GifImagePlugin import GifImageFile
from test_sample import SMALL, Painted, cells
from time_limits import seconds
from torch import Tensor, nn

from attributegan.attributes import PUBLISHED
from attributegan.sampling import generate, grids
from attributegan.sampling import latents as latents_module
from attributegan.sampling.projector import project
from data_shards.loader.loader import batches
from data_shards.loader.shard_set import ShardSet
from data_shards.sampler.global_order import GlobalShuffle
from data_shards.verify import verify
from tools.sample import main

ROOT = Path(__file__).parents[3]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "samples.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_truncated_latents_keep_their_order_within_the_bounds() -> None:
    latents = latents_module.latents_for(0, range(400), 16)
    cut = latents_module.truncate_latents(latents, 0.8)
    assert cut.abs().max() <= 0.8 and cut.dtype == latents.dtype
    order = latents.flatten().argsort()
    assert (cut.flatten()[order].diff() >= 0).all() and (cut * latents >= 0).all()
    # Cut off, not clipped: flat within the bounds, nothing heaped at them.
    shares = np.histogram(cut.numpy(), bins=4, range=(-0.8, 0.8))[0] / cut.numel()
    assert shares.min() > 0.2 and (cut.abs() > 0.799).float().mean() < 0.01
    torch.testing.assert_close(latents_module.truncate_latents(latents, 8.0), latents, atol=1e-4, rtol=1e-4)


def test_levels_from_real_tiles_keep_their_joint_distribution() -> None:
    real = np.array([[1, 1], [1, 1], [1, 1], [3, 2]], np.int8)
    drawn = latents_module.levels_like(real, 0, range(2000))
    assert drawn.dtype == torch.int64 and {tuple(row) for row in drawn.tolist()} == {(1, 1), (3, 2)}
    assert (drawn[:, 0] == 1).float().mean().item() == pytest.approx(0.75, abs=0.04)
    assert torch.equal(latents_module.levels_like(real, 0, [7, 1999]), drawn[[7, 1999]])
    assert (latents_module.levels_like(real, 0, range(20), {1: 2})[:, 1] == 2).all()


def test_grid_of_two_attributes() -> None:
    shown = cells(grids.pair_grid(Painted(), SMALL, latents_module.latents_for(0, [0], 8), "tone", "size"), size=32, columns=3)
    assert shown[:, :, 0].tolist() == [[64, 128, 191]] * 2 and shown[:, :, 1].tolist() == [[0] * 3, [64] * 3]
    for pair, message in ((("tone", "tone"), "two different"), (("tone", "colour"), "no such attribute; the model has size, tone")):
        with pytest.raises(ValueError, match=message):
            grids.pair_grid(Painted(), SMALL, latents_module.latents_for(0, [0], 8), *pair)


def test_frames_run_forwards_and_backwards() -> None:
    start, end = torch.tensor([[1, 0], [3, 0]]), torch.tensor([[3, 0], [1, 0]])
    film = grids.frames(Painted(), SMALL, latents_module.latents_for(0, range(2), 8), start, end, steps=5)
    assert film.shape == (10, 32, 64, 3)
    assert film[:, 0, 0, 0].tolist() == [64, 96, 128, 159, 191, 191, 159, 128, 96, 64]
    assert film[:5, 0, 63, 0].tolist() == [191, 159, 128, 96, 64]


@pytest.mark.parametrize(("kind", "suffix", "apart"), [("jpeg", "jpg", 12), ("webp", "webp", 12)])
def test_other_formats_hold_the_same_tiles(kind: str, suffix: str, apart: float, sampled: Callable[..., Path]) -> None:
    png, other = sampled("png", "--count", "3"), sampled(kind, "--count", "3", "--format", kind)
    assert [row["file"] for row in rows(other)] == [f"{k:06d}.{suffix}" for k in range(3)]
    for k in range(3):
        assert Image.open(other / f"{k:06d}.{suffix}").format == kind.upper()
        assert abs(pixels(png / f"{k:06d}.png") - pixels(other / f"{k:06d}.{suffix}")).mean() < apart


def test_bf16_makes_about_the_same_tiles(sampled: Callable[..., Path]) -> None:
    full, half = sampled("full", "--count", "2"), sampled("half", "--count", "2", "--precision", "bf16")
    difference = abs(pixels(full / "000000.png") - pixels(half / "000000.png"))
    assert 0 < difference.mean() < 4


@pytest.mark.slow
def test_any_number_of_processes_writes_the_same_files(sampled: Callable[..., Path], run: Path, tmp_path: Path) -> None:
    one, two = sampled("one", "--count", "21", "--batch", "4"), sampled("two", "--count", "21", "--batch", "4", "--workers", "2")
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.accelerate_cli",
        "launch",
        "--config_file",
        "configs/accelerate/cpu.yaml",
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
        "tools/sample.py",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, str(run), "--out", str(tmp_path / "launched"), "--count", "21", "--batch", "4", "--precision", "fp32"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds(200),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("21 tiles") == 1
    for other in (two, tmp_path / "launched"):
        assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in other.iterdir())
        for path in one.iterdir():
            assert path.read_bytes() == (other / path.name).read_bytes(), path.name


@pytest.mark.slow
def test_shards_have_levels_and_can_be_read_by_the_loader(sampled: Callable[..., Path]) -> None:
    arguments = ("--count", "25", "--format", "shards", "--shard-count", "10", "--batch", "5")
    out, two = sampled("made", *arguments), sampled("made-by-two", *arguments, "--workers", "2")
    assert sorted(path.name for path in out.iterdir()) == ["SHA256SUMS", "index.parquet"] + [f"train-{k:06d}.tar" for k in range(3)]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {path.name: path.read_bytes() for path in two.iterdir()}
    assert list(verify(out, 1, lambda done: None)) == []
    shards = ShardSet.open(out)
    np.testing.assert_array_equal(shards.levels_NA, latents_module.levels_for(PUBLISHED, 0, range(25)))
    reader = batches(
        shards,
        GlobalShuffle(shards.levels_NA, 0, 0.0),
        start=0,
        batch=25,
        micro_batches=1,
        rank=0,
        world=1,
        workers=0,
        flips=False,
        image_size=32,
    )
    batch = next(reader)
    reader.close()
    files = sampled("files", "--count", "25", "--batch", "5")
    levels = {tuple(int(row[name]) for name in PUBLISHED.names): pixels(files / row["file"]) for row in rows(files)}
    for image, row in zip(batch.images_BCHW, batch.levels_BA.tolist(), strict=True):
        np.testing.assert_array_equal(image.permute(1, 2, 0), levels[tuple(row)])


def test_an_identical_shard_set_is_kept_and_another_is_an_error(
    sampled: Callable[..., Path], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = sampled("made", "--count", "6", "--format", "shards")
    before = (out / "index.parquet").stat().st_mtime_ns
    sampled("made", "--count", "6", "--format", "shards")
    assert (out / "index.parquet").stat().st_mtime_ns == before  # the same set is there already
    assert main([str(run), "--out", str(out), "--count", "7", "--format", "shards"]) == 2
    assert "other tiles or options" in capsys.readouterr().err
    sampled("made", "--count", "7", "--format", "shards", "--overwrite")
    assert len(ShardSet.open(out)) == 7


def test_interrupted_shard_sets_are_resumed(sampled: Callable[..., Path], tmp_path: Path) -> None:
    """The finished first shard of an interrupted command is kept."""
    arguments = ("--count", "9", "--format", "shards", "--shard-count", "4")
    done = sampled("done", *arguments)
    from data_shards.format import index
    from data_shards.packing import shard_writer

    folder = shard_writer.tmp_path(tmp_path / "again")
    folder.mkdir()
    source = index.read_header(done / "index.parquet").source
    header = index.read_header(done / "index.parquet")
    shard = header.shards[0]
    (folder / shard.name).write_bytes((done / shard.name).read_bytes())
    table = index.read_shard(done / "index.parquet", shard.name)
    index.write(folder / f"{shard.name}.{index.FILE}", index.Header(header.schema, (shard,), header.image_size, source), [table])
    stamp = (folder / shard.name).stat().st_mtime_ns
    again = sampled("again", *arguments)
    assert (again / shard.name).stat().st_mtime_ns == stamp
    assert (again / "index.parquet").read_bytes() == (done / "index.parquet").read_bytes()


def test_levels_from_a_set(sampled: Callable[..., Path], shards: Path) -> None:
    real = {tuple(row) for row in ShardSet.open(shards).levels_NA.tolist()}
    drawn = rows(sampled("like", "--count", "30", "--levels-from", str(shards)))
    assert all(tuple(int(row[name]) for name in PUBLISHED.names) in real for row in drawn)
    fixed = rows(sampled("fixed", "--count", "5", "--levels-from", str(shards), "--levels", "mitosis=3"))
    assert {row["mitosis"] for row in fixed} == {"3"}
    between = rows(sampled("between", "--count", "5", "--levels-from", str(shards), "--levels", "mitosis=1.5"))
    assert {row["mitosis"] for row in between} == {"1.5"}


def test_pictures_and_movies(sampled: Callable[..., Path]) -> None:
    out = sampled("pictures", "--count", "2", "--pair", "mitosis", "nucleoli", "--interpolate", "mitosis=1", "mitosis=3", "--movie", "gif")
    assert pixels(out / "pair.png").shape[0] == 3 * (32 + grids.GAP)
    film = Image.open(out / "interpolation.gif")
    assert isinstance(film, GifImageFile) and film.n_frames > 10 and film.size == (64, 32) and film.info["loop"] == 0


@pytest.mark.slow
def test_mp4(sampled: Callable[..., Path]) -> None:
    pytest.importorskip("imageio_ffmpeg", reason="in the extra `movie`")
    out = sampled("mp4", "--count", "1", "--interpolate", "mitosis=1", "mitosis=3", "--movie", "mp4")
    data = (out / "interpolation.mp4").read_bytes()
    assert data[4:8] == b"ftyp" and len(data) > 1000


class Blob(nn.Module):
    """A bright spot with its position from the latent and its colour from the levels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, latents_BL: Tensor, levels_BA: Tensor) -> Tensor:
        at = torch.linspace(-3, 3, 32)
        down_BH1, across_B1W = at[None, :, None] - latents_BL[:, 0, None, None], at[None, None] - latents_BL[:, 1, None, None]
        spot_BHW = torch.exp(-(down_BH1**2) - across_B1W**2)
        shade_B3 = torch.stack([levels_BA[:, 0] / 3, levels_BA[:, 1] / 2, torch.ones(len(levels_BA))], dim=1)
        return (spot_BHW[:, None] * shade_B3[..., None, None]) * 2 * self.weight - 1


def test_projection_finds_a_tile_of_the_generator() -> None:
    truth = torch.tensor([[0.7, -1.1, 0.3, 0.0]])
    tile = generate.generate(Blob(), truth, torch.tensor([[3, 1]]))[0]
    found = project(Blob(), SMALL, tile, 4, given={"size": 3, "tone": 1}, steps=150)
    assert found.levels_1A.tolist() == [[3, 1]]
    assert found.distance < 0.2 * found.start and found.latent_1L[0, :2].tolist() == pytest.approx([0.7, -1.1], abs=0.05)
    assert abs(found.tile_HWC.astype(int) - tile).mean() < 2
    assert all(parameter.requires_grad for parameter in Blob().parameters())


def test_projection_of_levels_too() -> None:
    tile = generate.generate(Blob(), torch.tensor([[0.0, 0.0, 0, 0]]), torch.tensor([[1, 0]]))[0]
    assert project(Blob(), SMALL, tile, 4, steps=1).levels_1A[0, 1] == 0


def test_command_projects(sampled: Callable[..., Path], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tile = sampled("some", "--count", "1") / "000000.png"
    out = sampled("found", "--project", str(tile), "--steps", "3", "--sweep")
    assert sorted(path.name for path in out.iterdir()) == ["projection.json", "projection.png", "sweep.png"]
    tree = json.loads((out / "projection.json").read_text())
    assert len(tree["latent"]) == 16 and set(tree["levels"]) == set(PUBLISHED.names) and tree["distance"] <= tree["distance_of_best_start"]
    (tmp_path / "text.png").write_text("no image")
    assert main([str(run), "--out", str(tmp_path / "no"), "--project", str(tmp_path / "text.png")]) == 2
    assert "not a readable image" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--truncation", "0"), "--truncation: 0.0 must be above 0"),
        (("--movie", "gif"), "--movie: requires --interpolate"),
        (("--format", "shards", "--sweep"), "--sweep: not supported with --format shards"),
        (("--format", "shards", "--levels", "mitosis=1.5"), "--levels mitosis=1.5: shards hold integer levels"),
        (("--levels", "mitosis=0.5"), "mitosis has the levels 0 (insufficient information)"),
        (("--workers", "0"), "--workers: 0 must be at least 1"),
        (("--pair", "mitosis", "colour"), "colour: no such attribute"),
        (("--levels-from", "nowhere"), "nowhere"),
    ],
)
def test_bad_input_is_refused(
    arguments: tuple[str, ...], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
