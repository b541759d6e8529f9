"""Makes the pairs of a 2AFC study: real tiles of a held-out split, and generated tiles of the same levels from a model or a tile set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch

from attributegan.attributes import AttributeSchema
from attributegan.checkpoint.loading import Loaded, load_for_sampling
from attributegan.evaluation.reference import Split
from attributegan.sampling import generate, latents
from data_shards.format.tile import encode_png
from data_shards.storage.cache import Cache
from tools.evaluation.data import open_split
from tools.evaluation.tiles import is_tiles, open_tiles
from tools.labeler.queue import uniform
from tools.options import resolve_precision
from tools.two_afc import study
from tools.two_afc.options import StudySettings

ALL = 2**62  # no limit of tiles


def build(settings: StudySettings) -> None:
    """Write the study of ``settings``.

    Raises:
        ValueError: a model, tile set or shard set that can't be used, or no tiles of the same levels.
    """
    assert settings.generated is not None
    assert settings.shards is not None
    cache = Cache.of(settings.shards_cache, settings.shards_cache_gb)
    if is_tiles(settings.generated):
        source = open_tiles(settings.generated, cache)
        size, location, images = source.image_size, source.location, None
        schema, real, shards = _real(settings, size, cache)
        tiles = source.open(schema, ALL, size)
        matches = _match(real, tiles, settings)
        real_N, generated_N = (np.array(column, np.int64) for column in zip(*matches, strict=True))
        generated: Iterator[np.ndarray] = (tiles.read(np.array([number]))[0] for number in generated_N.tolist())
    else:
        loaded = load_for_sampling(settings.generated, ema=not settings.no_ema)
        size, location, images = loaded.config.model.image_size, settings.generated, loaded.images
        schema, real, shards = _real(settings, size, cache)
        if differences := loaded.schema.difference(schema):
            raise ValueError(f"{settings.generated}: does not fit the shards: {'; '.join(differences)}")
        real_N = np.array(_order("real tile", len(real), settings.seed)[: settings.pairs], np.int64)
        generated = _generated(loaded, real.levels_NA[real_N], settings)
    if len(real_N) < settings.pairs:
        print(f"{len(real_N):,} pairs instead of {settings.pairs:,}: there are no more tiles of the same levels", flush=True)
    about = {"generated": location, "shards": shards, "split": settings.split, "pairs": len(real_N)}
    pairs = zip((real.read(np.array([number]))[0] for number in real_N.tolist()), generated, strict=True)
    encoded = ((encode_png(real_HWC), encode_png(fake_HWC)) for real_HWC, fake_HWC in pairs)
    about |= {"seed": settings.seed, "image_size": size, "images": images}
    study.write(settings.out, schema, real.levels_NA[real_N].tolist(), about, encoded)


def _real(settings: StudySettings, size: int, cache: Cache) -> tuple[AttributeSchema, Split, str]:
    """Open the split with the real tiles; returns its schema, its tiles and its location without secrets."""
    shards, _, split = open_split(settings.shards or "", settings.split, size, ALL, False, cache, "--split")
    return shards.schema, split, shards.location


def _match(real: Split, tiles: Split, settings: StudySettings) -> list[tuple[int, int]]:
    """Pair real with generated tiles of the same levels, each used once, in random order."""
    generated: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number in _order("generated tile", len(tiles), settings.seed):
        generated[tuple(tiles.levels_NA[number].tolist())].append(number)
    pairs = []
    for number in _order("real tile", len(real), settings.seed):
        if left := generated.get(tuple(real.levels_NA[number].tolist())):
            pairs.append((number, left.pop()))
    if not pairs:
        raise ValueError(
            f"{settings.generated}: no generated tile has the levels of a real tile in split {settings.split}; generate tiles with levels "
            "of real tiles, such as by `attributegan-sample --levels-from`"
        )
    return pairs[: settings.pairs]


def _order(purpose: str, count: int, seed: int) -> list[int]:
    return sorted(range(count), key=lambda number: uniform(seed, purpose, str(number)))


def _generated(loaded: Loaded, levels_NA: np.ndarray, settings: StudySettings) -> Iterator[np.ndarray]:
    device, precision = "cuda" if torch.cuda.is_available() else "cpu", resolve_precision(settings.precision)
    generator = generate.prepare_for_inference(loaded.generator, device)
    for first in range(0, len(levels_NA), settings.batch):
        levels_BA = torch.from_numpy(levels_NA[first : first + settings.batch])
        latents_BL = latents.latents_for(settings.seed, range(first, first + len(levels_BA)), loaded.config.model.latent_dim)
        yield from generate.generate(generator, latents_BL, levels_BA, settings.batch, precision)
