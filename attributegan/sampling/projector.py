"""Projection (GAN inversion): finds the latent whose tile is nearest to a given one by gradient descent through the generator.

The remaining distance measures how far the tile is from what the model can generate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attributegan.attributes import AttributeSchema
from attributegan.sampling import generate, latents

STARTS = 128  # random latents and levels of which the best one starts the gradient descent
RATE = 0.05
PRIOR = 1e-3  # weight of the squared latent: keeps it where the generator was trained
SCALES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Projection:
    """The result of `project`."""

    latent_1L: Tensor
    levels_1A: Tensor
    tile_HWC: np.ndarray  # uint8, generated from both
    distance: float  # mean absolute difference over the scales, 0 to 1
    start: float  # distance of the best random start


def project(
    generator: nn.Module,
    schema: AttributeSchema,
    tile_HWC: np.ndarray,
    latent_dim: int,
    given: Mapping[str, float] | None = None,
    steps: int = 300,
    seed: int = 0,
    progress: Callable[[int], None] = lambda step: None,
) -> Projection:
    """Finds the latent whose tile is nearest to a given tile.

    Args:
        generator: in eval mode.
        schema: the attributes.
        tile_HWC: uint8, of the generator's image size.
        latent_dim: of the generator.
        given: levels by name; the others are those of the best start.
        steps: of Adam (Kingma and Ba, ICLR 2015) on the latent.
        seed: of the random starts.
        progress: called with the number of finished steps.
    """
    weight = next(generator.parameters())
    target_1CHW = torch.from_numpy(np.array(tile_HWC)).to(weight.device).permute(2, 0, 1)[None].to(weight) / 127.5 - 1
    latents_BL = latents.latents_for(seed, range(STARTS), latent_dim)
    levels_BA = latents.levels_for(schema, seed, range(STARTS), given).to(weight.device)
    with torch.no_grad():
        starts = [_distance(generator(latents_BL[k : k + 1].to(weight), levels_BA[k : k + 1]), target_1CHW).item() for k in range(STARTS)]
    first = int(np.argmin(starts))
    latent_1L, levels_1A = latents_BL[first : first + 1].to(weight).clone().requires_grad_(True), levels_BA[first : first + 1]
    best = (starts[first], latent_1L.detach().clone())
    optimizer = torch.optim.Adam([latent_1L], lr=RATE)
    frozen = [parameter for parameter in generator.parameters() if parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        for step in range(steps):
            distance = _distance(generator(latent_1L, levels_1A), target_1CHW)
            if distance.item() < best[0]:
                best = (distance.item(), latent_1L.detach().clone())
            optimizer.zero_grad()
            (distance + PRIOR * latent_1L.square().mean()).backward()
            optimizer.step()
            progress(step + 1)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
    tile = generate.generate(generator, best[1], levels_1A)[0]
    return Projection(best[1].cpu(), levels_1A.cpu(), tile, best[0], starts[first])


def _distance(a_1CHW: Tensor, b_1CHW: Tensor) -> Tensor:
    """Mean absolute difference at several scales: coarse scales give a useful gradient where fine ones see only noise."""
    difference_1CHW = (a_1CHW - b_1CHW) / 2
    return torch.stack([F.avg_pool2d(difference_1CHW, scale).abs().mean() for scale in SCALES]).mean()
