"""Differentiable augmentation of real and generated images before the discriminator.

Zhao et al., "Differentiable Augmentation for Data-Efficient GAN Training", NeurIPS 2020 (translation, cutout, color), the
roll on a torus ("offset") that the published AttributeGAN configures, and stain jitter ("hed"; Tellez et al., "Whole-Slide Mitosis
Detection in H&E Breast Histology Using PHH3 as a Reference", IEEE TMI 2018, and "Quantifying the effects of data augmentation and stain
color normalization in convolutional neural networks for computational pathology", Medical Image Analysis 2019). Random numbers are
inputs, one row per image, so that those of a global batch can be drawn once and sliced. Flips and rotations of real tiles are done by the
data loader.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from attributegan.config import AugmentConfig
from attributegan.models.precision import full_precision

TRANSLATION = 1 / 8  # largest shift, as a fraction of the image size; uncovered pixels are 0 (mid-grey), as in the paper
CUTOUT = 1 / 2  # side of the square that is set to 0, as a fraction of the image size
# Optical densities of hematoxylin, eosin and residual (DAB) in red, green and blue: Ruifrok & Johnston, "Quantification of histochemical
# staining by color deconvolution", Anal. Quant. Cytol. Histol. 2001. Of unit length, so that a concentration is an optical density.
STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
HED_SCALE = HED_SHIFT = 0.1  # largest relative and absolute change of a concentration; Tellez et al. (2019): light 0.05, strong 0.2
HED_DARKEST = 1 / 32  # transmittance below which the optical density is constant, which bounds its gradient


def draws_per_image(config: AugmentConfig) -> int:
    """Returns the number P of random numbers per image: one decides whether to augment, the others are for the policies in order."""
    return 1 + sum(_POLICIES[name][0] for name in config.policy)


def draw(config: AugmentConfig, batch: int, rng: torch.Generator) -> Tensor:
    """Draws uniform numbers in [0, 1) for ``batch`` images: draws_BP, float32 on the CPU."""
    return torch.rand(batch, draws_per_image(config), generator=rng)


def apply(images_BCHW: Tensor, draws_BP: Tensor, config: AugmentConfig, probability: float | None = None) -> Tensor:
    """Augments each image by its row of draws, independently of the rest of the batch; twice differentiable.

    Args:
        images_BCHW: about [-1, 1]; any floating type and device, square or not.
        draws_BP: from `draw`, on the same device.
        config: as passed to `draw`.
        probability: of augmenting an image; default ``config.probability``.
    """
    probability = config.probability if probability is None else probability
    assert draws_BP.shape == (len(images_BCHW), draws_per_image(config)), f"draws {tuple(draws_BP.shape)} for {len(images_BCHW)} images"
    if not config.policy or probability == 0:
        return images_BCHW
    augmented, column = images_BCHW, 1
    for name in config.policy:
        columns, policy = _POLICIES[name]
        augmented = policy(augmented, draws_BP[:, column : column + columns])
        column += columns
    apply_B111 = (draws_BP[:, 0] < probability).view(-1, 1, 1, 1)
    return torch.where(apply_B111, augmented, images_BCHW)


def _translation(images: Tensor, draws_B2: Tensor) -> Tensor:
    height, width = images.shape[2:]
    rows_BH = _pixels(images, height) - _between(draws_B2[:, :1], -round(height * TRANSLATION), round(height * TRANSLATION))
    columns_BW = _pixels(images, width) - _between(draws_B2[:, 1:], -round(width * TRANSLATION), round(width * TRANSLATION))
    inside_BHW = ((rows_BH >= 0) & (rows_BH < height))[:, :, None] & ((columns_BW >= 0) & (columns_BW < width))[:, None, :]
    return _pick(images, rows_BH.clamp(0, height - 1), columns_BW.clamp(0, width - 1)) * inside_BHW[:, None]


def _offset(images: Tensor, draws_B2: Tensor) -> Tensor:
    height, width = images.shape[2:]
    rows_BH = (_pixels(images, height) - _between(draws_B2[:, :1], 0, height - 1)) % height
    columns_BW = (_pixels(images, width) - _between(draws_B2[:, 1:], 0, width - 1)) % width
    return _pick(images, rows_BH, columns_BW)


def _cutout(images: Tensor, draws_B2: Tensor) -> Tensor:
    """The centre of the square is uniform over the image, so that part of it may lie outside."""

    def inside(length: int, draws_B1: Tensor) -> Tensor:
        side = round(length * CUTOUT)
        from_start = _pixels(images, length) - (_between(draws_B1, 0, length - 1) - side // 2)
        return (from_start >= 0) & (from_start < side)

    rows_BH, columns_BW = inside(images.shape[2], draws_B2[:, :1]), inside(images.shape[3], draws_B2[:, 1:])
    return images * ~(rows_BH[:, :, None] & columns_BW[:, None, :])[:, None]


def _color(images: Tensor, draws_B3: Tensor) -> Tensor:
    """Brightness +-0.5, then saturation times 0 to 2, then contrast times 0.5 to 1.5."""
    brightness, saturation, contrast = draws_B3.to(images.dtype).T[..., None, None, None]
    images = images + (brightness - 0.5)
    grey = images.mean(dim=1, keepdim=True)
    images = (images - grey) * (2 * saturation) + grey
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * (contrast + 0.5) + mean


def _hed(images: Tensor, draws_B6: Tensor) -> Tensor:
    """Scales the concentration of each stain by 0.9 to 1.1, then shifts it by -0.1 to 0.1 (natural optical density).

    Only the change of the optical density is computed, and multiplies the transmittance, so that no change leaves every value as it is,
    also outside [-1, 1], where a concentration is not defined.
    """
    transmittance = (full_precision(images) + 1) / 2
    stains_SC, concentrations_CS = _stains(transmittance.device, transmittance.dtype)
    scale_BS, shift_BS = (draws_B6.to(transmittance.dtype) * 2 - 1).chunk(2, dim=1)
    density = -transmittance.clamp(min=HED_DARKEST).log()
    scale_BCC = concentrations_CS * (HED_SCALE * scale_BS)[:, None] @ stains_SC  # density to its change
    change = torch.einsum("bihw,bio->bohw", density, scale_BCC) + (HED_SHIFT * shift_BS @ stains_SC)[..., None, None]
    return (transmittance * (-change).exp() * 2 - 1).to(images.dtype)


@cache  # no copy from the host in every step
def _stains(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns the matrices from concentrations to optical densities, and back."""
    stains_SC = F.normalize(torch.tensor(STAINS, dtype=torch.float64), dim=1)
    return stains_SC.to(device, dtype), stains_SC.inverse().to(device, dtype)


def _pixels(images: Tensor, length: int) -> Tensor:
    return torch.arange(length, device=images.device)[None]


def _between(draws_B1: Tensor, low: int, high: int) -> Tensor:
    """Converts draws to uniform integers from ``low`` to ``high``; the clamp handles a draw that rounds up to 1."""
    return low + (draws_B1 * (high - low + 1)).long().clamp(max=high - low)


def _pick(images: Tensor, rows_BH: Tensor, columns_BW: Tensor) -> Tensor:
    """Returns ``images[b, :, rows[b, i], columns[b, j]]`` as ``out[b, :, i, j]``; the backward of gather is faster than of indexing."""
    _, channels, height, width = images.shape
    index_B1N = (rows_BH[:, :, None] * width + columns_BW[:, None, :]).flatten(1)[:, None]
    return images.flatten(2).gather(2, index_B1N.expand(-1, channels, -1)).unflatten(2, (height, width))


# Name: (random numbers per image, function).
_POLICIES: dict[str, tuple[int, Callable[[Tensor, Tensor], Tensor]]] = {
    "translation": (2, _translation),
    "offset": (2, _offset),
    "cutout": (2, _cutout),
    "color": (3, _color),
    "hed": (6, _hed),
}
