"""Baselines for reading tiles: a plain WebDataset pipeline, and single image files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from data_shards.format import tile as tile_format
from data_shards.loader.tile_reader import apply_symmetry


def webdataset_batches(tars: Sequence[Path], batch: int, workers: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images_BHWC, levels_BA) without end from a WebDataset pipeline as in its documentation, with our decoding and rotations."""
    import webdataset

    rng = np.random.default_rng(seed)

    def tile(sample: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        data = next(sample[kind] for kind in ("jpg", "png", "webp") if kind in sample)
        levels = list(json.loads(sample["json"])["levels"].values())
        return np.ascontiguousarray(apply_symmetry(tile_format.decode(data), int(rng.integers(8)))), np.array(levels)

    pipeline = webdataset.WebDataset([str(tar) for tar in tars], shardshuffle=False, resampled=True, seed=seed)
    stacked = pipeline.shuffle(1000).map(tile).batched(batch, collation_fn=_stacked)
    return iter(DataLoader(stacked, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None))


def _stacked(tiles: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[Tensor, Tensor]:
    images, levels = zip(*tiles, strict=True)
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(levels))


class SingleImages(torch.utils.data.Dataset[Tensor]):
    """Image files opened, resized and normalised one by one, as in the published AttributeGAN code."""

    def __init__(self, files: Sequence[Path], size: int) -> None:
        self.files, self.size = files, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> Tensor:
        with Image.open(self.files[number]) as image:
            resized = image.convert("RGB").resize((self.size, self.size), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float().div_(127.5).sub_(1)


def single_image_batches(files: Sequence[Path], size: int, batch: int, workers: int) -> Iterator[Tensor]:
    """Yield images_BCHW in [-1, 1] without end."""
    assert len(files) >= batch
    loader = DataLoader(
        SingleImages(files, size), batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=bool(workers)
    )
    while True:
        yield from loader
