"""The state of a training run: both networks with their optimizers, the averaged generator, and how far it is.

Owns building, stepping, saving and resuming. The loop that calls it is in loop.py.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from attributegan.attributes import UNKNOWN, AttributeSchema
from attributegan.checkpoint import store
from attributegan.checkpoint.writer import Writer, remove_remains
from attributegan.config import Config, ModelConfig, fill, with_current_names
from attributegan.distributed.build import build_engine
from attributegan.distributed.engine import Engine
from attributegan.distributed.runtime import Runtime
from attributegan.models import Discriminator, Generator
from attributegan.run_dir.checkpoint_dirs import checkpoints_dir
from attributegan.training import memory_estimate
from attributegan.training.ema import Ema
from attributegan.training.phases import MicroBatch, discriminator_phase, generator_phase
from attributegan.training.random_draws import StepNoise
from attributegan.utils.devices import to_device
from attributegan.utils.rng import Purpose, rng_for

log = logging.getLogger("attributegan")


SHARED_WAIT_S = 10.0  # in which a folder made on one node must be seen on the others


class Batch(Protocol):
    """What the reader gives for one micro-batch of one process."""

    @property
    def images_BCHW(self) -> Tensor: ...  # uint8

    @property
    def levels_BA(self) -> Tensor: ...

    @property
    def cursor(self) -> int: ...  # real images before the first one of this micro-batch


class Diverged(RuntimeError):
    """Too many steps in a row were not finite."""


class Trainer:
    def __init__(self, config: Config, schema: AttributeSchema, runtime: Runtime) -> None:
        self.config, self.schema, self.runtime = config, schema, runtime
        self.images = 0
        not_assessable = [UNKNOWN if attribute.not_assessable is None else attribute.not_assessable for attribute in schema.attributes]
        self.not_assessable_A = torch.tensor(not_assessable, device=runtime.device)
        share = config.train.batch // (config.train.grad_accumulation * runtime.world)
        if (config.loss.diversity or config.loss.residual) and share % 2:
            raise ValueError(
                f"train.batch: loss.diversity and loss.residual compare pairs, and each of {runtime.world} processes gets "
                f"{share} tiles a micro-batch; choose a batch with an even number of them"
            )
        self.skipped: Counter[str] = Counter()  # steps not taken, by network
        self.skipped_in_a_row = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng_for(config.train.seed, Purpose.WEIGHTS).initial_seed())
            generator = Generator(config.model, schema)
            generator.zero_label_weights(
                a for a, name in enumerate(schema.names) if config.data.attributes and name not in config.data.attributes
            )
            generator = runtime.place(generator, "generator")
            discriminator = runtime.place(Discriminator(config.model, schema), "discriminator")
        for network in (generator, discriminator):
            network.activation_checkpointing = config.train.activation_checkpointing
        for parameter in discriminator.unused_parameters(embed=config.loss.contrastive > 0, reconstruct=config.loss.reconstruction > 0):
            parameter.requires_grad_(False)
        averaged = copy.deepcopy(generator)
        self.generator = build_engine(runtime, generator, "generator", config.optim.generator_lr, compile=config.train.compile)
        self.ema = Ema(averaged, self.generator, config.optim.ema_half_life, config.optim.ema_rampup)
        # A gradient penalty differentiates the discriminator twice, which compiled graphs can't.
        compile_discriminator = config.train.compile and not config.loss.r1_gamma
        self.discriminator = build_engine(runtime, discriminator, "discriminator", config.optim.discriminator_lr, compile_discriminator)
        self.folder = checkpoints_dir(config.run.dir)
        self.writer = Writer(
            self.folder,
            rank=runtime.rank,
            world=runtime.world,
            launch_id=runtime.launch_id,
            keep=config.run.keep_last,
            scratch=config.run.scratch,
        )

    def step(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """One step of both networks on a global batch.

        Raises:
            Diverged: the last ``train.max_nonfinite`` steps all had a loss or gradient that is not finite.
        """
        micro_batches = self._micro_batches(batches)
        statistics = {engine: _buffers(engine) for engine in (self.generator, self.discriminator)}
        parts = self.config, self.runtime, self.generator, self.discriminator, micro_batches
        d_terms, d_taken = discriminator_phase(*parts, penalise=self._penalty_is_due())
        g_terms, g_taken = generator_phase(*parts)
        for engine, taken in ((self.generator, g_taken), (self.discriminator, d_taken)):
            if not taken:  # batch-norm statistics of a pass that went wrong
                for name, buffer in engine.module.named_buffers():
                    buffer.copy_(statistics[engine][name])
        self.images += self.config.train.batch
        self.ema.update(self.config.train.batch, self.images)
        self._count_skipped(discriminator=d_taken, generator=g_taken)
        return d_terms | g_terms

    def memory_report(self) -> list[str]:
        """What the networks take of each process's memory, and what other stages of ZeRO would."""
        engines = {"generator": self.generator, "discriminator": self.discriminator}
        parameters = {name: sum(torch.Size(shape).numel() for shape in engine.shapes.values()) for name, engine in engines.items()}
        stages = {name: self.runtime.sharding[name].stage for name in engines}
        return memory_estimate.lines(parameters, stages, self.runtime.world, moments=2 if self.config.optim.name == "adam" else 0)

    def _penalty_is_due(self) -> bool:
        """Lazy regularisation (Karras et al., StyleGAN2, CVPR 2020, B): every few steps, by images so that resuming changes nothing."""
        loss = self.config.loss
        return loss.r1_gamma > 0 and (self.images // self.config.train.batch) % loss.r1_every == 0

    def _micro_batches(self, batches: Sequence[Batch]) -> list[MicroBatch]:
        runtime = self.runtime
        assert batches[0].cursor == self.images
        noise = StepNoise.for_step(self.config, self.images, runtime.dtype).micro_batches(
            len(batches), runtime.rank, runtime.world, runtime.device
        )
        found = []
        for batch, micro_noise in zip(batches, noise, strict=True):
            levels_BA = to_device(batch.levels_BA, runtime.device)
            assessable_BA = (levels_BA >= 0) & (levels_BA != self.not_assessable_A)
            found.append(MicroBatch(runtime.images(batch.images_BCHW), levels_BA, assessable_BA, micro_noise))
        return found

    def _count_skipped(self, **taken: bool) -> None:
        bad = [network for network, ok in taken.items() if not ok]
        self.skipped.update(bad)
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if bad else 0
        if bad:
            log.warning("skipped step at %s images for the %s: non-finite loss or gradient", f"{self.images:,}", " and ".join(bad))
        if self.skipped_in_a_row >= self.config.train.max_nonfinite:
            raise Diverged(
                f"{self.skipped_in_a_row} steps in a row had a loss or gradient that is not finite, the last at {self.images:,} images; "
                "the checkpoints up to there stand. Try a lower optim.*_lr, or train.precision=bf16 or fp32"
            )

    def save(self) -> None:
        """Start to write a checkpoint, while training goes on; every process calls.

        Raises:
            Diverged: weights are not finite; the checkpoints before stand.
        """
        self._wait_for_writers()
        networks: dict[str, Engine | Ema] = {"generator": self.generator, "generator_ema": self.ema, "discriminator": self.discriminator}
        weights = {name: network.model_state() for name, network in networks.items()}
        if self.runtime.any_rank(not all(part.values_N.isfinite().all() for table in weights.values() for part in table.slices)):
            raise Diverged(
                f"weights at {self.images:,} images are not finite and are not saved; the checkpoints up to there stand. "
                "Start the same command to go on from the newest, with a lower optim.*_lr if it comes again"
            )
        self.writer.save(
            self.images,
            {
                "config": self.config.to_dict(),
                "schema": self.schema.to_dict(),
                "skipped": dict(self.skipped),
                "skipped_in_a_row": self.skipped_in_a_row,
                "loss_scales": {"generator": self.generator.loss_scale.state(), "discriminator": self.discriminator.loss_scale.state()},
            },
            **weights,
            generator_optimizer=self.generator.optimizer_state(),
            discriminator_optimizer=self.discriminator.optimizer_state(),
        )

    def wait_for_checkpoint(self) -> None:
        """Until the last checkpoint stands; every process calls."""
        self._wait_for_writers()
        self.writer.wait()
        self.runtime.barrier()

    def _wait_for_writers(self) -> None:
        """Until no process writes: asked again and again, since a large checkpoint may take longer than one collective may."""
        while self.runtime.any_rank(self.writer.busy):
            time.sleep(0.1)

    def resume(self) -> bool:
        """Go on from the newest whole checkpoint of the run folder, if there is one.

        Raises:
            ValueError: the checkpoint is of another network or schema, or resuming is not wanted; says which.
        """
        self._check_shared()
        if self.runtime.is_main:
            remove_remains(self.folder)
        found = self.runtime.run_on_rank0(lambda: str(store.latest(self.folder) or ""))
        if not found:
            return False
        if self.config.run.resume == "never":
            raise ValueError(f"run.dir: {self.config.run.dir} has the checkpoint {found}; choose another folder or run.resume=auto")
        self.runtime.run_and_raise_everywhere(lambda: self._load(Path(found)))
        log.info("resuming from %s", found)
        for line in _changed(store.load_state(Path(found))["config"], self.config.to_dict()):
            log.info("from here on %s", line)
        return True

    def _check_shared(self) -> None:
        """All processes write into the run folder: refuse one that a node has for itself."""
        mark = self.folder / f".writing-{self.runtime.launch_id}"
        if self.runtime.is_main:
            mark.mkdir(parents=True)
        self.runtime.barrier()

        def look() -> None:
            until = time.monotonic() + SHARED_WAIT_S
            while not mark.exists():
                if time.monotonic() > until:
                    raise ValueError(f"run.dir: {mark.parent} is not the folder that rank 0 sees under this name; use one on a shared disk")
                time.sleep(0.1)

        self.runtime.run_and_raise_everywhere(look)

    def _load(self, path: Path) -> None:
        state = store.load_state(path)
        _check_same_model(path, state, self.config, self.schema)
        for name, engine in (("generator", self.generator), ("discriminator", self.discriminator)):
            with store.open_tensors(path, name) as (names, read):
                _check_same_names(path, name, engine, names)
                engine.load_model_state(read)
            with store.open_tensors(path, f"{name}_optimizer") as (names, read):
                engine.load_optimizer_state(names, read)
            engine.loss_scale.load(state["loss_scales"][name])
        with store.open_tensors(path, "generator_ema") as (_, read):
            self.ema.load_model_state(read)
        self.images = int(state["images"])
        self.skipped = Counter(state["skipped"])
        self.skipped_in_a_row = int(state["skipped_in_a_row"])


def _buffers(engine: Engine) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in engine.module.named_buffers()}


def _changed(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Options that decide what is learnt and are not those of the checkpoint, a line each."""
    defaults = Config().to_dict()  # of options that there were not yet
    saved = with_current_names(saved, "checkpoint")
    before = {section: defaults[section] | saved.get(section, {}) for section in ("loss", "augment", "optim", "data", "train")}
    return [
        f"{section}.{key} is {now[section][key]}, it was {value}"
        for section, values in before.items()
        for key, value in values.items()
        if now[section].get(key, value) != value and f"{section}.{key}" != "train.images"
    ]


def _check_same_names(path: Path, network: str, engine: Engine, names: frozenset[str]) -> None:
    if missing := sorted(engine.module.state_dict().keys() - names):
        raise ValueError(
            f"{path}: was written by a version whose {network} was another one: it has no {missing[0]}. Go on with that version, or take "
            "another run.dir"
        )


def _check_same_model(path: Path, state: dict[str, Any], config: Config, schema: AttributeSchema) -> None:
    saved = dataclasses.asdict(fill(ModelConfig, state["config"]["model"], str(path), "model"))
    now = dataclasses.asdict(config.model)
    changed = [f"model.{key} was {saved[key]!r}, is {now[key]!r}" for key in now if key != "attributes" and saved[key] != now[key]]
    changed += AttributeSchema.from_dict(state["schema"], where=str(path)).difference(schema)
    if changed:
        raise ValueError(
            f"{path}: holds another network than the one configured: {'; '.join(changed)}. Use its settings or another run.dir"
        )
