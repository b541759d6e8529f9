"""Encoders of the package timm: any of its models, and pathology encoders with the settings that their weights need.

Weights come from the hub, or from a file: a .safetensors, or a checkpoint read with ``torch.load(weights_only=True)``, which runs no code.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Encoder:
    """A pathology encoder: its architecture in timm, its settings, and its name on the hub.

    Its input has 224 pixels, normalized by ImageNet's mean and deviation.
    """

    architecture: str
    settings: Mapping[str, Any]
    hub: str


_SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu", "mlp_ratio": 5.3375, "global_pool": ""}
_VIT = {"img_size": 224, "init_values": 1e-5, "dynamic_img_size": True}  # with LayerScale
ENCODERS = {
    "uni": Encoder("vit_large_patch16_224", _VIT, "hf-hub:MahmoodLab/uni"),  # Chen et al. 2024, Nature Medicine 30
    "virchow": Encoder("vit_huge_patch14_224", _VIT | _SWIGLU, "hf-hub:paige-ai/Virchow"),  # Vorontsov et al. 2024, Nature Medicine 30
    "virchow2": Encoder("vit_huge_patch14_224", _VIT | _SWIGLU | {"reg_tokens": 4}, "hf-hub:paige-ai/Virchow2"),  # Zimmermann et al. 2024
}


@dataclass(frozen=True)
class Loaded:
    """A network with its input size in pixels, the mean and deviation of its normalisation, and timm's version."""

    network: nn.Module
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    version: str


class Tokens(nn.Module):
    """Joins the class token and the mean of the patch tokens where a network returns tokens_BTD, as Virchow does; leaves out registers."""

    def __init__(self, network: nn.Module, prefix_tokens: int) -> None:
        super().__init__()
        self.network, self.prefix_tokens = network, prefix_tokens

    def forward(self, images_BCHW: Tensor) -> Tensor:
        tokens: Tensor = self.network(images_BCHW)
        if tokens.ndim != 3:
            return tokens
        return torch.cat([tokens[:, 0], tokens[:, self.prefix_tokens :].mean(dim=1)], dim=1)


def split_file(name: str) -> tuple[str, Path | None]:
    """Split ``NAME:FILE`` at its last colon if that ends like a file of weights."""
    model, _, file = name.rpartition(":")
    return (model, Path(file)) if model and file.lower().endswith(SUFFIXES) else (name, None)


def load_encoder(name: str, file: Path | None, any_size: bool = False) -> Loaded:
    """Load one of `ENCODERS`, with weights from a file or its hub.

    Raises:
        ValueError: weights that can't be loaded, or don't fit.
    """
    encoder = ENCODERS[name]
    loaded = load_timm(encoder.architecture if file else encoder.hub, file, any_size, encoder.settings)
    return Loaded(loaded.network, 224, *IMAGENET, loaded.version)


def load_timm(model: str, file: Path | None, any_size: bool = False, settings: Mapping[str, Any] | None = None) -> Loaded:
    """Load a model of timm without its classifier.

    Args:
        model: name in timm, or ``hf-hub:OWNER/NAME``.
        file: weights; None for timm's own or the hub's.
        any_size: let a vision transformer take sizes other than its own, by interpolated position embeddings.
        settings: arguments of ``timm.create_model``; a name of ``mlp_layer`` is a class of ``timm.layers``.

    Raises:
        ValueError: no such model, weights that can't be loaded or don't fit, or timm is not installed.
    """
    timm = _timm()
    if file and not file.is_file():
        raise ValueError(f"{file}: no such file")
    arguments = dict(settings or {})
    if "mlp_layer" in arguments:
        arguments["mlp_layer"] = getattr(timm.layers, arguments["mlp_layer"])
    try:
        try:
            network = timm.create_model(model, not file, num_classes=0, **({"dynamic_img_size": True} if any_size else {}) | arguments)
        except TypeError:  # convolutional networks take any size
            network = timm.create_model(model, not file, num_classes=0, **arguments)
    except (RuntimeError, OSError) as error:
        gated = "; gated models need your own token: accept their conditions on the hub, then set HF_TOKEN, or give a file of weights"
        raise ValueError(f"timm failed to create {model}: {error}{gated if 'hub:' in model else ''}") from error
    if file:
        _load_weights(network, file)
    data = timm.data.resolve_model_data_config(network)
    tokens = Tokens(network.eval(), int(getattr(network, "num_prefix_tokens", 1)))
    return Loaded(tokens, data["input_size"][-1], tuple(data["mean"]), tuple(data["std"]), f"timm {timm.__version__}")


def _timm() -> Any:
    try:
        import timm
        import timm.data
        import timm.layers
    except ImportError as error:
        raise ValueError(f"needs the package timm ({error}): pip install 'attributegan[encoders]'") from error
    except RuntimeError as error:  # of torchvision, which timm imports
        raise ValueError(f"timm can't be imported: {error}; install the build of torchvision that belongs to your torch") from error
    return timm


def _load_weights(network: nn.Module, file: Path) -> None:
    """Load all weights from a file, renamed as timm does for this kind of network; those of a classifier are ignored."""
    try:
        if file.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # both readers raise many types for damaged files
        raise ValueError(f"{file}: not readable as weights: {error}") from error
    for key in ("state_dict", "model"):
        state = state[key] if isinstance(state, dict) and isinstance(state.get(key), dict) else state
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{file}: has no weights by name")
    rename = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    try:
        state = rename(state, network) if rename else state
        state = {key: tensor for key, tensor in state.items() if not _is_classifier(key, network)}
        problems = network.load_state_dict(state, strict=False)
    except (RuntimeError, KeyError, ValueError) as error:
        raise ValueError(f"{file}: weights of another network: {error}") from error
    wrong = [f"without {name}" for name in problems.missing_keys] + [f"with {name}" for name in problems.unexpected_keys]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"{file}: weights of another network: {', '.join(wrong[:3])}{more}")


def _is_classifier(name: str, network: nn.Module) -> bool:
    classifier = getattr(network, "pretrained_cfg", {}).get("classifier") or ()
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return name.startswith(tuple(f"{one}." for one in names))
