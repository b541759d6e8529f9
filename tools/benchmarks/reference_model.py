"""A direct implementation of AttributeGAN from its description: the baseline for our speed.

Implements the published recipe (Ye et al., MICCAI 2021) without any fusion or shortcut: contiguous memory format, separate upsampling and
blur layers, a blur in every branch, the full discriminator on every image, gradients for all parameters. The state dict has the published
names, so `attributegan.models.published` converts weights in both directions; tests compare the two implementations numerically.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attributegan.training import losses

HEADS, HEAD_WIDTH, COLUMNS = 8, 64, 5  # of the attention; one-hot columns per attribute


class Blur(nn.Module):
    """3 x 3 binomial blur with reflect padding."""

    f: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("f", torch.tensor([1.0, 2.0, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        kernel = (self.f[:, None] * self.f / 16).expand(x.shape[1], 1, 3, 3)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel, groups=x.shape[1])


class Rezero(nn.Module):
    """``g * fn(x)`` with a learned scalar, 1e-3 at first."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.g, self.fn = nn.Parameter(torch.tensor(1e-3)), fn

    def forward(self, x: Tensor) -> Tensor:
        return self.g * self.fn(x)


class Residual(nn.Module):
    """``x + g * fn(x)``."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = Rezero(fn)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fn(x)


class Attention(nn.Module):
    """Linear attention with separate projections for queries, keys and values."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Conv2d(channels, HEADS * HEAD_WIDTH, 1) for _ in range(3))
        self.to_out = nn.Conv2d(HEADS * HEAD_WIDTH, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.to_q(x) * HEAD_WIDTH**-0.25, self.to_k(x) * HEAD_WIDTH**-0.25
        return self.to_out(_attend(q, k, self.to_v(x)))


class GlobalAttention(nn.Module):
    """Linear attention with one projection for queries, keys and values."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.to_qkv = nn.Conv2d(channels, 3 * HEADS * HEAD_WIDTH, 1, bias=False)
        self.to_out = nn.Conv2d(HEADS * HEAD_WIDTH, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.to_out(_attend(*self.to_qkv(x).chunk(3, dim=1)))


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, channels, height, width = q.shape
    q, k, v = (t.reshape(batch, HEADS, HEAD_WIDTH, height * width) for t in (q, k, v))
    context = torch.einsum("bhkn,bhvn->bhkv", k.softmax(3), v)
    return torch.einsum("bhkv,bhkn->bhvn", context, q.softmax(2)).reshape(batch, channels, height, width)


class Excitation(nn.Module):
    """Skip-layer excitation from global context: channel factors in (0, 1)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        middle = max(3, channels_out // 2)
        self.to_k = nn.Conv2d(channels_in, 1, 1)
        self.net = nn.Sequential(nn.Conv2d(channels_in, middle, 1), nn.LeakyReLU(0.1), nn.Conv2d(middle, channels_out, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        weights = self.to_k(x).flatten(2).softmax(2)
        return self.net((weights * x.flatten(2)).sum(2)[..., None, None])


class PlainGenerator(nn.Module):
    """``forward(latents_BL, levels_BA) -> images_BCHW``."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        stages = size.bit_length() - 3  # the last stage outputs `size` pixels
        widths = [width + width // 4, *(3 if n >= 8 else min(2 ** (12 - n), width) for n in range(2, stages + 2))]
        self.initial_conv = nn.Sequential(nn.ConvTranspose2d(width, 2 * width, 4), nn.BatchNorm2d(2 * width), nn.GLU(1))
        self.init_label_preprocess = nn.Sequential(nn.ConvTranspose2d(5 * COLUMNS, width // 4, 4), nn.BatchNorm2d(width // 4), nn.ReLU())
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    _up(widths[k], widths[k + 1]),
                    Excitation(widths[k + 1], widths[k + 4]) if 1 <= k <= 4 and k + 4 < len(widths) else None,  # type: ignore[list-item]
                    _attention_block(widths[k]) if k in (3, 4) else None,  # type: ignore[list-item]
                ]
            )
            for k in range(stages)
        )
        self.out_conv = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, latents_BL: Tensor, levels_BA: Tensor) -> Tensor:
        label = _one_hot(levels_BA).to(latents_BL)[..., None, None]
        x = torch.cat([self.initial_conv(latents_BL[..., None, None]), self.init_label_preprocess(label)], dim=1)
        x, factors = F.normalize(x, dim=1), {}
        for k, layer in enumerate(self.layers):
            assert isinstance(layer, nn.ModuleList)
            up, excitation, attention = layer
            x = up(x if attention is None else attention(x))
            if excitation is not None:
                factors[k + 3] = excitation(x)
            if k in factors:
                x = x * factors[k]
        return self.out_conv(x)


def _up(channels_in: int, channels_out: int) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, 2 * channels_out, 3, padding=1)
    return nn.Sequential(nn.Upsample(scale_factor=2), Blur(), conv, nn.BatchNorm2d(2 * channels_out), nn.GLU(1))


def _attention_block(channels: int) -> nn.Sequential:
    feed_forward = nn.Sequential(nn.Conv2d(channels, 2 * channels, 1), nn.LeakyReLU(0.2), nn.Conv2d(2 * channels, channels, 1))
    return nn.Sequential(Residual(Attention(channels)), Residual(feed_forward))


class Sum(nn.Module):
    """Sum of two branches."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return self.branches[0](x) + self.branches[1](x)


def _residual(channels_in: int, channels_out: int) -> Sum:
    main = nn.Sequential(
        Blur(),
        nn.Conv2d(channels_in, channels_out, 4, 2, 1),
        nn.LeakyReLU(0.1),
        nn.Conv2d(channels_out, channels_out, 3, padding=1),
        nn.LeakyReLU(0.1),
    )
    return Sum(main, nn.Sequential(Blur(), nn.AvgPool2d(2), nn.Conv2d(channels_in, channels_out, 1), nn.LeakyReLU(0.1)))


class Decoder(nn.Module):
    """Reconstructs a 128 px image from an 8 px feature map; four upsampling stages."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        outs = [channels, channels // 2, channels // 4, 6]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(channels // 2**k, out, 3, padding=1), nn.GLU(1))
            for k, out in enumerate(outs)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class PlainDiscriminator(nn.Module):
    """``forward(images_BCHW, levels_BA, quadrant) -> (outputs, outputs of the 32 px head, embedding, proxy, reconstruction loss)``."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        nf = {n: min(2 ** (12 - n), width) for n in range(3, 9)}
        halvings = size.bit_length() - 9
        self.non_residual_layers = nn.ModuleList(
            nn.Sequential(Blur(), nn.Conv2d(3, nf[8] if k == halvings - 1 else 3, 4, 2, 1), nn.LeakyReLU(0.1)) for k in range(halvings)
        )
        ins = [nf[8] if halvings else 3, *(nf[n] for n in (7, 6, 5, 4))]
        self.residual_layers = nn.ModuleList(nn.ModuleList([_residual(ins[k], nf[7 - k])]) for k in range(5))
        self.to_logits = nn.Sequential(nn.Conv2d(nf[3], nf[3], 1), nn.LeakyReLU(0.1), nn.Conv2d(nf[3], 1, 4))
        self.to_shape_disc_out = nn.Sequential(
            nn.Conv2d(3, 64, 3, padding=1),
            Residual(GlobalAttention(64)),
            _residual(64, 32),
            Residual(GlobalAttention(32)),
            nn.AdaptiveAvgPool2d((8, 8)),
            nn.Conv2d(32, 1, 4),
        )
        self.linear_out, self.linear_out32x32 = nn.Linear(25, 25), nn.Linear(25, 25)
        self.decoder1 = Decoder(nf[3])
        self.decoder2 = Decoder(nf[4]) if halvings else None
        self.embedding = nn.Embedding(25, 16)
        self.to_feature_space = nn.Sequential(nn.Conv2d(nf[7], nf[7], 1), nn.LeakyReLU(0.1), nn.Conv2d(nf[7], 1, 1))
        self.linear_emd = nn.Linear(128 * 128, 400)

    def forward(self, images_BCHW: Tensor, levels_BA: Tensor, quadrant: int) -> tuple[Tensor, ...]:
        label, x, maps = _one_hot(levels_BA), images_BCHW, []
        for layer in self.non_residual_layers:
            x = layer(x)
        for layer in self.residual_layers:
            assert isinstance(layer, nn.ModuleList)
            x = layer[0](x)
            maps.append(x)
        logits = self.linear_out(self.to_logits(x).flatten(1))
        logits_32 = self.linear_out32x32(self.to_shape_disc_out(F.interpolate(images_BCHW, size=32)).flatten(1))
        embedding = self.linear_emd(self.to_feature_space(maps[0]).flatten(1))
        proxy = self.embedding(label).flatten(1)
        loss = F.mse_loss(self.decoder1(x), F.interpolate(images_BCHW, size=128))
        if self.decoder2 is not None:
            target = F.interpolate(_quarter(images_BCHW, quadrant), size=128)
            loss = loss + F.mse_loss(self.decoder2(_quarter(maps[-2], quadrant)), target)
        outputs = (logits + label * logits, logits_32 + label * logits_32)
        return (*outputs, F.normalize(embedding, dim=1), F.normalize(proxy, dim=1), loss)


class PlainTraining:
    """Trains both networks with Adam; `step` takes uint8 tiles, as `attributegan.training.trainer.Trainer` does."""

    def __init__(self, size: int, width: int, learning_rate: float = 2e-4) -> None:
        self.generator, self.discriminator = PlainGenerator(size, width), PlainDiscriminator(size, width)
        self.optimizers = [
            torch.optim.Adam(network.parameters(), learning_rate, betas=(0.5, 0.9)) for network in (self.discriminator, self.generator)
        ]

    def step(self, images_BCHW: Tensor, levels_BA: Tensor, latents: Sequence[Tensor], quadrant: int) -> None:
        """Run the discriminator phase, then the generator phase.

        Args:
            images_BCHW: real tiles, uint8.
            latents: (B, L) of the discriminator phase and of the generator phase.
            quadrant: quarter of the image, 0 to 3, that the second decoder reconstructs.
        """
        reals = images_BCHW.to(latents[0].dtype) / 127.5 - 1
        fakes = self.generator(latents[0], levels_BA).detach()
        real, real_32, embedding, proxy, rebuilt = self.discriminator(reals, levels_BA, quadrant)
        fake, fake_32, *_ = self.discriminator(fakes, levels_BA, quadrant)
        loss = losses.hinge_discriminator(real, fake) + losses.hinge_discriminator(real_32, fake_32) + rebuilt
        self._update(0, loss + losses.contrastive_2c(embedding, proxy, levels_BA, temperature=1.0))
        fake, fake_32, embedding, proxy, _ = self.discriminator(self.generator(latents[1], levels_BA), levels_BA, quadrant)
        loss = losses.hinge_generator(fake) + losses.hinge_generator(fake_32)
        self._update(1, loss + losses.contrastive_2c(embedding, proxy, levels_BA, temperature=1.0))

    def _update(self, which: int, loss: Tensor) -> None:
        self.discriminator.zero_grad()
        self.generator.zero_grad()
        loss.backward()
        self.optimizers[which].step()


def _one_hot(levels_BA: Tensor) -> Tensor:
    return F.one_hot(levels_BA, COLUMNS).flatten(1)


def _quarter(x_BCHW: Tensor, quadrant: int) -> Tensor:
    half = x_BCHW.shape[2] // 2
    top, left = half * (quadrant // 2), half * (quadrant % 2)
    return x_BCHW[:, :, top : top + half, left : left + half]
