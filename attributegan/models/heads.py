"""Discriminator heads beyond the published ones: a projection head, and auxiliary heads that classify levels and real vs generated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attributegan.models.averaged import EMA_RATE, AveragedConv2d, AveragedLinear
from attributegan.models.batchnorm import BatchNorm2d
from attributegan.models.blocks import IMAGE_CHANNELS, leaky
from attributegan.models.precision import full_precision

COHERENCES = 4  # outputs of `coherence`
AUXILIARY_WIDTHS = (32, 64, 96)
AUXILIARY_HIDDEN = 128
AUXILIARY_SIZE = 128  # pixels; larger images are averaged down for the auxiliary heads


class ProjectionHead(nn.Module):
    """Map and label columns -> (B, 1): psi(f) + sum over attributes of <e(level), f>, where f are the features of the image.

    The projection discriminator (Miyato & Koyama, "cGANs with Projection Discriminator", ICLR 2018, eq. 11) with one embedding per level of
    every attribute, which assumes that attributes are independent given the image. An unknown attribute has no columns and so no term.

    Args:
        channels: of the 8 x 8 map; also the number of features.
        columns: number of label columns.
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
    """Images -> logits of two classes per level, real and generated: the auxiliary discriminative classifier of ADC-GAN.

    Hou et al., ICML 2022. A separate network beside the discriminator's stages, with batch norm, which makes it train several times faster,
    and with `coherence` as additional inputs. Predictions use averaged weights (averaged.py).
    """

    def __init__(self, num_levels: Sequence[int]) -> None:
        super().__init__()
        self.classes = [2 * levels for levels in num_levels]
        channels = (IMAGE_CHANNELS * 4, *AUXILIARY_WIDTHS)
        self.convs = nn.ModuleList(
            AveragedConv2d(channels_in, channels_out, 3, stride=1 + (k > 0), padding=1)
            for k, (channels_in, channels_out) in enumerate(zip(channels, channels[1:], strict=False))
        )
        self.norms = nn.ModuleList(BatchNorm2d(width, momentum=EMA_RATE) for width in AUXILIARY_WIDTHS)
        self.scale = BatchNorm2d(2 * channels[-1] + COHERENCES, momentum=EMA_RATE)
        self.hidden = AveragedLinear(2 * channels[-1] + COHERENCES, AUXILIARY_HIDDEN)
        self.logits = AveragedLinear(AUXILIARY_HIDDEN, sum(self.classes))

    def forward(self, images_BCHW: Tensor, train_levels: bool) -> tuple[Tensor, ...]:
        """Classifies images.

        Args:
            images_BCHW: [-1, 1], of any size; larger ones than `AUXILIARY_SIZE` are averaged down.
            train_levels: use the weights and batch statistics and update their averages; else use the averages.

        Returns:
            of each attribute (B, 2 levels): levels of real tiles, then those of generated ones.
        """
        was_training = self.training
        self.train(train_levels)
        try:
            return self._logits(images_BCHW)
        finally:
            self.train(was_training)

    def _logits(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        x = F.avg_pool2d(images_BCHW, max(1, images_BCHW.shape[2] // AUXILIARY_SIZE))
        coherence_BC = coherence(x)
        x = F.pixel_unshuffle(x, 2)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = leaky(norm(conv(x)))
        variance_BC, mean_BC = torch.var_mean(full_precision(x), dim=(2, 3), correction=0)
        features_BC = torch.cat([mean_BC, (variance_BC + 1e-6).sqrt(), coherence_BC], dim=1)
        return self.logits(leaky(self.hidden(self.scale(features_BC[..., None, None]).flatten(1)))).split(self.classes, dim=1)


def coherence(images_BCHW: Tensor) -> Tensor:
    """Measures how parallel edges are, 0 (all directions) to 1 (one), at two scales, by squared and plain magnitude: (B, `COHERENCES`).

    From the structure tensor (Bigun & Granlund, ICCV 1987): the length of the mean doubled-angle gradient over the mean magnitude. Pooled
    convolutions can't compute it, since it is invariant to the direction and needs squared filter responses.
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
