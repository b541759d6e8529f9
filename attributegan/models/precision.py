"""Which numbers are computed in full precision whatever the network's."""

from __future__ import annotations

import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)


def full_precision(x: Tensor) -> Tensor:
    """``x`` in at least float32; double stays double."""
    return x.float() if x.dtype in HALVES else x
