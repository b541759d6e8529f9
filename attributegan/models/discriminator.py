"""The discriminator: images and attribute levels -> logits of two heads, an embedding with its proxy, and a reconstruction loss.

Follows AttributeGAN (Ye et al., MICCAI 2021) as published; `ModelConfig` sets widths, attention, label columns and proxies.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from attributegan.attributes import AttributeSchema
from attributegan.config import ModelConfig
from attributegan.models.blocks import (
    IMAGE_CHANNELS,
    Decoder,
    DownsampleBlock,
    OneHotEncoding,
    ResidualStage,
    Stages,
    global_attention,
    initialise,
    label_columns,
    leaky,
    normalise,
)
from attributegan.models.heads import AuxiliaryHeads, ProjectionHead
from attributegan.models.precision import full_precision

HEAD_MAP = 5 * 5  # pixels of an 8 x 8 map after the last convolution of a head
PROXY_WIDTH = 16  # numbers of a proxy per padded column


class DiscriminatorOutput(NamedTuple):
    """Outputs for B images with K label columns; E = 16 x attributes x most levels (published: 400).

    Training lowers the logits of real images and raises those of generated ones.
    """

    logits: Tensor  # BK: full-size head, multiplied by 1 + label columns; B1 with a projection head
    logits_32: Tensor | None  # BK: likewise of the 32 px head; None without it, and with a projection head
    embedding: Tensor | None  # BE, unit length
    proxy: Tensor | None  # BE, unit length: target of the embedding for these levels
    reconstruction_loss: Tensor | None  # scalar
    levels: tuple[Tensor, ...] | None  # of each attribute B x 2 levels: logits of the auxiliary heads


class Discriminator(Stages):
    """``forward(images_BCHW, levels_BA, quadrant=0) -> DiscriminatorOutput``; twice differentiable.

    Attributes:
        activation_checkpointing: recompute the stages in the backward pass instead of storing their activations.
    """

    def __init__(self, config: ModelConfig, schema: AttributeSchema) -> None:
        super().__init__()
        resolution = config.image_size.bit_length() - 1
        top = min(8, resolution)  # the input of the residual stages has 2^top pixels
        self.image_size = config.image_size
        self.columns = label_columns(config.label_columns, schema.num_levels)
        channels = [IMAGE_CHANNELS] * (resolution - top) + [config.feature_width(top)]
        self.halvings = nn.ModuleList(DownsampleBlock(a, b) for a, b in zip(channels, channels[1:], strict=False))
        widths = [config.feature_width(top) if self.halvings else IMAGE_CHANNELS, *map(config.feature_width, range(top - 1, 2, -1))]
        self.stages = nn.ModuleList(
            ResidualStage(widths[k], widths[k + 1], config.attention_heads if 2 ** (top - k) in config.discriminator_attention else 0)
            for k in range(top - 3)
        )
        projects = config.conditioning == "projection"
        self.head = ProjectionHead(widths[-1], self.columns.count) if projects else _head(widths[-1], self.columns.count)
        self.head_32 = _head_32(self.columns.count, config.attention_heads) if config.head_32 and not projects else None
        self.auxiliary = AuxiliaryHeads(schema.num_levels) if config.auxiliary_heads else None
        self.decoder = Decoder(widths[-1], doublings=min(7, resolution) - 3)
        self.quadrant_decoder = Decoder(widths[-2], doublings=4) if resolution >= 9 else None
        self.proxies = (PublishedProxies if config.proxy == "published" else LevelProxies)(schema.num_levels)
        self.embedder = _embedder(widths[1], 2 ** (top - 1), self.proxies.size)
        self.apply(initialise)

    def forward(
        self,
        images_BCHW: Tensor,
        levels_BA: Tensor,
        quadrant: int = 0,
        *,
        embed: bool = True,
        reconstruct: bool = True,
        train_levels: bool = False,
        predict_levels: bool = False,
        first: int | None = None,
    ) -> DiscriminatorOutput:
        """Runs the discriminator.

        Args:
            images_BCHW: [-1, 1], of the configured size.
            levels_BA: long, one level per attribute, in the order of the schema; -1 for unknown.
            quadrant: 0 to 3, in row-major order: the quadrant that the second decoder reconstructs (512 px and more).
            embed: compute ``embedding`` and ``proxy``.
            reconstruct: compute ``reconstruction_loss``.
            train_levels: compute ``levels`` to train the auxiliary heads.
            predict_levels: compute ``levels`` as predictions of the auxiliary heads, from averaged weights.
            first: compute ``embedding``, ``proxy`` and ``reconstruction_loss`` for this many images only, so that real and generated
                images can share one pass.

        Raises:
            ValueError: images of another size.
        """
        size = self.image_size
        if images_BCHW.shape[2:] != (size, size):
            raise ValueError(f"images: got {tuple(images_BCHW.shape[2:])} pixels, expected {size} x {size}")
        maps = self._maps(images_BCHW)
        logits, logits_32 = self._logits(images_BCHW, maps[-1], self.columns(levels_BA))
        level_logits = (
            self.auxiliary(images_BCHW, train_levels) if self.auxiliary is not None and (train_levels or predict_levels) else None
        )
        images_BCHW, levels_BA, maps = images_BCHW[:first], levels_BA[:first], [map_BCHW[:first] for map_BCHW in maps]
        return DiscriminatorOutput(
            logits=logits,
            logits_32=logits_32,
            embedding=normalise(self.embedder(maps[0])) if embed else None,
            proxy=normalise(self.proxies(levels_BA)) if embed else None,
            reconstruction_loss=self._reconstruction_loss(images_BCHW, maps, quadrant) if reconstruct else None,
            levels=level_logits,
        )

    def _logits(self, images_BCHW: Tensor, map_BCHW: Tensor, columns_BK: Tensor) -> tuple[Tensor, Tensor | None]:
        if isinstance(self.head, ProjectionHead):
            return self.head(map_BCHW, columns_BK), None
        if self.head_32 is None:
            return self.head(map_BCHW) * (1 + columns_BK), None
        thumbs_BCHW = F.interpolate(images_BCHW, size=(32, 32))
        return self.head(map_BCHW) * (1 + columns_BK), self.head_32(thumbs_BCHW) * (1 + columns_BK)

    def unused_parameters(self, *, embed: bool, reconstruct: bool) -> Iterator[nn.Parameter]:
        """Yields the parameters that get no gradients if `forward` is always called with these flags."""
        unused: list[nn.Module | None] = []
        if not embed:
            unused += [self.embedder, self.proxies]
        if not reconstruct:
            unused += [self.decoder, self.quadrant_decoder]
        for module in unused:
            if module is not None:
                yield from module.parameters()

    def _maps(self, images_BCHW: Tensor) -> list[Tensor]:
        """Returns the output of every residual stage; the last is 8 x 8."""
        x, maps = images_BCHW, []
        for halving in self.halvings:
            x = self.run(halving, x)
        for stage in self.stages:
            x = self.run(stage, x)
            maps.append(x)
        return maps

    def _reconstruction_loss(self, images_BCHW: Tensor, maps: list[Tensor], quadrant: int) -> Tensor:
        """Self-supervision: reconstructs images from the 8 x 8 map and, from 512 px on, a quadrant from that of the 16 x 16 map."""
        loss = _sampled_mse(self.decoder(maps[-1]), images_BCHW)
        if self.quadrant_decoder is not None:
            reconstructed = self.quadrant_decoder(_quadrant(maps[-2], quadrant))
            loss = loss + _sampled_mse(reconstructed, _quadrant(images_BCHW, quadrant))
        return loss


class PublishedProxies(nn.Module):
    """One row of 16 numbers per padded column. Rows are indexed by the 0/1 *values* of the columns, so only rows 0 and 1 are trained.

    A bug of the published code, kept for compatibility with its checkpoints.
    """

    def __init__(self, num_levels: tuple[int, ...]) -> None:
        super().__init__()
        self.columns = label_columns("padded", num_levels)
        self.size = PROXY_WIDTH * self.columns.count
        self.table = nn.Embedding(self.columns.count, PROXY_WIDTH)

    def forward(self, levels_BA: Tensor) -> Tensor:
        return self.table(self.columns(levels_BA)).flatten(1)


class LevelProxies(nn.Module):
    """One row per level of each attribute; the proxy of an image concatenates the rows of its levels, 0 for unknown ones."""

    def __init__(self, num_levels: tuple[int, ...]) -> None:
        super().__init__()
        self.columns = OneHotEncoding(num_levels)
        self.size = PROXY_WIDTH * max(num_levels) * len(num_levels)
        self.table = nn.Embedding(self.columns.count, PROXY_WIDTH * max(num_levels))

    def forward(self, levels_BA: Tensor) -> Tensor:
        rows_BA = levels_BA.clamp(min=0) + self.columns.offsets
        return (self.table(rows_BA) * (levels_BA >= 0)[..., None]).flatten(1)


class _Leaky(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return leaky(x)


def _head(channels: int, columns: int) -> nn.Sequential:
    """8 x 8 map -> logits, one per label column."""
    return nn.Sequential(
        OrderedDict(
            mix=nn.Conv2d(channels, channels, 1),
            act=_Leaky(),
            score=nn.Conv2d(channels, 1, 4),
            flatten=nn.Flatten(),
            columns=nn.Linear(HEAD_MAP, columns),
        )
    )


def _head_32(columns: int, heads: int) -> nn.Sequential:
    """32 px image -> logits, one per label column."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(IMAGE_CHANNELS, 64, 3, padding=1),
            attend=global_attention(64, heads),
            stage=ResidualStage(64, 32),
            attend_again=global_attention(32, heads),
            pool=nn.AdaptiveAvgPool2d((8, 8)),
            score=nn.Conv2d(32, 1, 4),
            flatten=nn.Flatten(),
            columns=nn.Linear(HEAD_MAP, columns),
        )
    )


def _embedder(channels: int, width: int, size: int) -> nn.Sequential:
    """Map of the first residual stage, ``width`` pixels wide -> embedding (B, size)."""
    return nn.Sequential(
        OrderedDict(
            mix=nn.Conv2d(channels, channels, 1),
            act=_Leaky(),
            squeeze=nn.Conv2d(channels, 1, 1),
            flatten=nn.Flatten(),
            linear=nn.Linear(width * width, size),
        )
    )


def _quadrant(x_BCHW: Tensor, quadrant: int) -> Tensor:
    return rearrange(x_BCHW, "b c (m h) (n w) -> (m n) b c h w", m=2, n=2)[quadrant]


def _sampled_mse(reconstructed_BCHW: Tensor, images_BCHW: Tensor) -> Tensor:
    """Returns the mean squared error to images resampled (nearest) to the size of the reconstruction."""
    target_BCHW = F.interpolate(images_BCHW, size=reconstructed_BCHW.shape[2:])
    return F.mse_loss(full_precision(reconstructed_BCHW), full_precision(target_BCHW))
