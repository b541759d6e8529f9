"""Downloads shards of a remote set before they are read, in a thread of each rank; the cache's locks divide the work among ranks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from data_shards.storage.cache import StoreError, fits
from data_shards.storage.shard_files import RemoteShardFiles

log = logging.getLogger("attributegan.data")

POLL_S = 0.5  # between checks of what other processes have downloaded


class Prefetcher:
    """Keeps the next shards in the cache, as many as fit.

    Args:
        upcoming: yields the indices of the shards needed from a position on, in order.
    """

    def __init__(self, tars: RemoteShardFiles, upcoming: Callable[[int], Iterable[int]], position: int) -> None:
        self.tars, self.upcoming, self.position = tars, upcoming, position
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shard prefetcher", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop after the current shard at the latest; does not wait."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(POLL_S if self._fetch_next() else 0):
            pass

    def _fetch_next(self) -> bool:
        """Download the first missing shard that no other process is downloading; returns True if there is no such shard."""
        cache = self.tars.cache
        plan = fits((self.tars.shards[number] for number in self.upcoming(self.position)), cache.limit)
        for shard in [shard for shard in plan if not cache.touch(shard)]:  # marks cached ones as used
            try:
                if cache.fetch(self.tars.location, shard, wait=False):
                    return False
            except StoreError as error:  # the reader of the shard gets it too, and stops the run
                log.warning("prefetching: %s", error)
                return True
        return True
