"""Latents and levels into tiles: counted latents, drawn or given levels, attribute sweeps and interpolations as grids.

Tile k of a seed has the same latent and the same drawn levels whatever the batch, the count, or which attributes are given.
Owns pictures as arrays; files are `tools.sample`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn import functional as F

from attributegan.allocator import keep_freed_memory
from attributegan.attributes import UNKNOWN, AttributeSchema
from attributegan.randomness import generator_for

G = TypeVar("G", bound=nn.Module)
GAP = 2  # white pixels between the tiles of a grid
LARGEST_IN_GRID = 256  # pixels; larger tiles are scaled down for grids


def latents_for(seed: int, indices: Iterable[int], latent_dim: int) -> Tensor:
    """Standard normal latents_BL, float32 on the CPU; row ``indices[b]`` depends on it and ``seed`` alone."""
    return torch.stack([torch.randn(latent_dim, generator=generator_for(seed, "latent of a sample", index)) for index in indices])


def truncated(latents_BL: Tensor, bound: float) -> Tensor:
    """The same latents drawn from a normal distribution cut off at +-``bound`` (Brock et al., ICLR 2019): fewer odd tiles, less variety.

    By the quantile that each number has, so that a tile stays the tile it is, only nearer to the usual.
    """
    inside = torch.special.ndtr(torch.tensor(bound, dtype=torch.float64)) * 2 - 1
    quantile_BL = (torch.special.ndtr(latents_BL.double()) - 0.5) * inside + 0.5
    return torch.special.ndtri(quantile_BL).to(latents_BL)


def mixed(start_BL: Tensor, end_BL: Tensor, share: float) -> Tensor:
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
        rng = generator_for(seed, "levels of a sample", index)
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
    draws = (torch.randint(len(real_NA), (), generator=generator_for(seed, "real tile of a sample", index)) for index in indices)
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


def ready(generator: G, device: str = "cpu") -> G:
    """The generator in eval mode on ``device``, laid out for speed, in a process that keeps the memory of its maps."""
    if device == "cpu":
        keep_freed_memory()
    return generator.eval().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@torch.no_grad()
def generate(generator: nn.Module, latents_BL: Tensor, levels_BA: Tensor, batch: int = 16, bf16: bool = False) -> np.ndarray:
    """Tiles (B, H, W, 3) uint8 from a generator in eval mode, on its device, ``batch`` at a time; ``bf16`` is faster and coarser."""
    weight = next(generator.parameters())
    parts = []
    for latents, levels in zip(latents_BL.split(batch), levels_BA.split(batch), strict=True):
        with torch.autocast(weight.device.type, torch.bfloat16, enabled=bf16):
            images_BCHW = generator(latents.to(weight), levels.to(weight.device))
        parts.append(((images_BCHW.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(parts)


def sweep_grid(
    generator: nn.Module, schema: AttributeSchema, latents_BL: Tensor, levels_A: Sequence[float] | None = None, batch: int = 16
) -> np.ndarray:
    """One row for each attribute and latent: the attribute goes through its assessable levels, all else stays.

    Args:
        generator: in eval mode.
        latents_BL: B rows for each attribute, those of one attribute together.
        levels_A: of the attributes that a row does not change; the middle ones by default.
        batch: tiles generated at a time.

    Returns:
        a picture with the rows' names at the left, (H, W, 3) uint8.
    """
    levels_A = middle_levels(schema) if levels_A is None else levels_A
    rows_SA, names, lengths = [], [], []
    for column, attribute in enumerate(schema.attributes):
        shown = [(*levels_A[:column], level, *levels_A[column + 1 :]) for level in attribute.assessable]
        rows_SA += shown * len(latents_BL)
        lengths += [len(shown)] * len(latents_BL)
        names += [f"{attribute.name}\n{' > '.join(map(attribute.label, attribute.assessable))}"] * len(latents_BL)
    repeats = torch.tensor(lengths)
    latents_SL = latents_BL.repeat(len(schema.attributes), 1).repeat_interleave(repeats, dim=0)
    return _grid(generate(generator, latents_SL, torch.tensor(rows_SA), batch), lengths, names)


def pair_grid(generator: nn.Module, schema: AttributeSchema, latent_1L: Tensor, rows: str, columns: str,
              levels_A: Sequence[float] | None = None, batch: int = 16) -> np.ndarray:  # fmt: skip
    """One tile for each pair of levels of two attributes, of one latent; (H, W, 3) uint8.

    Raises:
        ValueError: an attribute that is not in the schema, or the same twice.
    """
    for name in (rows, columns):
        if name not in schema.names:
            raise ValueError(f"{name}: no such attribute; the model has {', '.join(schema.names)}")
    if rows == columns:
        raise ValueError(f"{rows}: name two different attributes")
    down, across = (schema.names.index(name) for name in (rows, columns))
    base_A = middle_levels(schema) if levels_A is None else levels_A
    shown, names = [], []
    for low in schema.attributes[down].assessable:
        for level in schema.attributes[across].assessable:
            row = list(base_A)
            row[down], row[across] = low, level
            shown.append(row)
        first = schema.attributes[across].label(schema.attributes[across].assessable[0])
        names.append(f"{rows} {schema.attributes[down].label(low)}\n{columns} {first} >")
    width = len(schema.attributes[across].assessable)
    tiles = generate(generator, latent_1L.expand(len(shown), -1), torch.tensor(shown), batch)
    return _grid(tiles, [width] * len(names), names)


def frames(generator: nn.Module, schema: AttributeSchema, latents_BL: Tensor, start_BA: Tensor, end_BA: Tensor,
           steps: int = 24, batch: int = 16) -> np.ndarray:  # fmt: skip
    """Pictures of a film, (2 steps, H, W, 3) uint8: all latents side by side, to the end levels and back."""
    levels_BSA = interpolate(schema, start_BA, end_BA, steps)
    tiles = generate(generator, latents_BL.repeat_interleave(steps, dim=0), levels_BSA.flatten(0, 1), batch)
    tiles_BSHWC = tiles.reshape(len(latents_BL), steps, *tiles.shape[1:])
    there_SHWC = np.concatenate(list(tiles_BSHWC), axis=2)
    return np.concatenate([there_SHWC, there_SHWC[::-1]])


def interpolate(schema: AttributeSchema, start_BA: Tensor, end_BA: Tensor, steps: int) -> Tensor:
    """Evenly spaced levels from ``start_BA`` to ``end_BA``: fractional levels_BSA, S = ``steps``, both ends among them.

    Raises:
        ValueError: an end that is "not assessable" or not known, and so no point of the scale; names the attribute.
    """
    for column, attribute in enumerate(schema.attributes):
        off = {attribute.not_assessable, UNKNOWN}.intersection(start_BA[:, column].tolist() + end_BA[:, column].tolist())
        if off:
            known = ", ".join(map(attribute.label, attribute.assessable))
            raise ValueError(f"{attribute.name}: level {attribute.label(off.pop() or 0)} is not on the scale; interpolate between {known}")
    return torch.lerp(start_BA[:, None].float(), end_BA[:, None].float(), torch.linspace(0, 1, steps)[:, None])


def interpolation_grid(generator: nn.Module, schema: AttributeSchema, latents_BL: Tensor, start_BA: Tensor, end_BA: Tensor,
                       steps: int = 8, batch: int = 16) -> np.ndarray:  # fmt: skip
    """One row for each latent, from its start levels to its end levels; (H, W, 3) uint8."""
    levels_BSA = interpolate(schema, start_BA, end_BA, steps)
    tiles = generate(generator, latents_BL.repeat_interleave(steps, dim=0), levels_BSA.flatten(0, 1), batch)
    names = ["\n".join(_ends(schema, start_A, end_A)) for start_A, end_A in zip(start_BA.tolist(), end_BA.tolist(), strict=True)]
    return _grid(tiles, [steps] * len(latents_BL), names)


def _ends(schema: AttributeSchema, start_A: list[int], end_A: list[int]) -> list[str]:
    """What changes between two ends, a line each."""
    ends = zip(schema.attributes, start_A, end_A, strict=True)
    return [f"{attribute.name} {attribute.label(start)} > {attribute.label(end)}" for attribute, start, end in ends if start != end]


def _grid(tiles_NHWC: np.ndarray, lengths: Sequence[int], names: Sequence[str]) -> np.ndarray:
    """Rows of ``lengths`` tiles on white, each under its name at the left; a name is written once when it repeats."""
    scale = min(1.0, LARGEST_IN_GRID / tiles_NHWC.shape[1])
    if scale < 1:
        images_BCHW = torch.from_numpy(tiles_NHWC).permute(0, 3, 1, 2).float()
        tiles_NHWC = F.interpolate(images_BCHW, scale_factor=scale, mode="area").round().byte().permute(0, 2, 3, 1).numpy()
    size = tiles_NHWC.shape[1]
    font = ImageFont.load_default()
    margin = 8 + round(max(font.getlength(line) for name in names for line in (name.splitlines() or [""])))
    pitch = size + GAP
    page = Image.new("RGB", (margin + max(lengths) * pitch, len(lengths) * pitch), "white")
    pen = ImageDraw.Draw(page)
    tiles = iter(tiles_NHWC)
    for row, (length, name) in enumerate(zip(lengths, names, strict=True)):
        if row == 0 or name != names[row - 1]:
            pen.multiline_text((4, row * pitch + 2), name, fill="black", font=font)
        for column in range(length):
            page.paste(Image.fromarray(next(tiles)), (margin + column * pitch, row * pitch))
    return np.asarray(page)
