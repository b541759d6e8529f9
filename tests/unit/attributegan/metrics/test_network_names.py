"""Networks from timm and torch.hub by stand-ins of these, defaults of the kinds of names, and the device of the tiles."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attributegan.metrics import encoders, features

TILES = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)


def pool() -> nn.Module:
    return nn.Sequential(nn.AvgPool2d(8), nn.BatchNorm2d(3), nn.Flatten())


def test_timm_networks_are_pretrained_and_have_no_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    created: list[tuple[str, dict[str, Any]]] = []

    def create_model(model: str, pretrained: bool, **options: Any) -> nn.Module:
        created.append((model, {"pretrained": pretrained, **options}))
        if model == "absent":
            raise RuntimeError("Unknown model (absent)")
        return pool()

    config = {"input_size": (3, 160, 192), "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    data = SimpleNamespace(resolve_model_data_config=lambda network: config)
    timm = SimpleNamespace(create_model=create_model, data=data, layers=SimpleNamespace(), __version__="9.0")
    for name, module in (("timm", timm), ("timm.data", data), ("timm.layers", timm.layers)):
        monkeypatch.setitem(sys.modules, name, module)
    found = features.load("timm:some_model")
    assert created == [("some_model", {"pretrained": True, "num_classes": 0})]
    identity = found.identity
    assert identity.pop("version").startswith("timm 9.0, weights ")
    assert identity == {"name": "timm:some_model", "size": 192, "mean": config["mean"], "std": config["std"]}
    assert isinstance(found.network, nn.Module) and not found.network.training and isinstance(found.mean, tuple)
    with pytest.raises(ValueError, match=r"--features timm:absent: timm failed to create absent: Unknown model"):
        features.load("timm:absent")


@pytest.mark.parametrize("name", ["timm:some_model", "uni"])
@pytest.mark.parametrize("size", [None, 96])
def test_encoders_take_another_size_when_one_is_given(monkeypatch: pytest.MonkeyPatch, name: str, size: int | None) -> None:
    any_sizes: list[bool] = []

    def load(short: str, file: Path | None, any_size: bool = False) -> encoders.Loaded:
        assert (short, file) == (name.removeprefix("timm:"), None)
        any_sizes.append(any_size)
        return encoders.Loaded(pool(), 224, (0.5,) * 3, (0.5,) * 3, "1")

    monkeypatch.setattr(encoders, "load_encoder" if name in encoders.ENCODERS else "load_timm", load)
    assert features.load(name, size).size == (size or 224) and any_sizes == [size is not None]


def test_hub_networks_are_loaded_from_github_or_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[tuple[Any, ...]] = []
    monkeypatch.setattr(torch.hub, "load", lambda *arguments, **options: (loaded.append((*arguments, options)), pool())[1])
    for repository, source in (("owner/repo", "github"), (str(tmp_path), "local")):
        found = features.load(f"hub:{repository}:entry")
        assert loaded.pop() == (repository, "entry", {"source": source, "trust_repo": "check"})
        expected = {"name": f"hub:{repository}:entry", "version": features.weights_hash(pool()), "size": 224}
        assert found.identity == expected | {"mean": list(features.IMAGENET[0]), "std": list(features.IMAGENET[1])}
        assert found(TILES).shape == (2, 3 * 28 * 28)

    def fail(*_: Any, **__: Any) -> nn.Module:
        raise RuntimeError("Cannot find callable entry in hubconf")

    monkeypatch.setattr(torch.hub, "load", fail)
    with pytest.raises(ValueError, match=r"--features hub:a/b:entry: torch.hub failed to load it: Cannot find callable"):
        features.load("hub:a/b:entry")


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_files_have_the_size_of_imagenet_and_the_hash_of_their_bytes(tmp_path: Path) -> None:
    versions = []
    for name, network in (("a.pt", pool()), ("b.pt", nn.Flatten())):
        torch.jit.trace(network.eval(), torch.ones(2, 3, 8, 8)).save(tmp_path / name)
        found = features.load(str(tmp_path / name))
        assert (found.name, found.size, found.mean, found.std) == (name, 224, *features.IMAGENET)
        versions.append(found.version)
    assert versions[0] != versions[1] and {len(version) for version in versions} == {len("sha256 ") + 16}


def test_tiles_are_resized_on_the_device_and_normalised_there() -> None:
    devices: list[str] = []

    def network(images_BCHW: Tensor) -> Tensor:
        devices.append(images_BCHW.device.type)
        return torch.zeros(2, 5)

    found = features.Features("net", "1", 4, network)
    assert found(TILES, torch.device("meta")).shape == found(TILES).shape == (2, 5)
    assert devices == ["meta", "cpu"]
