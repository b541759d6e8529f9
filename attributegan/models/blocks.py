"""Parts that both networks are made of: gates, attention, excitation, residual stage, decoder, label columns.

Sections cited are those of the network's description: AttributeGAN (Ye et al., MICCAI 2021), whose blocks are those of
"Towards Faster and Stabilized GAN Training for High-fidelity Few-shot Image Synthesis" (Liu et al., ICLR 2021) with linear
attention (Shen et al., "Efficient Attention", WACV 2021). Knows nothing of configurations.

Everything here works under autocast: softmaxes and norms are computed in at least float32. Maps keep the memory format of
their input.
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
    """Answered in the type of ``x``; torch computes it in at least float32."""
    return x.softmax(dim).to(x.dtype)


def normalise(x: Tensor) -> Tensor:
    """x / max(|x|, 1e-12) along dimension 1, in at least float32."""
    return F.normalize(full_precision(x), dim=1, eps=1e-12)


def glu(x_BCHW: Tensor) -> Tensor:
    """GLU over channels (Dauphin et al., ICML 2017): 2c channels -> c. Thrice as fast as `F.glu` on channels-last CPU maps."""
    value, opening = x_BCHW.chunk(2, dim=1)
    if opening.dtype in HALVES:  # CPUs compute half-precision sigmoids of a map that lies in pieces one by one
        opening = opening.contiguous(memory_format=layout(x_BCHW))
    return value * opening.sigmoid()


def layout(x_BCHW: Tensor) -> torch.memory_format:
    """How a map lies in memory."""
    return torch.channels_last if x_BCHW.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format


def leaky(x: Tensor) -> Tensor:
    """LeakyReLU 0.1 in place: its input is a convolution's output, which nothing else keeps."""
    return F.leaky_relu(x, 0.1, inplace=True)


def initialise(module: nn.Module) -> None:
    """Published initial weights of one layer, for ``network.apply``: Kaiming-normal, biases zero."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        _kaiming(module.weight)
    if isinstance(module, nn.Conv2d | nn.Linear | nn.ConvTranspose2d) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _kaiming(weight: Tensor) -> None:
    nn.init.kaiming_normal_(weight, a=0, mode="fan_in", nonlinearity="leaky_relu")


class Stages(nn.Module):
    """Base of both networks: runs a stage plainly, or keeping its input alone and recomputing the rest in the backward pass."""

    activation_checkpointing: bool = False

    def run(self, stage: nn.Module, x_BCHW: Tensor, *more: Tensor) -> Tensor:
        if self.activation_checkpointing and self.training and torch.is_grad_enabled():
            return _recomputed(stage, x_BCHW, *more)
        return stage(x_BCHW, *more)


@torch.compiler.disable(recursive=False)  # the compiler knows no contexts of a recomputation; it compiles what is inside
def _recomputed(stage: nn.Module, *inputs: Tensor) -> Tensor:
    return checkpoint(stage, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=lambda: discarded_statistics(stage))


class OneHotEncoding(nn.Module):
    """Levels -> 0/1 columns, ``widths[a]`` columns for attribute a."""

    offsets: Tensor

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.widths, self.count = tuple(widths), sum(widths)
        self.register_buffer("offsets", torch.tensor([sum(widths[:a]) for a in range(len(widths))]), persistent=False)

    def forward(self, levels_BA: Tensor) -> Tensor:
        """0/1 long (B, K), all 0 for an attribute that is not known; for fractional levels (a floating type) the linear mix of the columns
        of the two whole ones around them."""
        if not levels_BA.is_floating_point():
            return self._columns(levels_BA).sum(1)
        below_BAK, above_BAK = (self._columns(whole_BA.long()).to(levels_BA) for whole_BA in (levels_BA.floor(), levels_BA.ceil()))
        return torch.lerp(below_BAK, above_BAK, (levels_BA % 1)[..., None]).sum(1)

    def _columns(self, levels_BA: Tensor) -> Tensor:
        """The columns of each attribute, long (B, A, K)."""
        return F.one_hot(levels_BA.clamp(min=0) + self.offsets, self.count) * (levels_BA >= 0)[..., None]


def label_columns(kind: Literal["padded", "levels"], num_levels: Sequence[int]) -> OneHotEncoding:
    """Every attribute padded to as many columns as the one with most levels (published: 5 x 5), or real levels alone (21)."""
    return OneHotEncoding([max(num_levels)] * len(num_levels) if kind == "padded" else num_levels)


class OrdinalEncoding(nn.Module):
    """Levels -> three columns for each attribute: whether its level is on the scale, where on it, from -1 to 1, and whether it is "not
    assessable"; all 0 for a level that is not known. Embeddings of levels lie on a line then, with those in between on it too."""

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
        """Float32 (B, K) of whole levels (long) or of levels in between (a floating type)."""
        on_scale_BA = (levels_BA >= self.lowest) & (levels_BA <= self.highest)
        place_BA = (levels_BA - self.lowest).float() / (self.highest - self.lowest).clamp(min=1) * 2 - 1
        return torch.stack([on_scale_BA.float(), place_BA * on_scale_BA, ((levels_BA >= 0) & ~on_scale_BA).float()], dim=2).flatten(1)


class Rezero(nn.Module):
    """x + g f(x), g a scalar that starts at 1e-3 (Bachlechner et al., "ReZero is All You Need", UAI 2021)."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.full((1,), 1e-3))  # a vector of one: DeepSpeed takes no scalars
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return x + self.g[0] * self.block(x)  # a scalar promotes no half-precision map to single, a vector would


class LinearAttention(nn.Module):
    """Attention in linear time: k softmax over positions, q softmax over channels; context = k vT, out = contextT q.

    As matrices: a map is positions x channels, as it lies in memory when channels are last, and each projection is a 1 x 1 convolution's
    matrix. Since each row of k sums to 1, k vT is (k xT) WvT + bv, and the values are never made for every position; nor is the answer
    before its projection, which is put into the context.

    Args:
        channels: of the map, in and out.
        heads: each `HEAD_WIDTH` channels wide.
        bias: of the projections to q, k and v.
        scale: q and k are multiplied by it before their softmaxes.
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
        gathered = (keys_BNS.transpose(1, 2) @ x_BNC).unflatten(1, (self.heads, -1))  # of B images, of each head key channels x C
        context = gathered @ to_v.unflatten(0, (self.heads, -1)).transpose(1, 2)  # key channels x value channels
        if add_v is not None:
            context = context + add_v.view(self.heads, 1, -1).to(context.dtype)
        mixed = context @ self.out_weight.t().unflatten(0, (self.heads, -1))  # key channels x C
        answer_BNC = queries_BNS @ mixed.flatten(1, 2)
        answer_BNC = answer_BNC + self.out_bias.to(answer_BNC.dtype)
        return answer_BNC.transpose(1, 2).unflatten(2, x_BCHW.shape[2:])

    def _scaled(self, x_BNC: Tensor, weight_SC: Tensor, bias_S: Tensor | None) -> Tensor:
        """The projection times the scale. Not by `F.linear`, for which ZeRO-3 has one of its own, that rounds elsewhere."""
        weight_CS, rows = weight_SC.t() * self.scale, x_BNC.flatten(0, 1)
        answer = rows @ weight_CS if bias_S is None else torch.addmm(bias_S * self.scale, rows, weight_CS)
        return answer.unflatten(0, x_BNC.shape[:2])


def attention_block(channels: int, heads: int) -> nn.Sequential:
    """x + g A(x), then x + g FF(x): the block of the generator, and of the figure's discriminator."""
    feed_forward = OrderedDict(
        widen=nn.Conv2d(channels, 2 * channels, 1), act=nn.LeakyReLU(0.2, inplace=True), narrow=nn.Conv2d(2 * channels, channels, 1)
    )
    attention = LinearAttention(channels, heads, bias=True, scale=HEAD_WIDTH**-0.25)
    return nn.Sequential(OrderedDict(attend=Rezero(attention), transform=Rezero(nn.Sequential(feed_forward))))


def global_attention(channels: int, heads: int) -> Rezero:
    """x + g GSA(x): global self-attention (Shen et al., 2020), content part only, as in the 32 px head."""
    return Rezero(LinearAttention(channels, heads, bias=False, scale=1.0))


class Excitation(nn.Module):
    """Skip-layer excitation: an early map -> one factor in (0, 1) for each channel of a later one."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        middle = max(3, channels_out // 2)
        self.weigh = nn.Conv2d(channels_in, 1, 1)
        self.narrow = nn.Conv2d(channels_in, middle, 1)
        self.widen = nn.Conv2d(middle, channels_out, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Returns: (B, channels_out, 1, 1)."""
        weights_BN = softmax(self.weigh(x_BCHW).flatten(1), dim=1)
        pooled_BC11 = torch.einsum("bn,bcn->bc", weights_BN, x_BCHW.flatten(2))[..., None, None]
        return self.widen(leaky(self.narrow(pooled_BC11))).sigmoid()


class ResidualStage(nn.Module):
    """Halves a map: blur, then the sum of a strided and a pooled branch. Both branches blur the same map, so it is done once.

    With ``heads`` an attention block stands before the stage (the figure's discriminator).
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
    """What stands before the residual stages above 256 px: blur, Conv4x4 stride 2, LeakyReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 4, stride=2, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return leaky(self.conv(blur(x_BCHW)))


class Decoder(nn.Module):
    """Rebuilds a small image from a feature map: ``doublings`` times nearest x2, Conv3x3, GLU to half the channels, then 3."""

    def __init__(self, channels: int, doublings: int) -> None:
        super().__init__()
        widths = [channels // 2**k for k in range(doublings)] + [3]
        self.convs = nn.ModuleList(UpsampleNearestConv2d(wide, 2 * narrow) for wide, narrow in zip(widths, widths[1:], strict=False))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for conv in self.convs:
            x_BCHW = glu(conv(x_BCHW))
        return x_BCHW
