"""Builds the engine of a network: replicated with DistributedDataParallel, or sharded with DeepSpeed."""

from __future__ import annotations

import os

from torch import nn

from attributegan.distributed.engine import DataParallel, Engine
from attributegan.distributed.runtime import Runtime


def build_engine(runtime: Runtime, module: nn.Module, network: str, learning_rate: float, compile: bool) -> Engine:
    """Returns the engine of ``network`` ("generator" or "discriminator") for the configured sharding."""
    sharding = runtime.sharding[network]
    if not sharding.stage:
        return DataParallel(runtime, module, learning_rate, compile)
    os.environ.setdefault("DS_ACCELERATOR", runtime.device.type)  # read when deepspeed is imported
    from attributegan.distributed.deepspeed_engine import DeepSpeedEngine  # importing deepspeed takes seconds

    return DeepSpeedEngine(runtime, module, learning_rate, sharding)
