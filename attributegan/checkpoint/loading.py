"""A checkpoint's generator, ready to sample from."""

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
    """A generator ready to sample from, in eval mode on the CPU."""

    generator: Generator
    schema: AttributeSchema
    config: Config
    images: int


def load_for_sampling(path: str | Path, ema: bool = True) -> Loaded:
    """Load the (averaged, by default) generator of a run or checkpoint.

    Raises:
        ValueError: no whole checkpoint there, or its tensors don't fit its configuration.
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
        raise CheckpointCorrupted(f"{checkpoint / name}.safetensors: does not fit the configuration in state.json: {error}") from error
    return Loaded(generator.eval(), schema, config, int(state["images"]))
