"""An order for storage with slow random access: shards in random order, a few at a time, with tiles shuffled among those.

A pure function of (seed, position) like `global_order.GlobalShuffle`, with the same weights, but a pass reads its shards in windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from data_shards.sampler import permutation
from data_shards.sampler.global_order import SystematicDraws, lengths


class _Pass(NamedTuple):
    """The shards S and windows V of one pass, in order; W are the windows that contain draws."""

    shard_S: np.ndarray
    start_S: np.ndarray  # start of the shard on the line of this pass
    begin_V: np.ndarray  # first draw of the window
    first_W: np.ndarray
    draws_W: np.ndarray


class WindowedShuffle:
    """The order of a set of tiles with ``window`` shards open at a time.

    As in `GlobalShuffle`, N equidistant points hit the segment of a tile of weight w floor(w) or ceil(w) times. Here the line is the
    concatenation of the shards, in an order drawn for each pass, and draws are shuffled within each window of ``window`` shards.

    Args:
        levels_NA: int8, the levels of every tile.
        shard_N: the shard of every tile, 0 or more.
        seed, balance: as in `GlobalShuffle`.
        window: shards read concurrently; more shards mix better.
    """

    def __init__(self, levels_NA: np.ndarray, shard_N: np.ndarray, seed: int, balance: float, window: int) -> None:
        assert window >= 1
        self.seed, self.window = seed, window
        length_N = lengths(levels_NA, balance)
        self._number_S, shard_N = np.unique(shard_N, return_inverse=True)
        self._tiles_N = np.argsort(shard_N, kind="stable").astype(np.uint32)
        self._end_N = np.cumsum(length_N[self._tiles_N])
        tiles_S = np.bincount(shard_N)
        self._shard_end_S = self._end_N[np.cumsum(tiles_S) - 1]
        self._shard_length_S = np.diff(self._shard_end_S, prepend=0)
        self._draws = SystematicDraws(len(levels_NA), int(self._end_N[-1]), seed)
        self._shards = permutation.stream(seed, permutation.Purpose.SHARDS)
        self._shuffle = permutation.stream(seed, permutation.Purpose.TILES_IN_WINDOW)
        self._pass = lru_cache(maxsize=3)(self._make_pass)

    def __len__(self) -> int:
        """Returns the number of positions in a pass."""
        return self._draws.size

    def __getitem__(self, positions_B: np.ndarray) -> np.ndarray:
        """Returns the tile indices in [0, N) at ``positions_B`` (int64, 0 or more)."""
        pass_B, offset_B = np.divmod(np.asarray(positions_B, np.int64), len(self))
        tile_B = np.empty_like(offset_B)
        for number in np.unique(pass_B).tolist():
            tile_B[pass_B == number] = self._in_pass(number, offset_B[pass_B == number])
        return tile_B

    def shards_from(self, position: int) -> Iterator[int]:
        """Yields the indices of the shards read from ``position`` on, in order, for this pass and the next."""
        number, offset = divmod(position, len(self))
        for one, first in ((self._pass(number), offset), (self._pass(number + 1), 0)):
            window = int(np.searchsorted(one.begin_V, first, side="right")) - 1
            yield from self._number_S[one.shard_S[window * self.window :]].tolist()

    def _in_pass(self, number: int, offset_B: np.ndarray) -> np.ndarray:
        current = self._pass(number)
        window_B = np.searchsorted(current.first_W, offset_B, side="right") - 1
        key_B = permutation.hashes(permutation.hashes(self._shuffle, np.array([number]))[0], window_B)
        within_B = permutation.permute(offset_B - current.first_W[window_B], current.draws_W[window_B], key_B)
        point_B = self._draws.point(current.first_W[window_B] + within_B, np.full_like(offset_B, number))
        segment_B = np.searchsorted(current.start_S, point_B, side="right") - 1
        shard_B = current.shard_S[segment_B]
        start_B = self._shard_end_S[shard_B] - self._shard_length_S[shard_B]
        slot_B = np.searchsorted(self._end_N, start_B + point_B - current.start_S[segment_B], side="right")
        return self._tiles_N[slot_B].astype(np.int64)

    def _make_pass(self, number: int) -> _Pass:
        shards = len(self._shard_length_S)
        shard_S = permutation.shuffle(shards, permutation.hashes(self._shards, np.array([number]))[0])
        end_S = np.cumsum(self._shard_length_S[shard_S])
        start_S = end_S - self._shard_length_S[shard_S]
        begin_V = np.array([self._draws.first_at_or_after(int(start), number) for start in start_S[:: self.window]])
        draws_V = np.diff(begin_V, append=len(self))
        return _Pass(shard_S, start_S, begin_V, begin_V[draws_V > 0], draws_V[draws_V > 0])
