"""Latents and levels of samples, counted: sample k of a seed is the same whatever the batch, the count, or which attributes are given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from attributegan.attributes import UNKNOWN, AttributeSchema
from attributegan.utils.rng import Purpose, rng_for


def latents_for(seed: int, indices: Iterable[int], latent_dim: int) -> Tensor:
    """Standard normal latents_BL, float32 on the CPU; row ``indices[b]`` depends on it and ``seed`` alone."""
    return torch.stack([torch.randn(latent_dim, generator=rng_for(seed, Purpose.SAMPLE_LATENT, index)) for index in indices])


def truncate_latents(latents_BL: Tensor, bound: float) -> Tensor:
    """The same latents drawn from a normal distribution cut off at +-``bound`` (Brock et al., ICLR 2019): fewer odd tiles, less variety.

    By the quantile that each number has, so that a tile stays the tile it is, only nearer to the usual.
    """
    inside = torch.special.ndtr(torch.tensor(bound, dtype=torch.float64)) * 2 - 1
    quantile_BL = (torch.special.ndtr(latents_BL.double()) - 0.5) * inside + 0.5
    return torch.special.ndtri(quantile_BL).to(latents_BL)


def slerp(start_BL: Tensor, end_BL: Tensor, share: float) -> Tensor:
    """Latents between two, ``share`` 0 to 1 of the way, along the arc (White, "Sampling Generative Networks", 2016).

    The straight way leads through shorter ones, which a generator has never seen.
    """
    angle_B1 = torch.linalg.vecdot(F.normalize(start_BL), F.normalize(end_BL))[:, None].clamp(-1, 1).acos()
    if (angle_B1.sin() < 1e-4).any():  # in one line, and so no arc
        return torch.lerp(start_BL, end_BL, share)
    return (((1 - share) * angle_B1).sin() * start_BL + (share * angle_B1).sin() * end_BL) / angle_B1.sin()


def levels_for(schema: AttributeSchema, seed: int, indices: Iterable[int], given: Mapping[str, float] | None = None) -> Tensor:
    """levels_BA, int64 or, with levels in between, float32: ``given`` where given, else uniform over the assessable levels; a row
    depends on its index and ``seed``.

    Every attribute is drawn before the given ones replace theirs, so giving one leaves the others as they were.
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
    """levels_BA, int64 or, with levels in between, float32, from the joint distribution of real tiles: each row is that of a tile drawn for
    its index and ``seed``.

    Args:
        real_NA: levels of the real tiles.
        given: levels by column, which replace the drawn ones.
    """
    draws = (torch.randint(len(real_NA), (), generator=rng_for(seed, Purpose.SAMPLE_REAL_TILE, index)) for index in indices)
    rows_BA = torch.from_numpy(real_NA[[int(draw) for draw in draws]].astype(np.int64))
    if any(level != int(level) for level in (given or {}).values()):
        rows_BA = rows_BA.float()
    for column, level in (given or {}).items():
        rows_BA[:, column] = level
    return rows_BA


def middle_levels(schema: AttributeSchema, given: Mapping[str, float] | None = None) -> list[float]:
    """Each attribute's middle assessable level (the lower of two), or the given one."""
    middle = {attribute.name: attribute.assessable[(len(attribute.assessable) - 1) // 2] for attribute in schema.attributes}
    return list((middle | dict(given or {})).values())


def interpolate(schema: AttributeSchema, start_BA: Tensor, end_BA: Tensor, steps: int) -> Tensor:
    """Evenly spaced levels from ``start_BA`` to ``end_BA``: fractional levels_BSA, S = ``steps``, both ends among them.

    Raises:
        ValueError: an end that is "not assessable" or not known, and so no point of the scale; names the attribute.
    """
    for column, attribute in enumerate(schema.attributes):
        for level in start_BA[:, column].tolist() + end_BA[:, column].tolist():
            if level not in (attribute.not_assessable, UNKNOWN):
                continue
            known = ", ".join(map(attribute.label, attribute.assessable))
            raise ValueError(f"{attribute.name}: level {attribute.label(level)} is not on the scale; interpolate between {known}")
    return torch.lerp(start_BA[:, None].float(), end_BA[:, None].float(), torch.linspace(0, 1, steps)[:, None])
