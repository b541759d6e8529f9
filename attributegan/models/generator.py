"""The generator: latents and attribute levels -> images.

Follows AttributeGAN (Ye et al., MICCAI 2021) as published; `ModelConfig` sets widths, attention and label columns.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from attributegan.attributes import AttributeSchema
from attributegan.config import ModelConfig
from attributegan.models.batchnorm import BatchNorm2d
from attributegan.models.blocks import (
    IMAGE_CHANNELS,
    Excitation,
    OrdinalEncoding,
    Stages,
    attention_block,
    glu,
    initialise,
    label_columns,
    normalise,
)
from attributegan.models.resample import UpsampleBlurConv2d

EXCITATION_REACH = 3  # a stage's output excites the output of the third stage after it, which is 8 times as wide
EXCITING = range(1, 5)  # stages whose output excites a later one: those with inputs of 8 to 64 pixels


class Generator(Stages):
    """``forward(latents_BL, levels_BA) -> images_BCHW``, about [-1, 1], not clamped.

    Attributes:
        activation_checkpointing: recompute the stages in the backward pass instead of storing their activations.
    """

    def __init__(self, config: ModelConfig, schema: AttributeSchema) -> None:
        super().__init__()
        latent = config.latent_dim
        is_ordinal = config.generator_levels == "ordinal"
        self.columns = OrdinalEncoding(schema) if is_ordinal else label_columns(config.label_columns, schema.num_levels)
        self.from_latent = _latent_to_map(latent, 2 * latent, nn.GLU(dim=1))
        self.from_label = _latent_to_map(self.columns.count, latent // 4, nn.ReLU())
        widths = stage_widths(config)
        inputs = [latent + latent // 4, *widths[:-1]]
        self.stages = nn.ModuleList(
            GeneratorStage(
                before,
                after,
                heads=config.attention_heads if 2 ** (k + 2) in config.generator_attention else 0,
                conditions=latent + self.columns.count if config.generator_modulation else 0,
            )
            for k, (before, after) in enumerate(zip(inputs, widths, strict=True))
        )
        self.excitations = nn.ModuleDict(
            {str(k): Excitation(widths[k], widths[k + EXCITATION_REACH]) for k in EXCITING if k + EXCITATION_REACH < len(widths)}
        )
        self.to_image = nn.Conv2d(widths[-1], IMAGE_CHANNELS, 3, padding=1)
        self.apply(initialise)
        for stage in self.stages:
            assert isinstance(stage, GeneratorStage)
            if stage.modulate is not None:  # modulation starts as the identity
                nn.init.zeros_(stage.modulate.weight)

    @torch.no_grad()
    def zero_label_weights(self, attributes: Iterable[int]) -> None:
        """Zeroes the input weights of some attributes, so that their levels have no effect.

        For attributes that a training does not use, whose weights would stay at their random initial values. Weights of later stages
        start at zero anyway.

        Args:
            attributes: indices in the schema.
        """
        from_label = self.from_label[0]
        assert isinstance(from_label, LatentToMap)
        for a in attributes:
            first = int(self.columns.offsets[a])
            from_label.weight[first : first + self.columns.widths[a]] = 0

    def forward(self, latents_BL: Tensor, levels_BA: Tensor) -> Tensor:
        """Generates images.

        Args:
            latents_BL: standard normal, L = ``latent_dim``.
            levels_BA: one level per attribute, in the order of the schema; long, with -1 for unknown, or a floating type for
                levels in between.
        """
        label_BK = self.columns(levels_BA).to(latents_BL.dtype)
        x = torch.cat([self.from_latent(latents_BL[..., None, None]), self.from_label(label_BK[..., None, None])], dim=1)
        x = normalise(x).to(x.dtype)
        conditions_BM = torch.cat([latents_BL, label_BK], dim=1)
        factors: dict[int, Tensor] = {}
        for k, stage in enumerate(self.stages):
            x = self.run(stage, x) if stage.modulate is None else self.run(stage, x, conditions_BM)
            if str(k) in self.excitations:
                factors[k + EXCITATION_REACH] = self.excitations[str(k)](x)
            if k in factors:
                x = x * factors[k]
        return self.to_image(x)


class GeneratorStage(nn.Module):
    """Doubles the size of a map: optional attention, x2, blur, Conv3x3, BatchNorm, GLU.

    With ``conditions`` > 0, that many numbers per image scale and shift the normalised map through a linear layer: conditional batch norm
    (de Vries et al., NeurIPS 2017) with latents, as in BigGAN (Brock et al., ICLR 2019). Levels then act at every scale, and fractional
    ones act in between.
    """

    def __init__(self, channels_in: int, channels_out: int, heads: int, conditions: int = 0) -> None:
        super().__init__()
        self.attention = attention_block(channels_in, heads) if heads else None
        self.conv = UpsampleBlurConv2d(channels_in, 2 * channels_out)
        self.norm = BatchNorm2d(2 * channels_out)
        self.modulate = nn.Linear(conditions, 4 * channels_out) if conditions else None

    def forward(self, x_BCHW: Tensor, conditions_BM: Tensor | None = None) -> Tensor:
        x = x_BCHW if self.attention is None else self.attention(x_BCHW)
        x = self.norm(self.conv(x))
        if self.modulate is not None:
            scale_BC11, shift_BC11 = self.modulate(conditions_BM)[..., None, None].chunk(2, dim=1)
            x = torch.addcmul(shift_BC11, x, 1 + scale_BC11)
        return glu(x)


class LatentToMap(nn.ConvTranspose2d):
    """Vector (B, channels_in, 1, 1) -> map. Computes the transposed convolution of a single pixel as a matrix product, which is faster."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        assert output_size is None
        return self.spread(input, self.weight)

    def spread(self, x_BC11: Tensor, weight_COHW: Tensor) -> Tensor:
        """Returns the map for given weights, in their memory format."""
        assert self.bias is not None
        x_BC = x_BC11.flatten(1)
        if weight_COHW.is_contiguous():
            y_BOHW = (x_BC @ weight_COHW.flatten(1)).unflatten(1, weight_COHW.shape[1:])
        else:
            weight_CHWO = weight_COHW.permute(0, 2, 3, 1)
            y_BOHW = (x_BC @ weight_CHWO.flatten(1)).unflatten(1, weight_CHWO.shape[1:]).permute(0, 3, 1, 2)
        return y_BOHW + self.bias.to(y_BOHW.dtype)[:, None, None]


def stage_widths(config: ModelConfig) -> list[int]:
    """Returns the output channels of every stage, starting with that of 8 pixels; 3 for stages with inputs of 256 pixels or more."""
    exponents = range(2, config.image_size.bit_length() - 1)
    return [IMAGE_CHANNELS if n >= 8 else config.feature_width(n) for n in exponents]


def _latent_to_map(channels_in: int, channels_out: int, act: nn.Module) -> nn.Sequential:
    """Vector (B, channels_in, 1, 1) -> 4 x 4 map."""
    return nn.Sequential(OrderedDict(conv=LatentToMap(channels_in, channels_out, 4), norm=BatchNorm2d(channels_out), act=act))
