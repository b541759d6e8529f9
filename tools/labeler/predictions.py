"""What an attribute predictor reads off the tiles, and how uncertain it is: for the order of the queue, and shown after an answer.

The predictor comes from the cache of `attributegan-evaluate`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from attributegan.attributes import AttributeSchema
from attributegan.evaluation import reference
from attributegan.metrics import features, predictor
from data_shards.format import tile
from tools.labeler.tiles import Tiles

CHUNK = 32  # tiles at a time


@dataclass(frozen=True)
class Predictions:
    """
    Args:
        levels: by file, real numbers on each attribute's scale.
        uncertainty: by file, mean binary entropy of "is the level above k?" over levels and attributes, in bits, [0, 1].
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
    """Predictions of all tiles, from the cache or into it; unreadable tiles have none.

    Args:
        folder: a ``judge-…`` folder of the cache of `attributegan-evaluate`.
        size: pixels that the predictor was trained at; None where its folder says it.

    Raises:
        ValueError: no predictor there for these attributes, or one whose tile size is not known.
    """
    judge, size = _load(folder, schema, size)
    stats = [(tiles.root / file).stat() for file in tiles.files]
    weights = (folder / "judge.safetensors").stat()
    content = [[file, stat.st_size, stat.st_mtime_ns] for file, stat in zip(tiles.files, stats, strict=True)]
    path = cache.path("label-predictions", str(tiles.root.resolve()), content, str(folder.resolve()), weights.st_mtime_ns, size)
    found_NA = cache.load(path)
    if found_NA is None or found_NA.shape != (len(tiles.files), len(schema.names) + 1):
        network = _network(judge, folder)
        parts = []
        for first in range(0, len(tiles.files), CHUNK):
            parts.append(_predict(judge, network, tiles.root, tiles.files[first : first + CHUNK], size))
            progress(min(first + CHUNK, len(tiles.files)), len(tiles.files))
        found_NA = np.concatenate(parts)
        cache.save(path, found_NA)
    known = [(file, row) for file, row in zip(tiles.files, found_NA.tolist(), strict=True) if not np.isnan(row[-1])]
    return Predictions({file: row[:-1] for file, row in known}, {file: row[-1] for file, row in known})


def _load(folder: Path, schema: AttributeSchema, size: int | None) -> tuple[predictor.AttributePredictor, int]:
    found = predictor.PredictorCache(folder).load(schema)
    if found is None:
        raise ValueError(
            f"--predictor {folder}: no predictor of these attributes; give a judge-… folder of attributegan-evaluate's cache "
            "(~/.cache/attributegan/evaluation), trained on the same attributes"
        )
    judge, note = found
    size = size or note.get("tile_size")
    if size is None:
        raise ValueError(f"--predictor {folder}: doesn't say the size of its tiles; give that of the evaluated model with --predictor-size")
    return judge, size


def _network(judge: predictor.AttributePredictor, folder: Path) -> features.Features | None:
    """The feature network that a predictor needs; None where it reads pixels."""
    if not isinstance(judge, predictor.Head):
        return None
    network = features.load()
    if network(np.zeros((1, 8, 8, 3), np.uint8)).shape[1] + predictor.COHERENCES != len(judge.mean_D):
        raise ValueError(f"--predictor {folder}: was fitted on the features of another network than {network.name}; give another")
    return network


def _predict(
    judge: predictor.AttributePredictor, network: features.Features | None, root: Path, files: tuple[str, ...], size: int
) -> np.ndarray:
    """(N, A + 1) float64: levels and uncertainty; NaN for tiles that can't be read."""
    tiles: list[np.ndarray] = []
    rows_N = []
    for row, file in enumerate(files):
        try:
            tiles.append(_tile(root / file, size))
            rows_N.append(row)
        except ValueError:
            continue
    result_NA = np.full((len(files), len(judge.schema.names) + 1), np.nan)
    if tiles:
        tiles_NHWC = np.stack(tiles)
        small = reference.thumbs(tiles_NHWC)
        seen_ND = None if network is None else network(tiles_NHWC)
        result_NA[rows_N, :-1] = judge.predict(small, seen_ND)
        result_NA[rows_N, -1] = _uncertainty(judge, small, seen_ND)
    return result_NA


def _tile(path: Path, size: int) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(tile.fit(image.convert("RGB"), size))
    except tile.DECODING_ERRORS as error:
        raise ValueError(f"{path}: not a readable image: {error}") from error


@torch.inference_mode()
def _uncertainty(judge: predictor.AttributePredictor, tiles_NHWC: np.ndarray, features_ND: np.ndarray | None) -> np.ndarray:
    """Mean entropy of the binary answers, each attribute counting alike; (N,)."""
    logits_NK = judge.eval()(*judge.inputs(tiles_NHWC, features_ND, next(judge.parameters()).device)).double()
    p_NK = logits_NK.sigmoid().clamp(1e-12, 1 - 1e-12)
    bits_NK = -(p_NK * p_NK.log2() + (1 - p_NK) * (1 - p_NK).log2())
    parts = bits_NK.split([len(attribute.assessable) - 1 for attribute in judge.schema.attributes], dim=1)
    return torch.stack([part.mean(dim=1) for part in parts], dim=1).mean(dim=1).cpu().numpy()
