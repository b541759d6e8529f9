"""The auxiliary heads: their inputs, and predictions from averaged weights."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from attributegan.models.averaged import EMA_RATE, AveragedConv2d, AveragedLinear
from attributegan.models.heads import AuxiliaryHeads, coherence


def test_edges_in_one_direction_are_coherent_whatever_the_direction() -> None:
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    for turn in (0.0, 0.4, 1.2, 2.0):
        waves = torch.sin((rows * math.sin(turn) + columns * math.cos(turn)) / 3).expand(1, 3, -1, -1)
        assert coherence(waves).min() > 0.9
    rings = torch.sin(torch.hypot(rows - 31.5, columns - 31.5) / 3).expand(1, 3, -1, -1)
    assert coherence(rings).max() < 0.1


@pytest.mark.parametrize(
    "layer, shape", [(lambda: AveragedConv2d(2, 3, 3, stride=2, padding=1), (4, 2, 8, 8)), (lambda: AveragedLinear(5, 3), (4, 5))]
)
def test_averaged_layers_train_with_weights_and_predict_with_their_average(layer: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    tested, plain, x = layer().double(), layer().double(), torch.randn(shape, dtype=torch.float64, requires_grad=True)
    seen = []
    for _ in range(3):
        for p in tested.parameters():
            torch.nn.init.normal_(p)
        seen.append({name: p.detach().clone() for name, p in tested.named_parameters()})
        learning = tested.train()(x)
        for name, p in plain.named_parameters():
            p.data.copy_(seen[-1][name])
        assert torch.equal(learning, plain.train()(x))
    for name, p in plain.named_parameters():  # an exponential average with rate EMA_RATE
        p.data.copy_(sum(EMA_RATE * (1 - EMA_RATE) ** age * weights[name] for age, weights in enumerate(reversed(seen))))
    answer = tested.eval()(x)
    torch.testing.assert_close(answer, plain.train()(x), rtol=1e-12, atol=1e-12)
    answer.sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert all(p.grad is None for p in tested.parameters())
    torch.testing.assert_close(tested(x), answer)  # predicting does not update the average


def test_auxiliary_heads_predict_from_averages_only() -> None:
    heads = AuxiliaryHeads([3, 2])
    assert {norm.momentum for norm in (*heads.norms, heads.scale)} == {EMA_RATE}  # statistics and weights have the same rate
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    for _ in range(5):
        heads(images, train_levels=True)
    predicted = heads(images, train_levels=False)
    for layer in (*heads.convs, heads.hidden, heads.logits):
        torch.nn.init.zeros_(layer.weight)
    assert all(torch.equal(*pair) for pair in zip(predicted, heads(images, train_levels=False), strict=True))
    assert predicted[0].std(dim=0).min() > 0  # predictions depend on the images
    assert heads(images, train_levels=True)[0].std(dim=0).max() == 0
