"""Losses against values computed by hand."""

import math

import pytest
import torch

from attributegan.training import losses

E = math.e


def test_hinge_pushes_real_down_and_fake_up() -> None:
    real = torch.tensor([[-2.0, 0.5]], requires_grad=True)
    fake = torch.tensor([[3.0, -0.5]], requires_grad=True)
    loss = losses.hinge_discriminator(real, fake)
    assert loss.item() == 0.75 + 0.75  # mean(0, 1.5) + mean(0, 1.5)
    loss.backward()
    assert real.grad.tolist() == [[0.0, 0.5]] and fake.grad.tolist() == [[0.0, -0.5]]


def test_generator_lowers_its_outputs() -> None:
    fake = torch.tensor([1.0, -3.0, 0.5, 0.5], requires_grad=True)
    loss = losses.hinge_generator(fake)
    assert loss.item() == -0.25
    loss.backward()
    assert fake.grad.tolist() == [0.25] * 4


# Three images on two axes: cosines are 0 or 1. Images 0 and 2 have the same levels.
EMBEDDING = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
PROXY = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
LEVELS = torch.tensor([[1, 2], [1, 3], [1, 2]])


def test_contrastive_by_hand() -> None:
    terms = [
        math.log((E + 1 + E) / (E + E)),  # proxy e, image 1 e^0 with other levels, image 2 e with the same
        math.log((1 + 1 + 1) / 1),  # no image with its levels
        math.log((1 + E + 1) / (1 + E)),  # proxy e^0, image 0 e with the same levels, image 1 e^0
    ]
    assert losses.contrastive_2c(EMBEDDING, PROXY, LEVELS, temperature=1.0).item() == pytest.approx(sum(terms) / 3, abs=1e-6)


def test_contrastive_temperature_by_hand() -> None:
    """T divides the cosines and, as AttributeGAN writes it, multiplies the fraction."""
    terms = [math.log((2 * E**2 + 1) / (2 * E**2)), math.log(3), math.log((2 + E**2) / (1 + E**2))]
    expected = sum(terms) / 3 - math.log(0.5)
    assert losses.contrastive_2c(EMBEDDING, PROXY, LEVELS, temperature=0.5).item() == pytest.approx(expected, abs=1e-6)


def test_contrastive_uses_cosines_and_ignores_scale() -> None:
    loss = losses.contrastive_2c(EMBEDDING, PROXY, LEVELS, temperature=1.0)
    scaled = losses.contrastive_2c(7 * EMBEDDING, 0.1 * PROXY, LEVELS, temperature=1.0)
    assert scaled.item() == pytest.approx(loss.item(), abs=1e-6)


def test_contrastive_of_one_image_has_no_negatives() -> None:
    assert losses.contrastive_2c(EMBEDDING[:1], PROXY[:1], LEVELS[:1], temperature=1.0).item() == pytest.approx(0, abs=1e-7)


def test_contrastive_in_shares_is_that_of_the_global_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(6, 5, generator=generator, dtype=torch.double, requires_grad=True)
    proxy = torch.randn(6, 5, generator=generator, dtype=torch.double)
    levels = torch.randint(2, (6, 2), generator=generator)
    whole = losses.contrastive_2c(embedding, proxy, levels, 0.7)
    shares = [
        losses.contrastive_2c(embedding[k : k + 2], proxy[k : k + 2], levels[k : k + 2], 0.7, embedding, levels, first=k) for k in (0, 2, 4)
    ]
    assert torch.stack(shares).mean().item() == pytest.approx(whole.item(), abs=1e-12)
    (expected,) = torch.autograd.grad(whole, embedding)
    (found,) = torch.autograd.grad(torch.stack(shares).mean(), embedding)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    alone = losses.contrastive_2c(embedding[2:4], proxy[2:4], levels[2:4], 0.7)
    assert abs(alone.item() - shares[1].item()) > 0.1  # the published code computes this on each process


def test_contrastive_is_finite_at_small_temperatures() -> None:
    embedding = EMBEDDING.clone().requires_grad_()
    loss = losses.contrastive_2c(embedding, PROXY, LEVELS, temperature=1e-3)  # e^1000 overflows
    loss.backward()
    # Images 0 and 2: nothing. Image 1: log 3.
    assert loss.item() == pytest.approx((math.log(3) + 0 + 0) / 3 - math.log(1e-3), abs=1e-3)
    assert torch.isfinite(embedding.grad).all()


def test_gradient_penalty_by_hand() -> None:
    images = torch.tensor([[[[1.0, 2.0]]], [[[3.0, 0.0]]]], requires_grad=True)
    weight = torch.tensor(2.0, requires_grad=True)
    scores = weight * images.square().sum(dim=(1, 2, 3)) / 2  # gradient: weight * image
    penalty = losses.gradient_penalty(scores, images)
    assert penalty.tolist() == [4 * 5, 4 * 9]
    penalty.mean().backward()
    assert weight.grad.item() == 2 * 2 * (5 + 9) / 2


def test_pairs_with_unknown_levels_are_excluded_from_the_contrast() -> None:
    """The second level of image 1 is unknown, so it is neither a positive nor a negative of images 0 and 2."""
    levels = torch.tensor([[1, 2], [1, -1], [1, 2]])
    terms = [math.log((E + E) / (E + E)), 0.0, math.log((1 + E) / (1 + E))]
    assert losses.contrastive_2c(EMBEDDING, PROXY, levels, temperature=1.0).item() == pytest.approx(sum(terms) / 3, abs=1e-6)
    apart = torch.tensor([[1, 2], [3, -1], [1, 2]])  # negatives, because the first level differs
    expected = losses.contrastive_2c(EMBEDDING, PROXY, LEVELS, temperature=1.0)
    assert losses.contrastive_2c(EMBEDDING, PROXY, apart, temperature=1.0).item() == pytest.approx(expected.item(), abs=1e-6)


def test_contrast_by_attribute_is_the_mean_of_that_of_each() -> None:
    generator = torch.Generator().manual_seed(0)
    embedding, proxy = torch.randn(2, 6, 8, generator=generator)
    levels = torch.randint(-1, 3, (6, 2), generator=generator)
    found = losses.contrastive_by_attribute(embedding[2:4], proxy[2:4], levels[2:4], 0.5, embedding, levels, 2)
    each = [
        losses.contrastive_2c(x[2:4], p[2:4], y[2:4], 0.5, x, y, 2)
        for x, p, y in ((embedding[:, :4], proxy[:, :4], levels[:, :1]), (embedding[:, 4:], proxy[:, 4:], levels[:, 1:]))
    ]
    assert found.item() == pytest.approx((each[0] + each[1]).item() / 2, abs=1e-6)


def test_relativistic_by_hand() -> None:
    """Only differences of pairs count, and the first should be the lower one."""
    real, fake = torch.tensor([[0.0], [5.0]], requires_grad=True), torch.tensor([[0.0], [3.0]], requires_grad=True)
    loss = losses.relativistic(real, fake)
    assert loss.item() == pytest.approx((math.log(2) + math.log(1 + E**2)) / 2, abs=1e-6)
    assert losses.relativistic(real + 7, fake + 7).item() == pytest.approx(loss.item(), abs=1e-6)
    loss.backward()
    assert (real.grad > 0).all() and torch.equal(fake.grad, -real.grad)


def test_auxiliary_losses_by_hand_and_without_levels_not_known() -> None:
    # One tile and two attributes, of two levels (classes: real 0, real 1, generated 0, generated 1) and of one.
    shares = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    logits, levels = [shares + 5, torch.tensor([[0.5, 0.5]]).log()], torch.tensor([[1, 0]])
    assert losses.auxiliary_generator(logits, levels).item() == pytest.approx(-(math.log(0.2) + math.log(0.5)) / 2, abs=1e-6)
    assert losses.control(logits, levels).item() == pytest.approx(-(math.log(2 / 3) + 0) / 2, abs=1e-6)
    both = [torch.cat([logits_BL, logits_BL.flip(1)]) for logits_BL in logits]  # the second is the generated one
    by_hand = -(math.log(0.2) + math.log(0.1) + 2 * math.log(0.5)) / 4
    assert losses.auxiliary_discriminator(both, levels).item() == pytest.approx(by_hand, abs=1e-6)
    unknown = torch.tensor([[-1, 0]])
    assert losses.auxiliary_generator(logits, unknown).item() == pytest.approx(-math.log(0.5) / 2, abs=1e-6)
    assert losses.auxiliary_discriminator(both, unknown).item() == pytest.approx(-2 * math.log(0.5) / 4, abs=1e-6)
    for loss in (losses.auxiliary_generator, losses.control):
        shares = shares.detach().requires_grad_()
        loss([shares], torch.tensor([[-1]])).backward()
        assert (shares.grad == 0).all()


def test_generated_tiles_of_the_lowest_level_are_taught_as_generated_ones() -> None:
    """The classes are real 0, real 1, generated 0 and generated 1; both tiles have level 0."""
    logits = [torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]]).log()]
    found = losses.auxiliary_discriminator(logits, torch.tensor([[0]]))
    assert found.item() == pytest.approx(-(math.log(0.1) + math.log(0.2)) / 2, abs=1e-6)


def test_the_lowest_level_is_a_known_one_in_the_contrast() -> None:
    lowest = LEVELS - LEVELS.min()
    expected = losses.contrastive_2c(EMBEDDING, PROXY, LEVELS, temperature=1.0).item()
    assert losses.contrastive_2c(EMBEDDING, PROXY, lowest, temperature=1.0).item() == pytest.approx(expected, abs=1e-6)


def test_pairs_are_neighbours_in_longer_batches_too() -> None:
    fakes = torch.tensor([0.0, 0.1, 1.0, 3.0, 5.0, 5.2, 0.0, 0.3]).view(8, 1, 1, 1)
    assert losses.diversity(fakes, torch.tensor(0.4)).item() == pytest.approx((0.75 + 0 + 0.5 + 0.25) / 4, abs=1e-6)
    assert losses.residual(fakes, torch.tensor(0.4)).item() == pytest.approx((0.1 + 2 + 0.2 + 0.3) / 4 / 0.4, abs=1e-6)


def test_diversity_is_zero_beyond_its_bound() -> None:
    fakes = torch.tensor([0.0, 0.1, 1.0, 3.0]).view(4, 1, 1, 1).requires_grad_()
    loss = losses.diversity(fakes, torch.tensor(0.4))
    assert loss.item() == pytest.approx((0.75 + 0) / 2)
    loss.backward()
    assert fakes.grad.flatten().tolist() == pytest.approx([1.25, -1.25, 0, 0])


def test_residual_is_the_share_of_the_real_distance_that_a_pair_differs_by() -> None:
    fakes = torch.tensor([0.0, 0.1, 1.0, 3.0]).view(4, 1, 1, 1).requires_grad_()
    loss = losses.residual(fakes, torch.tensor(0.5))
    assert loss.item() == pytest.approx((0.2 + 4) / 2)
    loss.backward()
    assert fakes.grad.flatten().tolist() == pytest.approx([-1, 1, -1, 1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.double])
def test_losses_are_computed_in_at_least_single_precision(dtype: torch.dtype) -> None:
    wide = torch.float64 if dtype == torch.double else torch.float32
    images = torch.ones(3, 1, 2, 2, dtype=dtype, requires_grad=True)
    found = [
        losses.hinge_discriminator(EMBEDDING.to(dtype), PROXY.to(dtype)),
        losses.hinge_generator(PROXY.to(dtype)),
        losses.contrastive_2c(EMBEDDING.to(dtype), PROXY.to(dtype), LEVELS, 1.0),
        losses.relativistic(EMBEDDING.to(dtype), PROXY.to(dtype)),
        losses.auxiliary_generator([EMBEDDING.to(dtype)], LEVELS[:, :1]),
        losses.auxiliary_discriminator([EMBEDDING[[0, 1, 2, 0, 1, 2]].to(dtype)], LEVELS[:, :1].clamp(max=0)),
        losses.control([EMBEDDING.to(dtype)], LEVELS[:, :1].clamp(max=0)),
        losses.diversity(images[:2], torch.ones((), dtype=dtype)),
        losses.residual(images[:2], torch.ones((), dtype=dtype)),
        losses.gradient_penalty(images.square(), images),
    ]
    assert {loss.dtype for loss in found} == {wide}
    with torch.autocast("cpu", torch.bfloat16):
        exact = losses.contrastive_2c(EMBEDDING + 0.1, PROXY, LEVELS, 0.3)
    assert exact.item() == pytest.approx(losses.contrastive_2c(EMBEDDING.double() + 0.1, PROXY.double(), LEVELS, 0.3).item(), abs=1e-6)


def test_unknown_levels_add_nothing_to_the_classification_loss() -> None:
    """Not even through the mean over the batch: the tile of an unknown level is far off here."""
    logits = torch.log(torch.tensor([[0.9, 0.1, 1e-9, 1e-9], [1e-6, 1.0, 1e-9, 1e-9]]))
    assert losses.control([logits], torch.tensor([[0], [-1]])).item() == pytest.approx(-math.log(0.9) / 2, abs=1e-5)


def test_energy_distance_by_hand() -> None:
    """Points on a line: generated at 0 and 3, real at 1 and 1."""
    fake = torch.tensor([[0.0], [3.0]], requires_grad=True)
    own = torch.eye(2, dtype=torch.bool)
    loss = losses.energy_distance(fake, torch.tensor([[1.0], [1.0]]), fake, own)
    assert loss.item() == pytest.approx(2 * (1 + 2) / 2 - 3, abs=1e-3)
    loss.backward()
    # Towards the real tiles with 2 / 2, away from each other with 2 / 2: only their mean matters here, and it is right.
    assert fake.grad.flatten().tolist() == pytest.approx([0, 0], abs=1e-3)


def test_energy_distance_is_least_for_the_distribution_of_the_real_tiles() -> None:
    rng = torch.Generator().manual_seed(0)
    real = torch.randn(500, 4, generator=rng)

    def distance(fake: torch.Tensor) -> float:
        return losses.energy_distance(fake, real, fake, torch.eye(len(fake), dtype=torch.bool)).item()

    equal = distance(torch.randn(500, 4, generator=rng))
    draws = torch.randn(500, 4, generator=rng)
    assert distance(draws + 0.5) > equal + 0.05 and distance(0.5 * draws) > equal + 0.05 and distance(2 * draws) > equal + 0.05


def test_energy_distance_of_parts_averages_to_that_of_the_whole() -> None:
    rng = torch.Generator().manual_seed(1)
    fake, real = torch.randn(6, 3, generator=rng), torch.randn(4, 3, generator=rng)
    pairs = torch.arange(6) // 2
    excluded = pairs[:, None] == pairs
    whole = losses.energy_distance(fake, real, fake, excluded)
    parts = [losses.energy_distance(fake[rows], real, fake, excluded[rows]) for rows in (slice(0, 2), slice(2, 4), slice(4, 6))]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_energy_distance_has_finite_gradients_where_tiles_are_equal() -> None:
    fake = torch.ones(4, 3, requires_grad=True)
    loss = losses.energy_distance(fake, torch.ones(4, 3), fake, torch.eye(4, dtype=torch.bool))
    assert loss.item() == pytest.approx(2 * 0.01 - 0.01, abs=1e-6)  # a distance of 0 counts as the root of SMOOTHING
    loss.backward()
    assert fake.grad.abs().max() < 1e-6


def test_energy_distance_is_computed_in_single_precision_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    fake, real = torch.randn(6, 5, generator=generator), torch.randn(7, 5, generator=generator)
    own = torch.eye(6, dtype=torch.bool)
    by_hand = 2 * torch.cdist(fake, real).mean() - torch.cdist(fake, fake).sum() / 30
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found = losses.energy_distance(fake, real, fake, own)
        assert found.item() == pytest.approx(by_hand.item(), abs=1e-3)


def test_indices_of_the_contrast_are_on_the_device_of_the_embeddings() -> None:
    expected = losses.contrastive_2c(EMBEDDING, PROXY, LEVELS, temperature=1.0)
    with torch.device("meta"):  # another default device than that of the embeddings, as for a GPU
        found = losses.contrastive_2c(EMBEDDING, PROXY, LEVELS, temperature=1.0)
    assert torch.equal(found, expected)
