"""Scene of a phantom tile: its nuclei, whose five attributes are set by construction, and nuisance variation.

Owns the meaning of the levels and the ground truth of a scene. Pixels are rendered in `render`. Lengths are in units of the tile's width, x
to the right and y down, so a scene is independent of the image size.

All random numbers of a tile are drawn before levels are used, and each attribute transforms its own, so changing one attribute does not
affect the others: more crowding adds nuclei without moving any, and the positions of mitoses are reserved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attributegan.attributes import PUBLISHED

# One entry per level, from level 1; level 0, "not assessable", is never rendered.
NUCLEI = (6, 10, 15, 22)  # cell_crowding: number of nuclei, plus or minus 1
MAX_ANGLE = (7.0, 45.0, 90.0)  # cell_polarity: maximum angle to the tile's direction, degrees; standard deviation 4, 26, uniform
FIGURES = (0, 1, 3)  # mitosis: number of mitotic figures, in addition to the nuclei
PROMINENCE = (0.0, 1.0)  # nucleoli: stain of the dot relative to its nucleus
SIZE_SPREAD = (0.02, 0.16, 0.32, 0.50)  # pleomorphism: standard deviation of the logarithm of a nucleus's size ...
OUTLINE = (0.0, 0.10, 0.19, 0.28)  # ... and deviation of its outline from the ellipse

AXES = (0.098, 0.051)  # semi-axes of a nucleus
PALE = 0.72  # stain of a nucleus with a nucleolus
FIGURE_STAIN = 2.6
MARGIN = 0.08  # minimum distance of centres from the tile's border
SLOTS = max(FIGURES) + max(NUCLEI) + 1
_POOL = 96  # candidates for the positions: more make the spacing more even, fewer more random
_PLASTIC = np.array([0.7548776662466927, 0.5698402909980532])  # step of the two-dimensional golden-ratio sequence
_HEMATOXYLIN, _EOSIN = np.array([0.62, 0.72, 0.31]), np.array([0.12, 0.90, 0.42])  # absorbance of red, green, blue


@dataclass(frozen=True)
class Nucleus:
    """A nucleus, or a mitotic figure."""

    x: float
    y: float
    major: float  # semi-axes
    minor: float
    angle: float  # of the major axis, radians in [0, pi), from the x axis towards y
    outline: tuple[complex, ...]  # harmonics 3, 4, 5 of the outline's relative distance to the ellipse
    stain: float  # hematoxylin, 1 is typical
    mitotic: bool
    nucleolus: float  # prominence; 0 for none
    nucleolus_at: tuple[float, float]  # x, y
    nucleolus_width: float  # standard deviation of the dot

    @property
    def irregularity(self) -> float:
        """Root sum of squares of the outline's harmonics."""
        return math.sqrt(sum(abs(k) ** 2 for k in self.outline))


@dataclass(frozen=True)
class Scene:
    """Ground truth of one tile."""

    levels: tuple[int, ...]
    nuclei: tuple[Nucleus, ...]
    figures: tuple[Nucleus, ...]
    stains_23: np.ndarray  # absorbance of hematoxylin and of eosin in red, green, blue, amount included
    eosin_GG: np.ndarray  # coarse grid of the background, about standard normal
    light_GG: np.ndarray  # coarse grid of the illumination, about standard normal

    def measure(self) -> dict[str, float]:
        """Measure the five attributes on the nuclei, not from the levels; each value increases with its level.

        The values are: number of nuclei; 1 - resultant length of the doubled angles (0 aligned, 1 without direction); number of mitotic
        figures; mean prominence of the nucleoli; standard deviation of log size plus mean irregularity of the outlines.
        """
        angles = np.array([nucleus.angle for nucleus in self.nuclei])
        sizes = np.array([nucleus.major * nucleus.minor for nucleus in self.nuclei])
        spread = np.std(np.log(sizes)) / 2
        values = (
            len(self.nuclei),
            1 - abs(np.mean(np.exp(2j * angles))),
            len(self.figures),
            np.mean([nucleus.nucleolus for nucleus in self.nuclei]),
            spread + np.mean([nucleus.irregularity for nucleus in self.nuclei]),
        )
        return dict(zip(PUBLISHED.names, map(float, values), strict=True))


def draw_levels(count: int, seed: int) -> np.ndarray:
    """Draw levels of ``count`` tiles, (count, 5) int8: uniform over the assessable levels, independent across attributes.

    Row k depends only on ``seed`` and k.
    """
    uniform_NA = np.random.default_rng(seed).random((count, len(PUBLISHED.attributes)))
    columns = [
        np.array(attribute.assessable, np.int8)[(uniform_N * len(attribute.assessable)).astype(np.int64)]
        for attribute, uniform_N in zip(PUBLISHED.attributes, uniform_NA.T, strict=True)
    ]
    return np.stack(columns, axis=1)


def scene(levels: Sequence[int], seed: int, index: int) -> Scene:
    """Generate the scene of tile ``index``; a pure function of its arguments.

    Args:
        levels: five assessable levels in the order of `attributegan.attributes.PUBLISHED`.
        seed: of the whole set, 0 or more.
        index: of the tile, 0 or more.

    Raises:
        ValueError: an unsupported level; names the attribute.
    """
    crowding, polarity, mitosis, nucleoli, pleomorphism = _level_indices(levels)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,)))
    position_S2 = _spaced(rng.random((_POOL, 2)))
    extra = int(rng.integers(-1, 2))
    direction, *start = rng.random(3)
    each = rng.random((SLOTS, 5))
    harmonics = rng.standard_normal((SLOTS, 3, 2)) * np.array([1.0, 0.6, 0.4])[:, None]
    # Quasi-random instead of independent: even six nuclei have the spread of their level.
    even = (start + np.arange(SLOTS)[:, None] * _PLASTIC) % 1 * 2 - 1
    nuisance = _nuisance(rng)

    def nucleus(slot: int) -> Nucleus:
        size = _size(SIZE_SPREAD[pleomorphism], even[slot, 0])
        angle = (math.pi * direction + math.radians(MAX_ANGLE[polarity]) * even[slot, 1]) % math.pi
        prominence = PROMINENCE[nucleoli]
        stain = (0.9 + 0.2 * each[slot, 0]) * (PALE if prominence else 1.0)
        return _nucleus(
            position_S2[slot],
            AXES[0] * size,
            AXES[1] * size,
            angle,
            OUTLINE[pleomorphism],
            harmonics[slot],
            stain,
            prominence=prominence,
            nucleolus=tuple(each[slot, 3:]),
        )

    def figure(slot: int) -> Nucleus:
        major, minor = 0.070 + 0.010 * each[slot, 0], 0.023 + 0.004 * each[slot, 1]
        return _nucleus(position_S2[slot], major, minor, math.pi * each[slot, 2], 0.1, harmonics[slot], FIGURE_STAIN, mitotic=True)

    first = max(FIGURES)
    return Scene(
        levels=tuple(int(level) for level in levels),
        nuclei=tuple(nucleus(slot) for slot in range(first, first + NUCLEI[crowding] + extra)),
        figures=tuple(figure(slot) for slot in range(FIGURES[mitosis])),
        **nuisance,
    )


def _level_indices(levels: Sequence[int]) -> list[int]:
    """Returns the index of each level among its attribute's assessable levels."""
    if len(levels) != len(PUBLISHED.attributes):
        raise ValueError(f"levels: got {len(levels)}, expected {len(PUBLISHED.attributes)}: {', '.join(PUBLISHED.names)}")
    for attribute, level in zip(PUBLISHED.attributes, levels, strict=True):
        if level not in attribute.assessable:
            raise ValueError(f"{attribute.name}: phantoms support levels {', '.join(map(str, attribute.assessable))}, not {level}")
    return [attribute.assessable.index(level) for attribute, level in zip(PUBLISHED.attributes, levels, strict=True)]


def _spaced(pool_M2: np.ndarray) -> np.ndarray:
    """Choose SLOTS points of ``pool_M2``, each the farthest from the previous ones (Gonzalez 1985), so that every prefix is well spaced."""
    chosen = np.zeros(SLOTS, np.int64)
    nearest_M = np.full(len(pool_M2), np.inf)
    for slot in range(SLOTS):
        chosen[slot] = nearest_M.argmax()
        away_M2 = np.abs(pool_M2 - pool_M2[chosen[slot]])
        away_M2 = np.minimum(away_M2, 1 - away_M2)  # on a torus, to avoid crowding at the borders
        nearest_M = np.minimum(nearest_M, np.einsum("md,md->m", away_M2, away_M2))
    return MARGIN + (1 - 2 * MARGIN) * pool_M2[chosen]


def _size(spread: float, even: float) -> float:
    """Returns a size factor: uniform logarithm with standard deviation ``spread``, mean square 1, which preserves the stained area."""
    reach = math.sqrt(3) * spread
    return math.exp(reach * even) / math.sqrt(math.sinh(2 * reach) / (2 * reach))


def _nucleus(
    centre: np.ndarray,
    major: float,
    minor: float,
    angle: float,
    outline: float,
    harmonics: np.ndarray,
    stain: float,
    *,
    mitotic: bool = False,
    prominence: float = 0.0,
    nucleolus: Sequence[float] = (0.5, 0.5),
) -> Nucleus:
    x, y = map(float, centre)
    waves = harmonics @ (1, 1j)
    waves *= outline / np.sqrt((abs(waves) ** 2).sum())
    along, across = 0.5 * (2 * nucleolus[0] - 1) * major, 0.3 * (2 * nucleolus[1] - 1) * minor
    cos, sin = math.cos(angle), math.sin(angle)
    return Nucleus(
        x,
        y,
        float(major),
        float(minor),
        float(angle),
        tuple(waves.tolist()),
        float(stain),
        mitotic,
        prominence,
        nucleolus_at=(x + cos * along - sin * across, y + sin * along + cos * across),
        nucleolus_width=min(0.018, 0.35 * minor),
    )


def _nuisance(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw nuisance variation, which is independent of the attributes: stain, background, illumination."""
    amount = np.array([1.25 * rng.uniform(0.88, 1.12), 0.50 * rng.uniform(0.8, 1.2)])
    stains = np.stack([_HEMATOXYLIN, _EOSIN]) + 0.05 * rng.uniform(-1, 1, (2, 3))
    return {
        "stains_23": amount[:, None] * stains / np.linalg.norm(stains, axis=1, keepdims=True),
        "eosin_GG": rng.standard_normal((16, 16)),
        "light_GG": rng.standard_normal((3, 3)),
    }
