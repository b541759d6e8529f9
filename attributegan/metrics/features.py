"""Feature extractors: loads a network by name, resizes tiles for it, and records its identity.

The default needs no download: EfficientNet-Lite0 trained on ImageNet, whose weights are a package (extra ``eval``). Metrics of different
networks, or of one network at different sizes, can't be compared; `Features.identity` must be equal. Features that have no natural scale
(``random``) are standardised by the real training tiles: `reference.standardised`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attributegan.metrics import efficientnet, encoders, random_network
from attributegan.metrics.encoders import ENCODERS
from attributegan.metrics.encoders import IMAGENET as IMAGENET

MAX_SCALED = 5.0  # standard deviations to which standardised features are clipped
DEFAULT, RANDOM = "efficientnet-lite0", "random"
HELP = """\
efficientnet-lite0 (default), -lite1 or -lite2 (offline); random (a network with random weights); inception or
inception:FILE (FID's weights); uni, virchow, virchow2 or timm:NAME, each also with :FILE (weights); hub:OWNER/REPO:ENTRY or
hub:FOLDER:ENTRY (torch.hub); FILE.pt (TorchScript) or FILE.pt2 (torch.export); MODULE:FUNCTION, which returns a torch module or
attributegan.metrics.features.Features"""


@dataclass(frozen=True)
class Features:
    """A network that computes one feature vector per tile.

    Args:
        name: as given by the user.
        version: package version or hash of the weights.
        size: pixels to which tiles are resized, with antialiasing (Parmar et al., CVPR 2022).
        network: normalised images_BCHW -> (B, D), or (B, D, h, w), which is averaged over the map.
        mean: of the normalisation by channel, for images in [0, 1].
        std: likewise.
        standardise: whether the vectors must be standardised by the real training tiles before they are used.
        scaling: mean and standard deviation of each feature of these tiles, (D,) each.
        scaled_by: identity of these tiles.
    """

    name: str
    version: str
    size: int
    network: Callable[[Tensor], Tensor]
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]
    standardise: bool = False
    scaling: tuple[np.ndarray, np.ndarray] | None = None
    scaled_by: str = ""

    @property
    def identity(self) -> dict[str, Any]:
        """The identity recorded in result files; only results with equal identities can be compared."""
        found = {"name": self.name, "version": self.version, "size": self.size, "mean": list(self.mean), "std": list(self.std)}
        return found | ({"standardised_by": self.scaled_by, "clipped": MAX_SCALED} if self.scaled_by else {})

    @property
    def unscaled(self) -> Features:
        """The same extractor before standardisation."""
        return replace(self, standardise=False, scaling=None, scaled_by="")

    def scale(self, vectors_ND: np.ndarray) -> np.ndarray:
        """Standardises vectors of `unscaled`; a feature that is undefined for a tile, or constant over the training tiles, becomes 0.

        Clipped to `MAX_SCALED`: otherwise, a feature that is 0 for nearly all training tiles would let the few others decide KID (cubic).
        """
        if self.scaling is None:
            return vectors_ND
        mean_D, std_D = self.scaling
        scaled_ND = (vectors_ND - mean_D) / std_D
        return np.where(np.isfinite(scaled_ND), scaled_ND, 0).clip(-MAX_SCALED, MAX_SCALED).astype(np.float32)

    def to(self, device: torch.device) -> Features:
        """Returns the extractor with its network on ``device``."""
        return replace(self, network=self.network.to(device)) if isinstance(self.network, nn.Module) else self

    @torch.inference_mode()
    def __call__(self, tiles_NHWC: np.ndarray, device: torch.device | None = None) -> np.ndarray:
        """Computes features (N, D), float32, of uint8 tiles of any one size, in one batch.

        Raises:
            ValueError: the network does not return one vector per tile, or the features are not standardised yet.
        """
        if self.standardise and self.scaling is None:
            raise ValueError(f"--features {self.name}: standardise them first, with attributegan.evaluation.reference.standardised")
        images_BCHW = resize(tiles_NHWC, self.size, device)
        mean, std = (torch.tensor(values, device=images_BCHW.device)[:, None, None] for values in (self.mean, self.std))
        output = self.network(((images_BCHW / 255 - mean) / std).contiguous(memory_format=torch.channels_last))
        if not isinstance(output, Tensor) or output.ndim not in (2, 4) or len(output) != len(tiles_NHWC):
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"--features {self.name}: returned {shape} for {len(tiles_NHWC)} tiles; expected one vector or map per tile")
        return self.scale((output.mean(dim=(2, 3)) if output.ndim == 4 else output).float().cpu().numpy())


def spread(train_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation of each feature over the tiles where it is defined; infinite where it is constant."""
    defined_ND = np.where(np.isfinite(train_ND), train_ND, np.nan).astype(np.float64)
    defined_ND[:, np.isnan(defined_ND).all(axis=0)] = 0
    mean_D, std_D = np.nanmean(defined_ND, axis=0), np.nanstd(defined_ND, axis=0)
    return mean_D, np.where(std_D > 1e-6 * np.abs(mean_D), std_D, np.inf)


def resize(tiles_NHWC: np.ndarray, size: int, device: torch.device | None = None) -> Tensor:
    """Converts uint8 tiles to float images_BCHW in [0, 255], bicubic with antialiasing; used for real and generated tiles alike."""
    images_BCHW = torch.from_numpy(np.ascontiguousarray(tiles_NHWC)).to(device).permute(0, 3, 1, 2).float()
    if images_BCHW.shape[-2:] != (size, size):
        images_BCHW = F.interpolate(images_BCHW, (size, size), mode="bicubic", antialias=True, align_corners=False)
    return images_BCHW.clamp(0, 255)


def load(name: str = DEFAULT, size: int | None = None) -> Features:
    """Loads a feature extractor by name; see `HELP` for the accepted forms.

    Args:
        name: of the network.
        size: pixels; by default the network's own input size.

    Raises:
        ValueError: nothing can be loaded under this name; names the fix.
    """
    if size is not None and size < 8:
        raise ValueError(f"--feature-size: {size} is below 8 pixels")
    try:
        features = _load(name, size)
    except ImportError as error:
        raise ValueError(
            f"--features {name}: {error}; install the package that it needs, e.g. `pip install 'attributegan[eval]'`"
        ) from error
    if isinstance(features.network, nn.Module):
        with contextlib.suppress(NotImplementedError):  # exported programs have no eval()
            features.network.eval()
    return features if size is None else replace(features, size=size)


def _load(name: str, size: int | None) -> Features:
    kind, _, rest = name.partition(":")
    if name in efficientnet.SIZES:
        return _efficientnet(name)
    if name == RANDOM:
        return _random()
    if kind == "inception":
        return _inception(rest)
    if (kind == "timm" and rest) or kind in ENCODERS:
        return _encoder(name, size)
    if kind == "hub" and rest:
        return _hub(name, rest)
    if Path(name).is_file():
        return _file(name)
    if rest and all(part.isidentifier() for part in (*kind.split("."), rest)):
        return _function(name, kind, rest)
    raise ValueError(f"--features {name!r}: no such file, and not one of: {HELP}")


def _efficientnet(name: str) -> Features:
    """EfficientNet-Lite up to its last feature map: 1280 features."""
    body, package = efficientnet.load(name)
    body = body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    version = f"package {package}, {weights_hash(body.network)}"
    return Features(name, version, efficientnet.SIZES[name], body, *efficientnet.SCALE)


def _random() -> Features:
    """A network with random weights: 960 features."""
    network = random_network.RandomNetwork()
    return Features(RANDOM, weights_hash(network), random_network.SIZE, network, (0.5,) * 3, (0.25,) * 3, standardise=True)


def _inception(file: str) -> Features:
    """Inception-v3 with FID's weights: 2048 features, normalised to [-1, 1] as by clean-fid. ``resize`` is clean-fid's as well."""
    from attributegan.metrics import inception

    if file and not Path(file).is_file():
        raise ValueError(f"--features inception:{file}: no such file")
    network = inception.load(Path(file) if file else inception.find())
    return Features("inception", weights_hash(network), inception.SIZE, network, mean=(128 / 255,) * 3, std=(128 / 255,) * 3)


def _encoder(name: str, size: int | None) -> Features:
    """A model of timm, by its name there (``timm:NAME``) or one of `encoders.ENCODERS`; a file of weights is no part of the name."""
    short, file = encoders.split_file(name)
    try:
        if short in encoders.ENCODERS:
            loaded = encoders.load_encoder(short, file, any_size=size is not None)
        else:
            loaded = encoders.load_timm(short.removeprefix("timm:"), file, any_size=size is not None)
    except ValueError as error:
        raise ValueError(f"--features {name}: {error}") from error
    return Features(short, f"{loaded.version}, {weights_hash(loaded.network)}", loaded.size, loaded.network, loaded.mean, loaded.std)


def _hub(name: str, rest: str) -> Features:
    repository, _, entry = rest.rpartition(":")
    if not repository:
        raise ValueError(f"--features {name}: write hub:OWNER/REPO:ENTRY, or hub:FOLDER:ENTRY")
    source = "local" if Path(repository).is_dir() else "github"
    try:
        network = torch.hub.load(repository, entry, source=source, trust_repo="check")
    except (RuntimeError, OSError, ValueError) as error:
        raise ValueError(f"--features {name}: torch.hub failed to load it: {error}") from error
    return Features(name, weights_hash(network), 224, network)


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
    if os.getcwd() not in sys.path:  # installed commands don't search the working directory
        sys.path.append(os.getcwd())
    factory = getattr(importlib.import_module(module), function, None)
    if not callable(factory):
        raise ValueError(f"--features {name}: {module} has no function {function}")
    network = factory()
    if isinstance(network, Features):
        return network
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"--features {name}: returned {type(network).__name__}; return a torch module or attributegan.metrics.features.Features"
        )
    return Features(name, weights_hash(network), 224, network)


def weights_hash(network: Any) -> str:
    """Returns a hash of the weights, since weights published under one name may change."""
    digest = hashlib.sha256()
    for key, tensor in sorted(network.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"weights {digest.hexdigest()[:16]}"
