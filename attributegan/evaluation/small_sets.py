"""Checks whether there are enough real tiles to measure image quality and memorisation; the rule for attributes is in reference.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from attributegan.evaluation.reference import MIN_CLUSTERS, MIN_TRAIN, ReferenceSet
from attributegan.metrics import quality
from attributegan.metrics.quality import NEIGHBOURS, Memorisation

MIN_HELD_OUT = NEIGHBOURS + 1  # tiles needed for balls of nearest neighbours
SAME_SLIDES, HELD_OUT = "same slides", "held-out split"  # where the tiles of the membership test come from
SAME_TILE = 1e-6  # distance, as a share of the norm of a feature vector, up to which two tiles are the same


def quality_problem(reference: ReferenceSet) -> str:
    """Returns why KID, FID and the related scores can't be computed; "" if they can."""
    for name, split_ND, least in (("training", reference.train_ND, MIN_TRAIN), ("held-out", reference.held_out_ND, MIN_HELD_OUT)):
        if len(split_ND) < least:
            return f"too few {name} tiles: {len(split_ND)}, at least {least} are needed"
        if np.ptp(split_ND, axis=0).max() <= SAME_TILE * _mean_norm(split_ND):
            return f"all {name} tiles are identical"
    return ""


def memorisation(reference: ReferenceSet, generated_ND: np.ndarray) -> Memorisation | None:
    """Computes `quality.memorisation`; returns None if held-out tiles are too few, or copies of training tiles."""
    if quality_problem(reference):
        return None
    _, distance_M = quality.nearest(reference.held_out_ND, reference.train_ND)
    if np.median(distance_M) <= SAME_TILE * _mean_norm(reference.train_ND):
        return None
    return quality.memorisation(reference.train_ND, generated_ND, reference.held_out_ND)


def privacy(reference: ReferenceSet, generated_ND: np.ndarray) -> tuple[Memorisation | None, dict[str, Any]]:
    """Computes both privacy tests; returns the nearest neighbours, for pictures, and the numbers of the row, {} where not possible."""
    memory = memorisation(reference, generated_ND)
    if memory is None:
        return None, {}
    train, same = reference.train, reference.same_slides
    if same is not None and reference.same_slides_ND is not None:
        found = quality.membership_within_slides(
            reference.train_ND, reference.same_slides_ND, generated_ND, train.group_N, same.group_N, _has_slides(same.group_N)
        )
    else:
        group_T, group_M = (split.group_N if _has_slides(split.group_N) else None for split in (train, reference.held_out))
        found = quality.membership(reference.train_ND, reference.held_out_ND, generated_ND, group_T, group_M)
    numbers = {
        "ratio": memory.ratio,
        "nearer": memory.nearer,
        "membership": [found.value, found.low, found.high],
        "membership_tiles": SAME_SLIDES if same is not None else HELD_OUT,
    }
    return memory, {"memory": numbers}


def _has_slides(group_N: np.ndarray) -> bool:
    """Whether there are enough slides to resample them instead of tiles."""
    return len(np.unique(group_N)) >= MIN_CLUSTERS


def _mean_norm(x_ND: np.ndarray) -> float:
    """Returns the root mean square norm of the rows."""
    return float(np.sqrt((np.asarray(x_ND, np.float64) ** 2).sum(axis=1).mean()))
