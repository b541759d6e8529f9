"""A reference implementation of the published network, written directly from its description with published parameter names.

Shares no code with `attributegan.models`: nearest upsampling and blur are separate, attention is one einsum per term. Our networks are
compared with it at sizes without recorded output. Also fills tensors by the rule of the recorded output.
"""

import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F


def filled(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Returns the tensor of the fill rule for a published key."""
    key = key.removeprefix("D_aug.").partition(".")[2]
    random = np.random.RandomState(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        return torch.tensor(100)
    if key.endswith("running_var"):
        values = 0.5 + random.rand(*shape)
    elif key.endswith("running_mean"):
        values = 0.1 * random.randn(*shape)
    elif not shape:
        values = np.array(0.3)
    elif key.endswith(".f"):
        values = np.array([1, 2, 1])
    elif len(shape) == 1:
        values = key.endswith("weight") + 0.1 * random.randn(*shape)
    else:
        values = random.randn(*shape) / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def shapes(size: int, width: int) -> dict[str, tuple[int, ...]]:
    """Returns all keys of the published checkpoint at ``size`` px, latent and widest map ``width``, attention at 32 and 64 px."""
    resolution = size.bit_length() - 1

    def nf(n: int) -> int:
        return min(2 ** (12 - n), width)

    g: dict[str, tuple[int, ...]] = {}
    d: dict[str, tuple[int, ...]] = {}

    def conv(table, name, out, into, kernel, bias=True):
        table[name + ".weight"] = (out, into, kernel, kernel)
        table |= {name + ".bias": (out,)} if bias else {}

    def norm(name, channels):
        g.update({f"{name}.{leaf}": (channels,) for leaf in ("weight", "bias", "running_mean", "running_var")})
        g[name + ".num_batches_tracked"] = ()

    def seed(name, into, out):
        g[name + ".0.weight"], g[name + ".0.bias"] = (into, out, 4, 4), (out,)
        norm(name + ".1", out)

    def residual(name, into, out):
        d[name + ".branches.0.0.f"] = d[name + ".branches.1.0.f"] = (3,)
        conv(d, name + ".branches.0.1", out, into, 4)
        conv(d, name + ".branches.0.3", out, out, 3)
        conv(d, name + ".branches.1.2", out, into, 1)

    seed("initial_conv", width, 2 * width)
    seed("init_label_preprocess", 25, width // 4)
    outputs = {n: 3 if n >= 8 else nf(n) for n in range(2, resolution)}
    for n, out in outputs.items():
        layer = f"layers.{n - 2}"
        into = width + width // 4 if n == 2 else outputs[n - 1]
        g[layer + ".0.1.f"] = (3,)
        conv(g, layer + ".0.2", 2 * out, into, 3)
        norm(layer + ".0.3", 2 * out)
        if n in (3, 4, 5, 6) and n + 4 <= resolution:
            excited = outputs[n + 3]
            conv(g, layer + ".1.to_k", 1, out, 1)
            conv(g, layer + ".1.net.0", max(3, excited // 2), out, 1)
            conv(g, layer + ".1.net.2", excited, max(3, excited // 2), 1)
        if n in (5, 6):
            g[layer + ".2.0.fn.g"] = g[layer + ".2.1.fn.g"] = ()
            for which in "qkv":
                conv(g, f"{layer}.2.0.fn.fn.to_{which}", 512, into, 1)
            conv(g, layer + ".2.0.fn.fn.to_out", into, 512, 1)
            conv(g, layer + ".2.1.fn.fn.0", 2 * into, into, 1)
            conv(g, layer + ".2.1.fn.fn.2", into, 2 * into, 1)
    conv(g, "out_conv", 3, outputs[resolution - 1], 3)

    for k in range(resolution - 8):
        d[f"non_residual_layers.{k}.0.f"] = (3,)
        conv(d, f"non_residual_layers.{k}.1", nf(8) if k == resolution - 9 else 3, 3, 4)
    for k in range(5):
        residual(f"residual_layers.{k}.0", 3 if k == 0 and resolution == 8 else nf(8 - k), nf(7 - k))
    conv(d, "to_logits.0", nf(3), nf(3), 1)
    conv(d, "to_logits.2", 1, nf(3), 4)
    conv(d, "to_shape_disc_out.0", 64, 3, 3)
    for k, channels in ((1, 64), (3, 32)):
        d[f"to_shape_disc_out.{k}.fn.g"] = ()
        conv(d, f"to_shape_disc_out.{k}.fn.fn.to_qkv", 1536, channels, 1, bias=False)
        conv(d, f"to_shape_disc_out.{k}.fn.fn.to_out", channels, 512, 1)
    residual("to_shape_disc_out.2", 64, 32)
    conv(d, "to_shape_disc_out.5", 1, 32, 4)
    for name, channels in (("decoder1", nf(3)), ("decoder2", nf(4)))[: 1 if resolution < 9 else 2]:
        for k in range(4):
            conv(d, f"{name}.layers.{k}.1", 6 if k == 3 else channels // 2**k, channels // 2**k, 3)
    for name, out, into in (("linear_emd", 400, 128 * 128), ("linear_out", 25, 25), ("linear_out32x32", 25, 25)):
        d[name + ".weight"], d[name + ".bias"] = (out, into), (out,)
    d["embedding.weight"] = (25, 16)
    conv(d, "to_feature_space.0", 32, 32, 1)
    conv(d, "to_feature_space.2", 1, 32, 1)
    parts = {"G": g, "GE": g, "D": d, "D_aug.D": d}
    return {f"{part}.{key}": shape for part, table in parts.items() for key, shape in table.items()}


def checkpoint(size: int, width: int) -> dict[str, torch.Tensor]:
    """Returns a published state dict, filled by the rule."""
    return {key: filled(key, shape) for key, shape in shapes(size, width).items()}


def inputs(size: int, latent_dim: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns latents, levels and smooth "real" images from a seed."""
    random = np.random.RandomState(size)
    latents = torch.from_numpy(random.randn(batch, latent_dim).astype(np.float32))
    levels = torch.from_numpy(np.stack([random.randint(0, count, batch) for count in (5, 4, 4, 3, 5)], axis=1))
    coarse = torch.from_numpy(random.rand(batch, 3, 16, 16).astype(np.float32)) * 2 - 1
    return latents, levels, F.interpolate(coarse, size=(size, size), mode="bicubic").clamp(-1, 1)


class Plain:
    """Layers of one part (``G``, ``GE`` or ``D``) of a published state dict."""

    def __init__(self, state: dict[str, torch.Tensor], part: str) -> None:
        self.state = {key.removeprefix(part + "."): tensor for key, tensor in state.items() if key.startswith(part + ".")}

    def has(self, name: str) -> bool:
        return any(key.startswith(name + ".") for key in self.state)

    def conv(self, x, name, **options):
        return F.conv2d(x, self.state[name + ".weight"], self.state.get(name + ".bias"), **options)

    def linear(self, x, name):
        return x @ self.state[name + ".weight"].T + self.state[name + ".bias"]

    def norm(self, x, name):
        mean, var, weight, bias = (self.state[f"{name}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias"))
        return ((x.permute(0, 2, 3, 1) - mean) / torch.sqrt(var + 1e-5) * weight + bias).permute(0, 3, 1, 2)

    def seed(self, x, name):
        """Transposed convolution of a 1 x 1 map: a sum of 4 x 4 patches."""
        x = torch.einsum("bc,cohw->bohw", x, self.state[name + ".0.weight"]) + self.state[name + ".0.bias"][:, None, None]
        return self.norm(x, name + ".1")

    def blur(self, x, name):
        taps = self.state[name + ".f"]
        kernel = taps[:, None] * taps[None]
        kernel = kernel / kernel.sum()
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        height, width = x.shape[2] - 2, x.shape[3] - 2
        return sum(kernel[i, j] * x[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3))

    def attend(self, x, q, k, v, out):
        """Heads of 64 channels each; q, k, v are maps before their softmaxes."""
        batch, _, height, width = x.shape
        q, k, v = (t.reshape(batch, 8, 64, height * width) for t in (q, k, v))
        context = torch.einsum("bhkn,bhvn->bhkv", k.softmax(3), v)
        answer = torch.einsum("bhkv,bhkn->bhvn", context, q.softmax(2)).reshape(batch, 512, height, width)
        return self.conv(answer, out)

    def attention_block(self, x, name):
        inner = name + ".0.fn.fn."
        q, k, v = (self.conv(x, inner + f"to_{which}") for which in "qkv")
        x = x + self.state[name + ".0.fn.g"] * self.attend(x, q / 64**0.25, k / 64**0.25, v, inner + "to_out")
        hidden = F.leaky_relu(self.conv(x, name + ".1.fn.fn.0"), 0.2)
        return x + self.state[name + ".1.fn.g"] * self.conv(hidden, name + ".1.fn.fn.2")

    def global_attention(self, x, name):
        q, k, v = self.conv(x, name + ".fn.fn.to_qkv").split(512, dim=1)
        return x + self.state[name + ".fn.g"] * self.attend(x, q, k, v, name + ".fn.fn.to_out")

    def residual(self, x, name):
        first, second = name + ".branches.0", name + ".branches.1"
        a = F.leaky_relu(self.conv(self.blur(x, first + ".0"), first + ".1", stride=2, padding=1), 0.1)
        a = F.leaky_relu(self.conv(a, first + ".3", padding=1), 0.1)
        pooled = F.avg_pool2d(self.blur(x, second + ".0"), 2)
        return a + F.leaky_relu(self.conv(pooled, second + ".2"), 0.1)

    def decode(self, x, name):
        for k in range(4):
            x = self.conv(x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3), f"{name}.layers.{k}.1", padding=1)
            x = F.glu(x, dim=1)
        return x


def one_hot(levels):
    return torch.cat([F.one_hot(column, 5) for column in levels.T], dim=1).float()


def generate(state, latents, levels, part="G"):
    net = Plain(state, part)
    x = torch.cat([F.glu(net.seed(latents, "initial_conv"), dim=1), F.relu(net.seed(one_hot(levels), "init_label_preprocess"))], dim=1)
    x = x / x.square().sum(1, keepdim=True).sqrt()
    excitations = {}
    k = 0
    while net.has(f"layers.{k}"):
        if net.has(f"layers.{k}.2"):
            x = net.attention_block(x, f"layers.{k}.2")
        x = net.blur(x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3), f"layers.{k}.0.1")
        x = F.glu(net.norm(net.conv(x, f"layers.{k}.0.2", padding=1), f"layers.{k}.0.3"), dim=1)
        if net.has(f"layers.{k}.1"):
            weights = net.conv(x, f"layers.{k}.1.to_k").flatten(2).softmax(2)
            pooled = (weights * x.flatten(2)).sum(2)[..., None, None]
            hidden = F.leaky_relu(net.conv(pooled, f"layers.{k}.1.net.0"), 0.1)
            excitations[x.shape[2] * 8] = net.conv(hidden, f"layers.{k}.1.net.2").sigmoid()
        x = x * excitations.get(x.shape[2], 1.0)
        k += 1
    return net.conv(x, "out_conv", padding=1)


def sampled(images, size):
    """Resize to size x size by nearest sampling."""
    step = images.shape[2] // size
    return images[:, :, ::step, ::step]


def quarter(x, quadrant):
    half = x.shape[2] // 2
    top, left = half * (quadrant // 2), half * (quadrant % 2)
    return x[:, :, top : top + half, left : left + half]


def discriminate(state, images, levels, quadrant):
    """Returns the outputs of both heads, embedding, proxy and self-supervision."""
    net = Plain(state, "D")
    x, maps = images, {}
    for k in range(2):
        if net.has(f"non_residual_layers.{k}"):
            x = net.blur(x, f"non_residual_layers.{k}.0")
            x = F.leaky_relu(net.conv(x, f"non_residual_layers.{k}.1", stride=2, padding=1), 0.1)
    for k in range(5):
        x = net.residual(x, f"residual_layers.{k}.0")
        maps[x.shape[2]] = x
    logits = net.conv(F.leaky_relu(net.conv(x, "to_logits.0"), 0.1), "to_logits.2").flatten(1)
    small = net.global_attention(net.conv(sampled(images, 32), "to_shape_disc_out.0", padding=1), "to_shape_disc_out.1")
    small = net.global_attention(net.residual(small, "to_shape_disc_out.2"), "to_shape_disc_out.3")
    small = net.conv(F.avg_pool2d(small, 2), "to_shape_disc_out.5").flatten(1)
    label = one_hot(levels)
    answers = [a + label * a for a in (net.linear(logits, "linear_out"), net.linear(small, "linear_out32x32"))]
    feature = net.conv(F.leaky_relu(net.conv(maps[128], "to_feature_space.0"), 0.1), "to_feature_space.2")
    embedding = net.linear(feature.flatten(1), "linear_emd")
    proxy = net.state["embedding.weight"][label.long()].flatten(1)
    loss = (net.decode(maps[8], "decoder1") - sampled(images, 128)).square().mean()
    if net.has("decoder2"):
        rebuilt = net.decode(quarter(maps[16], quadrant), "decoder2")
        loss = loss + (rebuilt - sampled(quarter(images, quadrant), 128)).square().mean()
    return (*answers, *(t / t.norm(dim=1, keepdim=True) for t in (embedding, proxy)), loss)


def outputs(size: int, width: int) -> dict[str, np.ndarray]:
    """Returns the outputs of the filled network on `inputs`; of images, every 16th pixel, starting away from the border."""
    state = checkpoint(size, width)
    latents, levels, images = inputs(size, width)
    found = {"generated": generate(state, latents, levels)[:, :, 5::16, 5::16]}
    for quadrant in range(4):
        *answers, loss = discriminate(state, images, levels, quadrant)
        found |= dict(zip(("logits", "logits_32", "embedding", "proxy"), answers, strict=True))
        found[f"reconstruction_loss_{quadrant}"] = loss
    return {f"{name}_{size}": tensor.numpy() for name, tensor in found.items()}


if __name__ == "__main__":  # record tests/data/published.npz
    np.savez_compressed(Path(__file__).parent.parent / "data" / "published.npz", **outputs(256, 32), **outputs(512, 32))
