"""Processes that talk through the launcher's store, before there is a process group: who is missing is known by name.

Owns waiting with limits. The store is the one at MASTER_ADDR and MASTER_PORT; nothing listens that would not anyway.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, ClassVar

from torch import distributed as dist

from attributegan.errors import TransientError

HEARD_S = 10.0  # for others to read what a process has said before it ends


class RendezvousError(TransientError):
    """The store does not answer, or a process gives no word; says which."""


class Rendezvous:
    """This process among ``world``, at the launcher's store.

    Raises:
        Lost: it is not there within ``seconds``.
    """

    _numbers: ClassVar = itertools.count()

    def __init__(self, rank: int, world: int, seconds: float) -> None:
        self.rank, self.world = rank, world
        self.where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        of_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        try:
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            self.tcp = dist.TCPStore(
                address,
                port,
                is_master=rank == 0 and not of_launcher,
                wait_for_workers=False,
                timeout=timedelta(seconds=seconds),
                multi_tenant=True,  # the process group has its store there as well
            )
        except (RuntimeError, KeyError, ValueError) as error:
            raise RendezvousError(self._lost(error)) from error
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # a launcher that starts its processes again keeps the store
        self.store = dist.PrefixStore(f"meeting/{restart}/{next(self._numbers)}", self.tcp)

    def all_gather(self, topic: str, value: Any, seconds: float, ranks: Sequence[int] = ()) -> dict[int, Any]:
        """The ``value`` (JSON-like) that each process has under ``topic``, by rank; without those that gave none in ``seconds``.

        Args:
            ranks: whom to wait for; all, if none are given.
        """
        until = time.monotonic() + seconds
        try:
            self.store.set(f"{topic}/{self.rank}", json.dumps(value))
            wanted = ranks or range(self.world)
            return {rank: json.loads(self.store.get(f"{topic}/{rank}")) for rank in wanted if self._is_there(f"{topic}/{rank}", until)}
        except RuntimeError as error:
            raise RendezvousError(self._lost(error)) from error

    def _is_there(self, key: str, until: float) -> bool:
        left = until - time.monotonic()
        if left <= 0:
            return bool(self.store.check([key]))
        try:
            self.store.wait([key], timedelta(seconds=left))
        except dist.DistStoreError:  # time is up
            return False
        return True

    def _lost(self, error: Exception) -> str:
        reason = str(error).splitlines()[0]
        return (
            f"no meeting point at {self.where} ({reason}): main_process_ip must be an address of the first machine that all others reach, "
            "its main_process_port free there and open in the firewall, and the first machine started"
        )


def wait_for_all_ranks(seconds: float, problem: str = "") -> Rendezvous:
    """Every process that the launcher started says that it is there, or its ``problem``; none goes on without the others.

    Returns:
        where they met; to be kept, since without a launcher's store it is rank 0 that has it.

    Raises:
        ValueError: a process has a problem; names it, on every process.
        Lost: a process gives no word in ``seconds``; names it.
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    rendezvous = Rendezvous(rank, world, seconds)
    said = rendezvous.all_gather("there", [socket.gethostname(), problem], seconds)
    missing = [rank for rank in range(world) if rank not in said]
    troubled = {rank: words for rank, words in said.items() if words[1]}
    if not missing and not troubled:
        return rendezvous
    with contextlib.suppress(RendezvousError):  # the others have gone
        rendezvous.all_gather("heard", True, HEARD_S, list(said))
    if len(troubled) == world and len({words[1] for words in troubled.values()}) == 1:
        raise ValueError(problem)
    lines = [f"rank {rank} ({host}): {problem}" for rank, (host, problem) in troubled.items()]
    lines += [f"rank {rank}: no word in {seconds:.0f} s" for rank in missing]
    raise (ValueError if troubled else RendezvousError)("not all processes can start:\n  " + "\n  ".join(lines))
