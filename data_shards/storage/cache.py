"""Files of remote sets on this machine: a folder of bounded size that all processes of a node share, filled when a file is wanted.

A shard is kept under its SHA-256, so runs and sets with the same shard share it, and a file has its name only when its bytes have been
checked. One process fetches a shard while others wait for it (file locks); shards used least recently make room. Owns retries, checksums
and the bound; what a store is, is in stores.py, fetching ahead in prefetch.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from attributegan.errors import TransientError
from attributegan.utils.files import user_cache
from data_shards.format import checksums, index
from data_shards.storage import stores

log = logging.getLogger("attributegan.data")

TRIES = 5
BACKOFF_S = 1.0  # before the second try; twice as long before each further one
GIGABYTE = 10**9

Result = TypeVar("Result")


class StoreError(ValueError):
    """A store that does not give what it should; names it, the file and what can be done."""


class Unreachable(StoreError, TransientError):
    """A store that may answer another time."""


@dataclass(frozen=True)
class Cache:
    """The folder and its bound.

    Args:
        folder: shared by the processes of a node; made when it is not there.
        limit: most bytes of shards in it. Indexes come on top.
    """

    folder: Path
    limit: int

    @classmethod
    def of(cls, folder: str = "", gigabytes: float = 50.0) -> Cache:
        """The cache in ``folder``, or in the user's cache folder."""
        return cls(Path(folder).expanduser() if folder else user_cache(), int(gigabytes * GIGABYTE))

    def path(self, shard: index.Shard) -> Path:
        return self.folder / "shards" / f"{shard.sha256}.tar"

    def keep(self, shard: index.Shard) -> bool:
        """Whether the shard is there; it then counts as used just now."""
        try:
            os.utime(self.path(shard))
        except FileNotFoundError:
            return False
        except PermissionError:  # of another user, who put it there
            return True
        return True

    def open(self, location: str, shard: index.Shard) -> BinaryIO:
        """The shard's file, fetched from ``place`` if need be. Bytes of an open file stay, whatever makes room.

        Raises:
            StoreError: it can't be had, or the cache can't hold it.
        """
        path = self.path(shard)
        while True:
            with suppress(FileNotFoundError):
                stream = path.open("rb")
                if os.fstat(stream.fileno()).st_size == shard.size:
                    with contextlib.suppress(PermissionError):  # of another user, who put it there
                        os.utime(stream.fileno())
                    return stream
                stream.close()
                path.unlink()  # not what was checked when it came
            self.fetch(location, shard)

    def fetch(self, location: str, shard: index.Shard, wait: bool = True) -> bool:
        """Have the shard in the cache; False without it when another process is fetching it and ``wait`` is false."""
        if shard.size > self.limit:
            raise StoreError(
                f"data.cache_gb: {self.limit / GIGABYTE:g} GB can't hold {shard.name} of {stores.redact(location)}, which has "
                f"{shard.size / GIGABYTE:g} GB; give more"
            )
        with _space(self.folder), _part(self.path(shard), wait) as part:
            if part is None:
                return False
            if not self.path(shard).exists():
                self._make_room(shard, part)
                retried(location, shard.name, lambda: _download(location, shard.name, part, shard.sha256, shard.size))
                os.replace(part.name, self.path(shard))
            return True

    def _make_room(self, shard: index.Shard, part: BinaryIO) -> None:
        """Take the bytes that the shard will need; shards used least recently go."""
        lock = os.open(self.folder / "shards", os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.ftruncate(part.fileno(), 0)
            found = list(self._shards())
            excess = sum(size for _, size, _ in found) + shard.size - self.limit
            for _, size, path in sorted(found):
                if excess <= 0:
                    break
                if _remove(path):
                    excess -= size
            if excess > 0:
                log.warning("%s: more shards are being fetched at once than data.cache_gb=%g holds", self.folder, self.limit / GIGABYTE)
            os.ftruncate(part.fileno(), shard.size)
        finally:
            os.close(lock)

    def _shards(self) -> Iterator[tuple[int, int, Path]]:
        """(last use, bytes, file) of what counts towards the bound."""
        with os.scandir(self.folder / "shards") as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    status = entry.stat()
                    yield status.st_mtime_ns, status.st_size, Path(entry.path)

    def index_of(self, location: str) -> Path:
        """The folder on this machine with the index and the checksums of the set at ``place``, as they are there now.

        Raises:
            StoreError: they can't be had, or don't fit together.
        """
        stores.check(location)
        with _space(self.folder):
            (self.folder / "sets").mkdir(parents=True, exist_ok=True)
        return retried(location, index.FILE, lambda: self._index_of(location))

    def _index_of(self, location: str) -> Path:
        text = b"".join(stores.chunks(stores.address(location, checksums.FILE)))
        found = re.search(rb"^([0-9a-f]{64})  " + re.escape(index.FILE.encode()) + rb"$", text, re.MULTILINE)
        if found is None:
            raise OSError(f"{checksums.FILE} there has no line for {index.FILE}")
        folder = self.folder / "sets" / hashlib.sha256(text).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        with _part(folder / index.FILE, wait=True) as part:
            assert part is not None
            if not (folder / index.FILE).exists():
                _download(location, index.FILE, part, found[1].decode())
                (folder / checksums.FILE).write_bytes(text)
                os.replace(part.name, folder / index.FILE)
        try:
            checksums.check_index(folder)
        except ValueError as error:
            (folder / index.FILE).unlink()
            raise OSError(str(error)) from error
        return folder


def retried(location: str, name: str, attempt: Callable[[], Result]) -> Result:
    """The result of ``attempt``, after `TRIES` failures at most, with longer and longer pauses between.

    Raises:
        StoreError: names the store, the file, the last failure and what can be done.
    """
    where = f"{stores.redact(location)}: {name}"
    for number in range(1, TRIES + 1):
        try:
            return attempt()
        except stores.StoreRejected as error:
            raise StoreError(f"{where}: can't be had: {error}. Correct data.shards, or what gives the right to read there") from error
        except OSError as error:
            last: OSError = error
        if number < TRIES:
            pause = BACKOFF_S * 2 ** (number - 1) * random.SystemRandom().uniform(0.75, 1.25)  # ranks should not come all at once
            log.warning("%s: %s; try %d of %d follows in %.1f s", where, last, number + 1, TRIES, pause)
            time.sleep(pause)
    raise Unreachable(
        f"{where}: could not be fetched in {TRIES} tries, the last: {last}. When the store answers again, the same command "
        "goes on; if it gives wrong bytes each time, copy the set there again"
    ) from last


def _download(location: str, name: str, part: BinaryIO, sha256: str, size: int | None = None) -> None:
    """Write a file from the store into ``part``; OSError when its bytes are not those that it should have."""
    digest, done = hashlib.sha256(), 0
    part.seek(0)
    for data in stores.chunks(stores.address(location, name)):
        digest.update(data)
        done += len(data)
        if size is not None and done > size:
            raise OSError(f"has more than {size:,} bytes")
        with _space(Path(part.name).parent):
            part.write(data)
    if size is not None and done < size:
        raise OSError(f"cut off after {done:,} of {size:,} bytes")
    if digest.hexdigest() != sha256:
        raise OSError("its bytes are not those that were packed (SHA-256)")
    with _space(Path(part.name).parent):
        part.truncate()
        part.flush()
        os.fsync(part.fileno())


@contextmanager
def _space(folder: Path) -> Iterator[None]:
    """Tell what is wrong with the disk of the cache, which is no fault of the store."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"data.cache: {folder}: can't be written to ({error.strerror}); free some space, or choose another folder or a "
            "smaller data.cache_gb"
        ) from error


@contextmanager
def _part(path: Path, wait: bool) -> Iterator[BinaryIO | None]:
    """The file beside ``path`` that it is written into, held by this process alone; None when it is held and ``wait`` is false.

    It takes the name of ``path``, or goes away; that of a process that was killed is used again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp_path = path.with_name(path.name + ".part")
    while True:
        tmp_path.touch()
        try:
            stream = tmp_path.open("r+b")
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _same_file(stream, tmp_path):  # else the process before us is done with it
                break
        except BlockingIOError:
            stream.close()
            yield None
            return
        stream.close()
    try:
        yield stream
    finally:
        if _same_file(stream, tmp_path):
            tmp_path.unlink()
        stream.close()


def _same_file(stream: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _remove(path: Path) -> bool:
    """Remove a file that no process is writing."""
    with suppress(FileNotFoundError), path.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        path.unlink()
    return True


def fits(shards: Iterable[index.Shard], limit: int) -> list[index.Shard]:
    """The first of ``shards`` that have at most ``limit`` bytes together; each is taken once."""
    taken: dict[str, index.Shard] = {}
    total = 0
    for shard in shards:
        if shard.sha256 in taken:
            continue
        total += shard.size
        if total > limit:
            break
        taken[shard.sha256] = shard
    return list(taken.values())
