"""Measures latency and bandwidth of all-reduce in each process group, and the clock offsets between processes."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import distributed as dist

from launch.checks import facts as facts_module
from launch.checks.diagnosis import Speed

if TYPE_CHECKING:
    from attributegan.distributed.rendezvous import Rendezvous
    from launch.checks.facts import Facts

LARGE_BYTES = {"cpu": 16 * 2**20, "cuda": 256 * 2**20}  # size of a large message
CLOCK_ROUNDS = 5  # the smallest offset counts: delays only add to it


def measure(rendezvous: Rendezvous, all_facts: Sequence[Facts], seconds: float, timeout_s: float) -> tuple[list[Speed], list[float]]:
    """Measure all groups; collective, so all ranks must call it.

    Args:
        seconds: approximate duration of the measurement, over all groups.
        timeout_s: time-out of the process group.

    Returns:
        the speed of each group, and the clock offset of each rank from rank 0, in seconds (above 0: ahead).
    """
    device = torch.device("cuda", all_facts[rendezvous.rank].local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")  # or NCCL aborts the process before it reports the problem
    backend = "nccl" if device.type == "cuda" else "gloo"
    store = dist.PrefixStore("doctor/group", rendezvous.store)
    dist.init_process_group(backend, store=store, rank=rendezvous.rank, world_size=rendezvous.world, timeout=timedelta(seconds=timeout_s))
    try:
        speeds = []
        groups = _groups(all_facts)
        for name, (ranks, across_nodes) in groups.items():
            group = dist.new_group(ranks)
            result = [0.0, 0.0]
            if rendezvous.rank in ranks:
                result = [*_speed(group, device, len(ranks), seconds / len(groups))]
            result_of_group = torch.tensor(result, dtype=torch.float64, device=device)
            dist.broadcast(result_of_group, src=ranks[0])
            speeds.append(Speed(name, across_nodes, *result_of_group.tolist()))
        return speeds, _clocks(device, rendezvous.world)
    finally:
        dist.destroy_process_group()


def _groups(all_facts: Sequence[Facts]) -> dict[str, tuple[list[int], bool]]:
    """Returns the ranks of each group and whether it spans nodes: each node, one process of each node, and all processes."""
    nodes: dict[str, list[Facts]] = defaultdict(list)
    for fact in all_facts:
        nodes[fact.node].append(fact)
    groups = {
        f"within {facts[0].host} (from rank {facts[0].rank})": ([fact.rank for fact in facts], False)
        for facts in nodes.values()
        if len(facts) > 1
    }
    if len(nodes) > 1:
        groups["across nodes"] = ([facts[0].rank for facts in nodes.values()], True)
        if len(all_facts) > len(nodes):
            groups["of all processes"] = ([fact.rank for fact in all_facts], True)
    return groups


def _speed(group: dist.ProcessGroup, device: torch.device, world: int, seconds: float) -> tuple[float, float]:
    """Returns the latency of a small message (median, seconds) and the bandwidth of a large one (bytes per second)."""
    small = torch.zeros(1, device=device)
    large = torch.zeros(LARGE_BYTES[device.type] // 4, device=device)
    latency = median(_times(small, group, seconds / 4))
    return latency, 2 * (world - 1) / world * LARGE_BYTES[device.type] / min(_times(large, group, seconds / 2))


def _times(tensor: torch.Tensor, group: dist.ProcessGroup, seconds: float) -> list[float]:
    """Time all-reduces for about ``seconds`` after two warm-up calls; returns the seconds of each."""
    _time(tensor, group)
    once = torch.tensor([_time(tensor, group)], device=tensor.device)
    dist.all_reduce(once, op=dist.ReduceOp.MAX, group=group)  # the same count on all ranks
    return [_time(tensor, group) for _ in range(max(3, min(200, int(seconds / once.item()))))]


def _time(tensor: torch.Tensor, group: dist.ProcessGroup) -> float:
    _synchronize(tensor)
    start = time.perf_counter()
    dist.all_reduce(tensor, group=group)
    _synchronize(tensor)
    return time.perf_counter() - start


def _synchronize(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


def _clocks(device: torch.device, world: int) -> list[float]:
    """Returns the clock offset of each rank from rank 0 in seconds (above 0: ahead), read right after a barrier."""
    best = [float("inf")] * world
    for _ in range(CLOCK_ROUNDS):
        dist.barrier()
        mine = torch.tensor([facts_module.now()], dtype=torch.float64, device=device)
        times = [torch.empty_like(mine) for _ in range(world)]
        dist.all_gather(times, mine)
        offsets = [(other - times[0]).item() for other in times]
        best = [min(old, new, key=abs) for old, new in zip(best, offsets, strict=True)]
    return best
