"""The order of tiles: a pure function of (seed, position), independent of the number of processes, workers and restarts.

Positions count images over the whole run; pass ``p`` covers positions ``p * N`` to ``(p + 1) * N - 1`` of a set of N tiles. Owns the
shuffle; sampling weights are in balance.py, reading tiles in loader.py.
"""

from __future__ import annotations

import math

import numpy as np

from data_shards.sampler import permutation
from data_shards.sampler.balance import weights

UNIT = 1 << 20  # a weight of 1, in integers that keep the order exact


class GlobalShuffle:
    """The order of a set of tiles. ``order[positions]`` returns the tile at each position, at a cost independent of N.

    A pass draws N points at equal distances on a line on which every tile has a segment as long as its weight (systematic resampling,
    Kitagawa 1996), in pseudo-random order. With ``balance=0`` every tile is drawn exactly once per pass; otherwise a tile of weight w is
    drawn floor(w) or ceil(w) times. The offset of the points advances by the golden ratio from pass to pass, so that tiles with weights
    below 1 are drawn evenly.

    Args:
        levels_NA: int8, the levels of every tile.
        seed: of the order.
        balance: 0 draws all tiles equally often, 1 balances every attribute's levels; see `balance.weights`.
    """

    def __init__(self, levels_NA: np.ndarray, seed: int, balance: float) -> None:
        assert len(levels_NA) and 0 <= balance <= 1
        self.seed = seed
        if balance == 0:  # a single combination
            self._tiles_N, counts_U, self._length_U = None, np.array([len(levels_NA)]), np.array([UNIT])
        else:
            levels_UA, combination_N, counts_U = combinations(levels_NA)
            self._tiles_N = np.argsort(combination_N, kind="stable").astype(np.uint32)
            self._length_U = _length(weights(levels_UA, counts_U, balance))
        self._first_U = np.cumsum(counts_U) - counts_U
        ends_U = np.cumsum(counts_U * self._length_U)
        self._start_U = ends_U - counts_U * self._length_U
        self._draws = SystematicDraws(len(levels_NA), int(ends_U[-1]), seed)
        self._shuffle = permutation.stream(seed, permutation.Purpose.TILES)

    def __len__(self) -> int:
        """Returns the number of positions in a pass."""
        return self._draws.size

    def __getitem__(self, positions_B: np.ndarray) -> np.ndarray:
        """Returns the tile indices in [0, N) at ``positions_B`` (int64, 0 or more)."""
        pass_B, offset_B = np.divmod(np.asarray(positions_B, np.int64), len(self))
        draw_B = permutation.permute(offset_B, len(self), permutation.hashes(self._shuffle, pass_B))
        return self._tile_at(self._draws.point(draw_B, pass_B))

    def _tile_at(self, point_B: np.ndarray) -> np.ndarray:
        combination_B = np.searchsorted(self._start_U, point_B, side="right") - 1
        within_B = (point_B - self._start_U[combination_B]) // self._length_U[combination_B]
        slot_B = self._first_U[combination_B] + within_B
        return slot_B if self._tiles_N is None else self._tiles_N[slot_B].astype(np.int64)


class SystematicDraws:
    """N points at equal distances on a line of integer length, with a different offset in each pass.

    Draw r of a pass is at floor((r * length + offset) / N), with an offset in [0, length).
    """

    def __init__(self, size: int, length: int, seed: int) -> None:
        self.size, self.length = size, length
        self._key = permutation.stream(seed, permutation.Purpose.EPOCH_OFFSET)

    def point(self, draw_B: np.ndarray, pass_B: np.ndarray) -> np.ndarray:
        """Returns the point of each draw on the line, computed without overflow of 64 bits."""
        step, remainder = divmod(self.length, self.size)
        return draw_B * step + (draw_B * remainder + self._offset(pass_B)) // self.size

    def first_at_or_after(self, point: int, number: int) -> int:
        """Returns the first draw of pass ``number`` at ``point`` or after it."""
        return max(0, -((int(self._offset(np.array([number]))[0]) - point * self.size) // self.length))

    def _offset(self, pass_B: np.ndarray) -> np.ndarray:
        hash_B = self._key + pass_B.astype(np.uint64) * permutation.GOLDEN
        return ((hash_B >> np.uint64(11)).astype(np.float64) * 2.0**-53 * self.length).astype(np.int64)


def lengths(levels_NA: np.ndarray, balance: float) -> np.ndarray:
    """Returns the length of every tile's segment, int64; `UNIT` for a weight of 1."""
    if balance == 0:
        return np.full(len(levels_NA), UNIT)
    levels_UA, combination_N, counts_U = combinations(levels_NA)
    return _length(weights(levels_UA, counts_U, balance))[combination_N]


def _length(weights_U: np.ndarray) -> np.ndarray:
    return np.round(weights_U * UNIT).astype(np.int64)


def combinations(levels_NA: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the U combinations of levels that occur, sorted: levels_UA, the combination of each row combination_N, counts_U."""
    radices_A = levels_NA.max(axis=0).astype(np.int64) + 2  # unknown levels are -1
    if math.prod(radices_A.tolist()) >= 2**63:
        raise ValueError(f"data.balance: too many combinations of levels over {len(radices_A)} attributes; use data.balance=0")
    code_N = np.zeros(len(levels_NA), np.int64)
    for levels_N, radix in zip(levels_NA.T, radices_A, strict=True):
        code_N *= radix
        code_N += levels_N + 1
    _, example_U, combination_N, counts_U = np.unique(code_N, return_index=True, return_inverse=True, return_counts=True)
    small = np.uint16 if len(counts_U) < 1 << 16 else np.uint32  # numpy sorts 16-bit integers in linear time
    return levels_NA[example_U], combination_N.astype(small), counts_U
