"""The reference model (tools/benchmarks/reference_model.py) and ours have the same weights after training steps."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from attributegan import config
from attributegan.attributes import PUBLISHED
from attributegan.distributed.runtime import Runtime
from attributegan.models import published
from attributegan.training.random_draws import StepNoise
from attributegan.training.trainer import Trainer
from data_shards.loader.loader import Batch
from tools.benchmarks.reference_model import PlainTraining

ROOT = Path(__file__).parents[4]
WIDTH = 32


@pytest.mark.parametrize("size", [256, 512])
def test_the_same_weights_after_steps(tmp_path: Path, size: int) -> None:
    """In double precision with plain gradient descent, for Adam makes large numbers of small differences."""
    options = [f"model.image_size={size}", f"model.latent_dim={WIDTH}", f"model.fmap_max={WIDTH}", "train.batch=3", "train.precision=fp64"]
    settings = config.load(str(ROOT / "configs/train/published.yaml"), [*options, "optim.name=sgd", f"run.dir={tmp_path}"])
    settings = dataclasses.replace(settings, model=dataclasses.replace(settings.model, attributes="published"))
    ours = Trainer(settings, PUBLISHED, Runtime(settings))
    state = _published(ours)
    plain = PlainTraining(size, WIDTH)
    for part, network in (("G", plain.generator), ("D", plain.discriminator)):
        network.double().load_state_dict(
            {key.removeprefix(f"{part}."): tensor for key, tensor in state.items() if key.startswith(f"{part}.")}
        )
    plain.optimizers = [torch.optim.SGD(network.parameters(), 2e-4) for network in (plain.discriminator, plain.generator)]
    rng = torch.Generator().manual_seed(0)
    for step in range(2):
        images_BCHW = torch.randint(0, 256, (3, 3, size, size), generator=rng, dtype=torch.uint8)
        levels_BA = torch.stack([torch.randint(0, count, (3,), generator=rng) for count in (5, 4, 4, 3, 5)], dim=1)
        draws = StepNoise.for_step(settings, 3 * step, torch.double)
        ours.step([Batch(images_BCHW, levels_BA, 3 * step)])
        plain.step(images_BCHW, levels_BA, (draws.latents_discriminator_BL, draws.latents_generator_BL), int(draws.quadrant))
    trained = _published(ours)
    changed = 0
    for part, network in (("G", plain.generator), ("D", plain.discriminator)):
        for key, tensor in network.state_dict().items():
            torch.testing.assert_close(
                trained[f"{part}.{key}"].to(tensor.dtype), tensor, rtol=0, atol=1e-11, msg=lambda text, key=key: f"{key}: {text}"
            )
            changed += not torch.equal(tensor, state[f"{part}.{key}"].to(tensor.dtype))
    assert changed > 150  # of about 200 tensors


def _published(trainer: Trainer) -> dict[str, torch.Tensor]:
    generator, discriminator = trainer.generator.module, trainer.discriminator.module
    state = published.to_published(generator, generator, discriminator)  # type: ignore[arg-type]
    return {key: tensor.clone() for key, tensor in state.items()}
