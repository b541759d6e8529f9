"""Separates hematoxylin and eosin by colour deconvolution (Ruifrok and Johnston 2001), with fixed or estimated vectors (Macenko 2009).

Densities are absorbances: -log10 of the transmitted light, 1 for a tenth of it. White is 255 in every channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MIN_ABSORBANCE = 0.07  # Macenko's beta (0.15 for natural logarithms): pixels below are background
MIN_PIXELS = 200  # minimum number of stained pixels to estimate stain vectors


def _unit(vector: tuple[float, float, float]) -> np.ndarray:
    return np.asarray(vector, np.float64) / np.linalg.norm(vector)


@dataclass(frozen=True)
class Stains:
    """Unit vectors of absorbance in red, green and blue of the two stains."""

    hematoxylin: tuple[float, float, float]
    eosin: tuple[float, float, float]

    def __post_init__(self) -> None:
        cosine = float(np.dot(_unit(self.hematoxylin), _unit(self.eosin)))
        if not 0 <= cosine < 0.995:
            raise ValueError(f"stain vectors {self.hematoxylin} and {self.eosin} are parallel or opposite")

    @classmethod
    def parse(cls, text: str) -> Stains:
        """Parse ``0.65,0.70,0.29,0.07,0.99,0.11``: hematoxylin, then eosin.

        Raises:
            ValueError: not six non-negative numbers, or parallel vectors.
        """
        try:
            numbers = tuple(float(part) for part in text.split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != 6 or min(numbers) < 0 or not np.isfinite(numbers).all() or not all(map(any, (numbers[:3], numbers[3:]))):
            raise ValueError(
                f"--stains {text}: write six non-negative numbers (red,green,blue of hematoxylin, then of eosin), or `macenko`"
            )
        return cls(numbers[:3], numbers[3:])


RUIFROK = Stains((0.650, 0.704, 0.286), (0.072, 0.990, 0.105))


def absorbance(image_HWC: np.ndarray) -> np.ndarray:
    """Returns -log10 of the transmitted light, (H, W, 3) float32, 0 for white, 2.4 for black."""
    table = -np.log10(np.maximum(np.arange(256), 1) / 255)
    return table.astype(np.float32)[image_HWC]


def densities(absorbance_HWC: np.ndarray, stains: Stains) -> tuple[np.ndarray, np.ndarray]:
    """Returns hematoxylin and eosin of every pixel, (H, W) float32, non-negative: least squares on the two vectors."""
    vectors_23 = np.stack([_unit(stains.hematoxylin), _unit(stains.eosin)])
    amounts_HW2 = np.maximum(absorbance_HWC @ np.linalg.pinv(vectors_23).astype(np.float32), 0)
    return amounts_HW2[..., 0], amounts_HW2[..., 1]


def macenko(absorbance_HWC: np.ndarray, percentile: float = 1.0) -> Stains | None:
    """Estimate the stain vectors of an image (Macenko et al. 2009): the two extreme directions in the plane of its absorbances.

    Returns:
        The vectors; None if too few pixels are stained, or only one stain is present.
    """
    stained_N3 = absorbance_HWC[(absorbance_HWC > MIN_ABSORBANCE).all(axis=-1)].astype(np.float64)
    if len(stained_N3) < MIN_PIXELS:
        return None
    plane_32 = np.linalg.eigh(np.cov(stained_N3.T))[1][:, 1:]
    plane_32 = plane_32 * np.where(plane_32.sum(axis=0) < 0, -1, 1)
    projected_N2 = stained_N3 @ plane_32
    angle_N = np.arctan2(projected_N2[:, 0], projected_N2[:, 1])
    ends = np.percentile(angle_N, [percentile, 100 - percentile])
    vectors_23 = np.maximum(np.stack([np.sin(ends), np.cos(ends)], axis=1) @ plane_32.T, 0)
    hematoxylin, eosin = sorted(vectors_23.tolist(), key=lambda vector: -vector[0])  # hematoxylin absorbs red, eosin hardly does
    try:
        return Stains(tuple(hematoxylin), tuple(eosin))
    except ValueError:
        return None
