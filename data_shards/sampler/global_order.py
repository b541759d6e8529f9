"""Which tile comes when: a pure function of (seed, position), the same for any number of processes, workers and restarts.

Positions count images over the whole run; pass ``p`` is positions ``p * N`` to ``(p + 1) * N - 1`` of a set of N tiles. Owns the
shuffle; how often a tile comes in a pass is in balance.py, reading it in loader.py.
"""

from __future__ import annotations

import math

import numpy as np

from data_shards.sampler import permutation
from data_shards.sampler.balance import weights

UNIT = 1 << 20  # a weight of 1 in the integers that make the order exact


class GlobalShuffle:
    """The order of a set of tiles. ``order[positions]`` gives the tile at each position, at a cost that does not depend on N.

    A pass is N draws at even distances along a line on which every tile has a stretch as long as its weight (systematic resampling,
    Kitagawa 1996), met in pseudo-random order. So with ``balance=0`` every tile comes exactly once a pass, and otherwise a tile of
    weight w comes floor(w) or ceil(w) times. Where on the line a pass begins turns by the golden ratio from pass to pass, so that
    tiles with a weight below 1 take even turns.

    Args:
        levels_NA: int8, the levels of every tile.
        seed: another seed gives another order.
        balance: 0 takes the tiles as they come, 1 wants every attribute's levels equally often; see `balance.weights`.
    """

    def __init__(self, levels_NA: np.ndarray, seed: int, balance: float) -> None:
        assert len(levels_NA) and 0 <= balance <= 1
        self.seed = seed
        if balance == 0:  # one stretch for all
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
        """Positions in a pass."""
        return self._draws.size

    def __getitem__(self, positions_B: np.ndarray) -> np.ndarray:
        """Tile numbers in [0, N) at ``positions_B``, int64 from 0 on."""
        pass_B, place_B = np.divmod(np.asarray(positions_B, np.int64), len(self))
        draw_B = permutation.permute(place_B, len(self), permutation.hashes(self._shuffle, pass_B))
        return self._tile_at(self._draws.point(draw_B, pass_B))

    def _tile_at(self, point_B: np.ndarray) -> np.ndarray:
        combination_B = np.searchsorted(self._start_U, point_B, side="right") - 1
        within_B = (point_B - self._start_U[combination_B]) // self._length_U[combination_B]
        slot_B = self._first_U[combination_B] + within_B
        return slot_B if self._tiles_N is None else self._tiles_N[slot_B].astype(np.int64)


class SystematicDraws:
    """N draws at even distances along a line of integer length, begun elsewhere in each pass.

    Draw r of a pass is at floor((r * length + offset) / N), with an offset in [0, length).
    """

    def __init__(self, size: int, length: int, seed: int) -> None:
        self.size, self.length = size, length
        self._key = permutation.stream(seed, permutation.Purpose.EPOCH_OFFSET)

    def point(self, draw_B: np.ndarray, pass_B: np.ndarray) -> np.ndarray:
        """Where each draw is on the line, without leaving 64 bits on the way."""
        step, remainder = divmod(self.length, self.size)
        return draw_B * step + (draw_B * remainder + self._offset(pass_B)) // self.size

    def first_from(self, place: int, number: int) -> int:
        """The first draw of pass ``number`` that is at ``place`` or behind it."""
        return max(0, -((int(self._offset(np.array([number]))[0]) - place * self.size) // self.length))

    def _offset(self, pass_B: np.ndarray) -> np.ndarray:
        turned_B = self._key + pass_B.astype(np.uint64) * permutation.GOLDEN
        return ((turned_B >> np.uint64(11)).astype(np.float64) * 2.0**-53 * self.length).astype(np.int64)


def lengths(levels_NA: np.ndarray, balance: float) -> np.ndarray:
    """The stretch of every tile, int64; `UNIT` for a weight of 1."""
    if balance == 0:
        return np.full(len(levels_NA), UNIT)
    levels_UA, combination_N, counts_U = combinations(levels_NA)
    return _length(weights(levels_UA, counts_U, balance))[combination_N]


def _length(weights_U: np.ndarray) -> np.ndarray:
    return np.round(weights_U * UNIT).astype(np.int64)


def combinations(levels_NA: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The U combinations of levels that occur, sorted: (levels_UA, the combination of each row as combination_N, counts_U)."""
    radices_A = levels_NA.max(axis=0).astype(np.int64) + 2  # a level that is not known is -1
    if math.prod(radices_A.tolist()) >= 2**63:
        raise ValueError(f"data.balance: can't balance over {len(radices_A)} attributes with so many levels; use data.balance=0")
    code_N = np.zeros(len(levels_NA), np.int64)
    for levels_N, radix in zip(levels_NA.T, radices_A, strict=True):
        code_N *= radix
        code_N += levels_N + 1
    _, example_U, combination_N, counts_U = np.unique(code_N, return_index=True, return_inverse=True, return_counts=True)
    small = np.uint16 if len(counts_U) < 1 << 16 else np.uint32  # numpy sorts 16 bits in linear time
    return levels_NA[example_U], combination_N.astype(small), counts_U
