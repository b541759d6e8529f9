"""Derives the torch.distributed environment of a training process from Slurm (or submitit's local executor)."""

from __future__ import annotations

import os
import socket

import psutil
from submitit import JobEnvironment

from attributegan.run_dir.status import slurm_restarts

PORTS = range(10_000, 30_000)  # below the ephemeral ports of Linux


def environment(job: JobEnvironment, processes: int) -> dict[str, str]:
    """Returns RANK, WORLD_SIZE etc. for torch.distributed, and the network interface for gloo.

    Raises:
        ValueError: the number of tasks is not ``processes``, or the name of the first node does not resolve.
    """
    if job.num_tasks != processes:
        raise ValueError(
            f"{processes} training processes were asked for, the job has {job.num_tasks}; remove options of tasks and nodes for srun"
        )
    first = job.hostnames[0] if job.num_nodes > 1 else "127.0.0.1"
    variables = {
        "RANK": job.global_rank,
        "WORLD_SIZE": job.num_tasks,
        "LOCAL_RANK": job.local_rank,
        "LOCAL_WORLD_SIZE": job.num_tasks // job.num_nodes,
        "MASTER_ADDR": first,
        "MASTER_PORT": _port(int(job.raw_job_id)),
    }
    # By default gloo uses the interface of the host name's address; if that is loopback, processes on other nodes hang.
    if interface := "lo" if job.num_nodes == 1 else _interface_to(first):
        variables["GLOO_SOCKET_IFNAME"] = interface
    return {name: str(value) for name, value in variables.items()}


def _port(job: int) -> int:
    """Returns a port: the same on all nodes, rarely that of another job, different after each requeue."""
    return PORTS[(job + 997 * slurm_restarts()) % len(PORTS)]


def _interface_to(host: str) -> str:
    """Returns the network interface with the route to ``host``, or "" if unknown."""
    try:
        address = socket.gethostbyname(host)
    except OSError as error:
        raise ValueError(
            f"{os.uname().nodename}: the first node, {host}, has no address here ({error}); make its name resolve on all nodes"
        ) from error
    if address.startswith("127.") and host != socket.gethostname():
        raise ValueError(
            f"{os.uname().nodename}: the first node, {host}, resolves to {address} here; its name must resolve to an address of that node"
        )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # connecting a UDP socket sends nothing
        mine = probe.getsockname()[0]
    interfaces = {
        a.address: interface for interface, addresses in psutil.net_if_addrs().items() for a in addresses if a.family == socket.AF_INET
    }
    return "" if mine.startswith("127.") else interfaces.get(mine, "")
