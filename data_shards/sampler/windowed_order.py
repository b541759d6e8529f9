"""An order for disks that are slow at random places: shards in random order, a few at a time, tiles shuffled within those.

A pure function of (seed, position) like `order.GlobalShuffle`, with the same weights; but a pass goes through its shards in windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from data_shards.sampler import permutation
from data_shards.sampler.global_order import SystematicDraws, lengths


class _Pass(NamedTuple):
    """The shards S and windows V of one pass, in the order in which it meets them; W are the windows with draws in them."""

    shard_S: np.ndarray
    start_S: np.ndarray  # where the shard begins on the line of this pass
    begin_V: np.ndarray  # first draw in the window
    first_W: np.ndarray
    draws_W: np.ndarray


class WindowedShuffle:
    """The order of a set of tiles with ``window`` shards open at a time.

    As in `GlobalShuffle`, N draws at even distances meet every tile's stretch of a line floor(w) or ceil(w) times; here the line has the
    shards one after the other, in an order drawn for each pass, and the draws are shuffled within every ``window`` of them.

    Args:
        levels_NA: int8, the levels of every tile.
        shard_N: the shard of every tile, from 0 on.
        seed, balance: as in `GlobalShuffle`.
        window: shards that are read at the same time; more mix better.
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
        """Positions in a pass."""
        return self._draws.size

    def __getitem__(self, positions_B: np.ndarray) -> np.ndarray:
        """Tile numbers in [0, N) at ``positions_B``, int64 from 0 on."""
        pass_B, place_B = np.divmod(np.asarray(positions_B, np.int64), len(self))
        tile_B = np.empty_like(place_B)
        for number in np.unique(pass_B).tolist():
            tile_B[pass_B == number] = self._in_pass(number, place_B[pass_B == number])
        return tile_B

    def shards_from(self, position: int) -> Iterator[int]:
        """Numbers of the shards, in the order in which ``position`` and those behind it come to them; of this pass and the next."""
        number, place = divmod(position, len(self))
        for this, first in ((self._pass(number), place), (self._pass(number + 1), 0)):
            window = int(np.searchsorted(this.begin_V, first, side="right")) - 1
            yield from self._number_S[this.shard_S[window * self.window :]].tolist()

    def _in_pass(self, number: int, place_B: np.ndarray) -> np.ndarray:
        this = self._pass(number)
        window_B = np.searchsorted(this.first_W, place_B, side="right") - 1
        key_B = permutation.hashes(permutation.hashes(self._shuffle, np.array([number]))[0], window_B)
        within_B = permutation.permute(place_B - this.first_W[window_B], this.draws_W[window_B], key_B)
        point_B = self._draws.point(this.first_W[window_B] + within_B, np.full_like(place_B, number))
        turn_B = np.searchsorted(this.start_S, point_B, side="right") - 1
        shard_B = this.shard_S[turn_B]
        start_B = self._shard_end_S[shard_B] - self._shard_length_S[shard_B]
        slot_B = np.searchsorted(self._end_N, start_B + point_B - this.start_S[turn_B], side="right")
        return self._tiles_N[slot_B].astype(np.int64)

    def _make_pass(self, number: int) -> _Pass:
        shards = len(self._shard_length_S)
        shard_S = permutation.shuffle(shards, permutation.hashes(self._shards, np.array([number]))[0])
        end_S = np.cumsum(self._shard_length_S[shard_S])
        start_S = end_S - self._shard_length_S[shard_S]
        begin_V = np.array([self._draws.first_from(int(start), number) for start in start_S[:: self.window]])
        draws_V = np.diff(begin_V, append=len(self))
        return _Pass(shard_S, start_S, begin_V, begin_V[draws_V > 0], draws_V[draws_V > 0])
