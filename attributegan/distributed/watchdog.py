"""A watchdog among the processes of a run: if one dies, hangs or raises, the others report it and exit instead of blocking in a collective.

A thread of each process writes a heartbeat to the store of the process group and reads those of the others. The store is the one set
up by the launcher; no additional port is opened. Restarting the run is left to the launcher or Slurm.
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

HEARTBEAT_S = 1.0  # interval between heartbeats
TIMEOUT_S = 20.0  # without a heartbeat for so long, a process counts as failed
STORE_MARGIN_S = 10.0  # a store request that exceeds TIMEOUT_S by this much is considered stuck
GRACE_S = 3.0  # after another process failed, time for this one to exit by itself with its own error
_PEER_ERRORS = (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)
# gloo raises plain RuntimeErrors that can only be recognised by their text.
_PEER_PATTERN = re.compile(r"gloo|NCCL|\b[Cc]onnection\b|\bpeer\b|Timed out|\bstore\b")


def is_peer_failure(error: BaseException) -> bool:
    """Returns whether ``error`` looks like a collective failed because another process is gone."""
    return isinstance(error, _PEER_ERRORS) or (isinstance(error, RuntimeError) and bool(_PEER_PATTERN.search(str(error))))


class Watchdog:
    """A context in which the processes monitor each other; entering it is a collective.

    Args:
        rank: of this process.
        world: number of processes; 1 disables the watchdog.
        launch_id: an id shared by the processes of this launch and unique to it.
        stopped: returns whether this process was asked to stop; it then does not wait to identify a failed process.
    """

    def __init__(self, rank: int, world: int, launch_id: str, stopped: Callable[[], bool]) -> None:
        self.rank, self.world, self.stopped = rank, world, stopped
        self.failure = ""
        self._prefix = f"attributegan/{launch_id}"
        self._ended = threading.Event()
        self._last_request = 0.0  # time of the last store request
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        # A store request over a broken network connection can block for ever, despite its timeout.
        self._guard = threading.Thread(target=self._guard_store, name="watchdog of the store", daemon=True)

    def __enter__(self) -> Watchdog:
        if self.world > 1:
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            tcp = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=TIMEOUT_S))
            self._store = dist.PrefixStore(self._prefix, tcp)
            self._store.set(f"location/{self.rank}", f"{socket.gethostname()}, process {os.getpid()}")
            self._store.set(f"heartbeat/{self.rank}", "0")
            dist.barrier()
            self._locations = [value.decode() for value in self._store.multi_get([f"location/{rank}" for rank in range(self.world)])]
            self._last_request = time.monotonic()
            self._thread.start()
            self._guard.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.world == 1:
            return
        if error is not None and self._is_peer_failure(error):
            log.error("%s; exiting", self.failure or "another process of this run has ended")
            self._exit()
        self._ended.set()
        self._thread.join(TIMEOUT_S)
        if self._thread.is_alive():
            log.warning("could not notify the other processes: the store does not respond")
            return
        try:
            self._store.set(f"heartbeat/{self.rank}", f"!{type(error).__name__}: {error}" if error is not None else ".")
        except Exception as store_error:  # the store's host has ended, so nobody is waiting
            log.warning("could not notify the other processes: %s", store_error)

    def _is_peer_failure(self, error: BaseException) -> bool:
        """Returns whether ``error`` is a consequence of another process's failure; waits until that process is identified, if any."""
        if not is_peer_failure(error):
            return bool(self.failure)
        until = time.monotonic() + TIMEOUT_S + STORE_MARGIN_S + 2 * HEARTBEAT_S
        while not self.failure and not self.stopped() and time.monotonic() < until:
            time.sleep(0.05)
        return bool(self.failure) or self.stopped()

    def _run(self) -> None:
        heartbeats, changed, count = [b"0"] * self.world, [time.monotonic()] * self.world, 0
        while not self._ended.wait(HEARTBEAT_S):
            count += 1
            self._last_request = time.monotonic()
            try:
                self._store.set(f"heartbeat/{self.rank}", str(count))
                latest = self._store.multi_get([f"heartbeat/{rank}" for rank in range(self.world)])
            except Exception as error:
                self._fail(f"the store of the process group (on rank 0's node, or its launcher) does not respond: {error}")
                return
            now = time.monotonic()
            for rank, heartbeat in enumerate(latest):
                if heartbeat != heartbeats[rank]:
                    heartbeats[rank], changed[rank] = heartbeat, now
                if rank == self.rank or heartbeat == b".":
                    continue
                if heartbeat.startswith(b"!"):
                    self._fail(f"rank {rank} ({self._locations[rank]}) failed: {heartbeat[1:].decode()}")
                    return
                if now - changed[rank] > TIMEOUT_S:
                    self._fail(f"rank {rank} ({self._locations[rank]}) has sent no heartbeat for {TIMEOUT_S:.0f} s")
                    return

    def _guard_store(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            if time.monotonic() - self._last_request > TIMEOUT_S + STORE_MARGIN_S and not self.failure:
                seconds = TIMEOUT_S + STORE_MARGIN_S
                self._fail(f"the store of the process group (on rank 0's node, or its launcher) has not responded for {seconds:.0f} s")

    def _fail(self, failure: str) -> None:
        self.failure = failure
        if not self._ended.wait(GRACE_S):
            log.error("%s; exiting", failure)
            self._exit()

    def _exit(self) -> None:
        """Exits immediately: the main thread may be in a collective that never returns."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(1)
