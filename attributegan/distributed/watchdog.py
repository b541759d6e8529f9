"""Processes that watch each other: when one dies, hangs or raises, the others say which and end, instead of waiting in a collective.

Each process writes a sign of life into the store of the process group and reads those of the others, in a thread. The store is the one that
the launcher set up; nothing new listens. Starting the run again is the launcher's business, or Slurm's.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType

from torch import distributed as dist

log = logging.getLogger(__name__)

PERIOD_S = 1.0
SILENCE_S = 20.0  # without a sign of life, a process counts as dead
STORE_S = 10.0  # longer than SILENCE_S, after which a store that should have given up by then is not waited for
GRACE_S = 3.0  # in which a process that has heard of another's end may still end by itself, with its own error
_PEER_ERRORS = (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)
# gloo raises plain RuntimeErrors, known by their text
_PEER_WORDS = re.compile(r"gloo|NCCL|\b[Cc]onnection\b|\bpeer\b|Timed out|\bstore\b")


def is_peer_failure(error: BaseException) -> bool:
    """Whether ``error`` looks like that of a collective which lost a process."""
    return isinstance(error, _PEER_ERRORS) or (isinstance(error, RuntimeError) and bool(_PEER_WORDS.search(str(error))))


class Watchdog:
    """A context in which this process and the others watch each other; entering it is a collective.

    Args:
        rank, world: of this process; with one process nothing happens.
        token: a word that all processes of this start share and no other start has.
        stopped: whether this process was asked to stop; then it waits for nobody.
    """

    def __init__(self, rank: int, world: int, launch_id: str, stopped: Callable[[], bool]) -> None:
        self.rank, self.world, self.stopped = rank, world, stopped
        self.failure = ""
        self._prefix = f"attributegan/{launch_id}"
        self._ended = threading.Event()
        self._asked = 0.0  # when the store was last asked
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        # A request to a store behind a cut network can wait for ever, whatever its limit says.
        self._guard = threading.Thread(target=self._guard_store, name="watch of the store", daemon=True)

    def __enter__(self) -> Watchdog:
        if self.world > 1:
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            tcp = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=SILENCE_S))
            self._store = dist.PrefixStore(self._prefix, tcp)
            self._store.set(f"who/{self.rank}", f"{socket.gethostname()}, process {os.getpid()}")
            self._store.set(f"heartbeat/{self.rank}", "0")
            dist.barrier()
            self._who = [of_rank.decode() for of_rank in self._store.multi_get([f"who/{rank}" for rank in range(self.world)])]
            self._asked = time.monotonic()
            self._thread.start()
            self._guard.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.world == 1:
            return
        if error is not None and self._is_peer_failure(error):
            log.error("%s; ending", self.failure or "another process of this run has ended")
            self._end()
        self._ended.set()
        self._thread.join(SILENCE_S)
        if self._thread.is_alive():
            log.warning("no word to the other processes: the store does not answer")
            return
        try:
            self._store.set(f"heartbeat/{self.rank}", f"!{type(error).__name__}: {error}" if error is not None else ".")
        except Exception as lost:  # the store's host has gone; it needs no word any more
            log.warning("no word to the other processes: %s", lost)

    def _is_peer_failure(self, error: BaseException) -> bool:
        """Whether ``error`` only shows that another process is gone: waits until it is known which, or known to be none."""
        if not is_peer_failure(error):
            return bool(self.failure)
        until = time.monotonic() + SILENCE_S + STORE_S + 2 * PERIOD_S
        while not self.failure and not self.stopped() and time.monotonic() < until:
            time.sleep(0.05)
        return bool(self.failure) or self.stopped()

    def _run(self) -> None:
        heartbeats, changed, count = [b"0"] * self.world, [time.monotonic()] * self.world, 0
        while not self._ended.wait(PERIOD_S):
            count += 1
            self._asked = time.monotonic()
            try:
                self._store.set(f"heartbeat/{self.rank}", str(count))
                latest = self._store.multi_get([f"heartbeat/{rank}" for rank in range(self.world)])
            except Exception as error:
                self._tell(f"the store of the process group (rank 0's node, or its launcher) does not answer: {error}")
                return
            now = time.monotonic()
            for rank, heartbeat in enumerate(latest):
                if heartbeat != heartbeats[rank]:
                    heartbeats[rank], changed[rank] = heartbeat, now
                if rank == self.rank or heartbeat == b".":
                    continue
                if heartbeat.startswith(b"!"):
                    self._tell(f"rank {rank} ({self._who[rank]}) failed: {heartbeat[1:].decode()}")
                    return
                if now - changed[rank] > SILENCE_S:
                    self._tell(f"rank {rank} ({self._who[rank]}) has given no sign of life for {SILENCE_S:.0f} s")
                    return

    def _guard_store(self) -> None:
        while not self._ended.wait(PERIOD_S):
            if time.monotonic() - self._asked > SILENCE_S + STORE_S and not self.failure:
                self._tell(
                    f"the store of the process group (rank 0's node, or its launcher) has not answered for {SILENCE_S + STORE_S:.0f} s"
                )

    def _tell(self, failure: str) -> None:
        self.failure = failure
        if not self._ended.wait(GRACE_S):
            log.error("%s; ending", failure)
            self._end()

    def _end(self) -> None:
        """Leave at once: the main thread may be in a collective that never returns."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(1)
