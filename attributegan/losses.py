"""The losses, pure functions each under its citation. All are computed in at least float32.

The discriminator pushes its answers down for real images and up for generated ones, as in the published AttributeGAN (Ye et
al., MICCAI 2021), so a good generated image is one with a low answer. Weights and phases are elsewhere.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """mean(relu(1 + real)) + mean(relu(1 - fake)); the hinge loss of Lim & Ye, "Geometric GAN", 2017, with the sign above.

    Args:
        real: answers to real images, any shape.
        fake: answers to generated images.
    """
    return F.relu(1 + _full(real)).mean() + F.relu(1 - _full(fake)).mean()


def hinge_generator(fake: Tensor) -> Tensor:
    """mean(fake): the generator wants the answers to its images low."""
    return _full(fake).mean()


def contrastive_2c(
    embedding_BE: Tensor,
    proxy_BE: Tensor,
    levels_BA: Tensor,
    temperature: float,
    all_embeddings_NE: Tensor | None = None,
    all_levels_NA: Tensor | None = None,
    first: int = 0,
) -> Tensor:
    """2C loss (Kang & Park, "ContraGAN", NeurIPS 2020, eq. 8) with cosine similarity s, temperature T, as AttributeGAN writes it:

    mean over i of -log(T (e^(s(x_i,p_i)/T) + sum_{j!=i, y_j=y_i} e^(s(x_i,x_j)/T)) / (e^(s(x_i,p_i)/T) + sum_{j!=i} e^(s(x_i,x_j)/T)))

    where y_j = y_i means that all levels are the same.

    Args:
        embedding_BE: x_i of this process's images.
        proxy_BE: p_i, the proxies of their levels.
        levels_BA: y_i.
        temperature: T, above 0.
        all_embeddings_NE: x_j, the embeddings of the global batch, in which this process's are rows ``first`` to
            ``first + B``; by default those of this process are all.
        all_levels_NA: y_j, as above.
    """
    x_BE, p_BE = F.normalize(_full(embedding_BE), dim=1), F.normalize(_full(proxy_BE), dim=1)
    others_NE = x_BE if all_embeddings_NE is None else F.normalize(_full(all_embeddings_NE), dim=1)
    levels_NA = levels_BA if all_levels_NA is None else all_levels_NA
    with torch.autocast(x_BE.device.type, enabled=False):
        to_proxy_B1 = (x_BE * p_BE).sum(1, keepdim=True) / temperature
        to_others_BN = x_BE @ others_NE.T / temperature
    own = torch.arange(len(x_BE), device=x_BE.device)[:, None] + first == torch.arange(len(others_NE), device=x_BE.device)
    same_BN = (levels_BA[:, None] == levels_NA[None]).all(2)
    log_numerator = torch.cat([to_proxy_B1, to_others_BN.masked_fill(own | ~same_BN, float("-inf"))], dim=1).logsumexp(1)
    log_denominator = torch.cat([to_proxy_B1, to_others_BN.masked_fill(own, float("-inf"))], dim=1).logsumexp(1)
    return (log_denominator - log_numerator).mean() - math.log(temperature)


def r1_penalty(real_scores: Tensor, real_images: Tensor) -> Tensor:
    """Mean over images of the squared gradient norm of the score (Mescheder et al., ICML 2018, eq. 9, without gamma/2).

    Args:
        real_scores: (B,) or (B, anything), image i's from ``real_images[i]`` alone.
        real_images: (B, C, H, W) that require gradients.

    Returns: a scalar that can be differentiated once more.
    """
    (gradient_BCHW,) = torch.autograd.grad(_full(real_scores).sum(), real_images, create_graph=True)
    return _full(gradient_BCHW).square().sum(dim=(1, 2, 3)).mean()


def _full(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
