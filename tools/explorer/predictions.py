"""Predicts the levels of a generated tile and finds the nearest real tiles. The predictor was trained on real tiles only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attributegan.distributed.process_group import Processes
from attributegan.evaluation import reference
from attributegan.metrics import features, predictor, quality
from attributegan.metrics.efficientnet import SIZES
from tools.evaluation import feature_networks
from tools.explorer.model import Model

NEAREST = 4
NO_PREDICTOR = (
    "No predictor is loaded: start attributegan-explore with --predictor, or with the --shards of an earlier attributegan-evaluate."
)


@dataclass(frozen=True)
class RealTiles:
    """Real tiles and their features."""

    split: reference.Split
    features_ND: np.ndarray

    def nearest(self, feature_D: np.ndarray) -> list[int]:
        """Return the rows of the `NEAREST` tiles by feature distance, nearest first."""
        distance_N = quality.distances(feature_D[None], self.features_ND)[0]
        rows: list[int] = np.argsort(distance_N, kind="stable")[:NEAREST].tolist()
        return rows


@dataclass(frozen=True)
class TileAnalyzer:
    """Predicts levels and finds nearest real tiles, as far as a predictor and real tiles are available.

    Args:
        attribute_predictor: predictor of levels, or None.
        predictor_note: one or two sentences about it, for the page.
        network: feature network, if the predictor or the real tiles need it.
        tiles: real tiles, or None.
    """

    attribute_predictor: predictor.AttributePredictor | None
    predictor_note: str
    network: features.Features | None
    tiles: RealTiles | None

    def levels(self, tile_HWC: np.ndarray) -> list[float] | None:
        """Return the predicted level of each attribute; None without a predictor."""
        if self.attribute_predictor is None:
            return None
        small = reference.thumbs(tile_HWC[None])
        features_ND = self._features(tile_HWC) if isinstance(self.attribute_predictor, predictor.Head) else None
        levels: list[float] = self.attribute_predictor.predict(small, features_ND)[0].tolist()
        return levels

    def nearest(self, tile_HWC: np.ndarray) -> list[int]:
        """Return the rows of the nearest real tiles; [] without real tiles."""
        return [] if self.tiles is None else self.tiles.nearest(self._features(tile_HWC)[0])

    def _features(self, tile_HWC: np.ndarray) -> np.ndarray:
        assert self.network is not None
        return self.network(tile_HWC[None])


def open_analyzer(
    model: Model, tiles: reference.Split | None, predictor_folder: Path | None, cache: Path | None, progress: reference.Progress
) -> TileAnalyzer:
    """Load the predictor and the features of the real tiles.

    Args:
        model: the model whose tiles are shown.
        tiles: real tiles; their predictor is looked up in the cache of ``attributegan-evaluate``.
        predictor_folder: folder of a predictor to load instead.
        cache: cache folder of ``attributegan-evaluate``; None for the default.

    Raises:
        ValueError: a predictor that can't be loaded, or does not fit the model.
    """
    schema, feature_cache = model.generator.schema, reference.FeatureCache.at(cache)
    found, network, real_tiles = None, None, None
    if predictor_folder is not None:
        found = predictor.PredictorCache(predictor_folder).load(schema)
        if found is None:
            raise ValueError(
                f"--predictor {predictor_folder}: no predictor for the model's attributes; give a judge-… folder of "
                "attributegan-evaluate's cache"
            )
        network = reference.predictor_network(*found, predictor_folder)
    elif tiles is not None:
        found, network = _cached_predictor(model, tiles, feature_cache)
    if tiles is not None:
        network = network or features.load(feature_networks.choose(feature_networks.AUTO, {model.name: model.trained_on}))
        features_ND = reference.features_of(tiles, "real tiles", network, Processes(), feature_cache, progress)
        assert features_ND is not None
        real_tiles = RealTiles(tiles, features_ND)
    return TileAnalyzer(found[0] if found else None, _note(found[1]) if found else NO_PREDICTOR, network, real_tiles)


_Found = tuple[predictor.AttributePredictor, dict[str, Any]]


def _cached_predictor(
    model: Model, tiles: reference.Split, cache: reference.FeatureCache
) -> tuple[_Found | None, features.Features | None]:
    """Return the predictor that ``attributegan-evaluate`` trained by default, and its feature network.

    An evaluation uses the first EfficientNet that trained none of its models; with a baseline this can be another one than for this model.
    """
    for name in SIZES:
        if name != model.trained_on:
            network = features.load(name)
            if found := reference.predictor_cache(model.generator.schema, tiles, network, cache).load(model.generator.schema):
                return found, network
    return None, None


def _note(note: dict[str, Any]) -> str:
    """Return sentences about a predictor's training, from the note saved with it."""
    tiles = f" on {note['training_tiles']:,} real tiles" if "training_tiles" in note else ""
    text = f"The predictor was trained{tiles} and on no tile of this model."
    if score := note.get("choice", {}).get(note["kind"]):
        text += f" On held-out real tiles, its predictions have a rank correlation of {score:.2f} with the labels."
    return text + " It can be wrong."
