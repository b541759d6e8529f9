"""The diffusion model of `tools.benchmarks.diffusion`: networks, schedulers and average of the weights of diffusers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attributegan.attributes import UNKNOWN, AttributeSchema
from attributegan.utils import precision
from attributegan.utils.allocator import keep_freed_memory
from attributegan.utils.files import atomic_write

if TYPE_CHECKING:
    from tools.benchmarks.diffusion_settings import DiffusionSettings

NOISE_STEPS = 1000
WARMUP = 100  # steps of a rising learning rate
FIXED = ("size", "channels", "prediction", "batch", "learning_rate", "label_dropout", "seed")  # settings that a resumed model keeps


def require() -> None:
    """Check that diffusers is installed.

    Raises:
        ValueError: it is not; names the fix.
    """
    try:
        import diffusers  # noqa: F401
    except ImportError as error:
        raise ValueError("diffusion: requires diffusers; pip install 'attributegan[bench]'") from error


class LevelUNet(nn.Module):
    """UNet2DModel with the sum of an embedding per attribute as its class embedding; unknown levels have an embedding of their own.

    Args:
        size: of the tiles, pixels.
        channels: at each size of the maps; the last size has attention.
    """

    def __init__(self, schema: AttributeSchema, size: int, channels: Sequence[int]) -> None:
        from diffusers import UNet2DModel

        super().__init__()
        plain = len(channels) - 1
        self.unet = UNet2DModel(
            sample_size=size,
            block_out_channels=tuple(channels),
            layers_per_block=1,
            down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * plain,
            attention_head_dim=8,
            norm_num_groups=8,
            class_embed_type="identity",
        )
        width = 4 * channels[0]  # of the embedding of time
        self.unknown = [len(attribute.levels) for attribute in schema.attributes]  # row of the embedding of unknown levels
        self.levels = nn.ModuleList(nn.Embedding(rows + 1, width) for rows in self.unknown)

    def forward(self, noisy_BCHW: Tensor, time_B: Tensor, levels_BA: Tensor) -> Tensor:
        """Return the predicted noise or velocity (B, 3, H, W) float32; ``levels_BA`` int64 with `UNKNOWN`."""
        embedded = [
            embedding(torch.where(levels_B == UNKNOWN, unknown, levels_B))
            for embedding, unknown, levels_B in zip(self.levels, self.unknown, levels_BA.unbind(1), strict=True)
        ]
        return self.unet(noisy_BCHW, time_B, torch.stack(embedded).sum(0)).sample.float()


class DiffusionTrainer:
    """Trains the model (Ho et al., NeurIPS 2020) and samples from the average of its weights (DDIM, Song et al., ICLR 2021).

    The noise of a step depends on the seed and the number of images, that of a tile on the seed and its index.
    """

    def __init__(self, settings: DiffusionSettings, schema: AttributeSchema) -> None:
        from diffusers import DDIMScheduler, DDPMScheduler
        from diffusers.training_utils import EMAModel

        keep_freed_memory()
        self.settings, self.schema = settings, schema
        self.precision = precision.choose("cpu")[0] if settings.precision == "auto" else settings.precision
        torch.manual_seed(settings.seed)  # of the initial weights; diffusers takes no generator
        self.network = LevelUNet(schema, settings.size, settings.channels)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=settings.learning_rate)
        self.ema = EMAModel(self.network.parameters(), decay=0.9999, use_ema_warmup=True, power=3 / 4)
        schedule: dict[str, Any] = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": settings.prediction}
        self.ddpm = DDPMScheduler(NOISE_STEPS, **schedule)
        self.ddim = DDIMScheduler(NOISE_STEPS, **schedule)
        self.images, self.cpu_seconds, self.loss = 0, 0.0, float("nan")

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def step(self, tiles_NCHW: np.ndarray, levels_NA: np.ndarray) -> None:
        """Train on a batch of randomly drawn, flipped and rotated tiles.

        Args:
            tiles_NCHW: all tiles, uint8.
            levels_NA: their levels, int64.
        """
        settings, rng = self.settings, np.random.default_rng([self.settings.seed, 0, self.images])
        rows_B = rng.integers(0, len(tiles_NCHW), settings.batch)
        drawn = [np.rot90(tiles_NCHW[row], turns, (1, 2)) for row, turns in zip(rows_B, rng.integers(0, 4, settings.batch), strict=True)]
        flipped = [tile[:, :, ::-1] if flip else tile for tile, flip in zip(drawn, rng.random(settings.batch) < 0.5, strict=True)]
        clean_BCHW = torch.from_numpy(np.stack(flipped)).float() / 127.5 - 1
        hidden_B1 = rng.random((settings.batch, 1)) < settings.label_dropout
        levels_BA = torch.from_numpy(np.where(hidden_B1, UNKNOWN, levels_NA[rows_B]))
        time_B = torch.from_numpy(rng.integers(0, NOISE_STEPS, settings.batch))
        noise_BCHW = torch.from_numpy(rng.standard_normal(clean_BCHW.shape, np.float32))
        noisy_BCHW = self.ddpm.add_noise(clean_BCHW, noise_BCHW, time_B)
        with precision.autocast(self.precision, "cpu"):
            predicted_BCHW = self.network(noisy_BCHW, time_B, levels_BA)
        velocity = settings.prediction == "v_prediction"
        loss = F.mse_loss(predicted_BCHW, self.ddpm.get_velocity(clean_BCHW, noise_BCHW, time_B) if velocity else noise_BCHW)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * min(1.0, (self.images / settings.batch + 1) / WARMUP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.network.parameters())
        self.images += settings.batch
        value = loss.item()
        self.loss = value if np.isnan(self.loss) else 0.99 * self.loss + 0.01 * value

    @torch.inference_mode()
    def sample(self, levels_BA: Tensor, indices: range) -> np.ndarray:
        """Return tiles (B, H, W, 3) uint8 of the averaged weights, with DDIM; tile k depends on the seed, k and its levels."""
        settings, shape = self.settings, (3, self.settings.size, self.settings.size)
        noise = [np.random.default_rng([settings.seed, 1, index]).standard_normal(shape, np.float32) for index in indices]
        tiles_BCHW = torch.from_numpy(np.stack(noise))
        self.ddim.set_timesteps(settings.steps)
        self.ema.store(self.network.parameters())
        self.ema.copy_to(self.network.parameters())
        self.network.eval()
        for time in self.ddim.timesteps:
            predicted_BCHW = self._guided(tiles_BCHW, time.expand(len(tiles_BCHW)), levels_BA)
            tiles_BCHW = self.ddim.step(predicted_BCHW, time, tiles_BCHW).prev_sample
        self.network.train()
        self.ema.restore(self.network.parameters())
        return ((tiles_BCHW + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()

    def _guided(self, noisy_BCHW: Tensor, time_B: Tensor, levels_BA: Tensor) -> Tensor:
        """Return the prediction with classifier-free guidance (Ho and Salimans, 2022)."""
        with precision.autocast(self.precision, "cpu"):
            with_levels = self.network(noisy_BCHW, time_B, levels_BA)
            if self.settings.guidance == 1:
                return with_levels
            without = self.network(noisy_BCHW, time_B, torch.full_like(levels_BA, UNKNOWN))
        return torch.lerp(without, with_levels, self.settings.guidance)

    def save(self, path: Path) -> None:
        """Write weights, their average, moments and counters to one file, atomically."""
        from safetensors.torch import save

        tensors: dict[str, Tensor] = {}
        for (name, parameter), average in zip(self.network.named_parameters(), self.ema.shadow_params, strict=True):
            moments = self.optimizer.state.get(parameter, {})
            tensors |= {f"weight.{name}": parameter.detach(), f"ema.{name}": average}
            tensors |= {f"{moment}.{name}": moments[moment] for moment in ("exp_avg", "exp_avg_sq") if moment in moments}
        state = {"images": self.images, "cpu_seconds": self.cpu_seconds, "loss": self.loss, "settings": self._fixed()}
        data = save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"state": json.dumps(state)})
        with atomic_write(path) as stream:
            stream.write(data)

    def load(self, path: Path) -> bool:
        """Resume from a file of `save`; returns False if there is no such file.

        Raises:
            ValueError: the file was trained with other settings; names the first.
        """
        from safetensors import safe_open

        if not path.is_file():
            return False
        with safe_open(path, "pt") as file:
            state = json.loads(file.metadata()["state"])
            for name, value in self._fixed().items():
                if state["settings"].get(name) != value:
                    raise ValueError(
                        f"--{name.replace('_', '-')}: {path} was trained with {state['settings'].get(name)}, not {value}; use another --out"
                    )
            self.images, self.cpu_seconds, self.loss = state["images"], state["cpu_seconds"], state["loss"]
            steps = self.images // self.settings.batch
            self.ema.optimization_step = steps
            with torch.no_grad():
                for (name, parameter), average in zip(self.network.named_parameters(), self.ema.shadow_params, strict=True):
                    parameter.copy_(file.get_tensor(f"weight.{name}"))
                    average.copy_(file.get_tensor(f"ema.{name}"))
                    if steps:
                        moments = {moment: file.get_tensor(f"{moment}.{name}") for moment in ("exp_avg", "exp_avg_sq")}
                        self.optimizer.state[parameter] = {"step": torch.tensor(float(steps)), **moments}
        return True

    def _fixed(self) -> dict[str, Any]:
        """Settings that training depends on, and the attributes, as JSON has them."""
        fixed = {name: getattr(self.settings, name) for name in FIXED}
        fixed["attributes"] = {attribute.name: list(attribute.levels) for attribute in self.schema.attributes}
        return json.loads(json.dumps(fixed))
