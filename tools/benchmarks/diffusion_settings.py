"""Options of ``attributegan-bench diffusion``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tools.options import require_at_least


@dataclass(frozen=True)
class DiffusionSettings:
    """Options of ``diffusion``.

    Args:
        cpu_minutes: CPU time of all threads in training, including earlier runs of a resumed model; None for no limit.
        images: images of training; None for no limit.
        channels: of the UNet at each size, from the largest map to the smallest; attention is at the smallest.
        label_dropout: share of the training tiles whose levels are all unknown, for ``guidance``.
        guidance: weight of classifier-free guidance; 1 for none, which takes one pass per step instead of two.
        generator: run or checkpoint whose sampling is timed as well.

    Raises:
        ValueError: an option is out of range, or neither ``cpu_minutes`` nor ``images`` is given.
    """

    repeats: int
    shards: str
    out: Path
    split: str = "train"
    size: int = 64
    cpu_minutes: float | None = None
    images: int | None = None
    channels: tuple[int, ...] = (16, 32, 64, 96)
    prediction: str = "epsilon"
    batch: int = 32
    learning_rate: float = 1e-3
    label_dropout: float = 0.1
    seed: int = 0
    save_every: int = 4000
    precision: str = "auto"
    count: int = 1024
    steps: int = 50
    guidance: float = 1.0
    generator: Path | None = None

    def __post_init__(self) -> None:
        require_at_least(self, repeats=1, size=8, cpu_minutes=0, images=0, batch=1, learning_rate=0, label_dropout=0, save_every=1,
                         count=1, steps=1)  # fmt: skip
        if self.cpu_minutes is None and self.images is None:
            raise ValueError("--cpu-minutes or --images is required")
        if self.label_dropout > 1:
            raise ValueError(f"--label-dropout: {self.label_dropout} must be at most 1")
        if wrong := [width for width in self.channels if width < 8 or width % 8]:
            raise ValueError(f"--channels: {wrong[0]} must be a multiple of 8")
        if self.size % 2 ** (len(self.channels) - 1):
            raise ValueError(
                f"--size: {self.size} must be a multiple of {2 ** (len(self.channels) - 1)} with {len(self.channels)} --channels"
            )
