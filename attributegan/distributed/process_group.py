"""Work shared by the processes of a launch that train nothing: who does which tiles, and their results in one order.

Reads RANK, WORLD_SIZE and LOCAL_RANK, as torchrun and ``accelerate launch`` set them; alone without them. Tiles are divided in chunks of a
fixed length whatever the number of processes, so that every number is computed from the same arrays by one process and by many.
"""

from __future__ import annotations

import datetime
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import distributed as dist

from attributegan.utils.allocator import keep_freed_memory

Value = TypeVar("Value")
PATIENCE = datetime.timedelta(days=2)  # others wait while the main process does what can't be shared


def is_main() -> bool:
    """Whether this is the first process of a launch, or the only one."""
    return os.environ.get("RANK", "0") == "0"


class Processes:
    """This process among those of the launch; `end` is its last call."""

    def __init__(self) -> None:
        self.rank, self.world = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
        self.is_main = is_main()
        self.device = torch.device("cpu")
        if torch.cuda.is_available():
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        else:
            keep_freed_memory()
        if self.world > 1:
            dist.init_process_group("gloo", timeout=PATIENCE)

    def map(
        self, count: int, chunk: int, work: Callable[[range], Sequence[np.ndarray]], progress: Callable[[int], None] = lambda done: None
    ) -> list[np.ndarray]:
        """Arrays over ``count`` tiles: ``work`` makes those of a chunk, chunks go round the processes.

        Returns:
            the arrays in the order of the tiles, on the main process; [] on the others. Every process must call.
        """
        chunks = [range(first, min(first + chunk, count)) for first in range(0, count, chunk)]
        mine = {}
        for index in range(self.rank, len(chunks), self.world):
            mine[index] = work(chunks[index])
            progress(min(count, chunk * (index + self.world)))
        parts = self._gather(mine)
        return [np.concatenate(arrays) for arrays in zip(*(parts[index] for index in sorted(parts)), strict=True)]

    def _gather(self, mine: dict[int, Any]) -> dict[int, Any]:
        """The entries of every process, on the main one."""
        if self.world == 1:
            return mine
        boxes: list[Any] | None = [None] * self.world if self.is_main else None
        dist.gather_object(mine, boxes, dst=0)
        return {index: value for box in boxes or [] for index, value in box.items()}

    def broadcast_object(self, value: Value) -> Value:
        """The main process's ``value``, on every process."""
        box = [value]
        if self.world > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            dist.barrier()

    def shutdown(self) -> None:
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()


def launch(work: Callable[..., None], arguments: tuple[Any, ...], workers: int) -> None:
    """Run ``work(*arguments)`` in ``workers`` new processes of this machine, which find each other through `Processes`.

    Raises:
        torch.multiprocessing.ProcessException: one of them failed; the others have been ended.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.start_processes(_start, (work, arguments, workers, port), nprocs=workers, start_method="spawn")


def _start(rank: int, work: Callable[..., None], arguments: tuple[Any, ...], workers: int, port: int) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(workers),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    work(*arguments)
