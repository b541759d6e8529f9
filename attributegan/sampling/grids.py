"""Latents and levels into tiles: counted latents, drawn or given levels, attribute sweeps and interpolations as grids.

Tile k of a seed has the same latent and the same drawn levels whatever the batch, the count, or which attributes are given.
Owns pictures as arrays; files are `tools.sample`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn import functional as F

from attributegan.attributes import AttributeSchema
from attributegan.sampling.generate import generate
from attributegan.sampling.latents import interpolate, middle_levels

GAP = 2  # white pixels between the tiles of a grid
LARGEST_IN_GRID = 256  # pixels; larger tiles are scaled down for grids


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


def pair_grid(
    generator: nn.Module,
    schema: AttributeSchema,
    latent_1L: Tensor,
    rows: str,
    columns: str,
    levels_A: Sequence[float] | None = None,
    batch: int = 16,
) -> np.ndarray:
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


def frames(
    generator: nn.Module, schema: AttributeSchema, latents_BL: Tensor, start_BA: Tensor, end_BA: Tensor, steps: int = 24, batch: int = 16
) -> np.ndarray:
    """Pictures of a film, (2 steps, H, W, 3) uint8: all latents side by side, to the end levels and back."""
    levels_BSA = interpolate(schema, start_BA, end_BA, steps)
    tiles = generate(generator, latents_BL.repeat_interleave(steps, dim=0), levels_BSA.flatten(0, 1), batch)
    tiles_BSHWC = tiles.reshape(len(latents_BL), steps, *tiles.shape[1:])
    there_SHWC = np.concatenate(list(tiles_BSHWC), axis=2)
    return np.concatenate([there_SHWC, there_SHWC[::-1]])


def interpolation_grid(
    generator: nn.Module, schema: AttributeSchema, latents_BL: Tensor, start_BA: Tensor, end_BA: Tensor, steps: int = 8, batch: int = 16
) -> np.ndarray:
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
