"""What can be known of GPUs without one: where a step waits for the device, what it copies, and that it can be compiled.

CUDA tensors of `FakeTensorMode` can't be written in place without a torch built for CUDA. Meta tensors stand in for them: an operation on
tensors of two devices, or an operation that needs numbers on the host, is an error there as well.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attributegan.attributes import PUBLISHED
from attributegan.distributed.engine import DataParallel
from attributegan.training.trainer import Trainer
from tools.benchmarks import gpu_checks, host_syncs
from tools.benchmarks.gpu_parts import Context
from tools.benchmarks.gpu_training import CONTROLLED, FP32, PLAIN, TINY, merged, settings_of, take, tiles, trainer_of

RECIPES = {"published": PLAIN, "controlled": CONTROLLED}
# Maps of 32 pixels and more take other paths (`models.resample`), and from 512 px on there are more stages and a second decoder.
AT_64 = merged(TINY, {"model": {"image_size": 64, "fmap_inverse_coef": 7}})
AT_512 = merged(TINY, {"model": {"image_size": 512, "fmap_inverse_coef": 10}})


def trainer_for(folder: Path, recipe: str) -> Trainer:
    return trainer_of(settings_of(Context("cpu", True, folder), AT_64, RECIPES[recipe], FP32))


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_a_step_waits_for_the_device_twice(tmp_path: Path, recipe: str) -> None:
    trainer = trainer_for(tmp_path, recipe)
    take(trainer, 1)
    batch = tiles(trainer)
    with host_syncs.HostSyncs("cpu") as counted:
        trainer.step([batch])
    on_any_device = {place: count for place, count in counted.found.items() if place not in host_syncs.ON_CPUS}
    assert on_any_device == host_syncs.ALLOWED == {"distributed/engine.py:_step": 2}
    assert counted.found["training/random_draws.py:for_step"] == 2  # which kind of pair, which quadrant


def test_syncs_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_for(tmp_path, "published")
    monkeypatch.setattr("attributegan.training.trainer.to_device", lambda x, device: torch.tensor(x.tolist(), device=device))
    batch = tiles(trainer)
    with host_syncs.HostSyncs("cpu") as counted:
        trainer.step([batch])
    assert "training/trainer.py:_micro_batches" in host_syncs.unexpected(counted.found, "cpu")
    assert host_syncs.unexpected({"distributed/engine.py:_step": 3}, "cuda") == {"distributed/engine.py:_step": 3}
    assert host_syncs.unexpected({"models/blocks.py:_columns": 1}, "cuda") and not host_syncs.unexpected(host_syncs.ALLOWED, "cuda")


class Copies(TorchDispatchMode):
    """Counts copies between devices, by place."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = function(*args, **(kwargs or {}))
        if function.overloadpacket.__name__ == "_to_copy" and answer.device != args[0].device:
            self.found[host_syncs._place()] += 1
        return answer


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_everything_is_computed_on_one_device(tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(engine: DataParallel) -> tuple[Tensor, bool]:
        gradients = [p.grad for p in engine.parameters.values() if p.grad is not None]
        assert gradients and all(gradient.is_meta for gradient in gradients)
        return torch.nn.utils.get_total_norm(gradients), True  # the true one asks whether it is finite

    settings = settings_of(Context("cpu", True, tmp_path), AT_512, RECIPES[recipe], FP32)
    runtime = trainer_of(settings).runtime
    runtime.device = torch.device("meta")
    trainer = Trainer(settings, PUBLISHED, runtime)
    monkeypatch.setattr(DataParallel, "_step", step)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # has no type for meta
    batch = tiles(trainer)
    with Copies() as copied, host_syncs.HostSyncs("meta") as counted:
        terms = trainer.step([batch])
    assert all(term.is_meta for term in terms.values()) and all(tensor.is_meta for tensor in trainer.ema.average.values())
    assert not counted.found and copied.found == {"utils/devices.py:to_device": 8}  # tiles, levels, six of draws


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_networks_and_losses_are_whole_graphs(tmp_path: Path, recipe: str) -> None:
    outcome = gpu_checks.graphs_of({recipe: settings_of(Context("cpu", True, tmp_path), AT_64, RECIPES[recipe], FP32)}, "cpu")
    assert outcome.status == "passed", outcome.summary


def test_syncs_that_cuda_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def step() -> None:
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("is deprecated", FutureWarning, stacklevel=1)

    assert host_syncs.reported_by_cuda(step) == {"elsewhere": 1} and modes == ["warn", "default"]


def test_a_graph_break_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attributegan.training.losses.relativistic", lambda a, b: a.mean() if a.mean() > b.mean() else b.mean())
    outcome = gpu_checks.graphs_of({"published": settings_of(Context("cpu", True, tmp_path), TINY, PLAIN, FP32)}, "cpu")
    assert outcome.status == "failed" and "relativistic loss" in outcome.summary
