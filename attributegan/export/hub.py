"""The generator as a folder or Hugging Face hub repository: model.safetensors, config.json, README.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelCard, PyTorchModelHubMixin, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from attributegan import config as config_module
from attributegan.attributes import AttributeSchema
from attributegan.checkpoint.loading import Loaded, load_for_sampling
from attributegan.config import ModelConfig
from attributegan.export.model_card import CardFacts, model_card
from attributegan.models import Generator
from attributegan.utils.files import atomic_path, check_new_folder

WEIGHTS = "model.safetensors"


class AttributeGenerator(Generator, PyTorchModelHubMixin):
    """A generator with its attribute schema: ``generator(latents_BL, levels_BA) -> images_BCHW``, about [-1, 1], not clamped.

    Rejects invalid levels, and fractional ones between "not assessable" and another level (ValueError: names row and attribute).
    Created by `from_pretrained`, in eval mode on the CPU; ``save_pretrained`` and ``push_to_hub`` write it.

    Args:
        model: options of `ModelConfig` that differ from the defaults.
        attributes: ``{"name": ..., "levels": [names], "not_assessable": level or None}`` for each, in the order of their columns.
            A list, since huggingface_hub sorts the keys of config.json.

    Attributes:
        schema: the attributes.
        latent_dim: L of ``latents_BL``.
        image_size: pixels.

    Raises:
        ValueError: invalid options or attributes; names them.
    """

    def __init__(self, model: Mapping[str, Any], attributes: Sequence[Mapping[str, Any]]) -> None:
        config = config_module.fill(ModelConfig, model, where="config.json", section="model")  # without the checks against losses
        if not isinstance(attributes, Sequence) or not all(isinstance(entry, Mapping) and "name" in entry for entry in attributes):
            raise ValueError(f"config.json: attributes: expected a list of mappings with a name and levels, got {attributes!r}")
        entries = {entry["name"]: {key: value for key, value in entry.items() if key != "name"} for entry in attributes}
        schema = AttributeSchema.from_dict(entries, where="config.json: attributes")
        super().__init__(config, schema)
        self.schema, self.latent_dim, self.image_size = schema, config.latent_dim, config.image_size

    def forward(self, latents_BL: Tensor, levels_BA: Tensor) -> Tensor:
        """Generates images like `Generator.forward`, after validating the levels."""
        width = len(self.schema.attributes)
        if levels_BA.ndim != 2 or levels_BA.shape[1] != width:
            names = ", ".join(self.schema.names)
            raise ValueError(f"levels_BA: got shape {tuple(levels_BA.shape)}, expected (batch, {width}), for {names}")
        for row, levels_A in enumerate(levels_BA.tolist()):
            for attribute, level in zip(self.schema.attributes, levels_A, strict=True):
                if problem := attribute.check_requested(level):
                    raise ValueError(f"levels_BA: row {row}: {problem}")
        return super().forward(latents_BL, levels_BA)

    @classmethod
    def of(cls, loaded: Loaded) -> Self:
        """Creates the generator from a loaded checkpoint."""
        options = loaded.config.to_dict()["model"]
        del options["attributes"]  # the name of a file; the schema itself is stored instead
        generator = cls(options, [{"name": name, **entry} for name, entry in loaded.schema.to_dict().items()])
        generator.load_state_dict(loaded.generator.state_dict())
        return generator.eval()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **download: Any) -> Self:
        """Loads a generator from a folder written by ``attributegan-export generator``, or from the Hugging Face hub.

        Args:
            pretrained_model_name_or_path: folder or hub id.
            download: options of `huggingface_hub.hf_hub_download`, such as ``revision``, ``token`` and ``cache_dir``.

        Raises:
            ValueError: no such generator, or corrupted files; names the file.
        """
        try:
            generator: Self = super().from_pretrained(pretrained_model_name_or_path, **download)
            return generator
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{pretrained_model_name_or_path}: config.json is corrupted: {error}; export or download it again") from error

    @classmethod
    def _from_pretrained(cls, *, model_id: str, model: Any = None, attributes: Any = None, **download: Any) -> Self:
        """Overrides the mixin's loader, which would ignore missing tensors and fall back to a pickle."""
        if model is None or attributes is None:
            raise ValueError(
                f"{model_id}: no config.json with `model` and `attributes`; give a folder written by `attributegan-export generator`, or "
                "its hub id"
            )
        generator = cls(model, attributes)
        local = Path(model_id) / WEIGHTS
        path = local if Path(model_id).is_dir() else Path(hf_hub_download(model_id, WEIGHTS, **download))
        try:
            generator.load_state_dict(load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise ValueError(f"{path}: the weights don't match config.json: {error}; export or download them again") from error
        return generator.eval()

    def generate_model_card(self, facts: CardFacts | None = None) -> ModelCard:
        """Returns the card that ``save_pretrained`` and ``push_to_hub`` write as README.md if there is none."""
        return ModelCard(model_card(self.schema, self.image_size, facts or CardFacts()))


def export_generator(run: str | Path, out: str | Path, facts: CardFacts | None = None, raw: bool = False) -> AttributeGenerator:
    """Writes the generator of a run or checkpoint as the folder ``out``, for `AttributeGenerator.from_pretrained`.

    Args:
        run: run folder (its latest checkpoint) or checkpoint.
        out: new or empty folder.
        facts: for the model card; by default the data is described from the checkpoint.
        raw: the weights as trained, instead of their average.

    Raises:
        ValueError: no complete checkpoint, or ``out`` is not empty.
    """
    out, facts = Path(out), facts or CardFacts()
    check_new_folder(out)
    loaded = load_for_sampling(run, ema=not raw)
    generator = AttributeGenerator.of(loaded)
    with atomic_path(out) as folder:
        facts = replace(facts, data=facts.data or describe_data(loaded))
        generator.save_pretrained(folder, model_card_kwargs={"facts": facts})  # type: ignore[operator]
    return generator


def describe_data(loaded: Loaded) -> str:
    """Describes the training data of a checkpoint; gives only the folder name, since paths may reveal users and machines."""
    data = loaded.config.data
    if not (data.shards and loaded.images):
        return ""
    return f"Split `{data.split}` of the shard set `{Path(data.shards).name}`; trained for {loaded.images:,} images."
