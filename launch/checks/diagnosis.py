"""What is wrong with a cluster, in words with the fix, from what its processes saw and measured. Pure functions."""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from launch.checks.facts import Facts

CLOCK_S = 1.0  # largest difference between clocks; logs, file times and tickets of shared disks go wrong beyond
SLOW_MB_S = 100.0  # across nodes, what a link of 1 Gbit/s gives; gradients take seconds a step below it
MEMORY = 2 * 2**30  # bytes that a process should find free
SHM = 256 * 2**20  # bytes of /dev/shm for the data workers of a process; containers have 64 MiB unless told otherwise


@dataclass(frozen=True)
class Speed:
    """Of all-reduce in a group of processes."""

    group: str
    across: bool  # between nodes
    latency_s: float  # of a message of 4 bytes, the median
    bytes_per_s: float  # of a large message, as 2 (W - 1) / W times its size over the best time


def of_launch(facts: Sequence[Facts], world: int, asked: int) -> list[str]:
    """Processes that are missing, or were not started as asked for."""
    found = sorted({fact.launch_problem for fact in facts} - {""})
    if asked not in (0, world):
        found.append(
            f"{asked} processes were asked for (--processes), the launcher gave {world}: compare num_processes and num_machines "
            "of its configuration, and see that it is started on every machine with its own machine_rank"
        )
    tasks = max(fact.slurm_tasks for fact in facts)
    if tasks > world:
        found.append(
            f"Slurm has {tasks} tasks for this and the processes know of {world}: let srun start one launcher for each node "
            "(--ntasks-per-node=1), with --machine_rank from SLURM_NODEID"
        )
    if missing := sorted(set(range(world)) - {fact.rank for fact in facts}):
        found.append(
            f"no word from {ranks_of(missing)}: they ended before they could say why (see their output), or can't "
            "reach the meeting point: same main_process_ip and port everywhere, open in the firewall?"
        )
    for same in _groups(facts, lambda fact: f"{fact.node} {fact.local_rank}"):
        if len(same) > 1:
            found.append(
                f"{_who(same)} all have local rank {same[0].local_rank} on one machine: start one launcher a machine, "
                "with num_processes for all machines together"
            )
    return found


def of_versions(facts: Sequence[Facts]) -> list[str]:
    found = []
    for name in facts[0].versions:
        having = _groups(facts, lambda fact, name=name: fact.versions[name])  # type: ignore[misc]
        if len(having) > 1:
            each = "; ".join(f"{_who(same)}: {same[0].versions[name]}" for same in having)
            found.append(f"{name} is not the same everywhere: {each}. Install the same on all machines")
    return found


def of_gpus(facts: Sequence[Facts]) -> list[str]:
    found = []
    for on_node in _groups(facts, lambda fact: fact.node):
        first = on_node[0]
        if first.gpus_there and not first.gpus_seen and not first.cpu_wanted:
            found.append(f"{first.host} has {first.gpus_there} GPUs and torch sees none: {first.gpu_hidden_by}")
        elif first.gpus_seen and any(fact.local_rank >= fact.gpus_seen for fact in on_node):
            found.append(
                f"{first.host} has {len(on_node)} processes and {first.gpus_seen} GPUs: set num_processes to the GPUs of all machines"
            )
    for same in _groups([fact for fact in facts if fact.gpu], lambda fact: fact.gpu):
        if len(same) > 1:
            found.append(f"{_who(same)} share one GPU ({same[0].gpu}): see CUDA_VISIBLE_DEVICES and gpu_ids; one process a GPU")
    seeing = {bool(fact.gpus_seen) for fact in facts}
    if len(seeing) > 1:
        blind = [fact for fact in facts if not fact.gpus_seen]
        found.append(f"{_who(blind)} see no GPU and the others do: all must compute on the same kind of device")
    return found


def of_addresses(facts: Sequence[Facts]) -> list[str]:
    """Addresses of the process group that the other nodes can't reach: such a group hangs until its time-out."""
    if len(_groups(facts, lambda fact: fact.node)) == 1:
        return []
    found = []
    for on_node in _groups(facts, lambda fact: fact.node):
        first = on_node[0]
        variable = "NCCL_SOCKET_IFNAME" if first.gpus_seen else "GLOO_SOCKET_IFNAME"
        fix = f"export {variable}=INTERFACE there" + (f" (towards the others goes {first.route})" if first.route else "")
        if first.interface and not first.address:
            found.append(f"{_who(on_node)}: {variable} names {first.interface}, which has no address here; {fix}")
        elif first.address and ipaddress.ip_address(first.address.split("%")[0]).is_loopback:
            why = "" if first.interface != "lo" or first.gpus_seen else ", since that is what the host name stands for"
            found.append(
                f"{_who(on_node)}: the process group would use loopback ({first.address}){why}, where other machines can't reach it; {fix}"
            )
    return found


def of_room(facts: Sequence[Facts]) -> list[str]:
    found = []
    for on_node in _groups(facts, lambda fact: fact.node):
        host, count = on_node[0].host, len(on_node)
        memory, shm = (min(getattr(fact, name) for fact in on_node) for name in ("memory_free", "shm_free"))
        if memory < count * MEMORY:
            found.append(
                f"{host} has {memory / 2**30:.1f} GiB of memory free for {count} processes: end what else runs there, "
                "ask Slurm for more (--mem), or start fewer processes"
            )
        if shm < count * SHM:
            found.append(
                f"{host} has {shm / 2**20:.0f} MiB free in /dev/shm for the data workers of {count} processes: start the "
                "container with more (--shm-size=8g, or --ipc=host), empty it, or use data.workers=0"
            )
    return found


def of_clocks(facts: Sequence[Facts], offsets_s: Sequence[float]) -> list[str]:
    """``offsets_s``: by which each process's clock is ahead of that of the first."""
    found = []
    for on_node in _groups(facts, lambda fact: fact.node):
        offset = offsets_s[facts.index(on_node[0])]
        if abs(offset) > CLOCK_S:
            found.append(
                f"the clock of {on_node[0].host} is {abs(offset):.1f} s {'ahead of' if offset > 0 else 'behind'} that of "
                f"{facts[0].host}: let both follow a time server (chronyc tracking, timedatectl)"
            )
    return found


def of_speeds(speeds: Iterable[Speed]) -> list[str]:
    return [
        f"{speed.group}: all-reduce moves {speed.bytes_per_s / 1e6:.0f} MB/s, which is little for gradients: is it the fast network "
        "(NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME, NCCL_IB_HCA; NCCL_DEBUG=INFO tells what NCCL chose)?"
        for speed in speeds
        if speed.across and speed.bytes_per_s < SLOW_MB_S * 1e6
    ]


def of_disk(facts: Sequence[Facts], folder: str, wrote: Sequence[str], unseen: Sequence[list[int]]) -> list[str]:
    """Per process: what was wrong when it wrote, and the ranks whose files it did not find."""
    found = [f"{_who([fact])} can't write in {folder}: {problem}" for fact, problem in zip(facts, wrote, strict=True) if problem]
    for fact, ranks in zip(facts, unseen, strict=True):
        if ranks:
            found.append(
                f"{_who([fact])} does not see in {folder} what {ranks_of(ranks)} wrote there: is it one disk, mounted at the same "
                "path on all machines (an absolute one), and is it mounted here?"
            )
    return found


def hosts(facts: Sequence[Facts]) -> list[str]:
    """``host: ranks``, a line a node."""
    return [f"{on_node[0].host}: {ranks_of([fact.rank for fact in on_node])}" for on_node in _groups(facts, lambda fact: fact.node)]


def _who(facts: Sequence[Facts]) -> str:
    by_host = _groups(facts, lambda fact: fact.host)
    return ", ".join(f"{ranks_of([fact.rank for fact in of_host])} ({of_host[0].host})" for of_host in by_host)


def ranks_of(ranks: Sequence[int]) -> str:
    """Ranks with runs of them shortened: ``ranks 0-7, 9``."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    listed = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return f"rank{'s' if len(ranks) > 1 else ''} {listed}"


def _groups(facts: Iterable[Facts], key: Callable[[Facts], str]) -> list[list[Facts]]:
    """Facts with one key together, in order of their first rank."""
    groups: dict[str, list[Facts]] = defaultdict(list)
    for fact in facts:
        groups[key(fact)].append(fact)
    return list(groups.values())
