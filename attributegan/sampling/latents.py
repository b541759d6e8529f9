"""Latents and levels of samples. Sample k of a seed does not depend on batch size, count, or which attributes are fixed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from attributegan.attributes import UNKNOWN, AttributeSchema
from attributegan.utils.rng import Purpose, rng_for


def latents_for(seed: int, indices: Iterable[int], latent_dim: int) -> Tensor:
    """Draws standard normal latents_BL, float32 on the CPU; row b depends on ``seed`` and ``indices[b]`` only."""
    return torch.stack([torch.randn(latent_dim, generator=rng_for(seed, Purpose.SAMPLE_LATENT, index)) for index in indices])


def truncate_latents(latents_BL: Tensor, bound: float) -> Tensor:
    """Maps latents to a normal distribution truncated at +-``bound`` (truncation trick; Brock et al., ICLR 2019).

    Fewer outliers, less variety. Each number keeps its quantile, so that a tile keeps its identity.
    """
    inside = torch.special.ndtr(torch.tensor(bound, dtype=torch.float64)) * 2 - 1
    quantile_BL = (torch.special.ndtr(latents_BL.double()) - 0.5) * inside + 0.5
    return torch.special.ndtri(quantile_BL).to(latents_BL)


def slerp(start_BL: Tensor, end_BL: Tensor, share: float) -> Tensor:
    """Interpolates spherically between latents (White, "Sampling Generative Networks", 2016); ``share`` is 0 at the start, 1 at the end.

    Linear interpolation passes through latents of smaller norm, which a generator was never trained on.
    """
    angle_B1 = torch.linalg.vecdot(F.normalize(start_BL), F.normalize(end_BL))[:, None].clamp(-1, 1).acos()
    if (angle_B1.sin() < 1e-4).any():  # collinear: the arc is undefined
        return torch.lerp(start_BL, end_BL, share)
    return (((1 - share) * angle_B1).sin() * start_BL + (share * angle_B1).sin() * end_BL) / angle_B1.sin()


def levels_for(schema: AttributeSchema, seed: int, indices: Iterable[int], given: Mapping[str, float] | None = None) -> Tensor:
    """Draws levels uniformly over the assessable ones; row b depends on ``seed`` and ``indices[b]`` only.

    Args:
        schema: the attributes.
        seed: of the random stream.
        indices: of the samples.
        given: fixed levels by attribute name. They don't change the levels drawn for the other attributes.

    Returns:
        levels_BA, int64; float32 with levels in between.
    """
    rows = []
    for index in indices:
        rng = rng_for(seed, Purpose.SAMPLE_LEVELS, index)
        drawn = {
            attribute.name: attribute.assessable[int(torch.randint(len(attribute.assessable), (), generator=rng))]
            for attribute in schema.attributes
        }
        rows.append(list((drawn | dict(given or {})).values()))
    return torch.tensor(rows)


def levels_like(real_NA: np.ndarray, seed: int, indices: Iterable[int], given: Mapping[int, float] | None = None) -> Tensor:
    """Draws levels from the joint distribution of real tiles: each row is that of a tile drawn by ``seed`` and its index.

    Args:
        real_NA: levels of the real tiles.
        seed: of the random stream.
        indices: of the samples.
        given: fixed levels by column; they replace the drawn ones.

    Returns:
        levels_BA, int64; float32 with levels in between.
    """
    draws = (torch.randint(len(real_NA), (), generator=rng_for(seed, Purpose.SAMPLE_REAL_TILE, index)) for index in indices)
    rows_BA = torch.from_numpy(real_NA[[int(draw) for draw in draws]].astype(np.int64))
    if any(level != int(level) for level in (given or {}).values()):
        rows_BA = rows_BA.float()
    for column, level in (given or {}).items():
        rows_BA[:, column] = level
    return rows_BA


def middle_levels(schema: AttributeSchema, given: Mapping[str, float] | None = None) -> list[float]:
    """Returns the middle assessable level of each attribute (the lower of two), or the given one."""
    middle = {attribute.name: attribute.assessable[(len(attribute.assessable) - 1) // 2] for attribute in schema.attributes}
    return list((middle | dict(given or {})).values())


def interpolate(schema: AttributeSchema, start_BA: Tensor, end_BA: Tensor, steps: int) -> Tensor:
    """Returns fractional levels_BSA, evenly spaced from ``start_BA`` to ``end_BA`` in S = ``steps`` steps, both ends included.

    Raises:
        ValueError: an end is "not assessable" or unknown, so it is not on the scale; names the attribute.
    """
    for column, attribute in enumerate(schema.attributes):
        for level in start_BA[:, column].tolist() + end_BA[:, column].tolist():
            if level not in (attribute.not_assessable, UNKNOWN):
                continue
            levels = ", ".join(map(attribute.label, attribute.assessable))
            raise ValueError(f"{attribute.name}: level {attribute.label(level)} is not on the scale; interpolate between {levels}")
    return torch.lerp(start_BA[:, None].float(), end_BA[:, None].float(), torch.linspace(0, 1, steps)[:, None])
