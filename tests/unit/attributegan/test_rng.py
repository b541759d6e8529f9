"""The strings of `Purpose` seed the random streams and must stay those of the first version."""

from __future__ import annotations

import hashlib

from attributegan.utils import rng
from data_shards.sampler import permutation


def test_purposes_are_those_of_the_first_version() -> None:
    for purposes, digest in ((rng.Purpose, "8f9f1f31e4ac04d8"), (permutation.Purpose, "010782669c044fc1")):
        text = "\n".join(sorted(purpose.value for purpose in purposes))
        assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest, f"a string of {purposes} changed, which changes all random numbers"


def test_numbers_are_those_of_the_first_version() -> None:
    assert rng.rng_for(3, rng.Purpose.SAMPLE_LATENT, 7).initial_seed() == 6557551807300434179
    assert int(permutation.stream(3, permutation.Purpose.TILES)) == 5345361800572393312
