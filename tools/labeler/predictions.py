"""Predicted levels of the tiles and their uncertainty, for the order of the queue and for display after an answer.

The predictor comes from the cache of `attributegan-evaluate`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from attributegan.attributes import AttributeSchema
from attributegan.evaluation import reference
from attributegan.metrics import features, predictor
from data_shards.format import tile
from tools.labeler.tiles import Tiles

CHUNK = 32  # tiles per batch


@dataclass(frozen=True)
class Predictions:
    """Predictions by file.

    Args:
        levels: by file, a real number on each attribute's scale.
        uncertainty: by file, mean binary entropy of "level above k" over levels and attributes, in bits, in [0, 1].
    """

    levels: dict[str, list[float]]
    uncertainty: dict[str, float]


def predict(
    folder: Path,
    schema: AttributeSchema,
    tiles: Tiles,
    size: int | None,
    cache: reference.FeatureCache,
    progress: Callable[[int, int], None],
) -> Predictions:
    """Predict the levels of all readable tiles, using the cache.

    Args:
        folder: a ``judge-…`` folder in the cache of `attributegan-evaluate`.
        size: tile size in pixels that the predictor was trained with; None if it is saved in the folder.

    Raises:
        ValueError: no predictor for these attributes, an unknown tile size, or a predictor for other features.
    """
    attribute_predictor, note, size = _load(folder, schema, size)
    stats = [(tiles.root / file).stat() for file in tiles.files]
    weights = (folder / "judge.safetensors").stat()
    content = [[file, stat.st_size, stat.st_mtime_ns] for file, stat in zip(tiles.files, stats, strict=True)]
    judge = [str(folder.resolve()), weights.st_mtime_ns, note.get("features")]
    path = cache.path("label-predictions", str(tiles.root.resolve()), content, judge, size)
    found_NA = cache.load(path)
    if found_NA is None or found_NA.shape != (len(tiles.files), len(schema.names) + 1):
        network = reference.predictor_network(attribute_predictor, note, folder)
        parts = []
        for first in range(0, len(tiles.files), CHUNK):
            parts.append(_predict(attribute_predictor, network, tiles.root, tiles.files[first : first + CHUNK], size))
            progress(min(first + CHUNK, len(tiles.files)), len(tiles.files))
        found_NA = np.concatenate(parts)
        cache.save(path, found_NA)
    readable = [(file, row) for file, row in zip(tiles.files, found_NA.tolist(), strict=True) if not np.isnan(row[-1])]
    return Predictions({file: row[:-1] for file, row in readable}, {file: row[-1] for file, row in readable})


def _load(folder: Path, schema: AttributeSchema, size: int | None) -> tuple[predictor.AttributePredictor, dict[str, Any], int]:
    found = predictor.PredictorCache(folder).load(schema)
    if found is None:
        raise ValueError(
            f"--predictor {folder}: no predictor for these attributes; give a judge-… folder of attributegan-evaluate's cache "
            "(~/.cache/attributegan/evaluation) that was trained on the same attributes"
        )
    attribute_predictor, note = found
    size = size or note.get("tile_size")
    if size is None:
        raise ValueError(
            f"--predictor {folder}: the tile size is not saved; give the image size of the evaluated model as --predictor-size"
        )
    return attribute_predictor, note, size


def _predict(
    attribute_predictor: predictor.AttributePredictor, network: features.Features | None, root: Path, files: tuple[str, ...], size: int
) -> np.ndarray:
    """Return levels and uncertainty (N, A + 1) float64; NaN for unreadable tiles."""
    tiles: list[np.ndarray] = []
    rows_N = []
    for row, file in enumerate(files):
        try:
            tiles.append(_tile(root / file, size))
            rows_N.append(row)
        except ValueError:
            continue
    result_NA = np.full((len(files), len(attribute_predictor.schema.names) + 1), np.nan)
    if tiles:
        tiles_NHWC = np.stack(tiles)
        small = reference.thumbs(tiles_NHWC)
        features_ND = None if network is None else network(tiles_NHWC)
        result_NA[rows_N, :-1] = attribute_predictor.predict(small, features_ND)
        result_NA[rows_N, -1] = _uncertainty(attribute_predictor, small, features_ND)
    return result_NA


def _tile(path: Path, size: int) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(tile.fit(image.convert("RGB"), size))
    except tile.DECODING_ERRORS as error:
        raise ValueError(f"{path}: not a readable image: {error}") from error


@torch.inference_mode()
def _uncertainty(attribute_predictor: predictor.AttributePredictor, tiles_NHWC: np.ndarray, features_ND: np.ndarray | None) -> np.ndarray:
    """Return the mean entropy of the binary outputs (N,), each attribute with equal weight."""
    logits_NK = attribute_predictor.eval()(
        *attribute_predictor.inputs(tiles_NHWC, features_ND, next(attribute_predictor.parameters()).device)
    ).double()
    p_NK = logits_NK.sigmoid().clamp(1e-12, 1 - 1e-12)
    bits_NK = -(p_NK * p_NK.log2() + (1 - p_NK) * (1 - p_NK).log2())
    parts = bits_NK.split([len(attribute.assessable) - 1 for attribute in attribute_predictor.schema.attributes], dim=1)
    return torch.stack([part.mean(dim=1) for part in parts], dim=1).mean(dim=1).cpu().numpy()
