"""Heads of a discriminator that reads levels in other ways than the published one: a projection, and heads that tell the levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attributegan.models.blocks import full_precision, leaky

COHERENCES = 4  # numbers of `coherence`
AUXILIARY_WIDTH = 128


class ProjectionHead(nn.Module):
    """Map and label columns -> (B, 1): psi(f) + sum over attributes of <e(level), f>, f the features of the image.

    The projection discriminator (Miyato & Koyama, "cGANs with Projection Discriminator", ICLR 2018, eq. 11) with one embedding for every
    level of every attribute, as for a label whose attributes are independent given the image. An attribute that is not known has no
    columns and so no term.

    Args:
        channels: of the map, 8 pixels wide; features are as many.
        columns: label columns.
    """

    def __init__(self, channels: int, columns: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 4, stride=2, padding=1)
        self.features = nn.Linear(4 * 4 * channels, channels)
        self.score = nn.Linear(channels, 1)
        self.embeddings = nn.Parameter(torch.randn(columns, channels) * channels**-0.5)

    def forward(self, x_BCHW: Tensor, columns_BK: Tensor) -> Tensor:
        features_BC = leaky(self.features(leaky(self.mix(x_BCHW)).flatten(1)))
        embedding_BC = columns_BK.to(self.embeddings.dtype) @ self.embeddings
        return self.score(features_BC) + (features_BC * embedding_BC).sum(dim=1, keepdim=True)


class AuxiliaryHeads(nn.Module):
    """Maps of an image, and how parallel its edges are -> logits of every attribute's levels (AC-GAN, Odena et al., ICML 2017)."""

    def __init__(self, channels: Sequence[int], num_levels: Sequence[int]) -> None:
        super().__init__()
        self.num_levels = list(num_levels)
        self.hidden = nn.Linear(2 * sum(channels) + COHERENCES, AUXILIARY_WIDTH)
        self.logits = nn.Linear(AUXILIARY_WIDTH, sum(num_levels))

    def forward(self, images_BCHW: Tensor, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Of each attribute (B, levels). Maps count by their mean and spread over positions."""
        pooled = [coherence(images_BCHW)]
        for map_BCHW in map(full_precision, maps):
            variance_BC, mean_BC = torch.var_mean(map_BCHW, dim=(2, 3), correction=0)
            pooled += [mean_BC, (variance_BC + 1e-6).sqrt()]
        return self.logits(leaky(self.hidden(torch.cat(pooled, dim=1)))).split(self.num_levels, dim=1)


def coherence(images_BCHW: Tensor) -> Tensor:
    """How parallel the edges are, 0 (all directions) to 1 (one), at two scales by squared and by plain strength: (B, `COHERENCES`).

    From the structure tensor (Bigun & Granlund, ICCV 1987): the length of the mean doubled-angle gradient over the mean strength. No
    direction is preferred, so a pooled convolution can't tell it: it would have to square the answers of filters.
    """
    grey_B1HW = full_precision(images_BCHW).mean(dim=1, keepdim=True)
    columns = []
    for scale in (1, 2):
        grey_BHW = F.avg_pool2d(grey_B1HW, scale)[:, 0]
        across, along = grey_BHW[:, 1:-1, 2:] - grey_BHW[:, 1:-1, :-2], grey_BHW[:, 2:, 1:-1] - grey_BHW[:, :-2, 1:-1]
        squared = across.square() + along.square() + 1e-6
        for power in (0.0, -0.5):
            weight = squared**power
            cosine, sine = (weight * (across.square() - along.square())).mean((1, 2)), (weight * 2 * across * along).mean((1, 2))
            columns.append((cosine.square() + sine.square() + 1e-12).sqrt() / (weight * squared).mean((1, 2)))
    return torch.stack(columns, dim=1)
