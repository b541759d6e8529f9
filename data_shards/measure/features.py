"""Measures one tile: nuclei, stains, sharpness. `MEASUREMENTS` has the name, unit and source of each measurement.

Measurements that are undefined for a tile, such as the spread of three areas, are NaN: "not assessable".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from data_shards.ingest.tissue import SHARPNESS, sharpness
from data_shards.measure import regions, stain

MIN_NUCLEI = 8  # minimum number of whole nuclei for statistics of shape and stain
NEIGHBOURS = 5
MAX_WHITE_SHARE = 0.95  # tiles with more are not assessable
BACKGROUND = 0.07  # absorbance below which a channel counts as white
SPOT_CONTRAST, SPOT_AREA = 0.15, (4, 80)  # of a nucleolus: stain relative to its nucleus, area in pixels
FIGURE_STAIN, FIGURE_FIT, FIGURE_ELONGATION = (
    1.35,
    0.93,
    1.8,
)  # of a mitosis-like body: minimum stain relative to the median nucleus, maximum fit, minimum elongation


@dataclass(frozen=True)
class Measurement:
    """A measurement; ``needs_mpp`` if it requires the pixel size."""

    unit: str
    description: str
    needs_mpp: bool = False


MEASUREMENTS = {
    "nuclei_count": Measurement("nuclei in the tile", "segmented nuclei, including those cut by the border"),
    "nuclei_per_mm2": Measurement("1/mm2", "nuclei per area; those cut by the border count half (Gundersen 1977)", needs_mpp=True),
    "area_fraction": Measurement("share, 0 to 1", "share of the tile covered by nuclei (Delesse 1847)"),
    "median_area": Measurement("pixels", "median area of whole nuclei"),
    "median_area_um2": Measurement("um2", "the same in square micrometres", needs_mpp=True),
    "area_spread": Measurement("1", "standard deviation of the logarithm of the area: anisokaryosis"),
    "elongation": Measurement("1 or more", "median of long over short axis of the ellipse with the same second moments"),
    "orientation_disorder": Measurement(
        "0 to 1", "1 - length of the mean doubled-angle vector of the long axes, weighted by their anisotropy (Fisher 1993, 2.3)"
    ),
    "local_disorder": Measurement("0 to 1", f"the same for each nucleus and its {NEIGHBOURS} neighbours, mean over nuclei"),
    "irregularity": Measurement("0 to 1", "1 - median, over nuclei, of (area / area of the ellipse with the same second moments)"),
    "hematoxylin_density": Measurement("absorbance", "mean hematoxylin of the tissue (Ruifrok and Johnston 2001)"),
    "eosin_density": Measurement("absorbance", "mean eosin of the tissue outside nuclei"),
    "hyperchromasia": Measurement("absorbance", "mean hematoxylin of the nuclei"),
    "stain_spread": Measurement("1", "standard deviation over mean of the hematoxylin of nuclei: anisochromasia"),
    "nucleolus_spots": Measurement("spots a nucleus", "dark spots inside nuclei, by difference of Gaussians"),
    "mitosis_like": Measurement(
        "bodies in the tile", f"nuclei at least {FIGURE_STAIN} times as dark as the median that are irregular or elongated"
    ),
    "white_share": Measurement("share, 0 to 1", "area without tissue"),
    "blood_share": Measurement("share, 0 to 1", "area with the red of erythrocytes, which absorb more blue than eosin"),
    "sharpness": Measurement("variance", "variance of the Laplacian of the luma (Pech-Pacheco et al. 2000)"),
}
OF_THE_TILE = ("white_share", "blood_share", "sharpness")  # also measured on tiles that are not assessable


def names(mpp: float | None) -> tuple[str, ...]:
    """Returns the available measurements, in the order of their columns."""
    return tuple(name for name, measurement in MEASUREMENTS.items() if mpp or not measurement.needs_mpp)


def measure(
    image_HWC: np.ndarray, labels_HW: np.ndarray, mpp: float | None = None, stains: stain.Stains | None = stain.RUIFROK
) -> dict[str, float]:
    """Compute all measurements of a tile by name; NaN where undefined.

    Args:
        image_HWC: (H, W, 3) uint8.
        labels_HW: instance map of nuclei, 0 for background and 1 to N.
        mpp: micrometres per pixel, if known.
        stains: stain vectors; None estimates them from the tile (Macenko), with Ruifrok's as fallback.
    """
    absorbance_HWC = stain.absorbance(image_HWC)
    sharp = sharpness(Image.fromarray(image_HWC))
    white_HW = (absorbance_HWC < BACKGROUND).all(axis=-1)
    found = dict.fromkeys(names(mpp), float("nan"))
    found |= {"white_share": float(white_HW.mean()), "blood_share": _blood(absorbance_HWC), "sharpness": sharp}
    if sharp < SHARPNESS or found["white_share"] > MAX_WHITE_SHARE:
        return found
    hematoxylin_HW, eosin_HW = stain.densities(absorbance_HWC, stains or stain.macenko(absorbance_HWC) or stain.RUIFROK)
    nuclei_HW, shapes = labels_HW > 0, regions.shapes(labels_HW)
    count, at_border = len(shapes.area), shapes.at_border
    found |= {
        "nuclei_count": float(count),
        "area_fraction": float(nuclei_HW.mean()),
        "hematoxylin_density": float(hematoxylin_HW[~white_HW].mean()),
    }
    if (plain_HW := ~white_HW & ~nuclei_HW).any():
        found["eosin_density"] = float(eosin_HW[plain_HW].mean())
    if mpp:
        found["nuclei_per_mm2"] = float(count - at_border.sum() / 2) / (labels_HW.size * mpp**2 * 1e-6)
    if (~at_border).sum() >= MIN_NUCLEI:
        found |= _shape_statistics(shapes, mpp)
        found |= _stain_statistics(hematoxylin_HW, labels_HW, shapes)
    return found


def _shape_statistics(shapes: regions.Shapes, mpp: float | None) -> dict[str, float]:
    """Compute statistics of whole nuclei; area and direction are wrong for those cut by the border."""
    whole_N = ~shapes.at_border
    area_N, weight_N = shapes.area[whole_N], shapes.anisotropy[whole_N]
    found = {
        "median_area": float(np.median(area_N)),
        "area_spread": float(np.log(area_N).std()),
        "elongation": float(np.median(shapes.elongation[whole_N])),
        "irregularity": float(max(0.0, 1 - np.median(shapes.fit[whole_N]))),
    }
    axis_N = weight_N * np.exp(2j * shapes.angle[whole_N])
    found["orientation_disorder"] = float(1 - abs(axis_N.sum()) / max(weight_N.sum(), 1e-9))
    found["local_disorder"] = _local_disorder(np.stack([shapes.y[whole_N], shapes.x[whole_N]], axis=1), axis_N, weight_N)
    return found | ({"median_area_um2": found["median_area"] * mpp**2} if mpp else {})


def _local_disorder(centre_N2: np.ndarray, axis_N: np.ndarray, weight_N: np.ndarray) -> float:
    from scipy.spatial import cKDTree

    near_NK = cKDTree(centre_N2).query(centre_N2, k=min(NEIGHBOURS + 1, len(centre_N2)))[1]
    order_N = np.abs(axis_N[near_NK].sum(axis=1)) / np.maximum(weight_N[near_NK].sum(axis=1), 1e-9)
    return float(1 - order_N.mean())


def _stain_statistics(hematoxylin_HW: np.ndarray, labels_HW: np.ndarray, shapes: regions.Shapes) -> dict[str, float]:
    stain_N = regions.means(labels_HW, hematoxylin_HW)
    median = max(float(np.median(stain_N)), 1e-6)
    figures_N = (stain_N > FIGURE_STAIN * median) & ((shapes.fit < FIGURE_FIT) | (shapes.elongation > FIGURE_ELONGATION))
    return {
        "hyperchromasia": float(hematoxylin_HW[labels_HW > 0].mean()),
        "stain_spread": float(stain_N.std() / max(stain_N.mean(), 1e-6)),
        "mitosis_like": float(figures_N.sum()),
        "nucleolus_spots": _spots(hematoxylin_HW, labels_HW, median) / len(stain_N),
    }


def _spots(hematoxylin_HW: np.ndarray, labels_HW: np.ndarray, median: float) -> float:
    """Count dark spots inside nuclei."""
    from scipy import ndimage

    raised_HW = ndimage.gaussian_filter(hematoxylin_HW, 1.0) - ndimage.gaussian_filter(hematoxylin_HW, 3.0)
    inside_HW = ndimage.binary_erosion(labels_HW > 0, iterations=3)  # excludes the rim, which is dark too
    spots_HW, _ = ndimage.label((raised_HW > SPOT_CONTRAST * median) & inside_HW)
    area_N = np.bincount(spots_HW.ravel())[1:]
    return float(((area_N >= SPOT_AREA[0]) & (area_N <= SPOT_AREA[1])).sum())


def _blood(absorbance_HWC: np.ndarray) -> float:
    red_HW, green_HW, blue_HW = np.moveaxis(absorbance_HWC, -1, 0)
    return float(((red_HW < 0.12) & (green_HW > 0.3) & (blue_HW > 0.75 * green_HW)).mean())
