"""Loads the generator of a checkpoint for sampling."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from attributegan import config as config_module
from attributegan.attributes import AttributeSchema
from attributegan.checkpoint.store import CheckpointCorrupted, load, resolve
from attributegan.config import Config
from attributegan.models import Generator


@dataclass(frozen=True)
class Loaded:
    """A generator in eval mode on the CPU, with its schema, configuration and number of training images."""

    generator: Generator
    schema: AttributeSchema
    config: Config
    images: int


def load_for_sampling(path: str | Path, ema: bool = True) -> Loaded:
    """Loads the generator of a run or checkpoint.

    Args:
        path: checkpoint, or run folder (its latest complete checkpoint).
        ema: the exponential moving average of the weights, instead of the weights as trained.

    Raises:
        ValueError: no complete checkpoint, or its tensors don't match its configuration.
    """
    checkpoint = resolve(path)
    name = "generator_ema" if ema else "generator"
    state, tensors = load(checkpoint, name)
    config = config_module.from_dict(state["config"], where=str(checkpoint / "state.json"))
    schema = AttributeSchema.from_dict(state["schema"], where=str(checkpoint / "state.json"))
    generator = Generator(config.model, schema)
    try:
        generator.load_state_dict(tensors[name])
    except RuntimeError as error:
        raise CheckpointCorrupted(f"{checkpoint / name}.safetensors: does not match the configuration in state.json: {error}") from error
    return Loaded(generator.eval(), schema, config, int(state["images"]))
