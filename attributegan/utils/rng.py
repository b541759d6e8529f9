"""Counter-based random numbers: one generator for each (seed, purpose, position), so that no state needs saving."""

from __future__ import annotations

import hashlib
from enum import StrEnum

import torch


class Purpose(StrEnum):
    """The random streams. The strings seed them: a member may be renamed, but changing a string changes every number of its stream."""

    WEIGHTS = "weights"
    LATENTS_D = "latents of the discriminator phase"
    LATENTS_G = "latents of the generator phase"
    AUGMENT_REAL = "augmentation of real images"
    AUGMENT_FAKE = "augmentation of generated images"
    AUGMENT_G = "augmentation in the generator phase"
    VARIED_ATTRIBUTES = "moved attributes"
    VARY_ATTRIBUTE = "whether attributes are moved"
    QUADRANT = "quadrant"
    SAMPLE_LATENT = "latent of a sample"
    SAMPLE_LEVELS = "levels of a sample"
    SAMPLE_REAL_TILE = "real tile of a sample"
    SAMPLE_REPLACEMENT = "latent instead of a rejected one"
    PREDICTOR_WEIGHTS = "weights of the judge"
    PREDICTOR_TILES = "tiles for the judge"
    QUIZ_ATTRIBUTE = "attribute of a quiz"


def rng_for(seed: int, purpose: Purpose, position: int = 0) -> torch.Generator:
    """Returns a CPU generator seeded by the three arguments only."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{position}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
