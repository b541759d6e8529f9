"""Who a training process is among how many, and where they meet: from what Slurm (or submitit's local executor) says."""

from __future__ import annotations

import os
import socket

import psutil
from submitit import JobEnvironment

from attributegan.run_dir.status import slurm_restarts

PORTS = range(10_000, 30_000)  # below those that systems hand out by themselves


def environment(job: JobEnvironment, processes: int) -> dict[str, str]:
    """RANK, WORLD_SIZE and so on, as torch.distributed reads them, and the network card for gloo.

    Raises:
        ValueError: another number of processes than was asked for, or a first node that the others can't find.
    """
    if job.num_tasks != processes:
        raise ValueError(
            f"{processes} training processes were asked for, the job has {job.num_tasks}; let srun's options of tasks and nodes be"
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
    # Unless told, gloo takes the card of this host's name; where that is a loopback address, processes of other nodes wait for ever.
    if card := "lo" if job.num_nodes == 1 else _card_towards(first):
        variables["GLOO_SOCKET_IFNAME"] = card
    return {name: str(value) for name, value in variables.items()}


def _port(job: int) -> int:
    """The same on all nodes, seldom that of another job, and another one each time that the job starts again."""
    return PORTS[(job + 997 * slurm_restarts()) % len(PORTS)]


def _card_towards(host: str) -> str:
    """The network card that leads to ``host``; "" if it can't be told."""
    try:
        address = socket.gethostbyname(host)
    except OSError as error:
        raise ValueError(
            f"{os.uname().nodename}: the first node, {host}, has no address here ({error}); ask for names that resolve"
        ) from error
    if address.startswith("127.") and host != socket.gethostname():
        raise ValueError(f"{os.uname().nodename}: the first node, {host}, resolves to {address} here; its name must lead to the node")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # of UDP: sends nothing
        mine = probe.getsockname()[0]
    cards = {a.address: card for card, addresses in psutil.net_if_addrs().items() for a in addresses if a.family == socket.AF_INET}
    card = cards.get(mine, "")
    return "" if mine.startswith("127.") else card
