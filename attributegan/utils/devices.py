"""Chooses the training device, sets up torch for it, and copies tensors to it; no other file does.

Devices: "cpu", "cuda" (NVIDIA and AMD GPUs), "mps" (Apple) and "xpu" (Intel). ``auto`` takes CUDA or the CPU; the other two are
untested and must be named.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor

from attributegan.utils.allocator import keep_freed_memory

BACKENDS = {"cpu": "gloo", "cuda": "nccl", "xpu": "xccl"}  # of torch.distributed
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
MISSING = {  # known limitations by device
    "mps": "one process, no DeepSpeed, no fp64; untested",
    "xpu": "no DeepSpeed; untested",
}


def choose(option: str, environ: Mapping[str, str]) -> tuple[str, str]:
    """Returns the device type for ``train.device`` on this machine.

    Args:
        option: "auto", "cpu", "cuda", "mps" or "xpu".
        environ: environment variables; ACCELERATE_USE_CPU makes "auto" the CPU.

    Returns:
        The type, and why it can't be used ("" if it can). An unavailable device falls back to "cpu", so that all processes still
        reach the rendezvous and report the error.
    """
    if option == "auto":
        return ("cuda" if torch.cuda.is_available() and not cpu_requested(environ) else "cpu"), ""
    if option == "cpu" or _available(option):
        return option, ""
    return "cpu", f"train.device: {option} is not available: {_why_not(option)}; use train.device=auto, or cpu"


def cpu_requested(environ: Mapping[str, str]) -> bool:
    """Returns whether ACCELERATE_USE_CPU is true, by the same spellings as accelerate."""
    return environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "t", "1", "yes", "y", "on")


def problem(device: str, precision: str, world: int, sharded: bool) -> str:
    """Returns why a run can't be trained on a device type, with the fix; "" if it can."""
    if sharded and device in MISSING:
        return f"train.device: DeepSpeed is not supported on {device}; use the preset accelerate/one_gpu, or train.device=cpu"
    if device == "mps" and world > 1:
        return f"train.device: mps has no collectives, and {world} processes were started; start one, or use train.device=cpu"
    if device == "mps" and precision == "fp64":
        return "train.device: mps has no fp64; use train.precision=fp32, or train.device=cpu"
    return ""


def prepare(device: str, tf32: bool) -> None:
    """Set up torch for training on a device type; call it before creating the first tensor there."""
    if device == "cpu":
        return keep_freed_memory()
    if device == "cuda":
        if not any(name in os.environ for name in ALLOCATOR_VARIABLES):
            # Steps with a gradient penalty allocate other sizes; expandable segments avoid fragmentation.
            os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
        torch.backends.cudnn.allow_tf32 = tf32
        # All steps have the same shapes. Kernels are chosen by their measured time, so the choice can differ between starts.
        torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns ``tensor`` on ``device``; copies to a GPU go through pinned memory and don't block the host."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()  # torch keeps the memory until the copy is complete
    return tensor.to(device, non_blocking=True)


def widest_float(device: torch.device) -> torch.dtype:
    """Returns float64, or float32 on devices without it."""
    return torch.float32 if device.type == "mps" else torch.float64


def _available(device: str) -> bool:
    if device == "mps":
        return torch.backends.mps.is_available()
    module = getattr(torch, device, None)
    return module is not None and bool(module.is_available())


def _why_not(device: str) -> str:
    if device == "cuda" and torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is built without CUDA (see docs/install.md, Choosing torch)"
    if device == "mps" and not torch.backends.mps.is_built():
        return f"torch {torch.__version__} is built without it; it needs macOS on Apple silicon"
    return f"torch {torch.__version__} finds no such device{_cuda_problem() if device == 'cuda' else ''}; run attributegan-doctor"


def _cuda_problem() -> str:
    """Returns torch's reason, such as "No CUDA GPUs are available" or a driver that is too old; "" if it has none."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return f" ({str(error).partition('. ')[0]})"
    return ""
