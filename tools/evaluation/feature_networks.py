"""Chooses and loads the feature network of an evaluation: never one whose features trained a model, unless requested.

A generator trained on the features of a network lowers KID and FID under this network by more than its tiles improve (Kynkäänniemi et al.,
"The Role of ImageNet Classes in Fréchet Inception Distance", ICLR 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # slow to import; --help must be fast
    import torch

    from attributegan.config import Config
    from attributegan.metrics.features import Features

AUTO, HANDCRAFTED = "auto", "handcrafted"
ALLOW = "--allow-trained-features"
MMD_NETWORK = "efficientnet-lite0"  # `attributegan.models.perceptual.NETWORK`, which is slow to import


def trained_on(config: Config) -> str:
    """Returns the network whose features trained a model (``loss.mmd``), or ""."""
    return MMD_NETWORK if config.loss.mmd else ""


def choose(asked: str, networks: Mapping[str, str], allow: bool = False) -> str:
    """Returns the name of the feature network to use.

    Args:
        asked: name of a network, or `AUTO` for the first EfficientNet that trained none of the models.
        networks: network whose features trained each model, or "", by the name of the model.
        allow: use the requested network even if it trained a model.

    Raises:
        ValueError: the requested network trained a model; or all candidates of `AUTO` did.
    """
    from attributegan.metrics.efficientnet import SIZES

    used = {network for network in networks.values() if network}
    if asked == AUTO:
        if left := [name for name in SIZES if name not in used]:
            return left[0]
        raise ValueError(f"--features: the models were trained on features of {', '.join(sorted(used))}; use random or {HANDCRAFTED}")
    if asked in used and not allow:
        names = ", ".join(name for name, network in networks.items() if network == asked)
        raise ValueError(
            f"--features {asked}: {names} was trained on these features, so its scores would be too good; remove --features or choose "
            f"another network. {ALLOW} uses it and marks the report"
        )
    return asked


def load(name: str, size: int | None = None) -> Features:
    """Loads a feature network: those of `attributegan.metrics.features.load`, and ``handcrafted``.

    Raises:
        ValueError: nothing can be loaded under this name; names the fix.
    """
    from attributegan.metrics import features

    return _handcrafted(size) if name == HANDCRAFTED else features.load(name, size)


def _handcrafted(size: int | None) -> Features:
    """Nuclei, stain and texture by image processing: 97 features, standardised by the real training tiles."""
    import torch

    from attributegan.metrics.features import Features
    from data_shards import measure

    measure.require()
    from data_shards.measure import handcrafted

    def network(images_BCHW: torch.Tensor) -> torch.Tensor:
        tiles_NHWC = images_BCHW.round().byte().permute(0, 2, 3, 1).cpu().numpy()
        return torch.from_numpy(handcrafted.vectors(tiles_NHWC))

    version = f"version {handcrafted.VERSION}"
    return Features(HANDCRAFTED, version, size or handcrafted.SIZE, network, (0.0,) * 3, (1 / 255,) * 3, standardise=True)
