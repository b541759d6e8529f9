"""Local cache for files of remote sets: a folder of bounded size, shared by all processes of a node and filled on demand.

A shard is stored under its SHA-256, so that runs and sets share it, and a file gets its name only after its bytes were verified. One
process downloads a shard while others wait for it (file locks); the least recently used shards are evicted. Owns retries, checksums and
the size limit; access to stores is in stores.py, prefetching in prefetch.py.
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
BACKOFF_S = 1.0  # before the second try; doubles with every further one
GIGABYTE = 10**9

Result = TypeVar("Result")


class StoreError(ValueError):
    """A file of a store is unavailable or wrong; names the store, the file and the fix."""


class Unreachable(StoreError, TransientError):
    """The store failed repeatedly; retrying later may succeed."""


@dataclass(frozen=True)
class Cache:
    """The cache folder and its size limit.

    Args:
        folder: shared by the processes of a node; created if missing.
        limit: maximum size of the shards in bytes; indexes are not counted.
    """

    folder: Path
    limit: int

    @classmethod
    def of(cls, folder: str = "", gigabytes: float = 50.0) -> Cache:
        """Returns the cache in ``folder``, or in the user's cache folder."""
        return cls(Path(folder).expanduser() if folder else user_cache(), int(gigabytes * GIGABYTE))

    def path(self, shard: index.Shard) -> Path:
        """Returns the path of a shard in the cache."""
        return self.folder / "shards" / f"{shard.sha256}.tar"

    def touch(self, shard: index.Shard) -> bool:
        """Mark the shard as used just now; returns whether it is in the cache."""
        try:
            os.utime(self.path(shard))
        except FileNotFoundError:
            return False
        except PermissionError:  # the file belongs to another user
            return True
        return True

    def open(self, location: str, shard: index.Shard) -> BinaryIO:
        """Open a shard, downloading it from ``location`` if necessary. An open file stays readable after eviction.

        Raises:
            StoreError: the shard is unavailable or larger than the cache.
        """
        path = self.path(shard)
        while True:
            with suppress(FileNotFoundError):
                stream = path.open("rb")
                if os.fstat(stream.fileno()).st_size == shard.size:
                    with contextlib.suppress(PermissionError):  # the file belongs to another user
                        os.utime(stream.fileno())
                    return stream
                stream.close()
                path.unlink()  # changed since it was verified
            self.fetch(location, shard)

    def fetch(self, location: str, shard: index.Shard, wait: bool = True) -> bool:
        """Download the shard unless it is cached; returns False if another process is downloading it and ``wait`` is False."""
        if shard.size > self.limit:
            raise StoreError(
                f"data.cache_gb: {self.limit / GIGABYTE:g} GB is smaller than {shard.name} of {stores.redact(location)} "
                f"({shard.size / GIGABYTE:g} GB); increase it"
            )
        with _disk_errors(self.folder), _locked_part(self.path(shard), wait) as part:
            if part is None:
                return False
            if not self.path(shard).exists():
                self._make_room(shard, part)
                retry(location, shard.name, lambda: _download(location, shard.name, part, shard.sha256, shard.size))
                os.replace(part.name, self.path(shard))
            return True

    def _make_room(self, shard: index.Shard, part: BinaryIO) -> None:
        """Reserve the bytes of the shard, evicting the least recently used shards."""
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
                log.warning("%s: concurrent downloads exceed data.cache_gb=%g", self.folder, self.limit / GIGABYTE)
            os.ftruncate(part.fileno(), shard.size)
        finally:
            os.close(lock)

    def _shards(self) -> Iterator[tuple[int, int, Path]]:
        """Yields (last use in ns, bytes, path) of the files that count towards the limit."""
        with os.scandir(self.folder / "shards") as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    status = entry.stat()
                    yield status.st_mtime_ns, status.st_size, Path(entry.path)

    def index_of(self, location: str) -> Path:
        """Download the current index and checksums of the set at ``location``; returns their local folder.

        Raises:
            StoreError: they are unavailable or do not match.
        """
        stores.check(location)
        with _disk_errors(self.folder):
            (self.folder / "sets").mkdir(parents=True, exist_ok=True)
        return retry(location, index.FILE, lambda: self._index_of(location))

    def _index_of(self, location: str) -> Path:
        text = b"".join(stores.chunks(stores.address(location, checksums.FILE)))
        found = re.search(rb"^([0-9a-f]{64})  " + re.escape(index.FILE.encode()) + rb"$", text, re.MULTILINE)
        if found is None:
            raise OSError(f"{checksums.FILE} has no line for {index.FILE}")
        folder = self.folder / "sets" / hashlib.sha256(text).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        with _locked_part(folder / index.FILE, wait=True) as part:
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


def retry(location: str, name: str, attempt: Callable[[], Result]) -> Result:
    """Returns the result of ``attempt``, which is tried `TRIES` times with exponential backoff.

    Raises:
        StoreError: names the store, the file, the last failure and the fix.
    """
    where = f"{stores.redact(location)}: {name}"
    for number in range(1, TRIES + 1):
        try:
            return attempt()
        except stores.StoreRejected as error:
            raise StoreError(f"{where}: request rejected: {error}. Check data.shards and the credentials for this store") from error
        except OSError as error:
            last: OSError = error
        if number < TRIES:
            pause = BACKOFF_S * 2 ** (number - 1) * random.SystemRandom().uniform(0.75, 1.25)  # jitter, so that ranks don't retry at once
            log.warning("%s: %s; retrying in %.1f s (%d of %d)", where, last, pause, number + 1, TRIES)
            time.sleep(pause)
    raise Unreachable(
        f"{where}: download failed {TRIES} times, last error: {last}. Run the same command again to resume when the store "
        "is available; if the bytes are wrong every time, copy the set to the store again"
    ) from last


def _download(location: str, name: str, part: BinaryIO, sha256: str, size: int | None = None) -> None:
    """Download a file from the store into ``part``; OSError if size or checksum is wrong."""
    digest, done = hashlib.sha256(), 0
    part.seek(0)
    for data in stores.chunks(stores.address(location, name)):
        digest.update(data)
        done += len(data)
        if size is not None and done > size:
            raise OSError(f"larger than the expected {size:,} bytes")
        with _disk_errors(Path(part.name).parent):
            part.write(data)
    if size is not None and done < size:
        raise OSError(f"truncated after {done:,} of {size:,} bytes")
    if digest.hexdigest() != sha256:
        raise OSError("wrong checksum (SHA-256)")
    with _disk_errors(Path(part.name).parent):
        part.truncate()
        part.flush()
        os.fsync(part.fileno())


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turn disk errors of the cache into StoreErrors, so that they are not retried like errors of the store."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"data.cache: {folder}: can't be written ({error.strerror}); free disk space, choose another folder, or reduce data.cache_gb"
        ) from error


@contextmanager
def _locked_part(path: Path, wait: bool) -> Iterator[BinaryIO | None]:
    """Lock the temporary file for ``path`` and yield it; None if another process holds it and ``wait`` is False.

    The caller renames it to ``path``, otherwise it is removed; the file of a killed process is reused.
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
            if _same_file(stream, tmp_path):  # else its previous owner has renamed or removed it
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
    """Remove a file unless a process is writing it."""
    with suppress(FileNotFoundError), path.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        path.unlink()
    return True


def fits(shards: Iterable[index.Shard], limit: int) -> list[index.Shard]:
    """Returns the first of ``shards`` whose total size is at most ``limit`` bytes; duplicates count once."""
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
