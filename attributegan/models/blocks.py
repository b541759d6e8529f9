"""Building blocks of both networks: GLU, attention, excitation, residual stage, decoder, label encodings.

The blocks are those of AttributeGAN (Ye et al., MICCAI 2021), which takes them from "Towards Faster and Stabilized GAN Training for
High-fidelity Few-shot Image Synthesis" (Liu et al., ICLR 2021) with linear attention (Shen et al., "Efficient Attention", WACV
2021). Independent of the configuration.

All blocks support autocast: softmaxes and norms are computed in at least float32. Outputs keep the memory format of the input.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attributegan.attributes import AttributeSchema
from attributegan.models.batchnorm import discarded_statistics
from attributegan.models.precision import HALVES, full_precision
from attributegan.models.resample import UpsampleNearestConv2d, blur

HEAD_WIDTH = 64  # channels of an attention head
IMAGE_CHANNELS = 3


def softmax(x: Tensor, dim: int) -> Tensor:
    """Softmax in the dtype of ``x``; torch computes it in at least float32."""
    return x.softmax(dim).to(x.dtype)


def normalise(x: Tensor) -> Tensor:
    """x / max(|x|, 1e-12) along dimension 1, in at least float32."""
    return F.normalize(full_precision(x), dim=1, eps=1e-12)


def glu(x_BCHW: Tensor) -> Tensor:
    """GLU over channels (Dauphin et al., ICML 2017): 2c channels -> c. Three times as fast as `F.glu` on channels-last CPU maps."""
    value, gate = x_BCHW.chunk(2, dim=1)
    if gate.dtype in HALVES:  # on CPUs, half-precision sigmoids of non-contiguous maps are not vectorised
        gate = gate.contiguous(memory_format=layout(x_BCHW))
    return value * gate.sigmoid()


def layout(x_BCHW: Tensor) -> torch.memory_format:
    """Returns the memory format of a map."""
    return torch.channels_last if x_BCHW.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format


def leaky(x: Tensor) -> Tensor:
    """LeakyReLU 0.1, in place: its input is the output of a convolution, which nothing else uses."""
    return F.leaky_relu(x, 0.1, inplace=True)


def initialise(module: nn.Module) -> None:
    """Initialises one layer as published, for ``network.apply``: Kaiming-normal weights, zero biases."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        _kaiming(module.weight)
    if isinstance(module, nn.Conv2d | nn.Linear | nn.ConvTranspose2d) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _kaiming(weight: Tensor) -> None:
    nn.init.kaiming_normal_(weight, a=0, mode="fan_in", nonlinearity="leaky_relu")


class Stages(nn.Module):
    """Base class of both networks: runs stages with or without activation checkpointing."""

    activation_checkpointing: bool = False

    def run(self, stage: nn.Module, x_BCHW: Tensor, *conditions: Tensor) -> Tensor:
        """Runs one stage; with activation checkpointing, stores only its inputs and recomputes it in the backward pass."""
        if self.activation_checkpointing and self.training and torch.is_grad_enabled():
            return _checkpointed(stage, x_BCHW, *conditions)
        return stage(x_BCHW, *conditions)


@torch.compiler.disable(recursive=False)  # torch.compile does not support context_fn; the stage itself is still compiled
def _checkpointed(stage: nn.Module, *inputs: Tensor) -> Tensor:
    return checkpoint(stage, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=lambda: discarded_statistics(stage))


class OneHotEncoding(nn.Module):
    """Levels -> 0/1 columns, ``widths[a]`` columns for attribute a."""

    offsets: Tensor

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.widths, self.count = tuple(widths), sum(widths)
        self.register_buffer("offsets", torch.tensor([sum(widths[:a]) for a in range(len(widths))]), persistent=False)

    def forward(self, levels_BA: Tensor) -> Tensor:
        """Encodes levels.

        Returns:
            (B, K): 0/1, long, all 0 for unknown attributes; for fractional levels (a floating type) the linear interpolation between
            the columns of the two whole levels around them.
        """
        if not levels_BA.is_floating_point():
            return self._columns(levels_BA).sum(1)
        floor_BAK, ceil_BAK = (self._columns(whole_BA.long()).to(levels_BA) for whole_BA in (levels_BA.floor(), levels_BA.ceil()))
        return torch.lerp(floor_BAK, ceil_BAK, (levels_BA % 1)[..., None]).sum(1)

    def _columns(self, levels_BA: Tensor) -> Tensor:
        """Returns the columns of each attribute, long (B, A, K)."""
        return F.one_hot(levels_BA.clamp(min=0) + self.offsets, self.count) * (levels_BA >= 0)[..., None]


def label_columns(kind: Literal["padded", "levels"], num_levels: Sequence[int]) -> OneHotEncoding:
    """Returns a one-hot encoding; "padded" gives every attribute as many columns as the largest one (published: 5 x 5), "levels" one per
    level (21)."""
    return OneHotEncoding([max(num_levels)] * len(num_levels) if kind == "padded" else num_levels)


class OrdinalEncoding(nn.Module):
    """Levels -> three columns per attribute: whether the level is on the scale, its position from -1 to 1, and "not assessable".

    All 0 for an unknown level. Embeddings of the levels, including fractional ones, then lie on a line.
    """

    offsets: Tensor
    lowest: Tensor
    highest: Tensor

    def __init__(self, schema: AttributeSchema) -> None:
        super().__init__()
        ends = ([attribute.assessable[end] for attribute in schema.attributes] for end in (0, -1))
        self.widths, self.count = (3,) * len(schema.names), 3 * len(schema.names)
        for name, values in zip(("offsets", "lowest", "highest"), (range(0, self.count, 3), *ends), strict=True):
            self.register_buffer(name, torch.tensor(list(values)), persistent=False)

    def forward(self, levels_BA: Tensor) -> Tensor:
        """Encodes whole levels (long) or fractional ones (a floating type) as float32 (B, K)."""
        on_scale_BA = (levels_BA >= self.lowest) & (levels_BA <= self.highest)
        position_BA = (levels_BA - self.lowest).float() / (self.highest - self.lowest).clamp(min=1) * 2 - 1
        return torch.stack([on_scale_BA.float(), position_BA * on_scale_BA, ((levels_BA >= 0) & ~on_scale_BA).float()], dim=2).flatten(1)


class Rezero(nn.Module):
    """x + g f(x), where the scalar g starts at 1e-3 (Bachlechner et al., "ReZero is All You Need", UAI 2021)."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.full((1,), 1e-3))  # a vector of length 1, since DeepSpeed does not support scalar parameters
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return x + self.g[0] * self.block(x)  # a vector would promote half-precision maps to float32, a scalar does not


class LinearAttention(nn.Module):
    """Attention in linear time: k softmax over positions, q softmax over channels; context = k vT, out = contextT q.

    Computed with matrices: a map is positions x channels, its memory layout in channels-last, and each projection is the matrix of a 1 x 1
    convolution. Since each row of k sums to 1, k vT equals (k xT) WvT + bv, so values are never computed per position. The output
    projection is applied to the context, so the output before projection is never computed per position either.

    Args:
        channels: of the map, in and out.
        heads: number of heads, each `HEAD_WIDTH` channels wide.
        bias: whether the projections to q, k and v have biases.
        scale: factor of q and k before their softmaxes.
    """

    def __init__(self, channels: int, heads: int, bias: bool, scale: float) -> None:
        super().__init__()
        self.heads, self.scale, width = heads, scale, heads * HEAD_WIDTH
        self.qkv_weight = nn.Parameter(torch.empty(3 * width, channels))
        self.qkv_bias = nn.Parameter(torch.zeros(3 * width)) if bias else None
        self.out_weight = nn.Parameter(torch.empty(channels, width))
        self.out_bias = nn.Parameter(torch.zeros(channels))
        for weight in (self.qkv_weight, self.out_weight):
            _kaiming(weight)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BNC = x_BCHW.flatten(2).transpose(1, 2)
        to_q, to_k, to_v = self.qkv_weight.chunk(3)
        add_q, add_k, add_v = (None, None, None) if self.qkv_bias is None else self.qkv_bias.chunk(3)
        queries_BNS = softmax(self._scaled(x_BNC, to_q, add_q).unflatten(2, (self.heads, -1)), dim=3).flatten(2)  # S: heads x their width
        keys_BNS = softmax(self._scaled(x_BNC, to_k, add_k), dim=1)
        pooled = (keys_BNS.transpose(1, 2) @ x_BNC).unflatten(1, (self.heads, -1))  # per image and head: key channels x C
        context = pooled @ to_v.unflatten(0, (self.heads, -1)).transpose(1, 2)  # key channels x value channels
        if add_v is not None:
            context = context + add_v.view(self.heads, 1, -1).to(context.dtype)
        projected = context @ self.out_weight.t().unflatten(0, (self.heads, -1))  # key channels x C
        output_BNC = queries_BNS @ projected.flatten(1, 2)
        output_BNC = output_BNC + self.out_bias.to(output_BNC.dtype)
        return output_BNC.transpose(1, 2).unflatten(2, x_BCHW.shape[2:])

    def _scaled(self, x_BNC: Tensor, weight_SC: Tensor, bias_S: Tensor | None) -> Tensor:
        """Projects and scales. Avoids `F.linear`, which ZeRO-3 replaces by a version that rounds differently."""
        weight_CS, rows = weight_SC.t() * self.scale, x_BNC.flatten(0, 1)
        output = rows @ weight_CS if bias_S is None else torch.addmm(bias_S * self.scale, rows, weight_CS)
        return output.unflatten(0, x_BNC.shape[:2])


def attention_block(channels: int, heads: int) -> nn.Sequential:
    """x + g A(x), then x + g FF(x): the attention block of the generator, and of the discriminator in the paper's figure."""
    feed_forward = OrderedDict(
        widen=nn.Conv2d(channels, 2 * channels, 1), act=nn.LeakyReLU(0.2, inplace=True), narrow=nn.Conv2d(2 * channels, channels, 1)
    )
    attention = LinearAttention(channels, heads, bias=True, scale=HEAD_WIDTH**-0.25)
    return nn.Sequential(OrderedDict(attend=Rezero(attention), transform=Rezero(nn.Sequential(feed_forward))))


def global_attention(channels: int, heads: int) -> Rezero:
    """x + g GSA(x): the content part of global self-attention (Shen et al., 2020), used in the 32 px head."""
    return Rezero(LinearAttention(channels, heads, bias=False, scale=1.0))


class Excitation(nn.Module):
    """Skip-layer excitation: early map -> one factor in (0, 1) per channel of a later map."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        middle = max(3, channels_out // 2)
        self.weigh = nn.Conv2d(channels_in, 1, 1)
        self.narrow = nn.Conv2d(channels_in, middle, 1)
        self.widen = nn.Conv2d(middle, channels_out, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Returns factors (B, channels_out, 1, 1)."""
        weights_BN = softmax(self.weigh(x_BCHW).flatten(1), dim=1)
        pooled_BC11 = torch.einsum("bn,bcn->bc", weights_BN, x_BCHW.flatten(2))[..., None, None]
        return self.widen(leaky(self.narrow(pooled_BC11))).sigmoid()


class ResidualStage(nn.Module):
    """Halves the size of a map: blur, then the sum of a strided and a pooled branch. Both branches share the blurred map.

    With ``heads`` > 0 an attention block precedes the stage (the discriminator in the paper's figure).
    """

    def __init__(self, channels_in: int, channels_out: int, heads: int = 0) -> None:
        super().__init__()
        self.attention = attention_block(channels_in, heads) if heads else None
        self.down = nn.Conv2d(channels_in, channels_out, 4, stride=2, padding=1)
        self.refine = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x = blur(x_BCHW if self.attention is None else self.attention(x_BCHW))
        return leaky(self.refine(leaky(self.down(x)))) + leaky(self.skip(F.avg_pool2d(x, 2)))


class DownsampleBlock(nn.Module):
    """Precedes the residual stages above 256 px: blur, Conv4x4 with stride 2, LeakyReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 4, stride=2, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return leaky(self.conv(blur(x_BCHW)))


class Decoder(nn.Module):
    """Reconstructs a small image from a feature map: ``doublings`` times nearest x2, Conv3x3, GLU to half the channels; last to 3."""

    def __init__(self, channels: int, doublings: int) -> None:
        super().__init__()
        widths = [channels // 2**k for k in range(doublings)] + [3]
        self.convs = nn.ModuleList(UpsampleNearestConv2d(wide, 2 * narrow) for wide, narrow in zip(widths, widths[1:], strict=False))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for conv in self.convs:
            x_BCHW = glu(conv(x_BCHW))
        return x_BCHW
