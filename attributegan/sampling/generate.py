"""Generates tiles from a generator, latents and levels."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from attributegan.utils.allocator import keep_freed_memory
from attributegan.utils.precision import autocast

G = TypeVar("G", bound=nn.Module)


def prepare_for_inference(generator: G, device: str = "cpu") -> G:
    """Moves a generator to ``device`` in eval mode and channels-last; on the CPU, makes malloc reuse freed memory."""
    if device == "cpu":
        keep_freed_memory()
    return generator.eval().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@torch.no_grad()
def generate(generator: nn.Module, latents_BL: Tensor, levels_BA: Tensor, batch: int = 16, precision: str = "fp32") -> np.ndarray:
    """Generates tiles.

    Args:
        generator: in eval mode, on any device.
        latents_BL: standard normal.
        levels_BA: long, or a floating type with levels in between.
        batch: tiles generated at a time.
        precision: "fp32", "bf16" or "fp16".

    Returns:
        tiles (B, H, W, 3), uint8.
    """
    weight = next(generator.parameters())
    parts = []
    for latents, levels in zip(latents_BL.split(batch), levels_BA.split(batch), strict=True):
        with autocast(precision, weight.device):
            images_BCHW = generator(latents.to(weight), levels.to(weight.device))
        parts.append(((images_BCHW.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(parts)
