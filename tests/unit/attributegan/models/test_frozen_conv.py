"""Frozen convolutions: the values and gradients of the convolutions that they copy."""

import pytest
import torch
from torch import nn

from attributegan.models.frozen_conv import FrozenConv2d


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(8, 8), (9, 6)])
@pytest.mark.parametrize(
    ("kernel", "stride", "channels_in", "channels_out", "groups"),
    [(1, 1, 4, 6, 1), (3, 1, 4, 4, 4), (5, 1, 4, 4, 4), (3, 2, 4, 4, 4), (5, 2, 4, 4, 4), (3, 2, 2, 2, 2), (3, 2, 3, 6, 1)],
)
def test_values_and_gradients_are_those_of_the_convolution(
    kernel: int, stride: int, channels_in: int, channels_out: int, groups: int, size: tuple[int, int], layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, groups=groups)
    low, high = (kernel - 1) // 2 - (stride == 2 and kernel > 1), kernel // 2
    padding = nn.ZeroPad2d((low, high, low, high))
    images = torch.randn(2, channels_in, *size).to(memory_format=layout)
    results = []
    for network in (nn.Sequential(padding, conv), FrozenConv2d(conv, padding)):
        x = images.clone().requires_grad_()
        y = network(x)
        (y * torch.linspace(0, 1, y.numel()).view_as(y)).sum().backward()
        results.append((y.detach(), x.grad))
    torch.testing.assert_close(results[1], results[0])


def test_nothing_is_trained_or_saved() -> None:
    frozen = FrozenConv2d(nn.Conv2d(4, 4, 3, groups=4), nn.ZeroPad2d(1))
    assert not list(frozen.parameters()) and not frozen.state_dict()


def test_half_precision_gradients_are_close() -> None:
    torch.manual_seed(0)
    frozen = FrozenConv2d(nn.Conv2d(8, 8, 3, stride=2, groups=8), nn.ZeroPad2d((0, 1, 0, 1)))
    images = torch.randn(2, 8, 12, 12)
    gradients = []
    for enabled in (False, True):
        x = images.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = frozen(x)
        assert y.dtype == (torch.bfloat16 if enabled else torch.float32)
        y.float().square().sum().backward()
        gradients.append(x.grad)
    assert (gradients[1] - gradients[0]).norm() < 0.02 * gradients[0].norm()
