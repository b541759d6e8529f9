"""Full-precision computation inside networks of any precision."""

from __future__ import annotations

import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)


def full_precision(x: Tensor) -> Tensor:
    """Converts half precision to float32; float32 and double stay as they are."""
    return x.float() if x.dtype in HALVES else x
