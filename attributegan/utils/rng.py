"""Counted random numbers: a generator for each (seed, purpose, position), so that no state needs saving."""

from __future__ import annotations

import hashlib

import torch


def rng_for(seed: int, purpose: str, position: int = 0) -> torch.Generator:
    """A CPU generator that depends on the three arguments alone."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{position}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
