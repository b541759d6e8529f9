"""Renders attribute sweeps, pairs of attributes and interpolations as image grids.

Returns images as arrays; writing files is in `tools.sample`.
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
MAX_TILE_SIZE = 256  # pixels; larger tiles are scaled down


def sweep_grid(
    generator: nn.Module, schema: AttributeSchema, latents_BL: Tensor, levels_A: Sequence[float] | None = None, batch: int = 16
) -> np.ndarray:
    """Renders one row per attribute and latent in which the attribute steps through its assessable levels and all else is fixed.

    Args:
        generator: in eval mode.
        schema: the attributes.
        latents_BL: B rows for each attribute; rows of one attribute are adjacent.
        levels_A: the fixed levels; by default the middle ones.
        batch: tiles generated at a time.

    Returns:
        an image with row names on the left, (H, W, 3) uint8.
    """
    levels_A = middle_levels(schema) if levels_A is None else levels_A
    rows_SA, names, lengths = [], [], []
    for column, attribute in enumerate(schema.attributes):
        sweep = [(*levels_A[:column], level, *levels_A[column + 1 :]) for level in attribute.assessable]
        rows_SA += sweep * len(latents_BL)
        lengths += [len(sweep)] * len(latents_BL)
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
    """Renders every combination of the levels of two attributes with one latent.

    Args:
        generator: in eval mode.
        schema: the attributes.
        latent_1L: shared by all tiles.
        rows: attribute that varies down the grid.
        columns: attribute that varies across the grid.
        levels_A: levels of the other attributes; by default the middle ones.
        batch: tiles generated at a time.

    Returns:
        an image with row names on the left, (H, W, 3) uint8.

    Raises:
        ValueError: an attribute that is not in the schema, or the same one twice.
    """
    for name in (rows, columns):
        if name not in schema.names:
            raise ValueError(f"{name}: no such attribute; the model has {', '.join(schema.names)}")
    if rows == columns:
        raise ValueError(f"{rows}: choose two different attributes")
    down, across = (schema.names.index(name) for name in (rows, columns))
    base_A = middle_levels(schema) if levels_A is None else levels_A
    levels_NA, names = [], []
    for row_level in schema.attributes[down].assessable:
        for level in schema.attributes[across].assessable:
            combination = list(base_A)
            combination[down], combination[across] = row_level, level
            levels_NA.append(combination)
        first = schema.attributes[across].label(schema.attributes[across].assessable[0])
        names.append(f"{rows} {schema.attributes[down].label(row_level)}\n{columns} {first} >")
    width = len(schema.attributes[across].assessable)
    tiles = generate(generator, latent_1L.expand(len(levels_NA), -1), torch.tensor(levels_NA), batch)
    return _grid(tiles, [width] * len(names), names)


def frames(
    generator: nn.Module, schema: AttributeSchema, latents_BL: Tensor, start_BA: Tensor, end_BA: Tensor, steps: int = 24, batch: int = 16
) -> np.ndarray:
    """Renders the frames of a movie, all latents side by side, from the start to the end levels and back: (2 steps, H, W, 3) uint8."""
    levels_BSA = interpolate(schema, start_BA, end_BA, steps)
    tiles = generate(generator, latents_BL.repeat_interleave(steps, dim=0), levels_BSA.flatten(0, 1), batch)
    tiles_BSHWC = tiles.reshape(len(latents_BL), steps, *tiles.shape[1:])
    forward_SHWC = np.concatenate(list(tiles_BSHWC), axis=2)
    return np.concatenate([forward_SHWC, forward_SHWC[::-1]])


def interpolation_grid(
    generator: nn.Module, schema: AttributeSchema, latents_BL: Tensor, start_BA: Tensor, end_BA: Tensor, steps: int = 8, batch: int = 16
) -> np.ndarray:
    """Renders one row per latent, from its start levels to its end levels: (H, W, 3) uint8."""
    levels_BSA = interpolate(schema, start_BA, end_BA, steps)
    tiles = generate(generator, latents_BL.repeat_interleave(steps, dim=0), levels_BSA.flatten(0, 1), batch)
    names = ["\n".join(_ends(schema, start_A, end_A)) for start_A, end_A in zip(start_BA.tolist(), end_BA.tolist(), strict=True)]
    return _grid(tiles, [steps] * len(latents_BL), names)


def _ends(schema: AttributeSchema, start_A: list[int], end_A: list[int]) -> list[str]:
    """Describes the attributes that differ between both ends, one line each."""
    ends = zip(schema.attributes, start_A, end_A, strict=True)
    return [f"{attribute.name} {attribute.label(start)} > {attribute.label(end)}" for attribute, start, end in ends if start != end]


def _grid(tiles_NHWC: np.ndarray, lengths: Sequence[int], names: Sequence[str]) -> np.ndarray:
    """Arranges tiles in rows of ``lengths`` on white, with row names on the left; repeated names are drawn once."""
    scale = min(1.0, MAX_TILE_SIZE / tiles_NHWC.shape[1])
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
