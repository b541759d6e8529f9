"""One live training per run folder, on one machine or on nodes that share a disk.

Owns ``claim.json`` in the run folder: made by whoever works on the run, refreshed every few seconds, removed at the end. Locks
of the file system don't do: on NFS they are often off, or known to one node alone. No clocks are compared either: a claim that can't be
judged by its process is watched, and is dead when nobody refreshes it.
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
HEARTBEAT_S = 5.0  # from one refreshing to the next
LEASE_S = 30.0  # not refreshed for so long: dead
BLOCKED_S = 10.0  # far longer than a claim needs to be removed
PATIENCE_S = 60.0  # for a submission that is about to end, and for the start before of the same job
LOST = 2  # exit status of a training that finds its run folder claimed by another: one that starting again would not mend


@dataclass(frozen=True)
class LockOwner:
    """Who has a claim."""

    token: str  # of this claim alone
    what: Literal["training", "submission"]
    host: str
    machine: str  # where ``pid`` means something: the host, its boot and the namespace of its processes; "" if not known
    pid: int
    born: str  # when the process began, since numbers of processes are used again
    job: str  # Slurm's, or ""
    restart: int

    def is_gone(self, me: LockOwner) -> bool | None:
        """Whether it has ended for certain; None when that can't be told from here."""
        if self.machine and self.machine == me.machine:
            return born(self.pid) != self.born
        if self.job and self.job == me.job and self.restart < me.restart:
            return True  # Slurm starts a job again when the start before is over
        return None

    def __str__(self) -> str:
        return f"{self.what} on {self.host} (process {self.pid}{f', job {self.job}' if self.job else ''})"


class RunLock:
    """A run folder for this process alone, from `take` to `release`."""

    def __init__(self, folder: Path, what: Literal["training", "submission"]) -> None:
        self.path = folder / FILE
        pid = os.getpid()
        self.me = LockOwner(uuid.uuid4().hex, what, socket.gethostname(), _machine(), pid, born(pid), slurm_job(), slurm_restarts())
        self._released = threading.Event()
        self._blocked_since = 0.0
        self._heartbeat_thread = threading.Thread(target=self._heartbeat, daemon=True)

    def acquire(self) -> None:
        """Claim the folder, which is made when it is not there; waits for a claim whose owner may be gone.

        Raises:
            ValueError: another is alive, or the folder can't be written; says what to do.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._wait_and_create()
        except OSError as error:
            raise ValueError(f"run.dir: {self.path.parent} can't be used: {error.strerror}; choose another folder") from error
        self._heartbeat_thread.start()

    def release(self) -> None:
        """Give the folder back, if it was taken."""
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
            if now - began > PATIENCE_S or (alive and not self._waits_for(other)):
                raise ValueError(
                    f"run.dir: {self.path.parent} is in use by the {other or 'unknown'}; stop that one first, or choose another folder. "
                    f"If it is gone for certain, remove {self.path}*"
                )
            if (other, heartbeat) != seen:
                seen, since = (other, heartbeat), now
            if now - since > LEASE_S:
                log.warning("%s: not refreshed for %.0f s by the %s; taken over", self.path, LEASE_S, other or "one before")
            if gone or now - since > LEASE_S:
                self._break(other)
            else:
                time.sleep(0.2)

    def _waits_for(self, other: LockOwner | None) -> bool:
        if other is None:
            return True
        return (other.what == "submission" and self.me.what == "training") or bool(self.me.job and other.job == self.me.job)

    def _create(self) -> bool:
        """Write the claim unless there is one."""
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(self.me)) + "\n")
        return True

    def _break(self, other: LockOwner | None) -> None:
        """Remove the claim of ``other`` and no one else's, whoever else is about to do the same."""
        alone = self.path.with_name(f"{FILE}.removing")
        try:
            alone.mkdir()
        except FileExistsError:  # by another, who needs a moment; or by one that was killed in that moment
            self._blocked_since = self._blocked_since or time.monotonic()
            if time.monotonic() - self._blocked_since > BLOCKED_S:
                with suppress(OSError):
                    alone.rmdir()
                self._blocked_since = 0.0
            time.sleep(0.05)
            return
        try:
            if owner_of(self.path.parent) == other:
                self.path.unlink(missing_ok=True)
        finally:
            alone.rmdir()

    def _heartbeat(self) -> None:
        while not self._released.wait(HEARTBEAT_S):
            try:
                owner = owner_of(self.path.parent)
                if owner is not None and owner.token != self.me.token:
                    print(f"error: run.dir: {self.path.parent} was taken over by the {owner}; this one ends", file=sys.stderr, flush=True)
                    os._exit(LOST)
                os.utime(self.path)
            except FileNotFoundError:
                with suppress(OSError):  # the folder may be gone as well
                    self._create()
            except OSError as error:  # a disk that is away for a moment
                log.warning("%s: can't be refreshed: %s", self.path, error)


def owner_of(folder: Path) -> LockOwner | None:
    """Who claims ``folder``; None when no one does, or when the claim can't be read."""
    return _read(folder / FILE)


def seconds_since_heartbeat(folder: Path) -> float:
    """Seconds since the claim of ``folder`` was refreshed, by this machine's clock; infinite without one."""
    heartbeat = _heartbeat_of(folder / FILE)
    return time.time() - heartbeat / 1e9 if heartbeat else float("inf")


def _read(path: Path) -> LockOwner | None:
    try:
        return LockOwner(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _heartbeat_of(path: Path) -> int:
    """When the claim was last refreshed, in nanoseconds; 0 without one."""
    try:
        with path.open() as file:  # NFS asks the server for what is opened, and remembers the rest
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return 0


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # no Linux
        return ""


def born(pid: int) -> str:
    """When the live process ``pid`` of this machine began, in clock ticks; "" when there is none."""
    try:
        state, *others = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else others[18]
