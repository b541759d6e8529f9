"""The generator alone, as a folder or Hugging Face hub repository: model.safetensors, config.json, README.md."""

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
    """A generator that knows its attributes: ``generator(latents_BL, levels_BA) -> images_BCHW``, about [-1, 1], not clamped.

    Refuses levels that there aren't, and fractional ones that mix "not assessable" with another (ValueError: names row and attribute).
    Made by `from_pretrained`, in eval mode on the CPU; ``save_pretrained`` and ``push_to_hub`` write it again.

    Args:
        model: options of `ModelConfig`, those that are not the default.
        attributes: ``{"name": ..., "levels": [names], "not_assessable": level or None}`` for each, in the order of their columns.
            A list, since the hub's library sorts the keys of config.json.

    Attributes:
        schema: the attributes.
        latent_dim: L of ``latents_BL``.
        image_size: pixels.

    Raises:
        ValueError: options or attributes that can't be; names them.
    """

    def __init__(self, model: Mapping[str, Any], attributes: Sequence[Mapping[str, Any]]) -> None:
        config = config_module.fill(ModelConfig, model, where="config.json", section="model")  # alone: nothing here need fit a loss
        if not isinstance(attributes, Sequence) or not all(isinstance(entry, Mapping) and "name" in entry for entry in attributes):
            raise ValueError(f"config.json: attributes: expected a list of mappings with a name and levels, got {attributes!r}")
        entries = {entry["name"]: {key: value for key, value in entry.items() if key != "name"} for entry in attributes}
        schema = AttributeSchema.from_dict(entries, where="config.json: attributes")
        super().__init__(config, schema)
        self.schema, self.latent_dim, self.image_size = schema, config.latent_dim, config.image_size

    def forward(self, latents_BL: Tensor, levels_BA: Tensor) -> Tensor:
        """As `Generator.forward`, with levels that there are."""
        width = len(self.schema.attributes)
        if levels_BA.ndim != 2 or levels_BA.shape[1] != width:
            names = ", ".join(self.schema.names)
            raise ValueError(f"levels_BA: has the shape {tuple(levels_BA.shape)}; give (batch, {width}), for {names}")
        for row, levels_A in enumerate(levels_BA.tolist()):
            for attribute, level in zip(self.schema.attributes, levels_A, strict=True):
                if wrong := attribute.check_requested(level):
                    raise ValueError(f"levels_BA: row {row}: {wrong}")
        return super().forward(latents_BL, levels_BA)

    @classmethod
    def of(cls, loaded: Loaded) -> Self:
        """The generator of a checkpoint."""
        options = loaded.config.to_dict()["model"]
        del options["attributes"]  # where the attributes were read from
        generator = cls(options, [{"name": name, **entry} for name, entry in loaded.schema.to_dict().items()])
        generator.load_state_dict(loaded.generator.state_dict())
        return generator.eval()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **download: Any) -> Self:
        """Load from a folder that ``attributegan-export generator`` wrote, or by an id on the Hugging Face hub.

        Args:
            pretrained_model_name_or_path: folder or hub id.
            download: for the hub, as in `huggingface_hub.hf_hub_download`: ``revision``, ``token``, ``cache_dir`` and others.

        Raises:
            ValueError: no such generator there, or a damaged one; names the file.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **download)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{pretrained_model_name_or_path}: its config.json is damaged: {error}; export or download it again"
            ) from error

    @classmethod
    def _from_pretrained(cls, *, model_id: str, model: Any = None, attributes: Any = None, **download: Any) -> Self:
        """What the mixin calls. Its own form would leave out tensors that are missing, and fall back on a pickle."""
        if model is None or attributes is None:
            raise ValueError(
                f"{model_id}: no config.json with `model` and `attributes` there; give a folder that `attributegan-export generator` "
                "wrote, or the hub id of one"
            )
        generator = cls(model, attributes)
        local = Path(model_id) / WEIGHTS
        path = local if Path(model_id).is_dir() else Path(hf_hub_download(model_id, WEIGHTS, **download))
        try:
            generator.load_state_dict(load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise ValueError(f"{path}: not the weights that config.json speaks of: {error}; export or download them again") from error
        return generator.eval()

    def generate_model_card(self, facts: CardFacts | None = None) -> ModelCard:
        """The card that ``save_pretrained`` and ``push_to_hub`` write as README.md, where there is none."""
        return ModelCard(model_card(self.schema, self.image_size, facts or CardFacts()))


def export_generator(run: str | Path, out: str | Path, facts: CardFacts | None = None, raw: bool = False) -> AttributeGenerator:
    """Write the generator of a run or checkpoint as the folder ``out``, for `AttributeGenerator.from_pretrained`.

    Args:
        run: run folder (its newest checkpoint) or checkpoint.
        out: folder that is not there yet, or empty.
        facts: for the model card; where it says nothing of the data, the checkpoint is asked.
        raw: the weights as trained, instead of their average.

    Raises:
        ValueError: no whole checkpoint there, or ``out`` is not free.
    """
    out, facts = Path(out), facts or CardFacts()
    check_new_folder(out)
    loaded = load_for_sampling(run, ema=not raw)
    generator = AttributeGenerator.of(loaded)
    with atomic_path(out) as folder:
        facts = replace(facts, data=facts.data or data_of(loaded))
        generator.save_pretrained(folder, model_card_kwargs={"facts": facts})  # type: ignore[operator]
    return generator


def data_of(loaded: Loaded) -> str:
    """What a checkpoint knows of its data; the folder's name alone, since paths tell of people and machines."""
    data = loaded.config.data
    if not (data.shards and loaded.images):
        return ""
    return f"The split `{data.split}` of the shard set `{Path(data.shards).name}`; {loaded.images:,} images of it were shown in this run."
