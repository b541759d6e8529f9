"""One of two ranks, for tests: rank 0 works longer than the time-out of collectives, and no rank fails."""

import time
from datetime import timedelta
from types import SimpleNamespace

from time_limits import seconds
from torch.distributed import distributed_c10d

from attributegan.config import Config, TrainConfig
from attributegan.distributed import runtime as runtimes
from attributegan.training.trainer import Trainer

TIMEOUT_S = min(seconds(4.0), 16.0)

if __name__ == "__main__":
    runtime = runtimes.Runtime(Config(train=TrainConfig(world_size=2, precision="fp32")))
    distributed_c10d._set_pg_timeout(timedelta(seconds=TIMEOUT_S))  # only now, after both ranks have started

    def work() -> int:
        time.sleep(1.5 * TIMEOUT_S)
        return 7

    assert runtime.run_on_rank0(work) == 7
    ready = time.monotonic() + (1.5 * TIMEOUT_S if runtime.is_main else 0)

    class Writer:
        busy = property(lambda self: time.monotonic() < ready)

    Trainer._wait_for_writers(SimpleNamespace(runtime=runtime, writer=Writer()))  # type: ignore[arg-type]
    assert time.monotonic() >= ready
    runtime.barrier()
    runtime.shutdown()
