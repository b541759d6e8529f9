"""Access to the tars of a set, in a local folder or in the cache of a remote store."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO, Protocol

from data_shards.format import checksums, index
from data_shards.storage import stores
from data_shards.storage.cache import Cache

OPEN_FILES = 128


class ShardFiles(Protocol):
    """Access to the shards of a set; can be pickled to worker processes."""

    def read(self, number: int, length: int, offset: int) -> bytes:
        """Returns up to ``length`` bytes at ``offset`` of shard ``number``."""

    def open(self, number: int) -> BinaryIO:
        """Open a shard for reading from its start."""


class LocalShardFiles:
    """Tars in a folder, kept open for random access."""

    def __init__(self, folder: Path, shards: tuple[index.Shard, ...]) -> None:
        self.paths = [folder / shard.name for shard in shards]
        self._open: OrderedDict[int, int] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        """Leaves out the open files: in another process their descriptors are closed, or other files."""
        return self.__dict__ | {"_open": OrderedDict()}

    def read(self, number: int, length: int, offset: int) -> bytes:
        return os.pread(self._descriptor(number), length, offset)

    def open(self, number: int) -> BinaryIO:
        return self.paths[number].open("rb")

    def _descriptor(self, number: int) -> int:
        if number not in self._open:
            if len(self._open) >= OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
            self._open[number] = os.open(self.paths[number], os.O_RDONLY | os.O_CLOEXEC)
        self._open.move_to_end(number)
        return self._open[number]

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)


class RemoteShardFiles:
    """Tars of a remote store. Files are not kept open, so that eviction frees their space immediately."""

    def __init__(self, location: str, shards: tuple[index.Shard, ...], cache: Cache) -> None:
        self.location, self.shards, self.cache = location, shards, cache

    def read(self, number: int, length: int, offset: int) -> bytes:
        with self.open(number) as stream:
            return os.pread(stream.fileno(), length, offset)

    def open(self, number: int) -> BinaryIO:
        return self.cache.open(self.location, self.shards[number])


def open_location(path: str | Path, cache: Cache | None = None) -> tuple[str, Path, index.Header, ShardFiles]:
    """Open the set in a folder or at a URL.

    Returns:
        Its location for messages (redacted), the local folder of its index, the header of the index, and its tars.

    Raises:
        ValueError: no such set.
    """
    if not stores.is_remote(str(path)):
        folder = Path(path)
        header = checksums.check_index(folder)
        return str(folder), folder, header, LocalShardFiles(folder, header.shards)
    cache = cache or Cache.of()
    folder = cache.index_of(str(path))
    header = checksums.check_index(folder)
    return stores.redact(str(path)), folder, header, RemoteShardFiles(str(path), header.shards, cache)
