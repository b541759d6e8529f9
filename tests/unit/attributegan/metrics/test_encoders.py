"""Encoders of timm with stand-in weights: the architectures of DINOv2, UNI and Virchow, shallow and narrow, random weights in files."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from timm_import import timm_or_skip
from torch import nn

from attributegan.metrics import encoders, features

SHALLOW: dict[str, Any] = {"depth": 2, "embed_dim": 32, "num_heads": 2}


@pytest.fixture(scope="module")
def timm() -> Any:
    return timm_or_skip()


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch, timm: Any) -> None:
    """Every vision transformer of timm is created shallow and narrow; nothing is downloaded."""
    create = timm.create_model

    def create_shallow(model: str, pretrained: bool = False, **settings: Any) -> nn.Module:
        assert not pretrained, "weights from the network"
        network: nn.Module = create(model, False, **(settings | SHALLOW))
        return network

    monkeypatch.setattr(timm, "create_model", create_shallow)


def tiles(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 40, 40, 3), np.uint8)


def write_weights(path: Path, network: nn.Module, more: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """Random weights, also where the initial ones are constant."""
    torch.manual_seed(0)
    state = {name: torch.randn_like(tensor) * 0.1 for name, tensor in network.state_dict().items()} | dict(more or {})
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if path.suffix == ".pth" else state, path)
    return state


def normalized(tiles_NHWC: np.ndarray, size: int) -> torch.Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in encoders.IMAGENET)
    return (features.resize(tiles_NHWC, size) / 255 - mean) / std


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pth"])
def test_uni_is_a_large_vit_with_layer_scale(timm: Any, shallow: None, tmp_path: Path, suffix: str) -> None:
    network = timm.create_model("vit_large_patch16_224", init_values=1e-5, num_classes=0).eval()
    network.load_state_dict(write_weights(tmp_path / f"uni{suffix}", network))
    found = features.load(f"uni:{tmp_path}/uni{suffix}")
    assert (found.name, found.size, found.mean, found.std) == ("uni", 224, *encoders.IMAGENET) and found.version.startswith("timm ")
    with torch.inference_mode():
        expected = network(normalized(tiles(3), 224))
    assert expected.shape == (3, 32) and expected.std(dim=0).min() > 0
    np.testing.assert_allclose(found(tiles(3)), expected, atol=1e-5)
    assert found.identity == features.load(f"uni:{tmp_path}/uni{suffix}").identity


@pytest.mark.parametrize(("name", "registers"), [("virchow", 0), ("virchow2", 4)])
def test_virchow_joins_the_class_token_and_the_mean_of_the_patches(
    timm: Any, shallow: None, tmp_path: Path, name: str, registers: int
) -> None:
    kind = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU, "mlp_ratio": 5.3375, "reg_tokens": registers, "init_values": 1e-5}
    network = timm.create_model("vit_huge_patch14_224", num_classes=0, global_pool="", **kind).eval()
    assert network.num_prefix_tokens == 1 + registers
    network.load_state_dict(write_weights(tmp_path / "v.safetensors", network))
    found = features.load(f"{name}:{tmp_path / 'v.safetensors'}")
    with torch.inference_mode():
        tokens_BTD = network(normalized(tiles(2), 224))
    assert tokens_BTD.shape == (2, 1 + registers + 16 * 16, 32)
    expected = torch.cat([tokens_BTD[:, 0], tokens_BTD[:, 1 + registers :].mean(dim=1)], dim=1)
    np.testing.assert_allclose(found(tiles(2)), expected, atol=1e-5)


def test_dinov2_by_its_name_in_timm_at_any_size(timm: Any, shallow: None, tmp_path: Path) -> None:
    file = tmp_path / "dinov2.safetensors"
    network = timm.create_model("vit_small_patch14_dinov2", num_classes=0, dynamic_img_size=True).eval()
    network.load_state_dict(write_weights(file, network))
    found = features.load(f"timm:vit_small_patch14_dinov2:{file}", size=70)
    assert (found.name, found.size, found.mean) == ("timm:vit_small_patch14_dinov2", 70, encoders.IMAGENET[0])
    with torch.inference_mode():
        expected = network(normalized(tiles(2), 70))
    np.testing.assert_allclose(found(tiles(2)), expected, atol=1e-5)
    assert features.load(f"timm:vit_small_patch14_dinov2:{file}").size == 518


def test_dinov2_with_the_tensors_of_its_authors(timm: Any, shallow: None, tmp_path: Path) -> None:
    file = tmp_path / "dinov2_vits14_pretrain.pth"
    write_weights(file, timm.create_model("vit_small_patch14_dinov2", num_classes=0), {"mask_token": torch.zeros(1, 32)})
    found = features.load(f"timm:vit_small_patch14_dinov2:{file}", size=28)  # the mask token, used in training only, is left out
    assert np.isfinite(found(tiles(2))).all()


def test_convolutional_networks_with_their_classifiers(timm: Any, tmp_path: Path) -> None:
    network = timm.create_model("test_convnext", pretrained=False)
    write_weights(tmp_path / "c.safetensors", network)
    vectors = features.load(f"timm:test_convnext:{tmp_path / 'c.safetensors'}", size=64)(tiles(2))
    assert vectors.shape == (2, network.num_features)


def test_weights_that_do_not_fit_are_refused(timm: Any, shallow: None, tmp_path: Path) -> None:
    write_weights(tmp_path / "plain.safetensors", timm.create_model("vit_large_patch16_224", num_classes=0))
    with pytest.raises(ValueError, match=r"plain\.safetensors: weights of another network: without blocks\.0\.ls1\.gamma.* and 1 more"):
        features.load(f"uni:{tmp_path / 'plain.safetensors'}")
    write_weights(tmp_path / "scaled.safetensors", timm.create_model("vit_large_patch16_224", init_values=1e-5, num_classes=0))
    with pytest.raises(ValueError, match=r"weights of another network: with blocks\.0\.ls1\.gamma"):
        features.load(f"timm:vit_large_patch16_224:{tmp_path / 'scaled.safetensors'}")
    with pytest.raises(ValueError, match="weights of another network"):
        features.load(f"virchow:{tmp_path / 'scaled.safetensors'}")


class Opened:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_files_that_are_not_weights_are_refused_and_run_no_code(timm: Any, shallow: None, tmp_path: Path) -> None:
    torch.save({"x": Opened(tmp_path / "ran")}, tmp_path / "code.bin")
    torch.save({"epoch": 3}, tmp_path / "other.pt")
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 100)
    cases = (
        ("code.bin", "not readable as weights"),
        ("broken.safetensors", "not readable as weights"),
        ("other.pt", "has no weights by name"),
        ("none.pth", "no such file"),
    )
    for file, message in cases:
        with pytest.raises(ValueError, match=message):
            features.load(f"uni:{tmp_path / file}")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ValueError, match="timm failed to create no_such_model"):
        features.load(f"timm:no_such_model:{tmp_path / 'other.pt'}")


def test_gated_weights_are_asked_of_the_hub(timm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(model: str, pretrained: bool, **settings: Any) -> nn.Module:
        asked.append((model, pretrained, settings.get("mlp_layer")))
        raise OSError("401 Client Error: gated repo")

    monkeypatch.setattr(timm, "create_model", refuse)
    for name in ("uni", "virchow2"):
        with pytest.raises(ValueError, match=f"--features {name}: .*gated repo; gated models need your own token"):
            features.load(name)
    assert asked == [("hf-hub:MahmoodLab/uni", True, None), ("hf-hub:paige-ai/Virchow2", True, timm.layers.SwiGLUPacked)]


def test_without_timm_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"pip install 'attributegan\[encoders\]'"):
        features.load("uni")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("timm:resnet50", ("timm:resnet50", None)),
        ("timm:resnet50:a b/w.safetensors", ("timm:resnet50", Path("a b/w.safetensors"))),
        ("timm:hf-hub:owner/name", ("timm:hf-hub:owner/name", None)),
        ("uni:/data/pytorch_model.bin", ("uni", Path("/data/pytorch_model.bin"))),
        ("uni", ("uni", None)),
    ],
)
def test_the_file_is_the_part_after_the_last_colon(name: str, expected: tuple[str, Path | None]) -> None:
    assert encoders.split_file(name) == expected
