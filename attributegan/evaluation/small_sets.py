"""Whether there are enough real tiles to judge image quality and memorisation by; the rule of attributes is in reference.py."""

from __future__ import annotations

import numpy as np

from attributegan.evaluation.reference import MIN_TRAIN, ReferenceSet
from attributegan.metrics import quality
from attributegan.metrics.quality import NEIGHBOURS, Memory

MIN_HELD_OUT = NEIGHBOURS + 1  # tiles that the balls of neighbours need
ALIKE = 1e-6  # of the length of a feature vector; nearer ones are the same tile


def why_quality_is_not_judged(real: ReferenceSet) -> str:
    """What is missing for KID, FID and the scores beside them, in words; "" when nothing is."""
    for name, split_ND, least in (("training", real.train_ND, MIN_TRAIN), ("held-out", real.held_out_ND, MIN_HELD_OUT)):
        if len(split_ND) < least:
            return f"{len(split_ND)} {name} tiles are too few; {least} are needed"
        if np.ptp(split_ND, axis=0).max() <= ALIKE * _length(split_ND):
            return f"all {name} tiles are alike"
    return ""


def memory_of(real: ReferenceSet, generated_ND: np.ndarray) -> Memory | None:
    """`quality.memorisation`, or None where held-out tiles are too few, or the same as training tiles, and so no measure."""
    if why_quality_is_not_judged(real):
        return None
    _, usual_M = quality.nearest(real.held_out_ND, real.train_ND)
    if np.median(usual_M) <= ALIKE * _length(real.train_ND):
        return None
    return quality.memorisation(real.train_ND, generated_ND, real.held_out_ND)


def _length(x_ND: np.ndarray) -> float:
    return float(np.sqrt((np.asarray(x_ND, np.float64) ** 2).sum(axis=1).mean()))
