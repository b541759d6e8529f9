"""Frozen features of a pretrained network, in which the MMD loss compares generated tiles with real ones.

Pretrained features speed up GAN training (Sauer et al., "Projected GANs Converge Faster", NeurIPS 2021), and matching their statistics
alone already trains a generator (Santos et al., "Learning Implicit Generative Models by Matching Perceptual Features", ICCV 2019).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from attributegan.metrics import efficientnet
from attributegan.models.blocks import OneHotEncoding
from attributegan.models.frozen_conv import FrozenConv2d
from attributegan.models.precision import full_precision

NETWORK = "efficientnet-lite0"
# Pixels: smaller tiles are enlarged, since the last map needs more than one position for a standard deviation; larger ones are reduced to
# the size that the network was trained at.
MIN_SIZE, MAX_SIZE = 64, 224
QUADRANTS = 4
# Blocks whose output is used (strides 4, 8, 16 and 32), and how much the mean and the standard deviation over the positions of a map vary
# between H&E tiles, relative to the scale of the last batch norm of these blocks. Medians over channels and 2,140 tiles of 64 pixels.
TAPS = {2: (0.17, 0.09), 4: (0.21, 0.12), 10: (0.32, 0.19), 15: (0.78, 0.07)}


class PerceptualFeatures(nn.Module):
    """``forward(images_BCHW, levels_BA) -> (B, D + K)``: D = 2480 statistics of the maps of EfficientNet-Lite0, and K label columns.

    The statistics of a channel are its means over the four quadrants of the map, so that layouts count too, and its standard deviation
    over all positions. They are scaled so that their squares sum to about 1 around the mean of real tiles. The label columns are
    one-hot, 0 for unknown levels; with them, a distance between rows compares tiles together with their levels.

    Args:
        num_levels: of each attribute.
        level_weight: value of a label column that is set.

    Raises:
        ValueError: the package with the weights is missing.
    """

    scale_D: Tensor

    def __init__(self, num_levels: Sequence[int], level_weight: float) -> None:
        super().__init__()
        try:
            network: Any = efficientnet.load(NETWORK)[0].network
        except ImportError as error:
            raise ValueError(f"loss.mmd: {error}; it needs {NETWORK}: install it with `pip install 'attributegan[eval]'`") from error
        self.register_buffer("scale_D", 1 / _spread(network._blocks), persistent=False)
        self.stem = _merge(network._conv_stem, network._bn0)
        self.activation = network._swish
        self.blocks = nn.ModuleList(_fuse(block) for block in network._blocks)
        self.columns, self.level_weight = OneHotEncoding(num_levels), level_weight
        self.eval().requires_grad_(False)

    def forward(self, images_BCHW: Tensor, levels_BA: Tensor) -> Tensor:
        """Computes features in at least float32, differentiable in the images.

        Args:
            images_BCHW: square, about [-1, 1].
            levels_BA: long, -1 for unknown.
        """
        x = images_BCHW
        size = min(max(x.shape[2], MIN_SIZE), MAX_SIZE)
        if size != x.shape[2]:
            x = full_precision(x)  # the antialiased resizing has no bf16 form on CPUs
            x = F.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False)
        x = (x * 127.5 + 0.5) / 128  # as the network's own preprocessing of uint8 pixels: (pixel - 127) / 128
        x = self.activation(self.stem(x))
        means, deviations = [], []
        for k, block in enumerate(self.blocks):
            x = block(x)
            if k in TAPS:
                map_BCHW = full_precision(x)
                means.append(F.adaptive_avg_pool2d(map_BCHW, 2).flatten(1))
                deviations.append(map_BCHW.flatten(2).std(2))
        features_BD = torch.cat(means + deviations, dim=1) * self.scale_D
        return torch.cat([features_BD, self.level_weight * self.columns(levels_BA).to(features_BD.dtype)], dim=1)


def _spread(blocks: Any) -> Tensor:
    """Returns by how much each statistic varies between tiles, times the square root of their number D.

    A block's output is a sum of batch norms' outputs since the last block without a skip connection, so their scales add in squares.
    """
    means, deviations, squares_C = [], [], torch.zeros(())
    for k, block in enumerate(blocks):
        arguments = block._block_args
        skips = block.id_skip and arguments.stride in (1, [1]) and arguments.input_filters == arguments.output_filters
        squares_C = block._bn2.weight.detach().square() + (squares_C if skips else 0)
        if k in TAPS:
            of_mean, of_deviation = TAPS[k]
            means.append(of_mean * squares_C.sqrt().repeat_interleave(QUADRANTS))
            deviations.append(of_deviation * squares_C.sqrt())
    spread_D = torch.cat(means + deviations)
    return spread_D * math.sqrt(len(spread_D))


def _fuse(block: Any) -> nn.Module:
    """Replaces the convolutions of a block by frozen ones that include their batch norms."""
    pairs = [("_expand_conv", "_bn0")] if block._block_args.expand_ratio != 1 else []
    for conv, norm in (*pairs, ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")):
        setattr(block, conv, _merge(getattr(block, conv), getattr(block, norm)))
        setattr(block, norm, nn.Identity())
    fused: nn.Module = block
    return fused


def _merge(conv: Any, norm: Any) -> FrozenConv2d:
    return FrozenConv2d(fuse_conv_bn_eval(conv, norm), conv.static_padding)
