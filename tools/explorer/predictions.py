"""What a judge that never met the generator reads off a tile, and which real tiles are nearest to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attributegan.attributes import AttributeSchema
from attributegan.distributed.process_group import Processes
from attributegan.evaluation import reference
from attributegan.metrics import features, predictor, quality

NEAREST = 4
NO_PREDICTOR = (
    "No judge reads this tile: start with --shards of real tiles that attributegan-evaluate has been run on, or with --predictor."
)


@dataclass(frozen=True)
class RealTiles:
    """Real tiles with their features."""

    split: reference.Split
    features_ND: np.ndarray

    def nearest(self, feature_D: np.ndarray) -> list[int]:
        """Rows of the tiles whose features are nearest, nearest first."""
        distance_N = quality.distances(feature_D[None], self.features_ND)[0]
        return np.argsort(distance_N, kind="stable")[:NEAREST].tolist()


@dataclass(frozen=True)
class Reader:
    """Reads tiles, with what there is."""

    attribute_predictor: predictor.AttributePredictor | None
    predictor_note: str
    network: features.Features | None
    tiles: RealTiles | None

    def levels(self, tile_HWC: np.ndarray) -> list[float] | None:
        """The level of each attribute that the judge sees; None without one."""
        if self.attribute_predictor is None:
            return None
        small = reference.thumbs(tile_HWC[None])
        seen_ND = self._features(tile_HWC) if isinstance(self.attribute_predictor, predictor.Head) else None
        return self.attribute_predictor.predict(small, seen_ND)[0].tolist()

    def nearest(self, tile_HWC: np.ndarray) -> list[int]:
        """Rows of the nearest real tiles; [] without any."""
        return [] if self.tiles is None else self.tiles.nearest(self._features(tile_HWC)[0])

    def _features(self, tile_HWC: np.ndarray) -> np.ndarray:
        assert self.network is not None
        return self.network(tile_HWC[None])


def open_reader(
    schema: AttributeSchema,
    tiles: reference.Split | None,
    attribute_predictor: Path | None,
    cache: Path | None,
    progress: reference.Progress,
) -> Reader:
    """The judge and the features of real tiles, as far as there are any.

    Args:
        tiles: real tiles; their judge is looked for in the cache of ``attributegan-evaluate``.
        judge: folder of a judge, instead of that in the cache.
        cache: folder of what is known of real tiles; None for the user's own.

    Raises:
        ValueError: a judge that can't be used, or does not fit the model.
    """
    kept, network, known = None if attribute_predictor is None else predictor.PredictorCache(attribute_predictor), None, None
    if tiles is not None:
        network, place = features.load(), reference.FeatureCache.at(cache)
        found_ND = reference.features_of(tiles, "real tiles", network, Processes(), place, progress)
        assert found_ND is not None
        known = RealTiles(tiles, found_ND)
        kept = kept or reference.predictor_cache(schema, tiles, network, place)
    found = None if kept is None else kept.load(schema)
    if attribute_predictor and found is None:
        raise ValueError(
            f"--predictor {attribute_predictor}: no judge for the model's attributes; give a judge-… folder of "
            "attributegan-evaluate's cache"
        )
    if found and isinstance(found[0], predictor.Head):
        network = network or features.load()
        width = network(np.zeros((1, 8, 8, 3), np.uint8)).shape[1] + predictor.COHERENCES
        if width != len(found[0].mean_D):
            raise ValueError(
                f"--predictor {attribute_predictor}: was fitted on the features of another network than {network.name}; "
                "give one that was not"
            )
    return Reader(found[0] if found else None, _note(found[1]) if found else NO_PREDICTOR, network, known)


def _note(note: dict[str, Any]) -> str:
    """Where a judge comes from, in words."""
    tiles = f" on {note['training_tiles']:,} real tiles" if "training_tiles" in note else ""
    text = f"The judge learnt{tiles} and has met no tile of this model."
    if score := note.get("choice", {}).get(note["kind"]):
        text += f" Its readings of real tiles kept from it had a rank correlation of {score:.2f} with their labels."
    return text + " It can be wrong."
