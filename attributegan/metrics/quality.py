"""Distances between two sets of feature vectors: FID, KID, precision and recall, density and coverage, nearest neighbours.

Pure functions of arrays, in double precision; bootstraps are seeded. Rows are tiles, columns are features (of any network).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NEIGHBOURS = 5  # k of the nearest-neighbour balls
REPLICATES = 500  # of a bootstrap
CHUNK = 2048  # rows of a distance matrix in memory at a time, where only its minima are needed
NEARER = 0.01  # share of held-out tiles that are as near to a training tile as a copy is


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % confidence interval (percentile bootstrap over tiles); NaN bounds if not computed."""

    value: float
    low: float = float("nan")
    high: float = float("nan")


def frechet_distance(x_ND: np.ndarray, y_MD: np.ndarray) -> float:
    """Returns the Frechet distance of the Gaussians fitted to both sets (FID; Heusel et al., NeurIPS 2017, eq. 6).

    Biased upwards in small sets (Binkowski et al., ICLR 2018, D), so compare only values of equal counts.
    The trace of sqrt(S T) for covariances S = A'A and T = B'B is the sum of the singular values of A B'.
    """
    x_ND, y_MD = _double(x_ND), _double(y_MD)
    root_x, root_y = _root_of_covariance(x_ND), _root_of_covariance(y_MD)
    shift_D = x_ND.mean(axis=0) - y_MD.mean(axis=0)
    cross = np.linalg.svd(root_x @ root_y.T, compute_uv=False).sum()
    return float(max(0.0, shift_D @ shift_D + (root_x**2).sum() + (root_y**2).sum() - 2 * cross))


def _root_of_covariance(x_ND: np.ndarray) -> np.ndarray:
    """Returns A with A'A = the unbiased covariance; at most D rows."""
    centred_ND = (x_ND - x_ND.mean(axis=0)) / np.sqrt(max(1, len(x_ND) - 1))
    return np.asarray(np.linalg.qr(centred_ND, mode="r")) if len(centred_ND) > centred_ND.shape[1] else centred_ND


@dataclass(frozen=True)
class Kernels:
    """The cubic kernel (x.y / D + 1)^3 within and between two sets (Binkowski et al., ICLR 2018, eq. 4 and 5), for KID."""

    within_x_NN: np.ndarray
    within_y_MM: np.ndarray
    between_NM: np.ndarray

    @classmethod
    def of(cls, x_ND: np.ndarray, y_MD: np.ndarray) -> Kernels:
        """Computes the kernel matrices of two sets of features."""
        x_ND, y_MD = _double(x_ND), _double(y_MD)

        def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return (a @ b.T / a.shape[1] + 1) ** 3

        return cls(kernel(x_ND, x_ND), kernel(y_MD, y_MD), kernel(x_ND, y_MD))

    def subset(self, mask_x_N: np.ndarray, mask_y_M: np.ndarray) -> Kernels:
        """Returns the kernels of the masked rows of both sets."""
        x, y = np.flatnonzero(mask_x_N), np.flatnonzero(mask_y_M)
        return Kernels(self.within_x_NN[np.ix_(x, x)], self.within_y_MM[np.ix_(y, y)], self.between_NM[np.ix_(x, y)])

    def distance(self, replicates: int = 0, seed: int = 0) -> Estimate:
        """Returns KID: the unbiased squared MMD over all tiles (Gretton et al. 2012, eq. 3), which may be slightly negative.

        The bootstrap resamples the tiles of both sets with replacement. A tile drawn twice forms no pair with itself, so that the
        replicates are as unbiased as the estimate.
        """
        n, m = self.between_NM.shape
        value = float(self._weighted(np.ones((1, n)), np.ones((1, m)))[0])
        if not replicates:
            return Estimate(value)
        rng = np.random.default_rng(seed)
        x_RN, y_RM = (rng.multinomial(count, np.full(count, 1 / count), replicates).astype(float) for count in (n, m))
        return Estimate(value, *bounds(self._weighted(x_RN, y_RM)))

    def _weighted(self, x_RN: np.ndarray, y_RM: np.ndarray) -> np.ndarray:
        return _pairs(self.within_x_NN, x_RN) + _pairs(self.within_y_MM, y_RM) - 2 * _crossed(self.between_NM, x_RN, y_RM)


def _pairs(kernel_NN: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Returns the weighted mean of the kernel over pairs of different tiles."""
    squares_RN = weights_RN**2
    total_R = ((weights_RN @ kernel_NN) * weights_RN).sum(axis=1) - squares_RN @ np.diag(kernel_NN)
    return total_R / (weights_RN.sum(axis=1) ** 2 - squares_RN.sum(axis=1))


def _crossed(kernel_NM: np.ndarray, x_RN: np.ndarray, y_RM: np.ndarray) -> np.ndarray:
    return ((x_RN @ kernel_NM) * y_RM).sum(axis=1) / (x_RN.sum(axis=1) * y_RM.sum(axis=1))


def kernel_distance(x_ND: np.ndarray, y_MD: np.ndarray, replicates: int = 0, seed: int = 0) -> Estimate:
    """Returns KID of two sets; see `Kernels.distance`.

    Raises:
        ValueError: a set has fewer than two tiles.
    """
    if min(len(x_ND), len(y_MD)) < 2:
        raise ValueError(f"KID needs at least two tiles in each set, got {len(x_ND)} and {len(y_MD)}")
    return Kernels.of(x_ND, y_MD).distance(replicates, seed)


@dataclass(frozen=True)
class Manifolds:
    """Membership of tiles in k-nearest-neighbour balls of the other set; the scores are the means."""

    precision_M: np.ndarray  # generated tile is in the ball of a real one (Kynkaanniemi et al., NeurIPS 2019)
    recall_N: np.ndarray  # real tile is in the ball of a generated one
    density_M: np.ndarray  # number of real balls that contain a generated tile, over k (Naeem et al., ICML 2020)
    coverage_N: np.ndarray  # the ball of a real tile contains a generated one

    def estimates(self, replicates: int = 0, seed: int = 0) -> dict[str, Estimate]:
        """Returns the four scores by name; intervals resample the counted tiles and keep the balls fixed."""
        parts = {"precision": self.precision_M, "recall": self.recall_N, "density": self.density_M, "coverage": self.coverage_N}
        return {name: mean_of(values, replicates, seed) for name, values in parts.items()}


def manifolds(real_ND: np.ndarray, fake_MD: np.ndarray, k: int = NEIGHBOURS) -> Manifolds:
    """Computes precision, recall, density and coverage. Use sets of equal size, since balls shrink as tiles are added.

    Raises:
        ValueError: a set has ``k`` tiles or fewer.
    """
    if min(len(real_ND), len(fake_MD)) <= k:
        raise ValueError(f"balls of {k} nearest neighbours need more than {k} tiles in each set, got {len(real_ND)} and {len(fake_MD)}")
    between_NM = distances(real_ND, fake_MD)
    real_radius_N, fake_radius_M = _radius(real_ND, k), _radius(fake_MD, k)
    in_real_ball_NM = between_NM < real_radius_N[:, None]
    return Manifolds(
        precision_M=in_real_ball_NM.any(axis=0).astype(float),
        recall_N=(between_NM < fake_radius_M).any(axis=1).astype(float),
        density_M=in_real_ball_NM.sum(axis=0) / k,
        coverage_N=in_real_ball_NM.any(axis=1).astype(float),
    )


def _radius(x_ND: np.ndarray, k: int) -> np.ndarray:
    """Returns the distance of each tile to its k-th nearest neighbour."""
    within_NN = distances(x_ND, x_ND)
    np.fill_diagonal(within_NN, 0)  # rounding leaves small values there
    return np.partition(within_NN, k, axis=1)[:, k]


def distances(x_ND: np.ndarray, y_MD: np.ndarray) -> np.ndarray:
    """Returns the Euclidean distances of all pairs, (N, M)."""
    x_ND, y_MD = _double(x_ND), _double(y_MD)
    squares_NM = (x_ND**2).sum(axis=1)[:, None] + (y_MD**2).sum(axis=1) - 2 * x_ND @ y_MD.T
    return np.sqrt(np.maximum(squares_NM, 0))


@dataclass(frozen=True)
class Memorisation:
    """Whether generated tiles are nearer to the training tiles than held-out real tiles are.

    Attributes:
        nearest_N: index of the training tile nearest to each generated one.
        distance_N: distance to it.
        ratio: median of these distances over that of held-out tiles to their nearest training tile; far below 1 indicates copies.
        nearer: share of generated tiles that are nearer than all but 1 % of the held-out ones; 0.01 without memorisation.
        threshold: that distance, of `copy_threshold`.
    """

    nearest_N: np.ndarray
    distance_N: np.ndarray
    ratio: float
    nearer: float
    threshold: float


def memorisation(training_TD: np.ndarray, generated_ND: np.ndarray, held_out_MD: np.ndarray) -> Memorisation:
    """Compares the nearest-neighbour distances of generated and of held-out tiles to the training tiles."""
    nearest_N, distance_N = nearest(generated_ND, training_TD)
    _, held_out_distance_M = nearest(held_out_MD, training_TD)
    ratio = np.median(distance_N) / max(np.median(held_out_distance_M), 1e-12)
    threshold = copy_threshold(held_out_distance_M)
    return Memorisation(nearest_N, distance_N, float(ratio), float((distance_N < threshold).mean()), threshold)


def copy_threshold(held_out_distance_M: np.ndarray) -> float:
    """Returns the distance to the nearest training tile below which a tile counts as a copy: the `NEARER` quantile of held-out tiles."""
    return float(np.quantile(held_out_distance_M, NEARER))


def membership(
    training_TD: np.ndarray,
    held_out_MD: np.ndarray,
    generated_ND: np.ndarray,
    group_T: np.ndarray | None = None,
    group_M: np.ndarray | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Estimate:
    """Returns the AUC of separating training from held-out tiles by their distance to the nearest generated tile.

    The share of pairs in which the training tile is nearer, ties count half: 0.5 without memorisation (distance to the nearest sample,
    as in the membership attacks of Chen et al., GAN-Leaks, CCS 2020).

    Args:
        training_TD: features of training tiles.
        held_out_MD: features of held-out tiles.
        generated_ND: features of generated tiles.
        group_T: slide of each training tile; slides are resampled together. None resamples single tiles.
        group_M: slide of each held-out tile, likewise.
        replicates: of the bootstrap.
        seed: of the bootstrap.
    """
    distance_T, distance_M = (nearest(x_ND, generated_ND)[1] for x_ND in (training_TD, held_out_MD))
    win_TM = (distance_T[:, None] < distance_M) + 0.5 * (distance_T[:, None] == distance_M)
    rng = np.random.default_rng(seed)
    weight_RT, weight_RM = (
        _counts(rng, np.arange(len(distance)) if group is None else group, replicates)
        for distance, group in ((distance_T, group_T), (distance_M, group_M))
    )
    return Estimate(float(win_TM.mean()), *bounds(_crossed(win_TM, weight_RT, weight_RM)))


def membership_within_slides(
    training_TD: np.ndarray,
    held_out_MD: np.ndarray,
    generated_ND: np.ndarray,
    group_T: np.ndarray,
    group_M: np.ndarray,
    resample_slides: bool = True,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Estimate:
    """Returns `membership` over pairs of tiles of the same slide, so that the look of a slide, such as its stain, can't raise it.

    Args:
        training_TD: features of training tiles.
        held_out_MD: features of tiles of the same slides that the generator was not trained on.
        generated_ND: features of generated tiles.
        group_T: slide of each training tile.
        group_M: slide of each held-out tile, by the same numbers.
        resample_slides: bootstrap over slides; over tiles otherwise.
        replicates: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: no slide has tiles in both sets.
    """
    same_TM = np.asarray(group_T)[:, None] == np.asarray(group_M)
    if not same_TM.any():
        raise ValueError("no slide has both training and held-out tiles")
    distance_T, distance_M = (nearest(x_ND, generated_ND)[1] for x_ND in (training_TD, held_out_MD))
    win_TM = np.where(same_TM, (distance_T[:, None] < distance_M) + 0.5 * (distance_T[:, None] == distance_M), 0)
    rng = np.random.default_rng(seed)
    if resample_slides:
        slides = np.intersect1d(group_T, group_M)
        parts = [np.ix_(group_T == slide, group_M == slide) for slide in slides]
        sums_S2 = np.array([[win_TM[part].sum(), same_TM[part].sum()] for part in parts])
        sums_R2 = rng.multinomial(len(slides), np.full(len(slides), 1 / len(slides)), replicates) @ sums_S2
        replicates_R = sums_R2[:, 0] / sums_R2[:, 1]
    else:
        weight_RT, weight_RM = (_counts(rng, np.arange(count), replicates) for count in win_TM.shape)
        wins_R, pairs_R = (((weight_RT @ matrix_TM) * weight_RM).sum(axis=1) for matrix_TM in (win_TM, same_TM.astype(float)))
        replicates_R = wins_R[pairs_R > 0] / pairs_R[pairs_R > 0]
    return Estimate(float(win_TM.sum() / same_TM.sum()), *bounds(replicates_R))


def _counts(rng: np.random.Generator, group_N: np.ndarray, replicates: int) -> np.ndarray:
    """Returns how often each tile occurs in each replicate of a bootstrap over groups, (R, N)."""
    _, index_N = np.unique(group_N, return_inverse=True)
    count = int(index_N.max()) + 1
    return rng.multinomial(count, np.full(count, 1 / count), replicates).astype(float)[:, index_N]


def nearest(x_ND: np.ndarray, reference_MD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds the nearest row of ``reference_MD`` for each row of ``x_ND``: (indices, distances)."""
    parts = [distances(x_ND[first : first + CHUNK], reference_MD) for first in range(0, len(x_ND), CHUNK)]
    return np.concatenate([part.argmin(axis=1) for part in parts]), np.concatenate([part.min(axis=1) for part in parts])


def mean_of(values_N: np.ndarray, replicates: int = 0, seed: int = 0) -> Estimate:
    """Returns the mean with its bootstrap interval."""
    values_N = _double(values_N)
    if not replicates:
        return Estimate(float(values_N.mean()))
    counts_RN = np.random.default_rng(seed).multinomial(len(values_N), np.full(len(values_N), 1 / len(values_N)), replicates)
    return Estimate(float(values_N.mean()), *bounds(counts_RN @ values_N / len(values_N)))


def bounds(replicates_R: np.ndarray) -> tuple[float, float]:
    """Returns the 2.5 % and 97.5 % quantiles of bootstrap replicates."""
    low, high = np.quantile(replicates_R, [0.025, 0.975])
    return float(low), float(high)


def _double(x: np.ndarray) -> np.ndarray:
    return np.asarray(x, np.float64)
