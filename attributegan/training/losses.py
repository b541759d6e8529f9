"""The losses: pure functions with their citations, computed in at least float32.

Sign convention of the published AttributeGAN (Ye et al., MICCAI 2021): the discriminator lowers its output for real images and
raises it for generated ones, so a convincing generated image has a low output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from attributegan.models.precision import full_precision

SMOOTHING = 1e-4  # added to squared distances of features, which are about 2 between two real tiles


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """mean(relu(1 + real)) + mean(relu(1 - fake)): the hinge loss of Lim & Ye, "Geometric GAN", 2017, with the sign above.

    Args:
        real: outputs for real images, any shape.
        fake: outputs for generated images.
    """
    return F.relu(1 + full_precision(real)).mean() + F.relu(1 - full_precision(fake)).mean()


def hinge_generator(fake: Tensor) -> Tensor:
    """mean(fake): the generator lowers the outputs for its images."""
    return full_precision(fake).mean()


def relativistic(better: Tensor, worse: Tensor) -> Tensor:
    """mean(softplus(better - worse)): pushes the output ``better`` below ``worse``, pair by pair.

    The relativistic pairing loss (Jolicoeur-Martineau, "The relativistic discriminator", ICLR 2019; with R1 and R2 as in Huang et al., "The
    GAN is dead; long live the GAN!" (R3GAN), NeurIPS 2024, eq. 2), with the sign above. Pass (real, generated) for the discriminator
    and (generated, real) for the generator.
    """
    return F.softplus(full_precision(better) - full_precision(worse)).mean()


def auxiliary_discriminator(logits: Sequence[Tensor], levels_BA: Tensor) -> Tensor:
    """Cross entropy over two classes per level, real and generated: the discriminator's auxiliary classification loss of ADC-GAN.

    Hou et al., "Conditional GANs with Auxiliary Discriminative Classifier", ICML 2022. Mean over tiles and attributes, in which an unknown
    level counts as 0. A classifier of levels alone (AC-GAN) rewards generated tiles that are easy to classify, even if unrealistic.

    Args:
        logits: of each attribute (2B, 2 levels). Rows: B real tiles, then B generated ones; columns: levels of real tiles, then those of
            generated ones.
        levels_BA: of the real tiles and equally of the generated ones; -1 for unknown.
    """
    columns = zip(logits, levels_BA.T, strict=True)
    generated_BA = torch.stack([level_B.where(level_B < 0, level_B + logits_BL.shape[1] // 2) for logits_BL, level_B in columns], dim=1)
    return _cross_entropy(logits, torch.cat([levels_BA, generated_BA]))


def auxiliary_generator(logits: Sequence[Tensor], levels_BA: Tensor) -> Tensor:
    """Cross entropy of generated tiles to the class "real, with their levels": the generator's auxiliary classification loss.

    ADC-GAN also adds the log probability of the class "generated, with their levels", which is omitted here.

    Args:
        logits: of each attribute (B, 2 levels).
        levels_BA: requested levels; -1 for unknown.
    """
    return _cross_entropy(logits, levels_BA)


def control(logits: Sequence[Tensor], levels_BA: Tensor) -> Tensor:
    """Cross entropy over the levels of real tiles only: the part of `auxiliary_generator` that distinguishes levels.

    The classification loss of AC-GAN (Odena et al., "Conditional Image Synthesis with Auxiliary Classifier GANs", ICML 2017, eq. 3).

    Args:
        logits: of each attribute (B, 2 levels).
        levels_BA: requested levels; -1 for unknown.
    """
    return _cross_entropy([logits_BL[:, : logits_BL.shape[1] // 2] for logits_BL in logits], levels_BA)


def _cross_entropy(logits: Sequence[Tensor], classes_BA: Tensor) -> Tensor:
    each = [
        F.cross_entropy(full_precision(logits_BL), class_B.clamp(min=0), reduction="none") * (class_B >= 0)
        for logits_BL, class_B in zip(logits, classes_BA.T, strict=True)
    ]
    return torch.stack(each).mean()


def diversity(fakes_BCHW: Tensor, real_distance: Tensor) -> Tensor:
    """mean over pairs of relu(1 - d / real_distance), where d is the mean absolute difference of the pair's tiles.

    The diversity-sensitive loss (Yang et al., ICLR 2019, eq. 4; mode seeking, Mao et al., CVPR 2019), bounded by the real distance.

    Args:
        fakes_BCHW: rows 2k and 2k + 1 are a pair with the same levels and different latents.
        real_distance: scalar mean absolute difference of two real tiles of any levels, slightly larger than that of two tiles of one label.
    """
    distance_P = (full_precision(fakes_BCHW[0::2]) - full_precision(fakes_BCHW[1::2])).abs().mean(dim=(1, 2, 3))
    return F.relu(1 - distance_P / real_distance).mean()


def residual(fakes_BCHW: Tensor, real_distance: Tensor) -> Tensor:
    """mean over pairs of d / real_distance, where d is the mean absolute difference of the pair's tiles.

    Keeps the change caused by one attribute sparse: the regularisation of residual images (Shen & Liu, "Learning Residual Images for Face
    Attribute Manipulation", CVPR 2017), here between two generated tiles.

    Args:
        fakes_BCHW: rows 2k and 2k + 1 are a pair with the same latent, whose levels differ in at most one attribute.
        real_distance: as in `diversity`.
    """
    return (full_precision(fakes_BCHW[0::2]) - full_precision(fakes_BCHW[1::2])).abs().mean() / real_distance


def energy_distance(fake_BD: Tensor, real_ND: Tensor, all_fakes_MD: Tensor, excluded_BM: Tensor) -> Tensor:
    """2 E|f - r| - E|f - f'|: the energy distance of the generated tiles to the real ones, up to a constant of the real tiles.

    A maximum mean discrepancy (MMD; Gretton et al., JMLR 2012) with the kernel -|x - y| (Sejdinovic et al., Annals of Statistics 2013).
    Unbiased in mini-batches, and smallest where both distributions are equal (Székely & Rizzo, 2013).

    Args:
        fake_BD: features of generated tiles of this process.
        real_ND: features of the real tiles of all processes.
        all_fakes_MD: features of the generated tiles of all processes.
        excluded_BM: pairs of generated tiles to leave out: a tile with itself, and tiles that share a latent.
    """
    within_BM = _distances(fake_BD, all_fakes_MD).masked_fill(excluded_BM, 0)
    return 2 * _distances(fake_BD, real_ND).mean() - within_BM.sum() / (~excluded_BM).sum()


def _distances(x_BD: Tensor, y_ND: Tensor) -> Tensor:
    """Euclidean distances (B, N), smooth at 0."""
    with torch.autocast(x_BD.device.type, enabled=False):
        squares_BN = x_BD.square().sum(1)[:, None] + y_ND.square().sum(1) - 2 * x_BD @ y_ND.T
    return (squares_BN.clamp(min=0) + SMOOTHING).sqrt()


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

    where y_j = y_i means that all levels are equal. Pairs for which this is undecidable, because a level is unknown, are excluded.

    Args:
        embedding_BE: x_i of this process's images.
        proxy_BE: p_i, the proxies of their levels.
        levels_BA: y_i.
        temperature: T, above 0.
        all_embeddings_NE: x_j, the embeddings of the global batch, in which this process's are rows ``first`` to
            ``first + B``; by default the batch is that of this process.
        all_levels_NA: y_j, likewise.
        first: row of this process's first image in the global batch.
    """
    x_BE, p_BE = F.normalize(full_precision(embedding_BE), dim=1), F.normalize(full_precision(proxy_BE), dim=1)
    others_NE = x_BE if all_embeddings_NE is None else F.normalize(full_precision(all_embeddings_NE), dim=1)
    levels_NA = levels_BA if all_levels_NA is None else all_levels_NA
    with torch.autocast(x_BE.device.type, enabled=False):
        to_proxy_B1 = (x_BE * p_BE).sum(1, keepdim=True) / temperature
        to_others_BN = x_BE @ others_NE.T / temperature
    own = torch.arange(len(x_BE), device=x_BE.device)[:, None] + first == torch.arange(len(others_NE), device=x_BE.device)
    unknown_BNA = (levels_BA[:, None] < 0) | (levels_NA[None] < 0)
    equal_BNA = levels_BA[:, None] == levels_NA[None]
    positive_BN = (equal_BNA & ~unknown_BNA).all(2)
    excluded_BN = own | (~positive_BN & (equal_BNA | unknown_BNA).all(2))
    log_numerator = torch.cat([to_proxy_B1, to_others_BN.masked_fill(excluded_BN | ~positive_BN, float("-inf"))], dim=1).logsumexp(1)
    log_denominator = torch.cat([to_proxy_B1, to_others_BN.masked_fill(excluded_BN, float("-inf"))], dim=1).logsumexp(1)
    return (log_denominator - log_numerator).mean() - math.log(temperature)


def contrastive_by_attribute(
    embedding_BE: Tensor,
    proxy_BE: Tensor,
    levels_BA: Tensor,
    temperature: float,
    all_embeddings_NE: Tensor,
    all_levels_NA: Tensor,
    first: int,
) -> Tensor:
    """Mean over attributes of `contrastive_2c`, each on its own slice of embeddings and proxies.

    With hundreds of label combinations a batch rarely has two tiles with equal labels, but many with an equal level of one attribute.
    """
    attributes = levels_BA.shape[1]
    parts = zip(*(x.chunk(attributes, dim=1) for x in (embedding_BE, proxy_BE, levels_BA, all_embeddings_NE, all_levels_NA)), strict=True)
    each = [contrastive_2c(x, p, y, temperature, all_x, all_y, first) for x, p, y, all_x, all_y in parts]
    return torch.stack(each).mean()


def gradient_penalty(scores: Tensor, images: Tensor) -> Tensor:
    """Squared gradient norm of each image's score. The mean over real images is R1, over generated ones R2, both without gamma/2.

    Mescheder et al., "Which Training Methods for GANs do actually Converge?", ICML 2018, eq. 9 and 10.

    Args:
        scores: (B,) or (B, ...); row i must depend on ``images[i]`` only.
        images: (B, C, H, W) that require gradients.

    Returns:
        (B,), differentiable once more.
    """
    (gradient_BCHW,) = torch.autograd.grad(full_precision(scores).sum(), images, create_graph=True)
    return full_precision(gradient_BCHW).square().sum(dim=(1, 2, 3))
