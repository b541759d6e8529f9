"""Untrained models, for tests of sampling, evaluation and export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from attributegan.attributes import PUBLISHED
from attributegan.checkpoint import writer
from attributegan.config import Config, ModelConfig
from attributegan.models import Generator

SMALLEST = ModelConfig(image_size=32, latent_dim=16, fmap_max=16, fmap_inverse_coef=6, generator_attention=())


def untrained_run(run: Path, images: int, change: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda weights: weights) -> Path:
    """Save a checkpoint of a 32 px generator with random weights; its EMA has different ones. Returns its path."""
    torch.manual_seed(0)
    weights, average = (change(Generator(SMALLEST, PUBLISHED).state_dict()) for _ in range(2))
    state = {"config": Config(SMALLEST).to_dict(), "schema": PUBLISHED.to_dict()}
    return writer.save(run / "checkpoints", images, state=state, generator=weights, generator_ema=average)
