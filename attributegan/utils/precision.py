"""Numeric precision of a device: resolves ``auto``, detects native bf16, measures the slowdown of emulated types, and autocast.

The only file that queries instruction sets. In training, the launcher's precision and that of a resumed run come before ``auto``
(`Runtime._precision`).
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
REPEATS = 5  # measurements, of which the fastest counts
WITHOUT_BF16 = ("AVX512_CORE", "AVX512_CORE_VNNI")  # values of ONEDNN_MAX_CPU_ISA with which oneDNN accepts bf16 but emulates it
SLOWER = 1.1  # warn from this multiple of the duration in fp32


def autocast(precision: str, device: torch.device | str) -> contextlib.AbstractContextManager[Any]:
    """Returns the autocast context of forward passes in "bf16" or "fp16"; a null context for "fp32" and "fp64"."""
    dtype = AUTOCAST.get(precision)
    return torch.autocast(torch.device(device).type, dtype=dtype) if dtype else contextlib.nullcontext()


def choose(device: torch.device | str) -> tuple[str, str]:
    """Resolves ``auto``: the fastest precision that trains stably on a device.

    bf16 where it is native; otherwise fp32 on CPUs and fp16 on GPUs.

    Returns:
        "bf16", "fp16" or "fp32", and the reason for log messages.
    """
    device = torch.device(device)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16", f"{name} has native bf16") if native else ("fp16", f"{name} has no native bf16")
    if device.type != "cpu":
        return "fp32", f"{device.type} devices"
    extension = native_bf16()
    return ("bf16", f"this CPU has {extension}") if extension else ("fp32", f"this CPU has no native bf16 ({cpu_capability()})")


def native_bf16() -> str:
    """Returns the CPU's bf16 instruction set that torch and oneDNN can use, such as "AMX-BF16"; "" if there is none.

    Without one, oneDNN emulates bf16 at a tenth of the speed of fp32. Respects ``ONEDNN_MAX_CPU_ISA`` and ``ATEN_CPU_CAPABILITY``.
    """
    if not torch.backends.mkldnn.is_available():
        return ""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else _flags()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if limit in WITHOUT_BF16 or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return ""
    for key, name in (("amx_bf16", "AMX-BF16"), ("avx512_bf16", "AVX512-BF16"), ("arm_bf16", "ARM BF16"), ("bf16", "ARM BF16")):
        if capabilities.get(key):
            return name
    return ""


def cpu_capability() -> str:
    """Returns the vector instruction set that torch uses on this CPU, such as "AVX2"."""
    return torch.backends.cpu.get_cpu_capability()


def cpu_name() -> str:
    """Returns the CPU model and the instruction sets that torch uses, such as "AMD EPYC 7B13 (AVX2)"."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        name = models[0] if models else name
    return f"{name} ({cpu_capability()}{', ' + native_bf16() if native_bf16() else ''})"


def slowdown(precision: str, device: torch.device | str) -> float:
    """Measures how many times longer a convolution takes in bf16 or fp16 than in fp32, forward and backward; takes under a second."""
    dtype = AUTOCAST.get(precision)
    if dtype is None:
        return 1.0
    steps = [_step(dtype, torch.device(device)), _step(torch.float32, torch.device(device))]
    seconds = [[step() for step in steps] for _ in range(REPEATS + 1)][1:]  # the first is a warm-up
    reduced, fp32 = (min(column) for column in zip(*seconds, strict=True))
    ratio: float = reduced / fp32
    return ratio


def warning(precision: str, device: torch.device | str, option: str) -> str:
    """Returns a warning with a fix if a precision is slower than fp32 on a device; "" if it is not.

    Args:
        precision: "fp32", "bf16", "fp16" or "fp64".
        device: where it would be used.
        option: the option that sets it, such as "train.precision=" or "--precision ".
    """
    if precision not in AUTOCAST or torch.device(device).type != "cpu" or (precision == "bf16" and native_bf16()):
        return ""
    factor = slowdown(precision, device)
    if factor < SLOWER:
        return ""
    return (
        f"{option}{precision} is {factor:.1f} times slower than fp32 on this CPU ({cpu_capability()}), which has no native {precision}; "
        f"use {option}fp32, or {option}auto to pick the fastest on each machine"
    )


def _step(dtype: torch.dtype, device: torch.device) -> Callable[[], float]:
    """Returns a function that runs a small convolution (0.06 GFLOP with both gradients) and returns its duration in seconds."""
    image, weight = (
        torch.ones(shape, dtype=dtype, device=device).to(memory_format=torch.channels_last).requires_grad_()
        for shape in ((4, 32, 16, 16), (32, 32, 3, 3))
    )

    def step() -> float:
        start = time.perf_counter()
        output: Tensor = torch.nn.functional.conv2d(image, weight, padding=1)
        torch.autograd.grad(output, (image, weight), torch.ones_like(output))
        return time.perf_counter() - start

    return step


def _flags() -> dict[str, bool]:
    """Reads the flags of /proc/cpuinfo, for versions of torch without `get_capabilities`; {} if the file is missing."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith(("flags", "Features")):
                return dict.fromkeys(line.partition(":")[2].split(), True)
    return {}
