"""Rendezvous of processes through the launcher's store before the process group exists, so that missing ranks can be named.

All waits are bounded. The store is the one at MASTER_ADDR and MASTER_PORT; no additional port is opened.
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

ACKNOWLEDGE_S = 10.0  # for the other ranks to read what a rank has reported before it exits


class RendezvousError(TransientError):
    """The store does not respond, or ranks are missing; names them."""


class Rendezvous:
    """This process among ``world`` processes, connected to the launcher's store.

    Args:
        rank: of this process.
        world: number of processes.
        seconds: timeout of the connection.

    Raises:
        RendezvousError: the store can't be reached within ``seconds``.
    """

    _numbers: ClassVar = itertools.count()

    def __init__(self, rank: int, world: int, seconds: float) -> None:
        self.rank, self.world = rank, world
        self.where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        launcher_has_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        try:
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            self.tcp = dist.TCPStore(
                address,
                port,
                is_master=rank == 0 and not launcher_has_store,
                wait_for_workers=False,
                timeout=timedelta(seconds=seconds),
                multi_tenant=True,  # the process group uses the same store
            )
        except (RuntimeError, KeyError, ValueError) as error:
            raise RendezvousError(self._unreachable(error)) from error
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # the store outlives restarts by the launcher
        self.store = dist.PrefixStore(f"rendezvous/{restart}/{next(self._numbers)}", self.tcp)

    def all_gather(self, topic: str, value: Any, seconds: float, ranks: Sequence[int] = ()) -> dict[int, Any]:
        """Gathers the values that the ranks publish under ``topic``.

        Args:
            topic: name of the exchange.
            value: this rank's value, JSON-like.
            seconds: timeout.
            ranks: ranks to wait for; by default all.

        Returns:
            values by rank, without the ranks that published none in time.
        """
        until = time.monotonic() + seconds
        try:
            self.store.set(f"{topic}/{self.rank}", json.dumps(value))
            expected = ranks or range(self.world)
            return {rank: json.loads(self.store.get(f"{topic}/{rank}")) for rank in expected if self._wait_for(f"{topic}/{rank}", until)}
        except RuntimeError as error:
            raise RendezvousError(self._unreachable(error)) from error

    def _wait_for(self, key: str, until: float) -> bool:
        left = until - time.monotonic()
        if left <= 0:
            return bool(self.store.check([key]))
        try:
            self.store.wait([key], timedelta(seconds=left))
        except dist.DistStoreError:  # timeout
            return False
        return True

    def _unreachable(self, error: Exception) -> str:
        reason = str(error).splitlines()[0]
        return (
            f"rendezvous failed at {self.where} ({reason}): check that main_process_ip is an address of the first machine that all others "
            "can reach, that main_process_port is free there and open in the firewall, and that the first machine has started"
        )


def wait_for_all_ranks(seconds: float, problem: str = "") -> Rendezvous:
    """Waits until every rank of the launch has checked in, with an optional problem; fails on all ranks if one is missing or has a problem.

    Args:
        seconds: timeout.
        problem: why this rank can't start; "" if it can.

    Returns:
        the rendezvous; keep a reference, since rank 0 may host the store.

    Raises:
        ValueError: a rank reported a problem; raised on every rank.
        RendezvousError: a rank did not check in within ``seconds``; names it.
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    rendezvous = Rendezvous(rank, world, seconds)
    reports = rendezvous.all_gather("present", [socket.gethostname(), problem], seconds)
    missing = [rank for rank in range(world) if rank not in reports]
    failed = {rank: report for rank, report in reports.items() if report[1]}
    if not missing and not failed:
        return rendezvous
    with contextlib.suppress(RendezvousError):  # the others have exited
        rendezvous.all_gather("acknowledged", True, ACKNOWLEDGE_S, list(reports))
    if len(failed) == world and len({report[1] for report in failed.values()}) == 1:
        raise ValueError(problem)
    lines = [f"rank {rank} ({host}): {problem}" for rank, (host, problem) in failed.items()]
    lines += [f"rank {rank}: no response in {seconds:.0f} s" for rank in missing]
    raise (ValueError if failed else RendezvousError)("not all processes can start:\n  " + "\n  ".join(lines))
