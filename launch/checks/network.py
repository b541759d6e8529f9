"""Collectives of a cluster measured: latency and bandwidth of all-reduce by group, and how far the clocks are apart."""

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

LARGE = {"cpu": 16 * 2**20, "cuda": 256 * 2**20}  # bytes of a large message
ROUNDS = 5  # of telling the time; the least difference counts, as all others have waiting in them


def measure(rendezvous: Rendezvous, everyone: Sequence[Facts], seconds: float, limit: float) -> tuple[list[Speed], list[float]]:
    """Speeds of every group, and by how much each process's clock is ahead of the first's; a collective of all processes.

    Args:
        seconds: about how long to measure, over all groups.
        limit: seconds after which a process that waits for others gives up.
    """
    device = torch.device("cuda", everyone[rendezvous.rank].local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")  # or NCCL ends the process before it has told what is wrong
    backend = "nccl" if device.type == "cuda" else "gloo"
    store = dist.PrefixStore("doctor/group", rendezvous.store)
    dist.init_process_group(backend, store=store, rank=rendezvous.rank, world_size=rendezvous.world, timeout=timedelta(seconds=limit))
    try:
        speeds = []
        groups = _groups(everyone)
        for name, (ranks, across) in groups.items():
            group = dist.new_group(ranks)
            result = [0.0, 0.0]
            if rendezvous.rank in ranks:
                result = [*_speed(group, device, len(ranks), seconds / len(groups))]
            told = torch.tensor(result, dtype=torch.float64, device=device)
            dist.broadcast(told, src=ranks[0])
            speeds.append(Speed(name, across, *told.tolist()))
        return speeds, _clocks(device, rendezvous.world)
    finally:
        dist.destroy_process_group()


def _groups(everyone: Sequence[Facts]) -> dict[str, tuple[list[int], bool]]:
    """Ranks of each group, and whether it spans nodes: within each node, across nodes by one process of each, and all."""
    nodes: dict[str, list[Facts]] = defaultdict(list)
    for fact in everyone:
        nodes[fact.node].append(fact)
    groups = {
        f"within {facts[0].host} (rank {facts[0].rank} on)": ([fact.rank for fact in facts], False)
        for facts in nodes.values()
        if len(facts) > 1
    }
    if len(nodes) > 1:
        groups["across nodes"] = ([facts[0].rank for facts in nodes.values()], True)
        if len(everyone) > len(nodes):
            groups["of all processes"] = ([fact.rank for fact in everyone], True)
    return groups


def _speed(group: dist.ProcessGroup, device: torch.device, world: int, seconds: float) -> tuple[float, float]:
    """Median seconds of a small message, and bytes a second of a large one."""
    small = torch.zeros(1, device=device)
    large = torch.zeros(LARGE[device.type] // 4, device=device)
    latency = median(_times(small, group, seconds / 4))
    return latency, 2 * (world - 1) / world * LARGE[device.type] / min(_times(large, group, seconds / 2))


def _times(tensor: torch.Tensor, group: dist.ProcessGroup, seconds: float) -> list[float]:
    """Seconds of each of as many all-reduces as about ``seconds`` have room for, after two to warm up."""
    _time(tensor, group)
    once = torch.tensor([_time(tensor, group)], device=tensor.device)
    dist.all_reduce(once, op=dist.ReduceOp.MAX, group=group)  # all do as many
    return [_time(tensor, group) for _ in range(max(3, min(200, int(seconds / once.item()))))]


def _time(tensor: torch.Tensor, group: dist.ProcessGroup) -> float:
    _finish(tensor)
    start = time.perf_counter()
    dist.all_reduce(tensor, group=group)
    _finish(tensor)
    return time.perf_counter() - start


def _finish(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


def _clocks(device: torch.device, world: int) -> list[float]:
    """Seconds by which each process's clock is ahead of the first's, told right after a barrier."""
    best = [float("inf")] * world
    for _ in range(ROUNDS):
        dist.barrier()
        mine = torch.tensor([facts_module.now()], dtype=torch.float64, device=device)
        times = [torch.empty_like(mine) for _ in range(world)]
        dist.all_gather(times, mine)
        offsets = [(other - times[0]).item() for other in times]
        best = [min(old, new, key=abs) for old, new in zip(best, offsets, strict=True)]
    return best
