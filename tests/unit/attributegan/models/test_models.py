"""The networks: shapes, formulas, conditioning, precision, memory layouts, derivatives."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attributegan.attributes import PUBLISHED, Attribute, AttributeSchema
from attributegan.config import ModelConfig
from attributegan.models import Discriminator, Generator, blocks, resample
from attributegan.training import losses

TINY = ModelConfig(
    image_size=32,
    latent_dim=16,
    fmap_max=16,
    fmap_inverse_coef=6,
    generator_attention=(8, 16),
    discriminator_attention=(16, 32),
    attention_heads=2,
)
FIGURE = dataclasses.replace(TINY, label_columns="levels", proxy="level")
CONTROLLED = dataclasses.replace(
    FIGURE, conditioning="projection", generator_levels="ordinal", generator_modulation=True, auxiliary_heads=True
)
OTHER = AttributeSchema((Attribute("grade", ("low", "middle", "high")), Attribute("stroma", ("little", "much"))))
LEVELS = torch.tensor([[0, 0, 0, 0, 0], [4, 3, 3, 2, 4], [1, 2, 0, 1, 3]])


def networks(config: ModelConfig = TINY, schema: AttributeSchema = PUBLISHED, dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    return Generator(config, schema).to(dtype), Discriminator(config, schema).to(dtype)


def images(config: ModelConfig = TINY, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(3, 3, config.image_size, config.image_size, generator=generator, dtype=dtype) * 2 - 1


@pytest.mark.parametrize("size", [32, 64, 128, 256, 512, 1024])
@pytest.mark.parametrize("kind", ["published", "figure", "controlled"])
def test_every_size(size: int, kind: str) -> None:
    figure = {"label_columns": "levels", "proxy": "level", "discriminator_attention": (32, 64)} if kind != "published" else {}
    control = {"conditioning": "projection", "generator_modulation": True, "auxiliary_heads": True} if kind == "controlled" else {}
    config = ModelConfig(image_size=size, latent_dim=32, fmap_max=32, fmap_inverse_coef=12, **figure, **control)
    with torch.device("meta"):
        generator, discriminator = networks(config)
        levels = torch.zeros(2, 5, dtype=torch.long)
        made = generator(torch.randn(2, 32), levels)
        answer = discriminator(made, levels, 3, predict_levels=kind == "controlled")
    assert made.shape == (2, 3, size, size)
    if kind == "controlled":
        assert answer.logits.shape == (2, 1) and answer.logits_32 is None
        assert [logits.shape for logits in answer.levels] == [(2, 10), (2, 8), (2, 8), (2, 6), (2, 10)]
    else:
        assert answer.logits.shape == answer.logits_32.shape == (2, 21 if kind == "figure" else 25)
        assert answer.levels is None
    assert answer.embedding.shape == answer.proxy.shape == (2, 400)
    assert answer.reconstruction_loss.shape == ()
    assert (discriminator.quadrant_decoder is not None) == (size >= 512)
    assert len(discriminator.halvings) == max(0, size.bit_length() - 9)
    attended = [stage.down.weight.shape[1] for stage in discriminator.stages if stage.attention is not None]
    assert len(attended) == (0 if kind == "published" else 1 if size == 32 else 2)


def test_generator_widths() -> None:
    with torch.device("meta"):
        generator = Generator(ModelConfig(image_size=1024), PUBLISHED)
    assert [stage.conv.out_channels // 2 for stage in generator.stages] == [512, 512, 256, 128, 64, 32, 3, 3]
    assert [k for k, stage in enumerate(generator.stages) if stage.attention is not None] == [3, 4]  # they read 32 and 64 pixels
    excited = {k: (excitation.weigh.in_channels, excitation.widen.out_channels) for k, excitation in generator.excitations.items()}
    assert excited == {"1": (512, 64), "2": (256, 32), "3": (128, 3), "4": (64, 3)}


def test_small_tiles_are_reconstructed_at_their_own_size() -> None:
    config = ModelConfig(image_size=64, latent_dim=16, fmap_max=16, fmap_inverse_coef=8, generator_attention=())
    _, discriminator = networks(config)
    x = images(config)
    rebuilt = discriminator.decoder(discriminator._maps(x)[-1])
    assert rebuilt.shape == x.shape
    loss = discriminator(x, LEVELS).reconstruction_loss
    torch.testing.assert_close(loss, (rebuilt - x).square().mean())


def test_other_attributes_make_other_columns_and_proxies() -> None:
    levels = torch.tensor([[0, 1], [2, 0]])
    for kind, columns in (("padded", 6), ("levels", 5)):
        for proxy in ("published", "level"):
            config = dataclasses.replace(TINY, label_columns=kind, proxy=proxy)
            generator, discriminator = networks(config, OTHER)
            answer = discriminator(generator(torch.randn(2, 16), levels), levels)
            assert answer.logits.shape == (2, columns)
            assert answer.proxy.shape == answer.embedding.shape == (2, 16 * 2 * 3)


def test_label_columns_by_hand() -> None:
    levels = torch.tensor([[2, 0], [0, 1]])
    assert blocks.label_columns("padded", (3, 2))(levels).tolist() == [[0, 0, 1, 1, 0, 0], [1, 0, 0, 0, 1, 0]]
    assert blocks.label_columns("levels", (3, 2))(levels).tolist() == [[0, 0, 1, 1, 0], [1, 0, 0, 0, 1]]
    between = blocks.label_columns("levels", (3, 2))(torch.tensor([[1.25, 1.0]]))
    assert between.tolist() == [[0, 0.75, 0.25, 0, 1]]


def test_logits_of_the_label_columns_count_twice() -> None:
    _, discriminator = networks(FIGURE)
    x = images()
    label = discriminator.columns(LEVELS)
    assert label.sum(1).tolist() == [5, 5, 5]
    plain = discriminator.head(discriminator._maps(x)[-1])
    torch.testing.assert_close(discriminator(x, LEVELS).logits, plain + label * plain)


def test_published_proxies_use_two_rows_and_level_proxies_one_for_each_level() -> None:
    for config, rows in ((TINY, {0, 1}), (FIGURE, {0, 5, 9, 13, 16, 4, 8, 12, 15, 20, 1, 7, 14, 19})):
        _, discriminator = networks(config)
        proxy = discriminator(images(), LEVELS).proxy
        torch.testing.assert_close(proxy.norm(dim=1), torch.ones(3))
        (proxy**3).sum().backward()
        learning = discriminator.proxies.table.weight.grad.abs().sum(1).nonzero().flatten().tolist()
        assert set(learning) == rows


def test_level_proxies_of_tiles_that_share_levels_share_their_parts() -> None:
    _, discriminator = networks(FIGURE)
    parts = discriminator.proxies(torch.tensor([[1, 2, 0, 1, 3], [1, 3, 0, 1, 4]])).unflatten(1, (5, 80))
    assert [torch.equal(a, b) for a, b in zip(*parts, strict=True)] == [True, False, True, True, False]


def test_latent_and_every_attribute_change_the_image() -> None:
    generator, _ = networks()
    generator.eval()
    latents = torch.randn(2, 16)
    base = torch.tensor([[1, 1, 1, 1, 1]])
    made = generator(latents[:1], base)
    assert not torch.allclose(made, generator(latents[1:], base))
    for attribute in range(5):
        changed = base.clone()
        changed[0, attribute] = 2
        assert not torch.allclose(made, generator(latents[:1], changed))


def test_parts_not_requested_are_not_computed() -> None:
    _, discriminator = networks(ModelConfig(image_size=512, latent_dim=16, fmap_max=16))
    x = torch.zeros(1, 3, 512, 512)
    for embed, reconstruct in ((False, True), (True, False), (False, False), (True, True)):
        discriminator.zero_grad()
        answer = discriminator(x, LEVELS[:1], embed=embed, reconstruct=reconstruct)
        assert (answer.embedding is None) == (answer.proxy is None) == (not embed)
        assert (answer.reconstruction_loss is None) == (not reconstruct)
        sum(part.square().sum() for part in answer if isinstance(part, torch.Tensor)).backward()
        idle = {name for name, parameter in discriminator.named_parameters() if parameter.grad is None}
        unused = {id(parameter) for parameter in discriminator.unused_parameters(embed=embed, reconstruct=reconstruct)}
        assert idle == {name for name, parameter in discriminator.named_parameters() if id(parameter) in unused}
        assert bool(idle) == (not (embed and reconstruct))


def test_images_of_another_size_are_refused() -> None:
    _, discriminator = networks()
    with pytest.raises(ValueError, match=r"got \(64, 64\) pixels, expected 32 x 32"):
        discriminator(torch.zeros(3, 3, 64, 64), LEVELS)


def test_initial_weights() -> None:
    generator, discriminator = networks(ModelConfig(image_size=64, latent_dim=256, fmap_max=256))
    for network in (generator, discriminator):
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear) and module.weight.numel() > 10_000:
                fan_in = module.weight[0].numel()
                assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
            if isinstance(module, nn.Conv2d | nn.Linear | nn.ConvTranspose2d) and module.bias is not None:
                assert module.bias.abs().max() == 0
            if isinstance(module, blocks.Rezero):
                assert module.g.item() == pytest.approx(1e-3)


def explicit_blur(x: torch.Tensor) -> torch.Tensor:
    x = F.pad(x, (1, 1, 1, 1), mode="reflect")
    x = (x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]) / 4
    return (x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]) / 4


def test_blur_and_its_derivatives() -> None:
    for shape in ((2, 3, 5, 4), (1, 2, 2, 2)):
        x = torch.randn(shape, dtype=torch.double, requires_grad=True)
        torch.testing.assert_close(resample.blur(x), explicit_blur(x), atol=1e-14, rtol=0)
        assert torch.autograd.gradcheck(resample.blur, x) and torch.autograd.gradgradcheck(resample.blur, x)


@pytest.mark.parametrize("shape", [(4, 6), (32, 34), (33, 32)])  # larger maps use transposed convolution
@pytest.mark.parametrize("blurred", [True, False])
def test_doubling_and_convolution_are_the_steps_they_stand_for(shape: tuple[int, int], blurred: bool) -> None:
    torch.manual_seed(0)
    module = (resample.UpsampleBlurConv2d if blurred else resample.UpsampleNearestConv2d)(3, 4).double()
    x = torch.randn(2, 3, *shape, dtype=torch.double, requires_grad=True)
    doubled = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    expected = F.conv2d(explicit_blur(doubled) if blurred else doubled, module.weight, module.bias, padding=1)
    along = torch.randn_like(expected)
    inputs = [x, module.weight, module.bias]
    answer = module(x)
    torch.testing.assert_close(answer, expected, atol=1e-13, rtol=0)
    for ours, other in zip(torch.autograd.grad(answer, inputs, along), torch.autograd.grad(expected, inputs, along), strict=True):
        torch.testing.assert_close(ours, other, atol=1e-10, rtol=0)


def test_transposed_doubling_can_be_differentiated_twice() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 1, 32, 32, dtype=torch.double, requires_grad=True)
    module = resample.UpsampleBlurConv2d(1, 1).double()
    assert torch.autograd.gradgradcheck(
        lambda x, weight: module._conv_forward(x, weight, module.bias).square().mean((2, 3)), (x, module.weight), fast_mode=True
    )


def test_gate_is_glu() -> None:
    x = torch.randn(2, 6, 3, 3, dtype=torch.double)
    torch.testing.assert_close(blocks.glu(x), F.glu(x, dim=1), atol=1e-15, rtol=0)


def test_attention_mixes_positions_by_softmax() -> None:
    """Compares one head with a loop over positions."""
    torch.manual_seed(0)
    attention = blocks.LinearAttention(4, heads=1, bias=True, scale=0.5).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(1, 4, 2, 3, dtype=torch.double)
    q, k, v = F.conv2d(x, attention.qkv_weight[..., None, None], attention.qkv_bias).flatten(2)[0].split(64)
    weights_of_positions = torch.exp(0.5 * k) / torch.exp(0.5 * k).sum(1, keepdim=True)
    columns = []
    for position in range(6):
        weights_of_channels = torch.softmax(0.5 * q[:, position], dim=0)
        columns.append(sum(weights_of_channels[c] * (weights_of_positions[c] * v).sum(1) for c in range(64)))
    expected = F.conv2d(torch.stack(columns, dim=1).reshape(1, 64, 2, 3), attention.out_weight[..., None, None], attention.out_bias)
    torch.testing.assert_close(attention(x), expected)


@pytest.mark.parametrize("recompute", [False, True])
def test_second_derivative_of_the_discriminator_by_differences(recompute: bool) -> None:
    """The R1 penalty's gradient along a random direction of all weights, in double precision."""
    _, discriminator = networks(FIGURE, dtype=torch.double)
    discriminator.activation_checkpointing = recompute
    real = images(dtype=torch.double).requires_grad_()
    weights = [weight for weight in discriminator.parameters() if weight.requires_grad]

    def penalty() -> torch.Tensor:
        answer = discriminator(real, LEVELS, embed=False, reconstruct=False)
        return losses.gradient_penalty(answer.logits.mean(1) + answer.logits_32.mean(1), real).mean()

    gradients = torch.autograd.grad(penalty(), weights, allow_unused=True)
    directions = [torch.randn_like(weight) for weight in weights]
    slope = sum((gradient * direction).sum() for gradient, direction in zip(gradients, directions, strict=True) if gradient is not None)
    step, values = 1e-9, []  # so small that hardly any LeakyReLU input changes its sign
    for sign in (1, -1):
        with torch.no_grad():
            for weight, direction in zip(weights, directions, strict=True):
                weight += sign * step * direction
        values.append(penalty().item())
        with torch.no_grad():
            for weight, direction in zip(weights, directions, strict=True):
                weight -= sign * step * direction
    assert slope.item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4)


def gradients(network: nn.Module, *outputs: torch.Tensor) -> dict[str, torch.Tensor]:
    network.zero_grad()
    sum(output.float().square().mean() for output in outputs if output is not None).backward()
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


def test_recomputation_changes_no_bit_and_does_happen() -> None:
    generator, discriminator = networks(FIGURE)
    latents, x = torch.randn(3, 16), images()
    calls = {"generator": 0, "discriminator": 0}
    for name, network in (("generator", generator), ("discriminator", discriminator)):
        network.stages[0].register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    kept = gradients(generator, generator(latents, LEVELS)) | gradients(discriminator, *discriminator(x, LEVELS))
    assert calls == {"generator": 1, "discriminator": 1}
    generator.activation_checkpointing = discriminator.activation_checkpointing = True
    again = gradients(generator, generator(latents, LEVELS)) | gradients(discriminator, *discriminator(x, LEVELS))
    assert [name for name in kept if not torch.equal(kept[name], again[name])] == []
    with torch.no_grad():
        generator(latents, LEVELS)
    generator.eval()(latents, LEVELS)
    assert calls["generator"] == 1 + 1 + 2  # the recomputation stops early, before the stage's end; no_grad and eval run once


@pytest.mark.slow
def test_compiled_with_recomputation() -> None:
    """Graph capture and derivatives of torch.compile, without C++ code generation."""
    plain, _ = networks(FIGURE, dtype=torch.double)
    compiled = copy.deepcopy(plain)
    compiled.activation_checkpointing = True
    compiled.compile(backend="aot_eager")
    latents = torch.randn(3, 16, dtype=torch.double)
    expected, found = (gradients(network, network(latents, LEVELS)) for network in (plain, compiled))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-12, rtol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(dict(compiled.named_buffers())[name], buffer)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layout_and_bf16_give_nearly_the_same_numbers(layout: torch.memory_format) -> None:
    exact_generator, exact_discriminator = networks(FIGURE, dtype=torch.double)
    generator, discriminator = (copy.deepcopy(n).float().to(memory_format=layout) for n in (exact_generator, exact_discriminator))
    latents = torch.randn(3, 16, dtype=torch.double)
    expected = exact_generator(latents, LEVELS)
    assert expected.dtype == torch.double
    torch.testing.assert_close(generator(latents.float(), LEVELS), expected.float(), atol=1e-4, rtol=1e-4)
    real = images()
    answer = exact_discriminator(real.double(), LEVELS)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            made = generator(latents.float(), LEVELS)
            found = discriminator(real.contiguous(memory_format=layout), LEVELS)
        assert made.dtype == found.logits.dtype == dtype
        assert made.is_contiguous(memory_format=layout)
        assert found.embedding.dtype == found.proxy.dtype == found.reconstruction_loss.dtype == torch.float32
        for part, reference in zip((made, *found[:5]), (expected, *answer[:5]), strict=True):
            scale = reference.abs().max().item()
            torch.testing.assert_close(part.double(), reference, atol=tolerance * scale, rtol=0)
        for network, outputs in ((generator, [made]), (discriminator, found)):
            assert all(torch.isfinite(gradient).all() for gradient in gradients(network, *outputs).values())


def test_attention_keeps_half_precision_maps_in_half_precision() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert blocks.attention_block(8, heads=1)(torch.randn(1, 8, 4, 4).bfloat16()).dtype == torch.bfloat16


def test_networks_in_bf16_throughout_can_sample() -> None:
    generator, discriminator = networks(FIGURE, dtype=torch.bfloat16)
    made = generator.eval()(torch.randn(3, 16, dtype=torch.bfloat16), LEVELS)
    assert made.dtype == torch.bfloat16 and torch.isfinite(discriminator(made, LEVELS).logits).all()


def test_state_dicts_hold_weights_and_statistics_alone() -> None:
    generator, discriminator = networks(FIGURE)
    for network in (generator, discriminator):
        names = {name.rpartition(".")[2] for name in network.state_dict()}
        projections = {"qkv_weight", "qkv_bias", "out_weight", "out_bias"}
        assert names <= projections | {"weight", "bias", "g", "running_mean", "running_var", "num_batches_tracked"}
    other, _ = networks(FIGURE)
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    other.load_state_dict(generator.state_dict())
    latents = torch.randn(3, 16)
    assert torch.equal(other.eval()(latents, LEVELS), generator.eval()(latents, LEVELS))


@pytest.mark.parametrize("kind", ["onehot", "ordinal"])
def test_levels_in_between_are_mixed_from_their_neighbours_alone(kind: str) -> None:
    """The encoding changes linearly from each whole level to the next and never includes "not assessable" (0)."""
    columns = blocks.label_columns("levels", PUBLISHED.num_levels) if kind == "onehot" else blocks.OrdinalEncoding(PUBLISHED)
    unclear = {"onehot": 0, "ordinal": 2}[kind]
    whole = columns(torch.tensor([[level, 1, 1, 1, 1] for level in range(5)])).float()
    for level in (1, 2, 3):
        for share in (0.0, 0.25, 0.5, 0.9):
            (found,) = columns(torch.tensor([[level + share, 1, 1, 1, 1]]))
            torch.testing.assert_close(found, (1 - share) * whole[level] + share * whole[level + 1])
            assert found[unclear] == 0
    assert whole[0, unclear] == 1
    mixed = columns(torch.tensor([[2.5, 1, 1, 1, 1]]))
    generator, discriminator = networks(dataclasses.replace(CONTROLLED, generator_levels=kind))
    of_generator = generator.stages[0].modulate.weight.data.normal_().T[CONTROLLED.latent_dim :]
    for table in (of_generator, discriminator.head.embeddings)[: 2 if kind == "onehot" else 1]:
        torch.testing.assert_close(mixed @ table, (whole[2:3] @ table + whole[3:4] @ table) / 2)


def test_score_of_a_projection_is_the_sum_of_its_attributes() -> None:
    _, discriminator = networks(CONTROLLED)
    x, unknown = images(CONTROLLED), torch.full_like(LEVELS, -1)
    base = discriminator(x, unknown).logits
    parts = [discriminator(x, torch.where(torch.arange(5) == a, LEVELS, -1)).logits - base for a in range(5)]
    torch.testing.assert_close(discriminator(x, LEVELS).logits - base, sum(parts))
    assert all(part.abs().min() > 0 for part in parts)


def test_an_unknown_level_has_no_effect() -> None:
    """No column, no part of the proxy, no effect on images; and it differs from every level."""
    levels = LEVELS.clone()
    levels[:, 2] = -1
    for kind in ("padded", "levels"):
        columns = blocks.label_columns(kind, PUBLISHED.num_levels)
        assert torch.equal(columns(levels).sum(1), torch.tensor([4, 4, 4]))
        assert torch.equal(columns(levels.float()), columns(levels).float())
    _, figure = networks(FIGURE)
    proxy = figure.proxies(levels).unflatten(1, (5, -1))
    assert (proxy[:, 2] == 0).all() and torch.equal(proxy[:, 3], figure.proxies(LEVELS).unflatten(1, (5, -1))[:, 3])
    generator, _ = networks(CONTROLLED)
    generator.eval()
    for stage in generator.stages:
        stage.modulate.weight.data.normal_()
    latents = torch.randn(1, CONTROLLED.latent_dim).expand(5, -1)
    made = generator(latents, torch.tensor([[1, 1, level, 1, 1] for level in (-1, 0, 1, 2, 3)]))
    assert all(not torch.equal(made[0], other) for other in made[1:])


def test_ordinal_encoding_by_hand() -> None:
    """Attribute 0 has the levels 1 to 3 and 0 for "not assessable", attribute 1 the levels 0 and 1, attribute 2 a single level."""
    one = Attribute("one", ("unclear", "there"), not_assessable=0)
    schema = AttributeSchema((Attribute("size", ("unclear", "a", "b", "c"), not_assessable=0), Attribute("stroma", ("a", "b")), one))
    encoding = blocks.OrdinalEncoding(schema)
    whole = torch.tensor([[1, 0, 1], [2, 1, 0], [3, -1, -1], [0, 0, 1]])
    expected = [[1, -1, 0, 1, -1, 0, 1, -1, 0], [1, 0, 0, 1, 1, 0, 0, 0, 1], [1, 1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 1, 1, -1, 0, 1, -1, 0]]
    assert encoding(whole).tolist() == encoding(whole.float()).tolist() == expected
    assert encoding(torch.tensor([[2.5, 0.25, 1.0]])).tolist() == [[1, 0.5, 0, 1, -0.5, 0, 1, -1, 0]]


@pytest.mark.parametrize("config", [CONTROLLED, FIGURE], ids=["controlled", "figure"])
def test_zeroed_attributes_have_no_effect_and_the_others_are_unchanged(config: ModelConfig) -> None:
    generator, _ = networks(config)
    generator.eval()
    before = copy.deepcopy(generator)
    generator.zero_label_weights([1, 4])
    latents = torch.randn(len(LEVELS), config.latent_dim)
    masked = LEVELS.clone()
    masked[:, [1, 4]] = -1
    made = generator(latents, LEVELS)
    assert torch.equal(made, generator(latents, masked)) and torch.equal(made, before(latents, masked))
    assert not torch.equal(made, before(latents, LEVELS))


def test_modulation_starts_as_the_plain_generator() -> None:
    plain, modulated = (networks(dataclasses.replace(CONTROLLED, generator_modulation=on))[0] for on in (False, True))
    modulated.load_state_dict(plain.state_dict(), strict=False)
    latents = torch.randn(3, CONTROLLED.latent_dim)
    assert torch.equal(plain(latents, LEVELS), modulated(latents, LEVELS))
