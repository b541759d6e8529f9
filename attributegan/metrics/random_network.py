"""A convolutional network with random weights, never trained: features that share nothing with any pretrained network.

Random networks rank generators well where images are unlike those of ImageNet (Naeem et al., "Reliable Fidelity and Diversity Metrics for
Generative Models", ICML 2020).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIZE = 128  # input pixels
WIDTHS = (32, 64, 128, 256)
SEED = 0


class RandomNetwork(nn.Module):
    """VGG-like: two convolutions of 3 pixels with ReLU, then max pooling, for each of `WIDTHS`.

    Returns the mean and the standard deviation of every channel after each stage: images_BCHW -> (B, 960). Some channels are always 0.
    """

    def __init__(self, seed: int = SEED) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        widths = (3, *WIDTHS)
        self.stages = nn.ModuleList(
            nn.ModuleList([_convolution(before, after, rng), _convolution(after, after, rng)])
            for before, after in zip(widths, widths[1:], strict=False)
        )

    def forward(self, images_BCHW: Tensor) -> Tensor:
        map_BCHW, columns = images_BCHW, []
        for number, stage in enumerate(self.stages):
            map_BCHW = F.max_pool2d(map_BCHW, 2) if number else map_BCHW
            for convolution in stage:  # type: ignore[attr-defined]
                map_BCHW = F.relu(convolution(map_BCHW))
            columns += [map_BCHW.mean(dim=(2, 3)), map_BCHW.std(dim=(2, 3))]
        return torch.cat(columns, dim=1)


def _convolution(channels_in: int, channels_out: int, rng: torch.Generator) -> nn.Conv2d:
    """Returns a convolution with Gaussian weights that keep the variance (He et al., ICCV 2015), without bias."""
    convolution = nn.Conv2d(channels_in, channels_out, 3, padding=1, padding_mode="reflect", bias=False)
    with torch.no_grad():
        convolution.weight.normal_(std=math.sqrt(2 / (9 * channels_in)), generator=rng)
    return convolution.requires_grad_(False)
