"""Which device is chosen, what is refused, and how tensors get there."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from attributegan.config import from_dict
from attributegan.distributed.runtime import Runtime
from attributegan.utils import devices


def test_auto_takes_cuda_where_it_is_unless_the_launcher_wants_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert devices.choose("auto", {}) == ("cuda" if there else "cpu", "")
        for true in ("true", "yes", "1", "on", "T"):  # as accelerate reads it
            assert devices.choose("auto", {"ACCELERATE_USE_CPU": true}) == ("cpu", "")
        assert devices.choose("auto", {"ACCELERATE_USE_CPU": "false"})[0] == ("cuda" if there else "cpu")
        assert devices.choose("cpu", {}) == ("cpu", "")


@pytest.mark.parametrize("device", ["cuda", "mps", "xpu"])
def test_a_device_that_is_not_there_is_refused_with_the_fix(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_available", lambda name: False)
    kind, problem = devices.choose(device, {})
    assert kind == "cpu" and problem.startswith(f"train.device: {device} is not available") and "use train.device=auto" in problem
    monkeypatch.setattr(devices, "_available", lambda name: True)
    assert devices.choose(device, {}) == (device, "")


def test_why_torch_finds_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040). Please update it")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(devices, "_available", lambda name: False)
    problem = devices.choose("cuda", {})[1]
    assert "finds no such device (The NVIDIA driver on your system is too old (found version 11040)); run attributegan-doctor" in problem


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="has an Apple GPU")
def test_the_runtime_refuses_it_before_anything_is_computed() -> None:
    with pytest.raises(ValueError, match="train.device: mps is not available"):
        Runtime(from_dict({"train": {"device": "mps", "precision": "fp32"}}))
    assert Runtime(from_dict({"train": {"device": "cpu", "precision": "fp32"}})).device.type == "cpu"
    with pytest.raises(ValueError, match=r"train\.device: 'tpu' is not one of auto, cpu, cuda, mps, xpu"):
        from_dict({"train": {"device": "tpu"}})


def test_a_device_that_accelerate_does_not_choose_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "choose", lambda option, environ: ("xpu", ""))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(ValueError, match=r"^train\.device: accelerate chose cpu, not xpu; use train\.device=cpu, or unset ACCELERATE_\*$"):
        Runtime(from_dict({"train": {"device": "xpu", "precision": "fp32"}}))


@pytest.mark.parametrize(
    ("device", "precision", "world", "sharded", "part"),
    [
        ("mps", "fp32", 1, True, "DeepSpeed"),
        ("xpu", "fp32", 1, True, "DeepSpeed"),
        ("mps", "fp32", 2, False, "2 processes"),
        ("mps", "fp64", 1, False, "fp64"),
        ("mps", "fp32", 1, False, ""),
        ("cuda", "fp64", 8, True, ""),
        ("cpu", "fp64", 2, True, ""),
    ],
)
def test_what_a_device_lacks(device: str, precision: str, world: int, sharded: bool, part: str) -> None:
    problem = devices.problem(device, precision, world, sharded)
    assert part in problem and bool(problem) == bool(part)


def test_settings_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in devices.ALLOCATOR_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    try:
        for tf32, products in ((True, "high"), (False, "highest")):
            devices.prepare("cuda", tf32)
            assert torch.backends.cudnn.allow_tf32 == tf32 and torch.get_float32_matmul_precision() == products
            assert torch.backends.cudnn.benchmark
        assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
        monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "garbage_collection_threshold:0.8")
        torch.use_deterministic_algorithms(True)
        devices.prepare("cuda", False)
        assert not torch.backends.cudnn.benchmark and "threshold" in os.environ["PYTORCH_CUDA_ALLOC_CONF"]
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.pop("PYTORCH_CUDA_ALLOC_CONF", None)
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before[:2]
        torch.set_float32_matmul_precision(before[2])


class Recorded:
    """A tensor of the CPU that notes how it is moved."""

    device = torch.device("cpu")

    def __init__(self, pinned: bool) -> None:
        self.pinned = pinned
        self.calls: list[Any] = []

    def is_pinned(self) -> bool:
        return self.pinned

    def pin_memory(self) -> Recorded:
        self.pinned = True
        self.calls.append("pin")
        return self

    def to(self, device: torch.device, **options: Any) -> list[str]:
        return [*self.calls, f"to {device} {options}"]


def test_copies_to_a_gpu_are_pinned_once_and_not_waited_for() -> None:
    copy = "to cuda:1 {'non_blocking': True}"
    assert devices.to_device(Recorded(pinned=False), torch.device("cuda", 1)) == ["pin", copy]  # type: ignore[arg-type, comparison-overlap]
    assert devices.to_device(Recorded(pinned=True), torch.device("cuda", 1)) == [copy]  # type: ignore[arg-type, comparison-overlap]
    x = torch.ones(3)
    assert devices.to_device(x, torch.device("cpu")) is x


def test_widest_float() -> None:
    assert devices.widest_float(torch.device("cpu")) is torch.float64 and devices.widest_float(torch.device("mps")) is torch.float32
