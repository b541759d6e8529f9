"""Converts checkpoints of the published AttributeGAN code to and from our state dicts, for any image size and width.

Reads files saved by the published code as `torch.save({"GAN": state_dict, ...})` without running code from the file, and produces
state dicts in that format. The published network is a configuration of `Generator` and `Discriminator`.
"""

from __future__ import annotations

import pickle
import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mode
from typing import Any

import torch
from torch import Tensor, nn

from attributegan.attributes import PUBLISHED
from attributegan.config import ModelConfig
from attributegan.models.discriminator import Discriminator
from attributegan.models.generator import Generator

Shape = tuple[int, ...]

# Name prefixes, ours -> published; {} is an index. If there are three published names, ours is those three stacked.
_GENERATOR_RULES = {
    "from_latent.conv": "initial_conv.0",
    "from_latent.norm": "initial_conv.1",
    "from_label.conv": "init_label_preprocess.0",
    "from_label.norm": "init_label_preprocess.1",
    "stages.{}.conv": "layers.{}.0.2",
    "stages.{}.norm": "layers.{}.0.3",
    "excitations.{}.weigh": "layers.{}.1.to_k",
    "excitations.{}.narrow": "layers.{}.1.net.0",
    "excitations.{}.widen": "layers.{}.1.net.2",
    "stages.{}.attention.attend.g": "layers.{}.2.0.fn.g",
    "stages.{}.attention.attend.block.qkv_weight": " ".join(f"layers.{{}}.2.0.fn.fn.to_{which}.weight" for which in "qkv"),
    "stages.{}.attention.attend.block.qkv_bias": " ".join(f"layers.{{}}.2.0.fn.fn.to_{which}.bias" for which in "qkv"),
    "stages.{}.attention.attend.block.out_weight": "layers.{}.2.0.fn.fn.to_out.weight",
    "stages.{}.attention.attend.block.out_bias": "layers.{}.2.0.fn.fn.to_out.bias",
    "stages.{}.attention.transform.g": "layers.{}.2.1.fn.g",
    "stages.{}.attention.transform.block.widen": "layers.{}.2.1.fn.fn.0",
    "stages.{}.attention.transform.block.narrow": "layers.{}.2.1.fn.fn.2",
    "to_image": "out_conv",
}
_DISCRIMINATOR_RULES = {
    "halvings.{}.conv": "non_residual_layers.{}.1",
    "stages.{}.down": "residual_layers.{}.0.branches.0.1",
    "stages.{}.refine": "residual_layers.{}.0.branches.0.3",
    "stages.{}.skip": "residual_layers.{}.0.branches.1.2",
    "head.mix": "to_logits.0",
    "head.score": "to_logits.2",
    "head.columns": "linear_out",
    "head_32.conv": "to_shape_disc_out.0",
    "head_32.attend.g": "to_shape_disc_out.1.fn.g",
    "head_32.attend.block.qkv_weight": "to_shape_disc_out.1.fn.fn.to_qkv.weight",
    "head_32.attend.block.out_weight": "to_shape_disc_out.1.fn.fn.to_out.weight",
    "head_32.attend.block.out_bias": "to_shape_disc_out.1.fn.fn.to_out.bias",
    "head_32.stage.down": "to_shape_disc_out.2.branches.0.1",
    "head_32.stage.refine": "to_shape_disc_out.2.branches.0.3",
    "head_32.stage.skip": "to_shape_disc_out.2.branches.1.2",
    "head_32.attend_again.g": "to_shape_disc_out.3.fn.g",
    "head_32.attend_again.block.qkv_weight": "to_shape_disc_out.3.fn.fn.to_qkv.weight",
    "head_32.attend_again.block.out_weight": "to_shape_disc_out.3.fn.fn.to_out.weight",
    "head_32.attend_again.block.out_bias": "to_shape_disc_out.3.fn.fn.to_out.bias",
    "head_32.score": "to_shape_disc_out.5",
    "head_32.columns": "linear_out32x32",
    "decoder.convs.{}": "decoder1.layers.{}.1",
    "quadrant_decoder.convs.{}": "decoder2.layers.{}.1",
    "embedder.mix": "to_feature_space.0",
    "embedder.squeeze": "to_feature_space.2",
    "embedder.linear": "linear_emd",
    "proxies.table": "embedding",
}
# In the published code a blur is a module with a buffer, placed before the convolution that reads its output.
_BLURRED = [
    (re.compile(r"(layers\.\d+\.0)\.2\.weight"), "1"),
    (re.compile(r"(.*branches\.0|non_residual_layers\.\d+)\.1\.weight"), "0"),
    (re.compile(r"(.*branches\.1)\.2\.weight"), "0"),
]
_TAPS = (1.0, 2.0, 1.0)


@dataclass(frozen=True)
class PublishedModel:
    """The networks of a published checkpoint, in eval mode on the CPU; their schema is `attributegan.attributes.PUBLISHED`."""

    generator: Generator  # weights as trained, which the published sampler uses
    generator_ema: Generator
    discriminator: Discriminator
    config: ModelConfig


def load(source: str | Path | Mapping[str, Any]) -> PublishedModel:
    """Reads a published checkpoint.

    Args:
        source: the file, its content ``{"GAN": state_dict, ...}``, or the state dict alone. ``D_aug`` (a copy of the
            discriminator) is ignored.

    Raises:
        ValueError: not such a file, or a file that contains code. For a wrong state dict, the message lists every key that is
            missing, unknown or of a wrong shape.
    """
    where = "state dict" if isinstance(source, Mapping) else str(source)
    state = _state_dict(source if isinstance(source, Mapping) else _read(Path(source)), where)
    config = _config(state, where)
    with torch.device("meta"):
        expected = _published_shapes(config)
    if problems := list(_problems(state, expected)):
        raise ValueError("\n  ".join([f"{where}: not the published network at {config.image_size} px:", *problems]))
    networks = {part: network.eval() for part, network in _networks(config).items()}
    for part, network in networks.items():
        network.load_state_dict(
            {
                name: _joined([state[f"{part}.{key}"] for key in _names(name, network)]).reshape(ours.shape)
                for name, ours in network.state_dict().items()
            }
        )
    return PublishedModel(networks["G"], networks["GE"], networks["D"], config)  # type: ignore[arg-type]


def to_published(generator: Generator, generator_ema: Generator, discriminator: Discriminator) -> dict[str, Tensor]:
    """Returns the state dict of the published code; save it with ``torch.save({"GAN": to_published(...)}, path)``.

    Raises:
        ValueError: the published code can't build these networks; names the parts that it lacks.
    """
    parts = {"G": generator, "GE": generator_ema, "D": discriminator}
    state = {f"{part}.{key}": tensor for part, network in parts.items() for key, tensor in _translated(network).items()}
    state |= {f"D_aug.{key}": tensor for key, tensor in state.items() if key.startswith("D.")}
    with torch.device("meta"):
        expected = _published_shapes(_config(state, "these networks"))
    if problems := list(_problems(_without_copies(state), expected)):
        raise ValueError("\n  ".join(["these networks: not in the `published` configuration:", *problems]))
    return state


# Raised by torch.load for corrupted or foreign files, as found by changing bytes at random.
_UNREADABLE = (
    pickle.UnpicklingError,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,
    AssertionError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
)


def _read(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise ValueError(f"{path}: can't be read: {error.strerror}") from error
    except _UNREADABLE as error:
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(f"{path}: refused: the file contains code ({found[1]}), not only tensors; no code was run") from error
        raise ValueError(f"{path}: not a checkpoint written by torch.save, or corrupted; no code was run") from error


def _state_dict(tree: Any, where: str) -> dict[str, Any]:
    state = tree.get("GAN", tree) if isinstance(tree, Mapping) else tree
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise ValueError(f"{where}: contains no state dict; expected {{'GAN': state_dict}} or the state dict alone")
    return _without_copies(state)


def _without_copies(state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tensor for key, tensor in state.items() if not key.startswith("D_aug.")}


def _config(state: Mapping[str, Any], where: str) -> ModelConfig:
    """Derives the configuration from tensor shapes, by majority over many tensors, so that a few wrong ones can still be reported."""
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items() if isinstance(tensor, Tensor) and tensor.dim()}
    latents = [shape[0] // 2 for key, shape in shapes.items() if re.fullmatch(r"GE?\.initial_conv\.(0\.bias|1\.\w+)", key)]
    stages = _indices(state, r"GE?\.layers\.(\d+)\.0\.")
    if not latents or not stages:
        raise ValueError(f"{where}: not a published AttributeGAN: no G.initial_conv and G.layers. The first keys are {list(state)[:5]}")
    size, latent_dim = 2 ** (2 + len(stages)), mode(latents)
    if size < 256:
        raise ValueError(f"{where}: the generator makes {size} px images; the published code supports 256 px and more")
    try:
        return ModelConfig(
            image_size=size,
            latent_dim=latent_dim,
            fmap_max=latent_dim,  # a larger maximum would have no effect
            fmap_inverse_coef=_fmap_inverse_coef(shapes, latent_dim),
            generator_attention=tuple(2 ** (k + 2) for k in _indices(state, r"GE?\.layers\.(\d+)\.2\.")),
            attributes="published",
        )
    except ValueError as error:
        raise ValueError(f"{where}: not a network of the published code: {error}") from None


def _indices(keys: Iterable[str], pattern: str) -> list[int]:
    """Returns the indices in names that match ``pattern``, ignoring a few stray names (a stage has 16 names, its attention 28)."""
    counts = Counter(int(found[1]) for key in keys if (found := re.match(pattern, key)))
    return sorted(index for index, count in counts.items() if count > 4)


def _fmap_inverse_coef(shapes: Mapping[str, Shape], fmap_max: int) -> int:
    """Returns the coefficient that explains most widths; 12, the published default, in case of a tie."""
    widths = [
        (7 - int(found[1]), shape[0])
        for key, shape in shapes.items()
        if (found := re.fullmatch(r"D\.residual_layers\.(\d+)\.0\.branches\.\d\.\d\.bias", key))
    ]
    widths += [(8, shape[0]) for key, shape in shapes.items() if re.fullmatch(r"D\.non_residual_layers\.\d+\.1\.bias", key)]
    return max([12, *range(4, 24)], key=lambda coef: sum(width == min(2.0 ** (coef - n), fmap_max) for n, width in widths))


def _networks(config: ModelConfig) -> dict[str, nn.Module]:
    return {"G": Generator(config, PUBLISHED), "GE": Generator(config, PUBLISHED), "D": Discriminator(config, PUBLISHED)}


def _published_shapes(config: ModelConfig) -> dict[str, Shape]:
    networks = _networks(config)
    return {f"{part}.{key}": tuple(tensor.shape) for part, network in networks.items() for key, tensor in _translated(network).items()}


def _translated(network: nn.Module) -> dict[str, Tensor]:
    """Returns a network's state dict under published names, including blur buffers."""
    state: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        keys = _names(name, network)
        if name.endswith(".g"):  # a scalar in the published network
            tensor = tensor[0]
        if name.endswith(("qkv_weight", "out_weight")):  # 1 x 1 kernels in the published network
            tensor = tensor[..., None, None]
        state.update(zip(keys, tensor.chunk(len(keys)) if len(keys) > 1 else [tensor], strict=True))
    for key in list(state):
        for pattern, index in _BLURRED:
            if found := pattern.fullmatch(key):
                state[f"{found[1]}.{index}.f"] = torch.tensor(_TAPS, device="cpu")  # compared by value
    return state


def _names(ours: str, network: nn.Module) -> list[str]:
    """Returns the published name of the tensor ``ours`` of ``network``, or those of the tensors stacked in it."""
    rules = _GENERATOR_RULES if isinstance(network, Generator) else _DISCRIMINATOR_RULES
    for prefix, published in rules.items():
        if found := re.fullmatch(re.escape(prefix).replace(r"\{\}", r"(\d+)") + r"(|\..+)", ours):
            *indices, leaf = found.groups()
            return [template.format(*indices) + leaf for template in published.split()]
    raise ValueError(f"{type(network).__name__} {ours}: the published network has no such part")


def _joined(tensors: list[Tensor]) -> Tensor:
    return torch.cat(tensors) if len(tensors) > 1 else tensors[0]


def _problems(state: Mapping[str, Any], expected: Mapping[str, Shape]) -> Iterator[str]:
    """Yields one line for every key that is missing, unknown or wrong."""
    for key, shape in expected.items():
        value = state.get(key)
        if key not in state:
            yield f"missing: {key} {list(shape)}"
        elif not isinstance(value, Tensor):
            yield f"wrong: {key} is a {type(value).__name__}, expected a tensor {list(shape)}"
        elif tuple(value.shape) != shape:
            yield f"wrong: {key} has shape {list(value.shape)}, expected {list(shape)}"
        elif key.endswith(".f") and tuple(value.tolist()) != _TAPS:
            yield f"wrong: {key} is {value.tolist()}, the published blur is {list(_TAPS)}"
    yield from (f"unknown: {key}" for key in state if key not in expected)
