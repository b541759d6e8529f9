"""The state of a training run: both networks with their optimizers, the EMA of the generator, and the progress in images.

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
from attributegan.checkpoint import store, transfer
from attributegan.checkpoint.weight_matching import Labels
from attributegan.checkpoint.writer import Writer, remove_leftovers
from attributegan.config import Config, ModelConfig, fill
from attributegan.distributed.build import build_engine
from attributegan.distributed.engine import Engine
from attributegan.distributed.runtime import Runtime
from attributegan.models import Discriminator, Generator
from attributegan.models.perceptual import PerceptualFeatures
from attributegan.old_names import with_current_names
from attributegan.run_dir.checkpoint_dirs import checkpoints_dir
from attributegan.training import memory_estimate
from attributegan.training.adaptive import AdaptiveProbability
from attributegan.training.ema import Ema
from attributegan.training.phases import MicroBatch, discriminator_phase, generator_phase
from attributegan.training.random_draws import StepNoise
from attributegan.utils.devices import to_device
from attributegan.utils.rng import Purpose, rng_for

log = logging.getLogger("attributegan")


MIN_MMD_TILES = 4  # generated tiles may share a latent in pairs
SHARED_WAIT_S = 10.0  # until a folder created on one node must be visible on the others


class Batch(Protocol):
    """One micro-batch of one process, as the data loader returns it."""

    @property
    def images_BCHW(self) -> Tensor: ...  # uint8

    @property
    def levels_BA(self) -> Tensor: ...

    @property
    def cursor(self) -> int: ...  # number of real images seen before this micro-batch


class Diverged(RuntimeError):
    """Too many consecutive steps had a non-finite loss or gradient, or the weights are not finite."""


class Trainer:
    """Both networks in training.

    Args:
        config: the resolved configuration.
        schema: the attributes of the data.
        runtime: this process.

    Raises:
        ValueError: the batch per process does not suit the configured losses.
    """

    def __init__(self, config: Config, schema: AttributeSchema, runtime: Runtime) -> None:
        self.config, self.schema, self.runtime = config, schema, runtime
        self.images = 0
        not_assessable = [UNKNOWN if attribute.not_assessable is None else attribute.not_assessable for attribute in schema.attributes]
        self.not_assessable_A = torch.tensor(not_assessable, device=runtime.device)
        share = config.train.batch // (config.train.grad_accumulation * runtime.world)
        if (config.loss.diversity or config.loss.residual) and share % 2:
            raise ValueError(
                f"train.batch: loss.diversity and loss.residual compare pairs, but each of {runtime.world} processes gets "
                f"{share} tiles per micro-batch; choose a batch that makes this number even"
            )
        if config.loss.mmd and share * runtime.world < MIN_MMD_TILES:
            raise ValueError(
                f"train.batch: loss.mmd compares {share * runtime.world} tiles per micro-batch; choose a batch that makes this number at "
                f"least {MIN_MMD_TILES}"
            )
        self.features = None
        if config.loss.mmd:
            self.features = runtime.place(PerceptualFeatures(schema.num_levels, config.loss.mmd_levels), "discriminator")
        self.skipped: Counter[str] = Counter()  # skipped steps, by network
        self.skipped_in_a_row = 0
        self.augmenting = AdaptiveProbability(config.augment)
        self.init: dict[str, Any] = {}  # origin of the initial weights; see `transfer.Source`
        generator, discriminator = _initial_networks(config, schema)
        generator, discriminator = runtime.place(generator, "generator"), runtime.place(discriminator, "discriminator")
        for network in (generator, discriminator):
            network.activation_checkpointing = config.train.activation_checkpointing
        for parameter in discriminator.unused_parameters(embed=config.loss.contrastive > 0, reconstruct=config.loss.reconstruction > 0):
            parameter.requires_grad_(False)
        ema_copy = copy.deepcopy(generator)
        self.generator = build_engine(runtime, generator, "generator", config.optim.generator_lr, compile=config.train.compile)
        self.ema = Ema(ema_copy, self.generator, config.optim.ema_half_life, config.optim.ema_rampup)
        # Gradient penalties need double backward, which compiled graphs don't support.
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
        """Trains both networks on one global batch.

        Args:
            batches: the micro-batches of this process.

        Returns:
            loss terms and gradient norms by name, means over the micro-batches of this process.

        Raises:
            Diverged: ``train.max_nonfinite`` consecutive steps had a non-finite loss or gradient.
        """
        micro_batches = self._micro_batches(batches)
        statistics = {engine: _buffers(engine) for engine in (self.generator, self.discriminator)}
        inputs = self.config, self.runtime, self.generator, self.discriminator, micro_batches
        d_terms, d_taken = discriminator_phase(*inputs, penalise=self._penalty_is_due())
        g_terms, g_taken = generator_phase(*inputs, self.features)
        for engine, taken in ((self.generator, g_taken), (self.discriminator, d_taken)):
            if not taken:  # restore batch-norm statistics, which the failed pass has updated
                for name, buffer in engine.module.named_buffers():
                    buffer.copy_(statistics[engine][name])
        self.images += self.config.train.batch
        self.ema.update(self.config.train.batch, self.images)
        self._count_skipped(discriminator=d_taken, generator=g_taken)
        if self.config.augment.target:
            d_terms["augment/probability"] = torch.full((), self.augmenting.value, device=self.runtime.device)
            self.augmenting.update(d_terms["augment/real_sign"], self.config.train.batch, self.runtime)
        return d_terms | g_terms

    def memory_report(self) -> list[str]:
        """Returns log lines on the memory of the training state; see `memory_estimate.lines`."""
        engines = {"generator": self.generator, "discriminator": self.discriminator}
        parameters = {name: sum(torch.Size(shape).numel() for shape in engine.shapes.values()) for name, engine in engines.items()}
        stages = {name: self.runtime.sharding[name].stage for name in engines}
        return memory_estimate.lines(parameters, stages, self.runtime.world, moments=2 if self.config.optim.name == "adam" else 0)

    def _penalty_is_due(self) -> bool:
        """Lazy regularisation (Karras et al., StyleGAN2, CVPR 2020, B): every few steps, counted by images so that resuming is exact."""
        loss = self.config.loss
        return loss.r1_gamma > 0 and (self.images // self.config.train.batch) % loss.r1_every == 0

    def _micro_batches(self, batches: Sequence[Batch]) -> list[MicroBatch]:
        runtime = self.runtime
        assert batches[0].cursor == self.images
        noise = StepNoise.for_step(self.config, self.images, runtime.dtype).micro_batches(
            len(batches), runtime.rank, runtime.world, runtime.device
        )
        micro_batches = []
        for batch, micro_noise in zip(batches, noise, strict=True):
            levels_BA = to_device(batch.levels_BA, runtime.device)
            assessable_BA = (levels_BA >= 0) & (levels_BA != self.not_assessable_A)
            images_BCHW = runtime.images(batch.images_BCHW)
            micro_batches.append(MicroBatch(images_BCHW, levels_BA, assessable_BA, micro_noise, self.augmenting.value))
        return micro_batches

    def _count_skipped(self, **taken: bool) -> None:
        skipped = [network for network, ok in taken.items() if not ok]
        self.skipped.update(skipped)
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        if skipped:
            log.warning("skipped step at %s images for the %s: non-finite loss or gradient", f"{self.images:,}", " and ".join(skipped))
        if self.skipped_in_a_row >= self.config.train.max_nonfinite:
            raise Diverged(
                f"training diverged: {self.skipped_in_a_row} consecutive steps had a non-finite loss or gradient, the last at "
                f"{self.images:,} images; earlier checkpoints are intact. Try a lower optim.*_lr, or train.precision=bf16 or fp32"
            )

    def save(self) -> None:
        """Starts to write a checkpoint in the background; every process must call it.

        Raises:
            Diverged: weights are not finite; earlier checkpoints are intact.
        """
        self._wait_for_writers()
        networks: dict[str, Engine | Ema] = {"generator": self.generator, "generator_ema": self.ema, "discriminator": self.discriminator}
        weights = {name: network.model_state() for name, network in networks.items()}
        is_finite = all(part.values_N.isfinite().all() for state_dict in weights.values() for part in state_dict.slices)
        if self.runtime.any_rank(not is_finite):
            raise Diverged(
                f"training diverged: weights at {self.images:,} images are not finite and are not saved; earlier checkpoints are intact. "
                "Run the same command to resume from the latest one, with a lower optim.*_lr if it happens again"
            )
        self.writer.save(
            self.images,
            {
                "config": self.config.to_dict(),
                "schema": self.schema.to_dict(),
                "skipped": dict(self.skipped),
                "skipped_in_a_row": self.skipped_in_a_row,
                "loss_scales": {"generator": self.generator.loss_scale.state(), "discriminator": self.discriminator.loss_scale.state()},
            }
            | {name: value for name, value in (("init", self.init), ("augment", self.augmenting.state(self.runtime))) if value},
            **weights,
            generator_optimizer=self.generator.optimizer_state(),
            discriminator_optimizer=self.discriminator.optimizer_state(),
        )

    def wait_for_checkpoint(self) -> None:
        """Waits until the last checkpoint is complete; every process must call it."""
        self._wait_for_writers()
        self.writer.wait()
        self.runtime.barrier()

    def _wait_for_writers(self) -> None:
        """Polls until no process is writing, since a large checkpoint may take longer than the timeout of one collective."""
        while self.runtime.any_rank(self.writer.busy):
            time.sleep(0.1)

    def resume(self) -> bool:
        """Resumes from the latest complete checkpoint of the run folder, if there is one; every process must call it.

        Without one, loads the weights of ``train.init``.

        Returns:
            whether training was resumed.

        Raises:
            ValueError: the checkpoint does not match the network or schema, ``run.resume`` is "never", or nothing in ``train.init`` fits;
                names the fix.
        """
        self._check_shared()
        if self.runtime.is_main:
            remove_leftovers(self.folder)
        checkpoint = self.runtime.run_on_rank0(lambda: str(store.latest(self.folder) or ""))
        if not checkpoint:
            if self.config.train.init:
                self._load_initial_weights(self.config.train.init)
            return False
        if self.config.run.resume == "never":
            raise ValueError(f"run.dir: {self.config.run.dir} has the checkpoint {checkpoint}; choose another folder or run.resume=auto")
        self.runtime.run_and_raise_everywhere(lambda: self._load(Path(checkpoint)))
        log.info("resuming from %s%s", checkpoint, "; train.init is ignored" if self.config.train.init else "")
        for line in _changed_options(store.load_state(Path(checkpoint))["config"], self.config.to_dict()):
            log.info("option changed since the checkpoint: %s", line)
        return True

    def _load_initial_weights(self, init: str) -> None:
        generator, discriminator = (network.to(self.runtime.dtype).state_dict() for network in _initial_networks(self.config, self.schema))
        labels = Labels(self.config.model, self.schema, self.config.data.attributes)
        networks = {
            "generator": (generator, self.generator.load_model_state),
            "generator_ema": (generator, self.ema.load_model_state),
            "discriminator": (discriminator, self.discriminator.load_model_state),
        }
        self.init = transfer.load_weights(init, networks, labels, self.runtime)

    def _check_shared(self) -> None:
        """Checks that all processes see the same run folder, since all of them write into it."""
        marker = self.folder / f".writing-{self.runtime.launch_id}"
        if self.runtime.is_main:
            marker.mkdir(parents=True)
        self.runtime.barrier()

        def wait_for_marker() -> None:
            until = time.monotonic() + SHARED_WAIT_S
            while not marker.exists():
                if time.monotonic() > until:
                    raise ValueError(f"run.dir: {marker.parent} is not the same folder as on rank 0; use a folder on a shared disk")
                time.sleep(0.1)

        self.runtime.run_and_raise_everywhere(wait_for_marker)

    def _load(self, path: Path) -> None:
        state = store.load_state(path)
        _check_model(path, state, self.config, self.schema)
        for name, engine in (("generator", self.generator), ("discriminator", self.discriminator)):
            with store.open_tensors(path, name) as (names, read):
                _check_tensor_names(path, name, engine, names)
                engine.load_model_state(read)
            with store.open_tensors(path, f"{name}_optimizer") as (names, read):
                engine.load_optimizer_state(names, read)
            engine.loss_scale.load(state["loss_scales"][name])
        with store.open_tensors(path, "generator_ema") as (_, read):
            self.ema.load_model_state(read)
        self.images = int(state["images"])
        self.skipped = Counter(state["skipped"])
        self.skipped_in_a_row = int(state["skipped_in_a_row"])
        self.init = state.get("init", {})
        self.augmenting.load(state.get("augment", {}))


def _initial_networks(config: Config, schema: AttributeSchema) -> tuple[Generator, Discriminator]:
    """Returns both networks with their initial weights, on the CPU; the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng_for(config.train.seed, Purpose.WEIGHTS).initial_seed())
        generator = Generator(config.model, schema)
        generator.zero_label_weights(
            a for a, name in enumerate(schema.names) if config.data.attributes and name not in config.data.attributes
        )
        return generator, Discriminator(config.model, schema)


def _buffers(engine: Engine) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in engine.module.named_buffers()}


def _changed_options(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """Lists the training options that differ from those of the checkpoint, one line each."""
    defaults = Config().to_dict()  # for options that the checkpoint's version did not have
    saved = with_current_names(saved, "checkpoint")
    before = {section: defaults[section] | saved.get(section, {}) for section in ("loss", "augment", "optim", "data", "train")}
    return [
        f"{section}.{key} is {current[section][key]}, was {value}"
        for section, values in before.items()
        for key, value in values.items()
        if current[section].get(key, value) != value and f"{section}.{key}" != "train.images"
    ]


def _check_tensor_names(path: Path, network: str, engine: Engine, names: frozenset[str]) -> None:
    if missing := sorted(engine.module.state_dict().keys() - names):
        raise ValueError(
            f"{path}: the {network} has no tensor {missing[0]}, so the checkpoint is from an incompatible version; resume with that "
            "version, or choose another run.dir"
        )


def _check_model(path: Path, state: dict[str, Any], config: Config, schema: AttributeSchema) -> None:
    saved = dataclasses.asdict(fill(ModelConfig, state["config"]["model"], str(path), "model"))
    current = dataclasses.asdict(config.model)
    changed = [
        f"model.{key} is {current[key]!r}, was {saved[key]!r}" for key in current if key != "attributes" and saved[key] != current[key]
    ]
    changed += AttributeSchema.from_dict(state["schema"], where=str(path)).difference(schema)
    if changed:
        raise ValueError(
            f"{path}: the checkpoint does not match the configured network: {'; '.join(changed)}. Use its settings or another run.dir"
        )
