"""Which precision a device computes in: what ``auto`` means, whether a precision is native, and how much slower one is that is not.

The only file that asks for instruction sets. Autocast is entered here as well, for training and for sampling alike.
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
REPEATS = 5  # of a measurement, of which the fastest counts
WITHOUT_BF16 = ("AVX512_CORE", "AVX512_CORE_VNNI")  # limits of oneDNN at which it takes bf16 but emulates it
SLOWER = 1.1  # times the duration of fp32 from which a precision is called slower


def autocast(precision: str, device: torch.device | str) -> contextlib.AbstractContextManager[Any]:
    """The mixed-precision context of forward passes in "bf16" or "fp16"; of "fp32" and "fp64" an empty one."""
    dtype = AUTOCAST.get(precision)
    return torch.autocast(torch.device(device).type, dtype=dtype) if dtype else contextlib.nullcontext()


def choose(device: torch.device | str) -> tuple[str, str]:
    """What ``auto`` is on a device: the fastest precision that trains stably there.

    On CPUs bf16 where it is native, else fp32; on GPUs bf16 where it is native, else fp16.

    Returns:
        "bf16", "fp16" or "fp32", and the reason, for a message.
    """
    device = torch.device(device)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16", f"{name} computes bf16") if native else ("fp16", f"{name} has no native bf16")
    if device.type != "cpu":
        return "fp32", f"{device.type} devices"
    extension = native_bf16()
    return ("bf16", f"this CPU has {extension}") if extension else ("fp32", f"this CPU has no native bf16 ({cpu_capability()})")


def native_bf16() -> str:
    """The instruction set by which this CPU multiplies bf16, as far as torch and oneDNN may use it; "" when there is none.

    oneDNN emulates bf16 elsewhere, at a tenth of the speed of fp32. ``ONEDNN_MAX_CPU_ISA`` and ``ATEN_CPU_CAPABILITY`` limit what is used.
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
    """The vector instructions that torch uses on this CPU, such as "AVX2"."""
    return torch.backends.cpu.get_cpu_capability()


def cpu_name() -> str:
    """The CPU's model with the vector instructions that torch uses, such as "AMD EPYC 7B13 (AVX2)"."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        name = models[0] if models else name
    return f"{name} ({cpu_capability()}{', ' + native_bf16() if native_bf16() else ''})"


def slowdown(precision: str, device: torch.device | str) -> float:
    """How many times longer than in fp32 a convolution takes in bf16 or fp16, forward and backward, measured in under a second."""
    dtype = AUTOCAST.get(precision)
    if dtype is None:
        return 1.0
    steps = [_step(dtype, torch.device(device)), _step(torch.float32, torch.device(device))]
    seconds = [[step() for step in steps] for _ in range(REPEATS + 1)][1:]  # the first builds the kernels
    asked, single = (min(column) for column in zip(*seconds, strict=True))
    return asked / single


def warning(precision: str, device: torch.device | str, option: str) -> str:
    """A message when a precision is slower than fp32 on a device, with what to write instead; "" when it is not.

    Args:
        option: what sets the precision, such as "train.precision=" or "--precision ".
    """
    if precision not in AUTOCAST or torch.device(device).type != "cpu" or (precision == "bf16" and native_bf16()):
        return ""
    factor = slowdown(precision, device)
    if factor < SLOWER:
        return ""
    return (
        f"{option}{precision} is {factor:.1f} times slower than fp32 on this CPU ({cpu_capability()}), which has no native {precision}; "
        f"use {option}fp32, or {option}auto for what is fastest on each machine"
    )


def _step(dtype: torch.dtype, device: torch.device) -> Callable[[], float]:
    """A small convolution with both gradients, of 0.06 GFLOP, that returns its duration in seconds."""
    image, weight = (
        torch.ones(shape, dtype=dtype, device=device).to(memory_format=torch.channels_last).requires_grad_()
        for shape in ((4, 32, 16, 16), (32, 32, 3, 3))
    )

    def step() -> float:
        start = time.perf_counter()
        answer: Tensor = torch.nn.functional.conv2d(image, weight, padding=1)
        torch.autograd.grad(answer, (image, weight), torch.ones_like(answer))
        return time.perf_counter() - start

    return step


def _flags() -> dict[str, bool]:
    """The flags of /proc/cpuinfo, for versions of torch that don't list capabilities; empty where there is none."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith(("flags", "Features")):
                return dict.fromkeys(line.partition(":")[2].split(), True)
    return {}
