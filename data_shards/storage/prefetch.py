"""Shards of a remote set fetched before they are wanted, by a thread of each rank; ranks of a node share the work by the cache's locks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from data_shards.storage.cache import StoreError, fits
from data_shards.storage.shard_files import RemoteShardFiles

log = logging.getLogger("attributegan.data")

LOOK_S = 0.5  # between looks at what other processes have fetched


class Prefetcher:
    """Keeps in the cache the shards that come next, as many as it holds.

    Args:
        coming: the numbers of the shards that a position and those behind it need, in their order.
    """

    def __init__(self, tars: RemoteShardFiles, coming: Callable[[int], Iterable[int]], position: int) -> None:
        self.tars, self.coming, self.position = tars, coming, position
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shards ahead", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End, after the shard at hand at the latest; nobody waits for that."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_S if self._fetch_next() else 0):
            pass

    def _fetch_next(self) -> bool:
        """Fetch the first shard that is missing and that no other process fetches; whether there is none."""
        cache = self.tars.cache
        plan = fits((self.tars.shards[number] for number in self.coming(self.position)), cache.limit)
        for shard in [shard for shard in plan if not cache.keep(shard)]:  # all that is there stays, being used just now
            try:
                if cache.fetch(self.tars.location, shard, wait=False):
                    return False
            except StoreError as error:  # who reads the shard will meet it too, and stop the run
                log.warning("fetching ahead: %s", error)
                return True
        return True
