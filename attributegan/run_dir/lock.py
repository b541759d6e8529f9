"""A lock that allows one live training per run folder, on one machine or on nodes that share a disk.

Owns ``claim.json``, the lock file in the run folder: created by the process that works on the run, touched every few seconds (the
heartbeat) and removed at the end. File system locks are no alternative: on NFS they are often disabled or local to one node. Clocks of
different nodes are never compared: if the owner's process can't be checked from here, its heartbeat is watched, and the lock has
expired when it stops.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import socket
import sys
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from attributegan.run_dir.status import slurm_job, slurm_restarts

log = logging.getLogger("attributegan")

FILE = "claim.json"
HEARTBEAT_S = 5.0  # interval between heartbeats
LEASE_S = 30.0  # without a heartbeat for so long, a lock has expired
REMOVAL_TIMEOUT_S = 10.0  # far longer than removing a lock file takes
ACQUIRE_TIMEOUT_S = 60.0  # waiting for a submission that is about to end, or for the previous start of the same job
LOCK_LOST = 2  # exit status of a training whose lock was taken over by another process; a retry would not help


@dataclass(frozen=True)
class LockOwner:
    """The process that holds a lock: the content of ``claim.json``."""

    token: str  # unique to this lock
    what: Literal["training", "submission"]
    host: str
    machine: str  # scope in which ``pid`` is valid: host, boot id and PID namespace; "" if unknown
    pid: int
    born: str  # start time of the process, since PIDs are reused
    job: str  # Slurm job id, or ""
    restart: int  # restart count of the Slurm job

    def is_gone(self, me: LockOwner) -> bool | None:
        """Returns whether the owner has certainly ended; None if that can't be determined from this process."""
        if self.machine and self.machine == me.machine:
            return process_start_time(self.pid) != self.born
        if self.job and self.job == me.job and self.restart < me.restart:
            return True  # Slurm restarts a job only after its previous start has ended
        return None

    def __str__(self) -> str:
        return f"{self.what} on {self.host} (process {self.pid}{f', job {self.job}' if self.job else ''})"


class RunLock:
    """Exclusive use of a run folder, from `acquire` to `release`.

    Args:
        folder: the run folder.
        what: the kind of work; a training waits for a submission to end.
    """

    def __init__(self, folder: Path, what: Literal["training", "submission"]) -> None:
        self.path = folder / FILE
        pid = os.getpid()
        start_time = process_start_time(pid)
        self.me = LockOwner(uuid.uuid4().hex, what, socket.gethostname(), _machine(), pid, start_time, slurm_job(), slurm_restarts())
        self._released = threading.Event()
        self._blocked_since = 0.0
        self._heartbeat_thread = threading.Thread(target=self._heartbeat, daemon=True)

    def acquire(self) -> None:
        """Acquires the lock, creating the folder if needed; waits while it is unclear whether the present owner is alive.

        Raises:
            ValueError: the owner is alive, or the folder is not writable; names the fix.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._wait_and_create()
        except OSError as error:
            raise ValueError(f"run.dir: {self.path.parent} is not usable: {error.strerror}; choose another folder") from error
        self._heartbeat_thread.start()

    def release(self) -> None:
        """Stops the heartbeat and removes the lock file if this process holds the lock."""
        self._released.set()
        if self._heartbeat_thread.is_alive():
            self._heartbeat_thread.join(HEARTBEAT_S)
        if (owner := owner_of(self.path.parent)) and owner.token == self.me.token:
            with suppress(OSError):
                self.path.unlink()

    def _wait_and_create(self) -> None:
        began, seen, since = time.monotonic(), None, 0.0
        while not self._create():
            now, other, heartbeat = time.monotonic(), owner_of(self.path.parent), _heartbeat_of(self.path)
            gone = other.is_gone(self.me) if other else None
            alive = gone is False or (seen is not None and seen[0] == other and seen[1] != heartbeat)
            if now - began > ACQUIRE_TIMEOUT_S or (alive and not self._waits_for(other)):
                raise ValueError(
                    f"run.dir: {self.path.parent} is in use by the {other or 'unknown process'}; stop it first, or choose another folder. "
                    f"If it has certainly ended, remove {self.path}*"
                )
            if (other, heartbeat) != seen:
                seen, since = (other, heartbeat), now
            if now - since > LEASE_S:
                log.warning("%s: no heartbeat for %.0f s from the %s; taking over", self.path, LEASE_S, other or "owner")
            if gone or now - since > LEASE_S:
                self._break(other)
            else:
                time.sleep(0.2)

    def _waits_for(self, other: LockOwner | None) -> bool:
        if other is None:
            return True
        return (other.what == "submission" and self.me.what == "training") or bool(self.me.job and other.job == self.me.job)

    def _create(self) -> bool:
        """Creates the lock file unless it exists."""
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(self.me)) + "\n")
        return True

    def _break(self, other: LockOwner | None) -> None:
        """Removes the lock file if ``other`` still owns it, even if other processes try the same at once."""
        guard = self.path.with_name(f"{FILE}.removing")
        try:
            guard.mkdir()
        except FileExistsError:  # another process is removing the lock file, or was killed while doing so
            self._blocked_since = self._blocked_since or time.monotonic()
            if time.monotonic() - self._blocked_since > REMOVAL_TIMEOUT_S:
                with suppress(OSError):
                    guard.rmdir()
                self._blocked_since = 0.0
            time.sleep(0.05)
            return
        try:
            if owner_of(self.path.parent) == other:
                self.path.unlink(missing_ok=True)
        finally:
            guard.rmdir()

    def _heartbeat(self) -> None:
        while not self._released.wait(HEARTBEAT_S):
            try:
                owner = owner_of(self.path.parent)
                if owner is not None and owner.token != self.me.token:
                    print(f"error: run.dir: {self.path.parent} was taken over by the {owner}; exiting", file=sys.stderr, flush=True)
                    os._exit(LOCK_LOST)
                os.utime(self.path)
            except FileNotFoundError:
                with suppress(OSError):  # the folder may be deleted as well
                    self._create()
            except OSError as error:  # a disk that is briefly unavailable
                log.warning("%s: heartbeat failed: %s", self.path, error)


def owner_of(folder: Path) -> LockOwner | None:
    """Returns the owner of the lock on ``folder``; None if it is unlocked or the lock file is unreadable."""
    return _read(folder / FILE)


def seconds_since_heartbeat(folder: Path) -> float:
    """Returns the seconds since the last heartbeat in ``folder``, by this machine's clock; infinite if it is unlocked."""
    heartbeat = _heartbeat_of(folder / FILE)
    return time.time() - heartbeat / 1e9 if heartbeat else float("inf")


def _read(path: Path) -> LockOwner | None:
    try:
        return LockOwner(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _heartbeat_of(path: Path) -> int:
    """Returns the time of the last heartbeat in nanoseconds; 0 without a lock file."""
    try:
        with path.open() as file:  # NFS revalidates attributes on open and may serve cached ones otherwise
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return 0


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # not Linux
        return ""


def process_start_time(pid: int) -> str:
    """Returns when the live process ``pid`` of this machine started, in clock ticks since boot; "" if there is no such process."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]
