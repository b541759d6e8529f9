"""Counter-based pseudo-random numbers in numpy: hashes of integers and a permutation with random access.

All functions are pure and use 64-bit integers, so results are the same on every machine and with every version of numpy.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, made odd
ROUNDS = 8


class Purpose(StrEnum):
    """Purposes of random streams. All random numbers depend on these strings: names may change, strings must not."""

    TILES = "order of the tiles"
    EPOCH_OFFSET = "offset of a pass"
    SHARDS = "order of the shards"
    TILES_IN_WINDOW = "order of the tiles in a window"
    SYMMETRIES = "turns of the tiles"
    CROPS = "crops of the tiles"
    HELD_OUT_TILES = "held-out tiles"
    HELD_OUT_GROUPS = "held-out groups"
    PACKED_TILES = "order in the shards"
    EVALUATION_TILES = "tiles of an evaluation"


def stream(seed: int, purpose: Purpose) -> np.uint64:
    """Returns the 64-bit key of a stream of random numbers."""
    return np.uint64(int.from_bytes(hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest(), "little"))


def mix(numbers_N: np.ndarray) -> np.ndarray:
    """Apply the finalizer of SplitMix64 (Steele, Lea & Flood 2014), a pseudo-random bijection of uint64."""
    z = (numbers_N ^ (numbers_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def hashes(key: np.uint64, numbers_N: np.ndarray) -> np.ndarray:
    """Returns a pseudo-random uint64 for each counter of a stream."""
    return mix(mix(np.asarray(numbers_N).astype(np.uint64) * GOLDEN + GOLDEN) ^ key)


def shuffle(size: int, key: np.uint64) -> np.ndarray:
    """Returns ``range(size)`` in the pseudo-random order of ``key``, int64."""
    return permute(np.arange(size), size, np.full(size, key))


def permute(index_N: np.ndarray, size: int | np.ndarray, keys_N: np.ndarray) -> np.ndarray:
    """Returns the images of indices under pseudo-random permutations of ``range(size)``, one permutation per key.

    A Feistel network on pairs (Luby & Rackoff 1988) over the smallest square that holds ``size``, with cycle walking
    (Black & Rogaway 2002, "Ciphers with arbitrary finite domains"). The cost per index is independent of ``size``.

    Args:
        index_N: int64, in [0, size).
        size: below 2^52; one for all indices, or one for each.
        keys_N: uint64, the key of each index's permutation.
    """
    size_N = np.broadcast_to(np.asarray(size, np.uint64), np.shape(index_N))
    side_N = np.ceil(np.sqrt(size_N.astype(np.float64))).astype(np.uint64)
    result_N = np.array(index_N, dtype=np.uint64)
    outside = np.arange(len(result_N))
    while len(outside):
        result_N[outside] = _network(result_N[outside], side_N[outside], keys_N[outside])
        outside = outside[result_N[outside] >= size_N[outside]]
    return result_N.astype(np.int64)


def _network(numbers_N: np.ndarray, side_N: np.ndarray, keys_N: np.ndarray) -> np.ndarray:
    left_N, right_N = np.divmod(numbers_N, side_N)
    for number in range(1, ROUNDS + 1):
        round_keys_N = keys_N + np.full_like(keys_N, number) * GOLDEN
        left_N, right_N = right_N, (left_N + mix(right_N * GOLDEN ^ round_keys_N) % side_N) % side_N
    return left_N * side_N + right_N
