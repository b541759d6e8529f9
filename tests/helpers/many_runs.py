"""Trains several runs in one launch, because a launch takes longer than a small run; the script for ``accelerate launch`` in tests.

    many_runs.py JOBS.json      a list of {"config", "overrides", "spoil", "save_again", "facts"}; see `Job`

Each run calls `launch.train.run`, as users do; `Job` lists what can be changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import unittest.mock
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import launch.train
from attributegan import config
from attributegan.distributed.engine import DataParallel, Engine
from attributegan.distributed.runtime import Runtime
from attributegan.training import losses
from attributegan.training.trainer import Trainer
from attributegan.utils import collectives


@dataclass(frozen=True)
class Job:
    config: str
    overrides: list[str]
    spoil: str = ""  # a fault to inject: a name in SPOILS
    save_again: str = ""  # folder for a second checkpoint, saved right after loading
    facts: str = ""  # file for facts about the final state


SPOILS: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "unfrozen discriminator": lambda: unittest.mock.patch.object(Engine, "frozen", contextlib.nullcontext),
    "unsynchronised batch norm": lambda: unittest.mock.patch("attributegan.models.batchnorm.world_size", lambda: 1),
    "ungathered contrastive loss": lambda: unittest.mock.patch("attributegan.training.phases._contrastive", _own_contrastive),
}


def main(path: str) -> None:
    launcher = dict(os.environ)
    end, kept = Runtime.shutdown, Trainer.step
    Runtime.shutdown = lambda self: None  # keep the process group for the next run
    for tree in json.loads(Path(path).read_text()):
        job = Job(**tree)
        os.environ.update({name: value for name, value in launcher.items() if name.startswith("ACCELERATE_")})
        with SPOILS[job.spoil]() if job.spoil else contextlib.nullcontext(), _instrumented(job):
            try:
                launch.train.run(config.load(job.config, job.overrides))
            except (RuntimeError, AssertionError) as error:
                if not job.spoil:
                    raise
                print(f"{job.spoil}: {type(error).__name__}: {error}")
    Trainer.step = kept
    if dist.is_initialized():
        end(None)  # type: ignore[arg-type]


@contextlib.contextmanager
def _instrumented(job: Job) -> Iterator[None]:
    """Save the second checkpoint and the facts that the job requests."""
    resume, saved = Trainer.resume, Trainer.wait_for_checkpoint

    def resume_and_save(self: Trainer) -> bool:
        found = resume(self)
        if job.save_again:
            self.writer.folder = Path(job.save_again)
            self.writer.folder.mkdir(exist_ok=True)
            self.save()
            self.writer.wait()
            self.runtime.barrier()
            self.writer.folder = self.folder
        return found

    def save_facts(self: Trainer) -> None:
        saved(self)
        if job.facts:
            facts = self.runtime.all_gather_object(_facts(self))
            if self.runtime.is_main:
                Path(job.facts).write_text(json.dumps(facts))

    with (
        unittest.mock.patch.object(Trainer, "resume", resume_and_save),
        unittest.mock.patch.object(Trainer, "wait_for_checkpoint", save_facts),
    ):
        yield


def _facts(trainer: Trainer) -> dict[str, Any]:
    """Returns hashes of unsharded state, and the bytes of optimizer state and master weights on this rank."""
    with trainer.ema.whole() as averaged:
        whole = {"ema": averaged.state_dict()} | {
            name: engine.module.state_dict()
            for name, engine in (("generator", trainer.generator), ("discriminator", trainer.discriminator))
            if trainer.runtime.sharding[name].stage < 3
        }
        hashes = {name: _hash(state) for name, state in whole.items()}
    engines = {"generator": trainer.generator, "discriminator": trainer.discriminator}
    return {
        "hashes": hashes,
        "optimizer_bytes": {name: _bytes(engine) for name, engine in engines.items()},
        "offloaded": {
            name: bool(not isinstance(engine, DataParallel) and engine.wrapped.zero_cpu_offload()) for name, engine in engines.items()
        },
    }


def _hash(state: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256(b"".join(tensor.contiguous().numpy().tobytes() for tensor in state.values())).hexdigest()


def _bytes(engine: Engine) -> int:
    if isinstance(engine, DataParallel):
        states, masters = engine.optimizer.state.values(), []
    else:
        states, masters = engine._base_state.values(), list(engine._flats())  # type: ignore[attr-defined]
    moments = [value for state in states for value in state.values() if torch.is_tensor(value) and value.numel() > 1]
    return sum(tensor.numel() * tensor.element_size() for tensor in [*moments, *masters])


def _own_contrastive(settings: Any, runtime: Any, embedding: torch.Tensor, proxy: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    assert collectives  # the loss over the images of this rank only
    return losses.contrastive_2c(embedding, proxy, levels, temperature=settings.loss.temperature)


if __name__ == "__main__":
    main(sys.argv[1])
