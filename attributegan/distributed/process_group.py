"""Distributes work on tiles over the processes of a launch, for commands other than training.

Reads RANK, WORLD_SIZE and LOCAL_RANK, as set by torchrun and ``accelerate launch``; a single process without them. Tiles are divided into
chunks of fixed length for any number of processes, so that one process and many compute every number from the same arrays.
"""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import distributed as dist

from attributegan.utils.allocator import keep_freed_memory

Value = TypeVar("Value")
TIMEOUT = datetime.timedelta(days=2)  # other ranks wait while rank 0 does work that can't be distributed


def is_main() -> bool:
    """Returns whether this is rank 0 of a launch, or a single process."""
    return os.environ.get("RANK", "0") == "0"


class Processes:
    """This process among those of the launch; call `shutdown` at the end."""

    def __init__(self) -> None:
        self.rank, self.world = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
        self.is_main = is_main()
        self.device = torch.device("cpu")
        if torch.cuda.is_available():
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        else:
            keep_freed_memory()
        if self.world > 1:
            dist.init_process_group("gloo", timeout=TIMEOUT)

    def map(
        self, count: int, chunk: int, work: Callable[[range], Sequence[np.ndarray]], progress: Callable[[int], None] = lambda done: None
    ) -> list[np.ndarray]:
        """Computes arrays over ``count`` tiles in chunks that are assigned to processes round-robin. Every process must call it.

        Args:
            count: number of tiles.
            chunk: tiles per chunk.
            work: maps a range of tiles to arrays with one row per tile.
            progress: called with an estimate of the number of finished tiles.

        Returns:
            the arrays over all tiles, in order, on rank 0; [] on other ranks.
        """
        chunks = [range(first, min(first + chunk, count)) for first in range(0, count, chunk)]
        local = {}
        for index in range(self.rank, len(chunks), self.world):
            local[index] = work(chunks[index])
            progress(min(count, chunk * (index + self.world)))
        parts = self.gather(local)
        return [np.concatenate(arrays) for arrays in zip(*(parts[index] for index in sorted(parts)), strict=True)]

    def gather(self, local: dict[int, Any]) -> dict[int, Any]:
        """Merges the entries of all processes on rank 0; the entries of the other processes are not defined. Every process must call it."""
        if self.world == 1:
            return local
        gathered: list[Any] | None = [None] * self.world if self.is_main else None
        dist.gather_object(local, gathered, dst=0)
        return {index: value for entries in gathered or [] for index, value in entries.items()}

    def broadcast_object(self, value: Value) -> Value:
        """Returns rank 0's ``value`` on every process."""
        objects = [value]
        if self.world > 1:
            dist.broadcast_object_list(objects, src=0)
        return objects[0]

    def barrier(self) -> None:
        """Waits for all processes."""
        if self.world > 1:
            dist.barrier()

    def shutdown(self) -> None:
        """Destroys the process group."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()


def launch(work: Callable[..., None], arguments: tuple[Any, ...], workers: int) -> None:
    """Runs ``work(*arguments)`` in ``workers`` new processes on this machine; `Processes` connects them.

    Raises:
        torch.multiprocessing.ProcessException: a process failed; the others have been terminated.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # its port can't be taken while the workers start
    torch.multiprocessing.start_processes(_start, (work, arguments, workers, store.port), nprocs=workers, start_method="spawn")


def _start(rank: int, work: Callable[..., None], arguments: tuple[Any, ...], workers: int, port: int) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(workers),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is in the parent process
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    work(*arguments)
