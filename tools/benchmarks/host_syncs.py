"""Counts host-device synchronizations of a step, by the operations that torch dispatches; works on any device."""

from __future__ import annotations

import os
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import attributegan
import data_shards
from attributegan.utils.layout import BUNDLE

# Operations whose result the host needs: `.item()`, `bool(tensor)`, shapes that depend on numbers, and (lift_fresh) `torch.tensor` of
# Python numbers, which copies from pageable memory.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "unique_consecutive", "lift_fresh", "item"}
PACKAGES = tuple(f"{package.__path__[0]}{os.sep}" for package in (attributegan, data_shards))
BUNDLED = f"{attributegan.__path__[0]}{os.sep}{BUNDLE}{os.sep}"  # of a wheel: this file and the other tools, which are not counted
ALLOWED = {"distributed/engine.py:_step": 2}  # whether the gradients are finite, once for each network
ON_CPUS = {  # where no GPU would wait: `F.one_hot` checks the range of its input on CPUs only, and draws are made on the CPU everywhere
    "models/blocks.py:_columns",
    "training/random_draws.py:for_step",
}


class HostSyncs(TorchDispatchMode):
    """Counts synchronizing operations by their caller, as ``file:function`` within its package.

    Args:
        device: operations on tensors elsewhere don't count.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        waits = name in WAITING and args[0].device.type == self.device
        if waits or (name == "_to_copy" and _leaves_device(args[0], kwargs.get("device"))):
            self.found[_place()] += 1
        return function(*args, **kwargs)


def unexpected(found: Mapping[str, int], device: str) -> dict[str, int]:
    """Returns the synchronizations beyond the allowed numbers of one step."""
    allowed = ALLOWED | (dict.fromkeys(ON_CPUS, 10**9) if device == "cpu" else {})
    return {place: count for place, count in found.items() if count > allowed.get(place, 0)}


def reported_by_cuda(step: Callable[[], object]) -> Counter[str]:
    """Returns the synchronizing calls that CUDA's own debug mode reports in ``step()``, by place."""
    found: Counter[str] = Counter()

    def note(message: Warning | str, *_: Any, **__: Any) -> None:
        if "synchronizing" in str(message):
            found[_place()] += 1

    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = note
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return found


def _leaves_device(tensor: torch.Tensor, device: Any) -> bool:
    return device is not None and tensor.device.type != "cpu" and torch.device(device).type == "cpu"


def _place() -> str:
    """Returns the innermost function of these packages on the stack."""
    for frame in reversed(traceback.extract_stack()):
        if frame.filename.startswith(BUNDLED):
            continue
        if package := next((folder for folder in PACKAGES if frame.filename.startswith(folder)), ""):
            return f"{frame.filename.removeprefix(package)}:{frame.name}"
    return "elsewhere"
