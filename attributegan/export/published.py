"""Imports a published checkpoint as a run folder, to sample from and to resume training. The conversion is in `models.published`."""

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
    """Writes the run folder ``out``: the published networks as its checkpoint at 0 images, and a config.yaml to resume training.

    Args:
        source: file saved by the published code.
        out: new or empty folder.
        generator: which of the two published generators becomes the averaged one, which tools sample by default:
            the average ("ema"), or the weights as trained ("raw"), which the published sampler uses.

    Returns:
        the configuration in config.yaml: the published recipe, for the network found in ``source``.

    Raises:
        ValueError: ``source`` is not a published checkpoint (see `attributegan.models.published.load`), or ``out`` is not empty.
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
        # Images are counted from 0 again, but the imported average is long past its ramp-up: with the ramp-up of a new run, the
        # first steps would replace it by the weights as trained.
        optim=OptimConfig(ema_rampup=0.0),
        run=RunConfig(dir=str(out)),
    )
