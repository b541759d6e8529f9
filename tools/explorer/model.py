"""The model shown in the explorer: generator, name, hash of the weights, model card."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCard

from attributegan.checkpoint import loading, store
from attributegan.export import AttributeGenerator
from attributegan.export.hub import WEIGHTS, describe_data
from attributegan.export.model_card import CardFacts
from tools.evaluation.feature_networks import trained_on


@dataclass(frozen=True)
class Model:
    """A loaded model.

    Args:
        name: display name.
        identity: short hash of the weights, part of links and downloads.
        images: number of real images seen in training; None if unknown.
        card: model card in Markdown.
        trained_on: network whose features trained the model, or "" if none did or it is unknown.
    """

    generator: AttributeGenerator
    name: str
    identity: str
    images: int | None
    card: str
    trained_on: str = ""


def load(path: Path, raw: bool = False) -> Model:
    """Load a model from a run folder (its latest checkpoint), a checkpoint, or a folder written by ``attributegan-export generator``.

    Args:
        raw: use the raw weights instead of their moving average (EMA).

    Raises:
        ValueError: not a model, a corrupted one, or ``raw`` with an exported generator, which has only one set of weights.
    """
    if (path / "config.json").is_file():
        if raw:
            raise ValueError(
                f"--no-ema: {path} is an exported generator, which has only one set of weights; remove --no-ema, or give the run folder"
            )
        generator = AttributeGenerator.from_pretrained(path)
        identity = hashlib.sha256((path / WEIGHTS).read_bytes()).hexdigest()[:12]
        readme = path / "README.md"
        card = ModelCard(readme.read_text(encoding="utf-8")).text if readme.is_file() else "This model has no model card."
        return Model(generator, path.resolve().name, identity, None, card)
    found = store.resolve(path)
    loaded = loading.load_for_sampling(found, ema=not raw)
    generator = AttributeGenerator.of(loaded)
    identity = hashlib.sha256((found / store.MANIFEST).read_bytes() + bytes(raw)).hexdigest()[:12]
    card = generator.generate_model_card(CardFacts(describe_data(loaded))).text
    folder = found.resolve().parent
    name = folder.parent.name if folder.name == "checkpoints" else found.name
    return Model(generator, name, identity, loaded.images, card, trained_on(loaded.config))
