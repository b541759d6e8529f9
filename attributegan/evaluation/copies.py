"""Recognizes generated tiles that copy training tiles, for sampling: nearer to a training tile than real held-out tiles are.

Owns the threshold and the search for the nearest training tile; the latents drawn instead are in `attributegan.sampling.replacement`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import torch

from attributegan.distributed.process_group import Processes
from attributegan.evaluation.reference import FeatureCache, Progress, Split, features_of
from attributegan.evaluation.small_sets import HELD_OUT, MIN_HELD_OUT, SAME_SLIDES
from attributegan.metrics import quality
from attributegan.metrics.features import Features


@dataclass(frozen=True)
class CopyFilter:
    """Decides whether a tile is a copy of a training tile.

    Args:
        features: the feature extractor.
        training_TD: features of all training tiles, double precision.
        threshold: distance to the nearest training tile below which a tile is a copy, of `quality.copy_threshold`.
        compared_with: the held-out tiles of the threshold, `SAME_SLIDES` or `HELD_OUT`.
        identity: hash of the tiles and the features; equal filters decide equally.
        device: of the features.
    """

    features: Features
    training_TD: np.ndarray
    threshold: float
    compared_with: str
    identity: str
    device: torch.device | None = None

    def nearest(self, tiles_NHWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the index of the nearest training tile of each uint8 tile, and the distance to it."""
        return quality.nearest(self.features(tiles_NHWC, self.device), self.training_TD)

    def __call__(self, tiles_NHWC: np.ndarray) -> np.ndarray:
        """Returns whether each uint8 tile (N, H, W, 3) is a copy, bool [N]."""
        return self.nearest(tiles_NHWC)[1] < self.threshold


def copy_filter(
    train: Split,
    held_out: Split,
    features: Features,
    *,
    same_slides: Split | None = None,
    processes: Processes | None = None,
    cache: FeatureCache | None = None,
    progress: Progress = lambda description, done, total: None,
) -> CopyFilter:
    """Makes the filter of a training set. Every process of a launch must call it.

    A held-out tile that is not a copy is dropped with a probability of 1 %, and so is a generated one of a model that does not copy.

    Args:
        train: all tiles that the model was trained on.
        held_out: real tiles that it was not trained on.
        features: the feature extractor.
        same_slides: such tiles of the training slides, which are preferred: a generated tile has the stain of the training slides
            and is nearer to them than tiles of other slides, without being a copy.
        processes: of this launch.
        cache: of features.
        progress: called with a description, tiles done and the total.

    Raises:
        ValueError: too few held-out tiles, or they are copies of training tiles.
    """
    processes, cache = processes or Processes(), cache or FeatureCache.at(None)
    other = held_out if same_slides is None else same_slides
    if len(other) < MIN_HELD_OUT:
        raise ValueError(
            f"--filter-copies: {len(other)} held-out tiles are too few to recognize copies; at least {MIN_HELD_OUT} are needed"
        )
    arrays = [
        processes.broadcast_object(features_of(split, name, features, processes, cache, progress))
        for split, name in ((train, "training tiles"), (other, "held-out tiles"))
    ]
    training_TD, held_out_MD = (np.asarray(array, np.float64) for array in arrays)
    threshold = quality.copy_threshold(quality.nearest(held_out_MD, training_TD)[1])
    if not threshold > 0:
        raise ValueError("--filter-copies: held-out tiles are copies of training tiles; pack the tiles again without duplicates")
    digest = hashlib.sha256(json.dumps([train.identity, other.identity, features.identity], sort_keys=True).encode()).hexdigest()
    compared_with = HELD_OUT if same_slides is None else SAME_SLIDES
    return CopyFilter(features, training_TD, threshold, compared_with, digest, processes.device)
