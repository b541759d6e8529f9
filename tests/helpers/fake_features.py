"""Cheap features for tests, by a name that a command line takes."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Pooled(nn.Module):
    """Cheap features: colours and their spread, in a grid."""

    def forward(self, images_BCHW: Tensor) -> Tensor:
        grid = nn.functional.adaptive_avg_pool2d(images_BCHW, 4).flatten(1)
        spread = nn.functional.adaptive_avg_pool2d(images_BCHW**2, 2).flatten(1)
        return torch.cat([grid, spread], dim=1)


def pooled() -> nn.Module:
    return Pooled()
