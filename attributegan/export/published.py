"""A published checkpoint as a run of ours, to sample from and to train on. Its names and shapes are `models.published`'s."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from attributegan.attributes import PUBLISHED
from attributegan.checkpoint import writer
from attributegan.config import AugmentConfig, Config, ModelConfig, OptimConfig, RunConfig, dump
from attributegan.models import published
from attributegan.run_dir.checkpoint_dirs import checkpoints_dir
from attributegan.utils.files import atomic_path, check_new_folder


def import_published(source: str | Path, out: str | Path, generator: Literal["raw", "ema"] = "ema") -> Config:
    """Write the run folder ``out``: the published networks as its checkpoint at 0 images, and a config.yaml to train on with.

    Args:
        source: file that the published code saved.
        out: folder that is not there yet, or empty.
        generator: which of the two published generators stands as the averaged one, which tools sample by default:
            the average, or the raw one, as the published sampler does.

    Returns:
        the configuration in config.yaml: the recipe that was published, for the network found in ``source``.

    Raises:
        ValueError: ``source`` is no published checkpoint (see `attributegan.models.published.load`), or ``out`` is not free.
    """
    out = Path(out)
    check_new_folder(out)
    model = published.load(source)
    config = _recipe(model.config, out)
    averaged = model.generator if generator == "raw" else model.generator_ema
    with atomic_path(out) as folder:
        writer.save(
            checkpoints_dir(folder),
            0,
            generator=model.generator.state_dict(),
            generator_ema=averaged.state_dict(),
            discriminator=model.discriminator.state_dict(),
            generator_optimizer={},  # the published code saves none
            discriminator_optimizer={},
            state={
                "config": config.to_dict(),
                "schema": PUBLISHED.to_dict(),
                "skipped": {},
                "skipped_in_a_row": 0,
                "loss_scales": {"generator": {}, "discriminator": {}},
            },
        )
        (folder / "config.yaml").write_text(dump(config), encoding="utf-8")
    return config


def _recipe(model: ModelConfig, out: Path) -> Config:
    return Config(
        model=model,
        augment=AugmentConfig(flips=False, policy=()),
        # Images count from 0 again, and the average that comes in is long past its ramp: with the ramp of a new run the first
        # steps would replace it by the raw weights.
        optim=OptimConfig(ema_rampup=0.0),
        run=RunConfig(dir=str(out)),
    )
