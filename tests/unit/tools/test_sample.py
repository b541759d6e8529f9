"""Sampling: latents and levels by index, sweep and interpolation grids, and the files of the command."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from attributegan.attributes import PUBLISHED, Attribute, AttributeSchema
from attributegan.checkpoint import loading
from attributegan.sampling import generate, grids
from attributegan.sampling import latents as latents_module
from tools.sample import main

SMALL = AttributeSchema((Attribute("size", ("none", "low", "mid", "high"), not_assessable=0), Attribute("tone", ("dark", "light"))))


class Painted(nn.Module):
    """Red is the first level, green the second, blue the first latent, each scaled to the range of images."""

    def __init__(self, size: int = 32) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((3,), 2.0))
        self.size = size
        self.batches: list[int] = []

    def forward(self, latents_BL: Tensor, levels_BA: Tensor) -> Tensor:
        self.batches.append(len(latents_BL))
        colors_B3 = torch.stack([levels_BA[:, 0] / 4, levels_BA[:, 1] / 4, latents_BL[:, 0].sigmoid()], dim=1)
        return (colors_B3 * self.scale - 1)[..., None, None].expand(-1, -1, self.size, self.size)


def latents(count: int) -> Tensor:
    return latents_module.latents_for(0, range(count), 8)


def cells(grid_HWC: np.ndarray, size: int, columns: int) -> np.ndarray:
    """Return the middle pixel of every cell, (rows, columns, 3); row labels take the rest of the width."""
    pitch = size + grids.GAP
    margin = grid_HWC.shape[1] - columns * pitch
    return grid_HWC[size // 2 :: pitch, margin + size // 2 :: pitch]


def test_latents_are_standard_normal_and_depend_on_seed_and_index_only() -> None:
    many = latents_module.latents_for(3, range(500), 32)
    assert many.shape == (500, 32) and many.dtype == torch.float32
    assert abs(many.mean()) < 0.03 and abs(many.std() - 1) < 0.03
    assert torch.equal(latents_module.latents_for(3, [7, 499], 32), many[[7, 499]])
    assert not torch.equal(latents_module.latents_for(4, [7], 32), many[[7]])
    assert len(many.unique(dim=0)) == 500


def test_drawn_levels_are_uniform_over_assessable_levels() -> None:
    levels_BA = latents_module.levels_for(PUBLISHED, 0, range(3000))
    assert levels_BA.dtype == torch.int64
    for column, attribute in zip(levels_BA.T, PUBLISHED.attributes, strict=True):
        shares = [(column == level).float().mean().item() for level in attribute.assessable]
        assert shares == pytest.approx([1 / len(shares)] * len(shares), abs=4 * 0.5 / 3000**0.5) and sum(shares) == pytest.approx(1)
    assert torch.equal(latents_module.levels_for(PUBLISHED, 0, [5, 2000]), levels_BA[[5, 2000]])


def test_fixed_levels_do_not_change_the_others() -> None:
    free, fixed = (latents_module.levels_for(PUBLISHED, 0, range(50), given) for given in ({}, {"mitosis": 0, "nucleoli": 2}))
    assert (fixed[:, 2] == 0).all() and (fixed[:, 3] == 2).all()
    assert torch.equal(free[:, [0, 1, 4]], fixed[:, [0, 1, 4]])


def test_middle_levels() -> None:
    assert latents_module.middle_levels(PUBLISHED) == [2, 2, 2, 1, 2]
    assert latents_module.middle_levels(PUBLISHED, {"nucleoli": 2, "cell_crowding": 0}) == [0, 2, 2, 2, 2]


def test_tiles_are_scaled_clamped_and_made_in_batches() -> None:
    generator = Painted(size=8)
    levels_BA = torch.tensor([[0, 4], [2, 1], [4, 3], [8, 0], [-1, 0]])
    tiles = generate.generate(generator, latents(5), levels_BA, batch=2)
    assert tiles.shape == (5, 8, 8, 3) and tiles.dtype == np.uint8
    assert generator.batches == [2, 2, 1]
    assert tiles[:, 0, 0, 0].tolist() == [0, 128, 255, 255, 0] and tiles[:3, 0, 0, 1].tolist() == [255, 64, 191]


def test_tiles_of_a_generator_in_double_precision() -> None:
    single, double = (generate.generate(network, latents(3), torch.ones(3, 2)) for network in (Painted(), Painted().double()))
    assert abs(single.astype(int) - double).max() <= 1


def test_sweep_rows_change_one_attribute_of_one_latent() -> None:
    grid = grids.sweep_grid(Painted(), SMALL, latents(2), [2, 1])
    assert grid.dtype == np.uint8 and grid.shape[0] == 4 * (32 + grids.GAP)
    shown = cells(grid, size=32, columns=3)
    blue = generate.generate(Painted(), latents(2), torch.zeros(2, 2))[:, 0, 0, 2]
    for row, latent in enumerate([0, 1, 0, 1]):
        expected = [(64, 64), (128, 64), (191, 64)] if row < 2 else [(128, 0), (128, 64)]
        assert shown[row, : len(expected)].tolist() == [[*color, blue[latent]] for color in expected]
    assert (shown[2:, 2] == 255).all()  # the second attribute has two levels: white


def test_sweep_fixes_other_attributes_at_the_middle_and_labels_its_rows() -> None:
    grid = grids.sweep_grid(Painted(), SMALL, latents(1))
    np.testing.assert_array_equal(grid, grids.sweep_grid(Painted(), SMALL, latents(1), [2, 0]))
    names = grid[:, : grid.shape[1] - 3 * 34]
    assert (names[:34] < 128).any() and (names[34:] < 128).any()


def test_large_tiles_are_scaled_down_in_grids() -> None:
    assert grids.sweep_grid(Painted(512), SMALL, latents(1)).shape[0] == 2 * (grids.MAX_TILE_SIZE + grids.GAP)


def test_interpolated_levels_are_equally_spaced_and_include_both_ends() -> None:
    levels_BSA = latents_module.interpolate(SMALL, torch.tensor([[1, 0], [3, 1]]), torch.tensor([[3, 0], [2, 0]]), steps=5)
    assert levels_BSA[0].tolist() == [[1, 0], [1.5, 0], [2, 0], [2.5, 0], [3, 0]]
    assert levels_BSA[1].tolist() == [[3, 1], [2.75, 0.75], [2.5, 0.5], [2.25, 0.25], [2, 0]]


@pytest.mark.parametrize("ends", [([[0, 0]], [[2, 0]]), ([[2, 0]], [[0, 0]])])
def test_interpolation_through_not_assessable_is_refused(ends: tuple[list, list]) -> None:
    with pytest.raises(ValueError, match="size: level 0 is not on the scale; interpolate between 1, 2, 3"):
        latents_module.interpolate(SMALL, torch.tensor(ends[0]), torch.tensor(ends[1]), 3)
    with pytest.raises(ValueError, match="size: level -1 is not on the scale"):
        latents_module.interpolate(SMALL, torch.tensor([[1, 0]]), torch.tensor([[-1, 0]]), 3)


def test_interpolation_grid_goes_from_start_to_end() -> None:
    start, end = torch.tensor([[1, 0], [3, 1]]), torch.tensor([[3, 0], [3, 0]])
    shown = cells(grids.interpolation_grid(Painted(), SMALL, latents(2), start, end, steps=5), size=32, columns=5)
    assert shown[0, :, 0].tolist() == [64, 96, 128, 159, 191] and shown[1, :, 1].tolist() == [64, 48, 32, 16, 0]
    assert (shown[..., 2] == shown[:, :1, 2]).all()  # one latent a row


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "samples.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def pixels(folder: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(folder / name))


def test_command_writes_tiles_and_their_levels(sampled: Callable[..., Path], run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sampled("tiles", "--count", "5", "--levels", "cell_crowding=3,mitosis=frequent", "--seed", "9", "--batch", "2")
    assert "5 tiles" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == [*(f"{k:06d}.png" for k in range(5)), "samples.csv"]
    rows = table(folder)
    expected = latents_module.levels_for(PUBLISHED, 9, range(5), {"cell_crowding": 3, "mitosis": 3})
    assert [[int(row[name]) for name in PUBLISHED.names] for row in rows] == expected.tolist()
    assert {row["seed"] for row in rows} == {"9"}
    generator = loading.load_for_sampling(run).generator
    tiles = generate.generate(generator, latents_module.latents_for(9, range(5), 16), expected)
    for row, tile in zip(rows, tiles, strict=True):
        np.testing.assert_allclose(pixels(folder, row["file"]).astype(int), tile, atol=1)


def test_fractional_levels_are_generated_and_listed(sampled: Callable[..., Path]) -> None:
    """Each tile is between those of the two integer levels; the rest of the table does not change."""
    low, between, high = (sampled(name, "--count", "3", "--levels", f"cell_crowding={name}") for name in ("2", "2.5", "3"))
    assert [row["cell_crowding"] for row in table(between)] == ["2.5"] * 3
    assert [float(row["mitosis"]) for row in table(between)] == [float(row["mitosis"]) for row in table(low)]
    for k in range(3):
        tiles = [pixels(folder, f"{k:06d}.png").astype(int) for folder in (low, between, high)]
        apart = [abs(tiles[a] - tiles[b]).mean() for a, b in ((0, 1), (1, 2), (0, 2))]
        assert 0 < max(apart[:2]) < apart[2]


def test_tile_is_the_same_for_any_count_and_batch(sampled: Callable[..., Path]) -> None:
    few, many = sampled("few", "--count", "3"), sampled("many", "--count", "10", "--batch", "7")
    assert table(few) == table(many)[:3]
    for row in table(few):
        np.testing.assert_allclose(pixels(few, row["file"]).astype(int), pixels(many, row["file"]), atol=1)


def test_raw_weights_give_other_tiles(sampled: Callable[..., Path]) -> None:
    averaged, raw = sampled("averaged", "--count", "1"), sampled("raw", "--count", "1", "--no-ema")
    assert table(averaged) == table(raw)
    assert (pixels(averaged, "000000.png") != pixels(raw, "000000.png")).any()


def test_command_writes_a_sweep(sampled: Callable[..., Path], run: Path) -> None:
    folder = sampled("sweep", "--count", "2", "--sweep", "--levels", "nucleoli=2")
    generator = loading.load_for_sampling(run).generator
    expected = grids.sweep_grid(generator, PUBLISHED, latents_module.latents_for(0, range(2), 16), [2, 2, 2, 2, 2])
    np.testing.assert_allclose(pixels(folder, "sweep.png").astype(int), expected, atol=1)


def test_command_writes_an_interpolation(sampled: Callable[..., Path]) -> None:
    folder = sampled(
        "way", "--count", "2", "--interpolate", "cell_crowding=1,pleomorphism=1", "pleomorphism=4", "--levels", "cell_crowding=1"
    )
    shown = pixels(folder, "interpolation.png")
    assert shown.shape[0] == 2 * (32 + grids.GAP)
    tiles = [shown[:32, shown.shape[1] - (8 - step) * 34 :][:, :32] for step in range(8)]
    for step, level in ((0, 1), (7, 4)):
        there = sampled(f"at{level}", "--count", "1", "--levels", f"cell_crowding=1,pleomorphism={level}")
        np.testing.assert_allclose(tiles[step].astype(int), pixels(there, "000000.png"), atol=1)
    assert all((before != after).any() for before, after in zip(tiles, tiles[1:], strict=False))


def test_a_folder_has_the_tiles_of_one_command(sampled: Callable[..., Path], run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sampled("used", "--count", "4", "--sweep")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for more, message in (
        (["--count", "2"], "already has samples; choose another folder, or use --overwrite"),
        (["--project", str(folder / "000000.png"), "--steps", "1"], "already has samples"),
    ):
        assert main([str(run), "--out", str(folder), *more]) == 2
        assert message in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    sampled("used", "--count", "2", "--format", "webp", "--overwrite")
    assert sorted(path.name for path in folder.iterdir()) == ["000000.webp", "000001.webp", "samples.csv"]
    (folder / "notes.txt").write_text("mine")
    assert main([str(run), "--out", str(folder), "--overwrite"]) == 2
    assert "has other files, such as notes.txt" in capsys.readouterr().err
    assert len(list(folder.iterdir())) == 4


def test_interrupted_samples_are_replaced_and_files_of_others_are_not(
    sampled: Callable[..., Path], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sampled("stopped", "--count", "5", "--seed", "1")
    (folder / "samples.csv").rename(folder / ".writing-samples.csv")
    (folder / "000003.png").rename(folder / ".writing-000003.png")
    (folder / "000004.png").unlink()
    assert sorted(path.name for path in sampled("stopped", "--count", "1").iterdir()) == ["000000.png", "samples.csv"]
    real = tmp_path / "real"
    real.mkdir()
    (real / "000000.png").write_bytes(b"a real tile")
    (real / "samples.csv").write_text("file,mitosis\n000000.png,1\n")
    assert main([str(run), "--out", str(real), "--overwrite"]) == 2
    assert "has other files, such as 000000.png" in capsys.readouterr().err
    assert (real / "000000.png").read_bytes() == b"a real tile"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--levels", "grade=1"), "write attribute=level; attributes are cell_crowding"),
        (("--levels", "mitosis=7"), "mitosis has the levels 0"),
        (("--interpolate", "mitosis=0", "mitosis=2"), "mitosis: level 0 is not on the scale; interpolate between 1, 2, 3"),
        (("--count", "0"), "--count: 0 must be at least 1"),
        (("--batch", "-1"), "--batch: -1 must be at least 1"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    arguments: tuple[str, ...], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_folder_without_a_model_and_file_as_output_folder(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main([str(run), "--out", str(tmp_path / "file")]) == 2
    assert "can't be written to" in capsys.readouterr().err
