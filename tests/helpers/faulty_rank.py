"""One of two ranks under a watchdog, for tests: rank 1 fails as requested, rank 0 waits for it in a collective.

faulty_rank.py {raise|kill|hang|stuck|end}
"""

import logging
import os
import signal
import sys
import time
from types import SimpleNamespace

import torch
import torch.distributed as dist

from attributegan.distributed import watchdog

watchdog.HEARTBEAT_S, watchdog.TIMEOUT_S, watchdog.STORE_MARGIN_S, watchdog.GRACE_S = 0.1, 3.0, 1.0, 0.5
logging.basicConfig(format="%(message)s")

if __name__ == "__main__":
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    with watchdog.Watchdog(rank, 2, "token", stopped=lambda: False) as watchdog_of_run:
        if rank == 1:
            time.sleep(0.5)
            match sys.argv[1]:
                case "raise":
                    raise KeyError("a tile")
                case "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "stuck":  # the network is cut: requests to the store never return
                    watchdog_of_run._store = SimpleNamespace(set=lambda *_: time.sleep(1000))  # type: ignore[assignment]
                    time.sleep(1000)
                case "hang":
                    os.kill(os.getpid(), signal.SIGSTOP)
        dist.all_reduce(torch.ones(1))
        if rank == 0:
            time.sleep(4)  # longer than the time-out: a rank that has finished is not reported as missing
