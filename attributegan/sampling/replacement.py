"""Generates tiles, and draws another latent for those that a filter rejects, such as copies of training tiles.

Tile k depends on the seed, k and the filter only: each tile has its own stream of latents, so that an interrupted command resumes with
the same tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from attributegan.sampling.generate import generate
from attributegan.utils.rng import Purpose, rng_for

MAX_DRAWS = 32  # latents of one tile, all rejected, before sampling fails
STRIDE = 1 << 40  # positions of one draw in the random stream

Filter = Callable[[np.ndarray], np.ndarray]  # uint8 tiles_NHWC -> whether to reject each, bool [N]


def replacement_latents(seed: int, indices: Sequence[int], draw: int, latent_dim: int) -> Tensor:
    """Draws the latents_BL of draw number ``draw`` (1 or more) of these tiles, standard normal; draw 0 is `latents.latents_for`."""
    positions = [draw * STRIDE + index for index in indices]
    return torch.stack([torch.randn(latent_dim, generator=rng_for(seed, Purpose.SAMPLE_REPLACEMENT, position)) for position in positions])


def generate_filtered(
    generator: nn.Module,
    latents_BL: Tensor,
    levels_BA: Tensor,
    rejected: Filter,
    replace: Callable[[list[int], int], Tensor],
    batch: int = 16,
    precision: str = "fp32",
) -> tuple[np.ndarray, np.ndarray]:
    """Generates tiles; those that the filter rejects are generated again, with the same levels and another latent.

    Args:
        generator: in eval mode, on any device.
        latents_BL: the first latents.
        levels_BA: long, or a floating type with levels in between.
        rejected: returns which tiles to draw again.
        replace: (rows, draw) -> latents of these rows for draw number ``draw``, from 1.
        batch: tiles generated at a time.
        precision: "fp32", "bf16" or "fp16".

    Returns:
        tiles (B, H, W, 3), uint8, and how many latents of each tile were rejected, int64 [B].

    Raises:
        ValueError: `MAX_DRAWS` latents of a tile were rejected.
    """
    tiles_BHWC = generate(generator, latents_BL, levels_BA, batch, precision)
    draws_B = np.zeros(len(tiles_BHWC), np.int64)
    rows = np.flatnonzero(rejected(tiles_BHWC))
    for draw in range(1, MAX_DRAWS):
        if not len(rows):
            return tiles_BHWC, draws_B
        draws_B[rows] = draw
        made = generate(generator, replace(rows.tolist(), draw), levels_BA[torch.from_numpy(rows)], batch, precision)
        tiles_BHWC[rows] = made
        rows = rows[rejected(made)]
    if len(rows):
        raise ValueError(
            f"--filter-copies: {MAX_DRAWS} latents in a row gave copies of training tiles for the levels {levels_BA[rows[0]].tolist()}; "
            "the model memorizes: give other --levels, or an earlier checkpoint"
        )
    return tiles_BHWC, draws_B
