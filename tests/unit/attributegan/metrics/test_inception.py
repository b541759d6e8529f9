"""Inception-v3 for FID: architecture, weights of the user's files, clean-fid's resizing, and FID and KID against torchmetrics."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from attributegan.metrics import features, inception, quality


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the same architecture, without the batch counters that old files don't have."""
    torch.manual_seed(0)
    state = inception.Inception().state_dict()
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save({name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}, path)
    return path


def tiles(count: int, size: int) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (count, size // 4, size // 4, 3), np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


def test_architecture_is_the_published_one(weights: Path) -> None:
    """Sizes of table 1 of Szegedy et al. (CVPR 2016), names of torchvision, and the parameter count of its 1008-class network."""
    network = inception.load(weights)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in network.named_children():
        module.register_forward_hook(lambda _, __, output, name=name: shapes.__setitem__(name, tuple(output.shape[1:])))
    with torch.inference_mode():
        vectors = network(torch.zeros(1, 3, 299, 299))
    assert vectors.shape == (1, 2048) and not network.training
    assert list(shapes.items())[:5] == [
        ("Conv2d_1a_3x3", (32, 149, 149)),
        ("Conv2d_2a_3x3", (32, 147, 147)),
        ("Conv2d_2b_3x3", (64, 147, 147)),
        ("Conv2d_3b_1x1", (80, 73, 73)),
        ("Conv2d_4a_3x3", (192, 71, 71)),
    ]
    assert [shapes[name] for name in ("Mixed_5b", "Mixed_5d")] == [(256, 35, 35), (288, 35, 35)]
    assert {shapes[f"Mixed_6{letter}"] for letter in "abcde"} == {(768, 17, 17)}
    assert [shapes[f"Mixed_7{letter}"] for letter in "abc"] == [(1280, 8, 8), (2048, 8, 8), (2048, 8, 8)]
    counts = {name: sum(parameter.numel() for parameter in module.parameters()) for name, module in network.named_children()}
    assert sum(counts.values()) - counts["fc"] == 21_785_568 and counts["fc"] == 2049 * 1008  # 23,834,568 with 1000 classes
    assert {"Mixed_6b.branch7x7dbl_5.conv.weight", "Mixed_7c.branch3x3dbl_3b.bn.running_var"} < set(network.state_dict())


def test_pooling_is_that_of_fid() -> None:
    """A constant image stays constant up to its border under averages that don't count the padding; the last block takes the maximum."""
    ones = torch.ones(1, 1, 5, 5)
    assert torch.equal(inception._average(ones), ones)
    network = inception.Inception()
    assert network.Mixed_7b.pool is inception._average and network.Mixed_7c.pool is inception._largest
    spot = torch.zeros(1, 1, 5, 5)
    spot[0, 0, 2, 2] = 9
    assert inception._largest(spot).sum() == 81 and inception._average(spot)[0, 0, 1, 1] == 1


def test_resizing_is_that_of_clean_fid() -> None:
    """Bicubic and antialiased, each channel as floats by PIL, clipped to 0 to 255."""
    for size in (512, 64):
        x = tiles(1, size)
        channels = [Image.fromarray(x[0, ..., c].astype(np.float32)).resize((299, 299), Image.Resampling.BICUBIC) for c in range(3)]
        expected = np.stack([np.asarray(channel).clip(0, 255) for channel in channels])
        np.testing.assert_allclose(features.resize(x, 299)[0].numpy(), expected, atol=0.02)


def test_features_by_file(weights: Path) -> None:
    found = features.load(f"inception:{weights}")
    assert (found.name, found.size, found.mean, found.std) == ("inception", 299, (128 / 255,) * 3, (128 / 255,) * 3)
    vectors = found(tiles(2, 64))
    assert vectors.shape == (2, 2048) and vectors.dtype == np.float32 and np.ptp(vectors, axis=0).max() > 0
    images = (features.resize(tiles(2, 64), 299) - 128) / 128  # clean-fid's normalisation
    with torch.inference_mode():
        np.testing.assert_allclose(vectors, inception.load(weights)(images).numpy(), rtol=1e-3, atol=1e-5)


class Layers(nn.Module):
    """A stand-in for clean-fid's file: its network is the submodule `layers`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) * 0


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_cached_files_are_found(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch-fidelity's, pytorch-fid's and clean-fid's file names; nothing is downloaded."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    places = [tmp_path / "hub" / "checkpoints" / name for name in (*inception.STATE_DICTS, inception.SCRIPT)]
    monkeypatch.setattr(inception, "candidates", lambda: [path for path in places if path.is_relative_to(tmp_path)])
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", None)
    with pytest.raises(ValueError, match=r"no weights found. They are not downloaded(?s:.*)weights-inception-2015-12-05-6726825d.pth"):
        features.load("inception")
    places[2].parent.mkdir(parents=True)
    torch.manual_seed(0)
    layers = Layers()
    torch.jit.script(layers).save(places[2])
    found = features.load("inception")
    images = (features.resize(tiles(3, 64), 299) - 128) / 128
    np.testing.assert_allclose(found(tiles(3, 64)), layers.layers(images).flatten(1).detach().numpy(), atol=1e-5)
    places[0].write_bytes(weights.read_bytes())
    assert inception.find() == places[0]
    with pytest.raises(ValueError, match=r"SHA-256 is [0-9a-f]{8}…, expected 6726825d…; download it again"):
        features.load("inception")  # random weights under torch-fidelity's name
    renamed = tmp_path / f"weights-{hashlib.sha256(weights.read_bytes()).hexdigest()[:8]}.pth"
    renamed.write_bytes(weights.read_bytes())
    assert features.load(f"inception:{renamed}").version == features.load(f"inception:{weights}").version != found.version
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    monkeypatch.setattr(Path, "stat", lambda path, **_: type("Stat", (), {"st_uid": 999, "st_mode": 0o100644})())
    with pytest.raises(ValueError, match="no weights found"):
        inception.find()  # a file of another user


def test_usual_folders() -> None:
    listed = list(map(str, inception.candidates()))
    assert listed[0] == f"{torch.hub.get_dir()}/checkpoints/weights-inception-2015-12-05-6726825d.pth"
    assert "/tmp/inception-2015-12-05.pt" in listed


def test_other_files_are_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "executed",)

    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    torch.save({"fc.weight": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 and nothing else")
    torch.save([1], tmp_path / "list.pth")
    for name in ("other", "evil", "cut", "list"):
        with pytest.raises(ValueError, match=f"{name}.pth: not the weights of FID's Inception-v3"):
            features.load(f"inception:{tmp_path / name}.pth")
    assert not (tmp_path / "executed").exists()
    with pytest.raises(ValueError, match="--features inception:nowhere.pth: no such file"):
        features.load("inception:nowhere.pth")


class Given(nn.Module):
    """Passes features through torchmetrics unchanged."""

    num_features = 24

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_fid_and_kid_agree_with_torchmetrics() -> None:
    image = pytest.importorskip("torchmetrics.image", reason="in the extra `dev`")
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    assert image
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((24, 24))
    real, fake = (np.abs(rng.standard_normal((120, 24)) @ mix + shift).astype(np.float32) for shift in (0, 0.7))
    fid = FrechetInceptionDistance(feature=Given()).set_dtype(torch.float64)
    kid = KernelInceptionDistance(feature=Given(), subsets=1, subset_size=120)
    for metric in (fid, kid):
        metric.update(torch.from_numpy(real), real=True)
        metric.update(torch.from_numpy(fake), real=False)
    assert quality.frechet_distance(fake, real) == pytest.approx(float(fid.compute()), rel=1e-3)
    assert quality.kernel_distance(fake, real).value == pytest.approx(float(kid.compute()[0]), rel=1e-3)
