"""Finds problems in what the processes of a cluster collected and measured, each with its fix. Pure functions."""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from launch.checks.facts import Facts

CLOCK_S = 1.0  # largest difference between clocks; beyond it, logs, file times and Kerberos tickets of shared disks fail
SLOW_MB_S = 100.0  # across nodes, about 1 Gbit/s; below it, reducing gradients takes seconds per step
MEMORY = 2 * 2**30  # bytes of free memory per process
SHM = 256 * 2**20  # bytes of free /dev/shm per process, for its data workers; containers have 64 MiB by default


@dataclass(frozen=True)
class Speed:
    """Speed of all-reduce in a group of processes."""

    group: str
    across_nodes: bool
    latency_s: float  # median for a message of 4 bytes
    bytes_per_s: float  # for a large message: 2 (W - 1) / W times its size over the shortest time


def check_launch(facts: Sequence[Facts], world: int, requested: int) -> list[str]:
    """Finds missing ranks and launcher settings that do not fit ``requested`` processes (0: any number)."""
    found = sorted({fact.launch_problem for fact in facts} - {""})
    if requested not in (0, world):
        found.append(
            f"{requested} processes were requested (--processes), but the launcher started {world}: check num_processes and num_machines "
            "in its configuration, and that it runs on every machine with a different machine_rank"
        )
    tasks = max(fact.slurm_tasks for fact in facts)
    if tasks > world:
        found.append(
            f"Slurm started {tasks} tasks, but WORLD_SIZE is {world}: let srun start one launcher per node "
            "(--ntasks-per-node=1), with --machine_rank from SLURM_NODEID"
        )
    if missing := sorted(set(range(world)) - {fact.rank for fact in facts}):
        found.append(
            f"no answer from {format_ranks(missing)}: exited early (see their output), or can't reach the rendezvous: "
            "use the same main_process_ip and port on all machines, and open the port in the firewall"
        )
    for same in _group_by(facts, lambda fact: f"{fact.node} {fact.local_rank}"):
        if len(same) > 1:
            found.append(
                f"{_processes(same)} all have local rank {same[0].local_rank} on one machine: start one launcher per machine, "
                "with num_processes set to the total over all machines"
            )
    return found


def check_versions(facts: Sequence[Facts]) -> list[str]:
    """Finds versions that differ between processes."""
    found = []
    for name in facts[0].versions:
        by_version = _group_by(facts, lambda fact, name=name: fact.versions[name])  # type: ignore[misc]
        if len(by_version) > 1:
            each = "; ".join(f"{_processes(same)}: {same[0].versions[name]}" for same in by_version)
            found.append(f"{name} differs between processes: {each}. Install the same version on all machines")
    return found


def check_gpus(facts: Sequence[Facts]) -> list[str]:
    """Finds GPUs that torch does not see, too few GPUs, GPUs shared by processes, and mixed device types."""
    found = []
    for on_node in _group_by(facts, lambda fact: fact.node):
        first = on_node[0]
        if first.gpus_installed and not first.gpus_visible and not first.cpu_requested:
            found.append(f"{first.host} has {first.gpus_installed} GPUs, but torch sees none: {first.gpu_hidden_by}")
        elif first.gpus_visible and any(fact.local_rank >= fact.gpus_visible for fact in on_node):
            found.append(
                f"{first.host} has {len(on_node)} processes and {first.gpus_visible} GPUs: set num_processes to the total number of GPUs"
            )
    for same in _group_by([fact for fact in facts if fact.gpu], lambda fact: fact.gpu):
        if len(same) > 1:
            found.append(
                f"{_processes(same)} share one GPU ({same[0].gpu}): use one process per GPU; check CUDA_VISIBLE_DEVICES and gpu_ids"
            )
    has_gpu = {bool(fact.gpus_visible) for fact in facts}
    if len(has_gpu) > 1:
        without = [fact for fact in facts if not fact.gpus_visible]
        found.append(f"{_processes(without)} see no GPU, but the other processes do: all must use the same device type")
    return found


def check_addresses(facts: Sequence[Facts]) -> list[str]:
    """Finds process group addresses that other nodes can't reach: such a group hangs until its time-out."""
    if len(_group_by(facts, lambda fact: fact.node)) == 1:
        return []
    found = []
    for on_node in _group_by(facts, lambda fact: fact.node):
        first = on_node[0]
        variable = "NCCL_SOCKET_IFNAME" if first.gpus_visible else "GLOO_SOCKET_IFNAME"
        fix = f"export {variable}=INTERFACE there" + (f" (the route to MASTER_ADDR is {first.route})" if first.route else "")
        if first.interface and not first.address:
            found.append(f"{_processes(on_node)}: {variable} names {first.interface}, which has no address here; {fix}")
        elif first.address and ipaddress.ip_address(first.address.split("%")[0]).is_loopback:
            why = "" if first.interface != "lo" or first.gpus_visible else ", to which the host name resolves"
            found.append(
                f"{_processes(on_node)}: the process group would use loopback ({first.address}){why}; other machines can't reach it; {fix}"
            )
    return found


def check_memory(facts: Sequence[Facts]) -> list[str]:
    """Finds machines with too little free memory or /dev/shm for their processes."""
    found = []
    for on_node in _group_by(facts, lambda fact: fact.node):
        host, count = on_node[0].host, len(on_node)
        memory, shm = (min(getattr(fact, name) for fact in on_node) for name in ("memory_free", "shm_free"))
        if memory < count * MEMORY:
            found.append(
                f"{host} has {memory / 2**30:.1f} GiB of free memory for {count} processes: stop other programs, "
                "request more from Slurm (--mem), or start fewer processes"
            )
        if shm < count * SHM:
            found.append(
                f"{host} has {shm / 2**20:.0f} MiB free in /dev/shm for the data workers of {count} processes: start the "
                "container with more (--shm-size=8g or --ipc=host), delete files there, or set data.workers=0"
            )
    return found


def check_clocks(facts: Sequence[Facts], offsets_s: Sequence[float]) -> list[str]:
    """Finds clocks that differ; ``offsets_s`` are those of each process from the first (above 0: ahead)."""
    found = []
    for on_node in _group_by(facts, lambda fact: fact.node):
        offset = offsets_s[facts.index(on_node[0])]
        if abs(offset) > CLOCK_S:
            found.append(
                f"the clock of {on_node[0].host} is {abs(offset):.1f} s {'ahead of' if offset > 0 else 'behind'} that of "
                f"{facts[0].host}: synchronize both with a time server (check with chronyc tracking or timedatectl)"
            )
    return found


def check_speeds(speeds: Iterable[Speed]) -> list[str]:
    """Finds slow networks between nodes."""
    return [
        f"{speed.group}: all-reduce moves {speed.bytes_per_s / 1e6:.0f} MB/s, too slow for gradients: select the fast network "
        "(NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME, NCCL_IB_HCA; NCCL_DEBUG=INFO logs what NCCL uses)"
        for speed in speeds
        if speed.across_nodes and speed.bytes_per_s < SLOW_MB_S * 1e6
    ]


def check_disk(facts: Sequence[Facts], folder: str, write_errors: Sequence[str], missing: Sequence[list[int]]) -> list[str]:
    """Finds failed writes and files that are not visible to all.

    Args:
        write_errors: of each process, "" for none.
        missing: the ranks whose files each process did not see.
    """
    found = [
        f"{_processes([fact])} can't write in {folder}: {problem}" for fact, problem in zip(facts, write_errors, strict=True) if problem
    ]
    for fact, ranks in zip(facts, missing, strict=True):
        if ranks:
            found.append(
                f"{_processes([fact])} does not see the files that {format_ranks(ranks)} wrote in {folder}: mount the same disk "
                "at the same absolute path on all machines"
            )
    return found


def format_hosts(facts: Sequence[Facts]) -> list[str]:
    """Returns ``host: ranks``, a line per node."""
    return [f"{on_node[0].host}: {format_ranks([fact.rank for fact in on_node])}" for on_node in _group_by(facts, lambda fact: fact.node)]


def _processes(facts: Sequence[Facts]) -> str:
    by_host = _group_by(facts, lambda fact: fact.host)
    return ", ".join(f"{format_ranks([fact.rank for fact in of_host])} ({of_host[0].host})" for of_host in by_host)


def format_ranks(ranks: Sequence[int]) -> str:
    """Format ranks with ranges: ``ranks 0-7, 9``."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    listed = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return f"rank{'s' if len(ranks) > 1 else ''} {listed}"


def _group_by(facts: Iterable[Facts], key: Callable[[Facts], str]) -> list[list[Facts]]:
    """Group facts by a key, in the order of the first rank of each group."""
    groups: dict[str, list[Facts]] = defaultdict(list)
    for fact in facts:
        groups[key(fact)].append(fact)
    return list(groups.values())
