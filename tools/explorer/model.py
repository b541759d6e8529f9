"""The model on show: its generator, what it is called, which weights exactly, and its card."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCard

from attributegan.checkpoint import loading, store
from attributegan.export import AttributeGenerator
from attributegan.export.hub import WEIGHTS, describe_data
from attributegan.export.model_card import CardFacts


@dataclass(frozen=True)
class Model:
    """
    Args:
        name: for people.
        identity: a short hash of the weights, which links and downloads carry.
        images: real images shown in training; None when that is not known.
        card: Markdown.
    """

    generator: AttributeGenerator
    name: str
    identity: str
    images: int | None
    card: str


def load(path: Path, raw: bool = False) -> Model:
    """The model of a run (its newest checkpoint), of a checkpoint, or in a folder that ``attributegan-export generator`` wrote.

    Args:
        raw: the weights as trained, instead of their average.

    Raises:
        ValueError: no such thing there, or a damaged one; or ``raw`` weights of an exported folder, which has one kind alone.
    """
    if (path / "config.json").is_file():
        if raw:
            raise ValueError(
                f"--no-ema: {path} is an exported generator, which has one kind of weights; leave --no-ema out, or give the run"
            )
        generator = AttributeGenerator.from_pretrained(path)
        identity = hashlib.sha256((path / WEIGHTS).read_bytes()).hexdigest()[:12]
        readme = path / "README.md"
        card = ModelCard(readme.read_text(encoding="utf-8")).text if readme.is_file() else "This model has no card."
        return Model(generator, path.resolve().name, identity, None, card)
    found = store.resolve(path)
    loaded = loading.load_for_sampling(found, ema=not raw)
    generator = AttributeGenerator.of(loaded)
    identity = hashlib.sha256((found / store.MANIFEST).read_bytes() + bytes(raw)).hexdigest()[:12]
    card = generator.generate_model_card(CardFacts(describe_data(loaded))).text
    folder = found.resolve().parent
    return Model(generator, folder.parent.name if folder.name == "checkpoints" else found.name, identity, loaded.images, card)
