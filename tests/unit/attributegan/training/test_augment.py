"""DiffAugment: each policy against a hand-computed case, gradients, and independence of the batch."""

import pytest
import torch
from torch import Tensor

from attributegan.config import AugmentConfig
from attributegan.training import augment

EVERYTHING = ("translation", "offset", "cutout", "color", "hed")


def config(*policy: str, probability: float = 1.0) -> AugmentConfig:
    return AugmentConfig(policy=policy, probability=probability)


def images(batch: int, size: int = 16, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(batch), dtype=dtype) * 2 - 1


def drawn(settings: AugmentConfig, batch: int) -> Tensor:
    return augment.draw(settings, batch, torch.Generator().manual_seed(1))


def by_hand(name: str, image_1CHW: Tensor, *draws: float) -> Tensor:
    return augment.apply(image_1CHW, torch.tensor([[0.0, *draws]]), config(name))


@pytest.mark.parametrize(("policy", "columns"), [((), 1), (("offset",), 3), (("translation", "color"), 6), (EVERYTHING, 16)])
def test_draws_are_uniform_and_one_row_an_image(policy: tuple[str, ...], columns: int) -> None:
    settings = config(*policy)
    draws = drawn(settings, 2000)
    assert draws.shape == (2000, columns) == (2000, augment.draws_per_image(settings)) and draws.device.type == "cpu"
    assert draws.min() >= 0 and draws.max() < 1
    torch.testing.assert_close(draws.mean(0), torch.full((columns,), 0.5), atol=0.03, rtol=0)
    assert torch.equal(draws, drawn(settings, 2000))


@pytest.mark.parametrize("settings", [config(*EVERYTHING, probability=0.0), config()])
def test_nothing_to_do_is_the_identity(settings: AugmentConfig) -> None:
    batch = images(4)
    assert torch.equal(augment.apply(batch, drawn(settings, 4), settings), batch)


def test_probability_chooses_images() -> None:
    settings = config("offset", "color", probability=0.3)
    batch, draws = images(400, size=8), drawn(settings, 400)
    changed = (augment.apply(batch, draws, settings) != batch).flatten(1).any(1)
    assert torch.equal(changed, draws[:, 0] < 0.3)
    assert 0.2 < changed.float().mean() < 0.4


def test_probability_of_the_call_overrides_that_of_the_configuration() -> None:
    settings, adapted = config("color", probability=0.9), config("color", probability=0.2)
    batch, draws = images(100, size=8), drawn(settings, 100)
    assert torch.equal(augment.apply(batch, draws, settings, 0.2), augment.apply(batch, draws, adapted))
    assert torch.equal(augment.apply(batch, draws, settings, 0.0), batch)


@pytest.mark.parametrize(
    ("draws", "down", "right"),
    [((0.0, 0.5), -2, 0), ((0.999, 0.0), 2, -2), ((0.5, 0.75), 0, 1), ((0.0, 0.0), -2, -2), ((0.999, 0.999), 2, 2)],
)
def test_translation_fills_with_zero(draws: tuple[float, float], down: int, right: int) -> None:
    image = images(1)  # 16 pixels: shifts of at most 2, so 5 positions
    expected = torch.zeros_like(image)
    for row in range(16):
        for column in range(16):
            if 0 <= row + down < 16 and 0 <= column + right < 16:
                expected[..., row + down, column + right] = image[..., row, column]
    assert torch.equal(by_hand("translation", image, *draws), expected)


def test_translation_goes_as_far_as_an_eighth_of_each_side() -> None:
    image = torch.ones(1, 3, 64, 32)
    moved = by_hand("translation", image, 0.999, 0.0)
    expected = torch.zeros_like(image)
    expected[..., 8:, :28] = 1
    assert torch.equal(moved, expected)


@pytest.mark.parametrize(("draws", "down", "right"), [((0.0, 0.0), 0, 0), ((0.25, 0.5), 4, 8), ((0.999, 0.1), 15, 1)])
def test_offset_is_a_roll(draws: tuple[float, float], down: int, right: int) -> None:
    image = images(1)
    assert torch.equal(by_hand("offset", image, *draws), torch.roll(image, (down, right), (2, 3)))


@pytest.mark.parametrize(
    ("draws", "rows", "columns"), [((0.5, 0.5), slice(4, 12), slice(4, 12)), ((0.0, 0.999), slice(0, 4), slice(11, 16))]
)
def test_cutout_clears_a_square(draws: tuple[float, float], rows: slice, columns: slice) -> None:
    image = images(1)
    expected = image.clone()
    expected[..., rows, columns] = 0
    assert torch.equal(by_hand("cutout", image, *draws), expected)


def test_cutout_of_an_odd_side_is_around_its_middle() -> None:
    image = torch.ones(1, 3, 6, 14)  # the square is 3 x 7
    expected = image.clone()
    expected[..., 1:4, 4:11] = 0
    assert torch.equal(by_hand("cutout", image, 0.4, 0.5), expected)


def test_color_neutral_and_by_hand() -> None:
    image = images(1, size=4)
    torch.testing.assert_close(by_hand("color", image, 0.5, 0.5, 0.5), image)
    torch.testing.assert_close(by_hand("color", image, 0.75, 0.5, 0.5), image + 0.25)
    torch.testing.assert_close(by_hand("color", image, 0.5, 0.0, 0.5), image.mean(1, keepdim=True).expand_as(image))
    torch.testing.assert_close(by_hand("color", image, 0.5, 0.5, 0.0), (image + image.mean()) / 2)


def test_stain_jitter_of_zero_is_the_identity_outside_the_range_too() -> None:
    image = images(1) * 1.5
    image[..., 0, 0] = -1.0  # black
    torch.testing.assert_close(by_hand("hed", image, *[0.5] * 6), image, rtol=0, atol=3e-7)
    outside = [0.1, 0.9, 0.3, 0.8, 0.2, 0.6]
    assert torch.equal(augment.apply(image, torch.tensor([[0.9, *outside]]), config("hed", probability=0.5)), image)


def test_stain_jitter_scales_and_shifts_concentrations() -> None:
    """Pixels of known concentrations: those of the result are c (1 + 0.1 a) + 0.1 b, with a and b from -1 to 1."""
    stains_SC = torch.nn.functional.normalize(torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]]), dim=1)
    concentrations_NS = torch.tensor([[0.0, 0.0, 0.0], [1.2, 0.1, 0.0], [0.2, 0.9, 0.05], [0.5, 0.5, 0.5]])
    image = (2 * (-(concentrations_NS @ stains_SC)).exp() - 1).T.reshape(1, 3, 2, 2)
    draws = [0.75, 0.0, 0.999, 0.25, 0.5, 1.0]
    result = by_hand("hed", image, *draws)
    scale, shift = (torch.tensor(draws) * 2 - 1).chunk(2)
    found_NS = -((result + 1) / 2).log().flatten(2)[0].T @ stains_SC.inverse()
    torch.testing.assert_close(found_NS, concentrations_NS * (1 + 0.1 * scale) + 0.1 * shift, atol=2e-6, rtol=1e-5)


def test_stains_are_of_unit_length_in_double_precision() -> None:
    stains_SC, concentrations_CS = augment._stains(torch.device("cpu"), torch.float64)
    one = torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(stains_SC.norm(dim=1), one, rtol=0, atol=1e-12)
    torch.testing.assert_close(concentrations_CS @ stains_SC, one.diag(), rtol=0, atol=1e-12)


def test_stain_jitter_has_bounded_gradients_in_black_pixels() -> None:
    batch = torch.full((1, 3, 4, 4), -1.0, requires_grad=True)
    (gradient,) = torch.autograd.grad(by_hand("hed", batch, *[1.0] * 6).sum(), batch)
    assert gradient.isfinite().all() and gradient.abs().max() < 2


def test_stain_jitter_of_darker_pixels_is_that_of_a_transmittance_of_1_32() -> None:
    draws = [0.9, 0.1, 0.7, 0.2, 0.6, 0.8]
    factor_64, factor_32, factor_31 = (
        (by_hand("hed", torch.full((1, 3, 1, 1), 2 * t - 1), *draws) + 1) / (2 * t) for t in (1 / 64, 1 / 32, 1 / 31)
    )
    torch.testing.assert_close(factor_64, factor_32)
    assert (factor_31 - factor_32).abs().max() > 1e-4


def test_policies_follow_each_other_with_their_own_draws() -> None:
    settings, batch = config("color", "offset"), images(1)
    draws = torch.tensor([[0.0, 0.75, 0.5, 0.5, 0.25, 0.5]])
    torch.testing.assert_close(augment.apply(batch, draws, settings), torch.roll(batch + 0.25, (4, 8), (2, 3)))


def test_a_slice_of_the_batch_gives_the_slice_of_the_result() -> None:
    settings = config(*EVERYTHING, probability=0.7)
    batch, draws = images(12), drawn(settings, 12)
    whole = augment.apply(batch, draws, settings)
    for first, last in ((0, 1), (3, 7), (6, 12)):
        assert torch.equal(augment.apply(batch[first:last], draws[first:last], settings), whole[first:last])


def test_images_that_are_not_square_and_channels_last() -> None:
    settings = config(*EVERYTHING)
    batch = images(3)[..., :12]
    draws = drawn(settings, 3)
    expected = augment.apply(batch.contiguous(), draws, settings)
    assert expected.shape == batch.shape
    torch.testing.assert_close(augment.apply(batch.to(memory_format=torch.channels_last), draws, settings), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_type_is_kept(dtype: torch.dtype) -> None:
    settings = config(*EVERYTHING)
    draws = drawn(settings, 4)
    result = augment.apply(images(4).to(dtype), draws, settings)
    assert result.dtype == dtype
    torch.testing.assert_close(result.float(), augment.apply(images(4), draws, settings), atol=0.05, rtol=0.05)


def test_a_draw_that_rounds_to_one_stays_inside() -> None:
    draws = torch.full((1, 7), 1 - 2**-24)
    result = augment.apply(torch.ones(1, 3, 16, 16), draws, config("translation", "offset", "cutout"))
    assert result.shape == (1, 3, 16, 16) and set(result.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("policy", [(name,) for name in EVERYTHING] + [EVERYTHING])
def test_gradients_and_their_gradients_are_right(policy: tuple[str, ...]) -> None:
    settings = config(*policy, probability=0.8)
    draws = drawn(settings, 2)
    batch = images(2, size=8, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augment.apply(x, draws, settings) ** 2, batch)
    assert torch.autograd.gradgradcheck(lambda x: augment.apply(x, draws, settings) ** 3, batch, fast_mode=True)


def test_offset_passes_the_whole_gradient_and_cutout_only_what_shows() -> None:
    batch = images(1).requires_grad_()
    (gradient,) = torch.autograd.grad(by_hand("offset", batch, 0.3, 0.6).sum(), batch)
    assert torch.equal(gradient, torch.ones_like(gradient))
    (gradient,) = torch.autograd.grad(by_hand("cutout", batch, 0.5, 0.5).sum(), batch)
    assert gradient.sum() == 3 * (256 - 64) and gradient[..., 4:12, 4:12].abs().max() == 0


def test_a_draw_at_the_probability_is_above_it() -> None:
    config = AugmentConfig(policy=("color",), probability=0.5)
    images = torch.zeros(2, 3, 4, 4)
    draws = torch.full((2, augment.draws_per_image(config)), 0.9)
    draws[:, 0] = torch.tensor([0.5, 0.49])
    changed = (augment.apply(images, draws, config) != images).flatten(1).any(dim=1)
    assert changed.tolist() == [False, True]
