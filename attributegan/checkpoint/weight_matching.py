"""Matches the weights of one network to those of another, whose tissue, image size or attributes may differ.

A layer is taken if it exists in both networks under one name, and all its tensors have equal shapes:

- Stages are matched by resolution: those of the generator are numbered from 4 pixels, those of the discriminator from the image. If more
  weights fit that way, they are counted from the image in both, which is the texture at equal tissue per pixel (a larger network whose
  ``model.fmap_inverse_coef`` was raised with its size).
- Weights of label columns and levels are matched by the names of attribute and level, one by one. New levels keep their initial weights.

Everything else keeps its initial values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attributegan.attributes import AttributeSchema
from attributegan.config import ModelConfig
from attributegan.models.discriminator import PROXY_WIDTH

LISTED = 12  # names of layers in a log line
Key = tuple[Any, ...] | None  # identifies an entry of a dimension, such as (attribute, level); None never matches


@dataclass(frozen=True)
class Labels:
    """What the entries of labelled dimensions stand for in the networks of one model.

    Args:
        model: its options.
        schema: its attributes.
        attributes: names of those that are trained; empty: all. Others never match.
    """

    model: ModelConfig
    schema: AttributeSchema
    attributes: tuple[str, ...] = ()

    def keys(self, name: str) -> tuple[int, list[Key]] | None:
        """Returns the labelled dimension of a tensor and its keys; None for a tensor without one."""
        columns = self._ordinal() if self.model.generator_levels == "ordinal" else self._columns()
        if name == "from_label.conv.weight":
            return 0, columns
        if name.endswith(".modulate.weight"):
            return 1, [("latent", self.model.latent_dim, k) for k in range(self.model.latent_dim)] + columns
        if name.endswith((".embeddings", ".columns.weight", ".columns.bias")):
            return 0, self._columns()
        if name.startswith("auxiliary.logits."):
            return 0, [key and (*key, kind) for level_keys in self._levels() for kind in ("real", "generated") for key in level_keys]
        if name == "proxies.table.weight" and self.model.proxy == "level":
            return 0, [key for level_keys in self._levels() for key in level_keys]
        if name.startswith("embedder.linear."):
            return 0, self._embedding()
        return None

    def _levels(self) -> list[list[Key]]:
        return [
            [(attribute.name, level) if attribute.name in (self.attributes or self.schema.names) else None for level in attribute.levels]
            for attribute in self.schema.attributes
        ]

    def _columns(self) -> list[Key]:
        width = max(self.schema.num_levels) if self.model.label_columns == "padded" else 0
        return [key for level_keys in self._levels() for key in level_keys + [None] * (width - len(level_keys))]

    def _ordinal(self) -> list[Key]:
        """The position of a level is relative to the ends of the scale, so levels need not have the same names."""
        return [level_keys[0] and (level_keys[0][0], "ordinal", k) for level_keys in self._levels() for k in range(3)]

    def _embedding(self) -> list[Key]:
        """Embeddings have the layout of proxies: a slice per attribute (proxies of levels), or per padded column (published)."""
        largest = max(self.schema.num_levels)
        if self.model.proxy == "published":
            padded = [key for level_keys in self._levels() for key in level_keys + [None] * (largest - len(level_keys))]
            return [key and (*key, "published", k) for key in padded for k in range(PROXY_WIDTH)]
        width = PROXY_WIDTH * largest
        return [level_keys[0] and (level_keys[0][0], width, k) for level_keys in self._levels() for k in range(width)]


@dataclass
class Taken:
    """The weights of one network to start from."""

    tensors: dict[str, Tensor]
    layers: int = 0  # taken with at least one matrix or kernel
    names: list[str] = field(default_factory=list)  # of tensors that are taken in whole or in part
    partly: list[str] = field(default_factory=list)
    values: int = 0  # number of values that are taken

    def __str__(self) -> str:
        total = sum(tensor.numel() for tensor in self.tensors.values())
        new = _abbreviated(name for name in self.tensors if name not in self.names)
        parts = [f"{len(self.names)} of {len(self.tensors)} tensors taken ({self.values / total:.1%} of the weights)"]
        parts += [f"in part: {', '.join(_abbreviated(self.partly))}"] if self.partly else []
        parts += [f"new: {', '.join(new)}"] if new else []
        return "; ".join(parts)


def match(network: str, weights: Mapping[str, Tensor], source: Labels, initial: Mapping[str, Tensor], target: Labels) -> Taken:
    """Matches the weights of one network.

    Args:
        network: "discriminator", or a generator.
        weights: state dict to take from.
        source: its model.
        initial: state dict of the new network, not modified.
        target: its model.

    Returns:
        the whole state dict to load.
    """
    shifts = _shifts(network, source.model, target.model)
    candidates = [_match(weights, initial, source, target, shift) for shift in shifts]
    return max(candidates, key=lambda taken: taken.values)  # the first of equals


def _shifts(network: str, source: ModelConfig, target: ModelConfig) -> list[dict[str, int]]:
    """Returns by how much the index of a stage is higher in the target: at equal resolution, then counted from the image."""

    def doublings(most: int) -> int:
        return min(most, target.image_size.bit_length()) - min(most, source.image_size.bit_length())

    if network == "discriminator":
        from_latent, from_image = {"stages": doublings(9), "halvings": doublings(99)}, {"stages": 0, "halvings": 0}
    else:
        from_latent, from_image = {"stages": 0, "excitations": 0}, {"stages": doublings(99), "excitations": doublings(99)}
    return [from_latent, from_image] if source.image_size != target.image_size else [from_latent]


def _match(
    weights: Mapping[str, Tensor], initial: Mapping[str, Tensor], source: Labels, target: Labels, shifts: Mapping[str, int]
) -> Taken:
    taken = Taken(dict(initial))
    for layer in _layers(initial):
        matched = {name: _matched(name, weights, initial, source, target, shifts) for name in layer}
        if any(match is None for match in matched.values()):
            continue
        for name, match in matched.items():
            assert match is not None
            taken.tensors[name], count = match
            taken.values += count
            taken.names.append(name)
            if count < initial[name].numel():
                taken.partly.append(name)
        taken.layers += any(initial[name].ndim > 1 for name in layer)
    return taken


def _layers(names: Mapping[str, Tensor]) -> list[list[str]]:
    """Groups tensors by layer, since the bias of a layer is of no use without its weights."""
    layers: dict[str, list[str]] = {}
    for name in names:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    return list(layers.values())


def _matched(
    name: str, weights: Mapping[str, Tensor], initial: Mapping[str, Tensor], source: Labels, target: Labels, shifts: Mapping[str, int]
) -> tuple[Tensor, int] | None:
    """Returns a tensor to start from and the number of its values that are taken; None if it does not fit."""
    name_in_source, fresh = _shifted(name, shifts), initial[name]
    tensor = weights.get(name_in_source)
    if tensor is None or tensor.ndim != fresh.ndim or tensor.is_floating_point() != fresh.is_floating_point():
        return None
    ours, theirs = target.keys(name), source.keys(name_in_source)
    if ours is None or theirs is None or ours == theirs:
        return (tensor, tensor.numel()) if ours == theirs and tensor.shape == fresh.shape else None
    (dim, keys), (_, keys_in_source) = ours, theirs
    if (fresh.shape[dim], tensor.shape[dim]) != (len(keys), len(keys_in_source)):
        return None  # a layer of an unknown layout
    if fresh.shape[:dim] + fresh.shape[dim + 1 :] != tensor.shape[:dim] + tensor.shape[dim + 1 :]:
        return None
    index = {key: k for k, key in enumerate(keys_in_source) if key is not None}
    rows = [(k, index[key]) for k, key in enumerate(keys) if key in index]
    if not rows:
        return None
    to, of = (torch.tensor(column) for column in zip(*rows, strict=True))
    result = fresh.clone().index_copy_(dim, to, tensor.index_select(dim, of).to(fresh.dtype))
    return result, len(rows) * fresh.numel() // len(keys)


def _shifted(name: str, shifts: Mapping[str, int]) -> str:
    """Returns the name in the source; for stages that it lacks, a name that does not exist."""
    part, _, rest = name.partition(".")
    index, dot, rest = rest.partition(".")
    return f"{part}.{int(index) - shifts[part]}{dot}{rest}" if part in shifts and re.fullmatch(r"\d+", index) else name


def _abbreviated(names: Iterable[str]) -> list[str]:
    """Returns the layers of tensors in the first two parts of their names, such as stages.3, at most `LISTED` of them."""
    layers = list(dict.fromkeys(".".join(name.split(".")[:-1][:2]) for name in names))
    return layers[:LISTED] + ([f"and {len(layers) - LISTED} more"] if len(layers) > LISTED else [])
