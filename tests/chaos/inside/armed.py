"""Runs inside the training processes of a chaos case: logs the tiles of each step and injects the fault once.

The variable CHAOS is JSON:

    seen        folder for the tiles of each step, a file per rank
    settings    {"module.NAME": value}: shorter time-outs
    pause       seconds to sleep before each step
    strike      the fault (see `STRIKES`), "" for none
    at          images from which on to inject it
    rank        the rank to inject it into
    fired       file created when it is injected; if it exists, nothing is injected
"""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import signal
import threading
import time
import zlib
from types import ModuleType
from typing import Any

PLAN: dict[str, Any] = json.loads(os.environ.get("CHAOS", "{}"))
IMAGES = 0  # seen by this rank
TORN = 2  # a torn write stops after 1 / TORN of the data


def arm(trainer: ModuleType) -> None:
    for name, value in PLAN["settings"].items():
        module, _, attribute = name.rpartition(".")
        setattr(importlib.import_module(module), attribute, value)
    rank = int(os.environ.get("RANK", "0"))
    _log_steps(trainer.Trainer, rank)
    if PLAN["strike"] and rank == PLAN["rank"] and not os.path.exists(PLAN["fired"]):
        STRIKES[PLAN["strike"]](trainer)


def _log_steps(cls: Any, rank: int) -> None:
    plain = cls.step

    def step(self: Any, batches: Any) -> Any:
        global IMAGES
        IMAGES = self.images
        time.sleep(PLAN["pause"])
        seen = [[batch.cursor, zlib.crc32(batch.images_BCHW.contiguous().numpy().tobytes()), batch.levels_BA.tolist()] for batch in batches]
        with open(os.path.join(PLAN["seen"], f"{rank}.jsonl"), "a") as file:
            file.write(json.dumps(seen) + "\n")
        return plain(self, batches)

    cls.step = step


def _fire() -> bool:
    """Returns True once, at the first call after ``at`` images."""
    if PLAN["at"] > IMAGES:
        return False
    try:
        os.close(os.open(PLAN["fired"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def _in_write(trainer: ModuleType) -> None:
    """Die before, within or after the ``nth`` call of ``call`` in the checkpoint writer thread, or raise an error in it."""
    calls, nth, how = 0, PLAN["nth"], PLAN["how"]
    owner = pathlib.Path if PLAN["call"] == "write_text" else os
    plain = getattr(owner, PLAN["call"])

    def wrapped(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        if threading.current_thread().name != "checkpoint" or PLAN["at"] > IMAGES + 1:
            return plain(*arguments, **options)
        calls += 1
        if calls < nth or not _fire():
            return plain(*arguments, **options)
        if how == "error":
            raise OSError(5, "Input/output error")
        if how == "torn" and PLAN["call"] in ("pwrite", "write_text"):
            target, data, *others = arguments
            plain(target, data[: len(data) // TORN], *others, **options)
        elif how == "after":
            plain(*arguments, **options)
        _die()

    setattr(owner, PLAN["call"], wrapped)


def _not_finite(trainer: ModuleType) -> None:
    """Put NaN into a loss, a gradient or a weight; the first two at every step of this start after ``at`` images."""
    from attributegan.distributed.engine import Engine

    struck = False

    def now() -> bool:
        nonlocal struck
        struck = struck or _fire()
        return struck

    if PLAN["where"] == "loss":
        backward = Engine.backward
        Engine.backward = lambda self, loss: backward(self, loss * float("nan") if now() else loss)
        return
    if PLAN["where"] == "gradient":
        init = Engine.__init__

        def hooked(self: Any, *arguments: Any, **options: Any) -> None:
            init(self, *arguments, **options)
            next(iter(self.parameters.values())).register_hook(lambda gradient: gradient * float("nan") if now() else gradient)

        Engine.__init__ = hooked
        return

    def corrupt(self: Any) -> None:
        import torch

        parameter = next(iter(self.generator.parameters.values()))
        part = getattr(parameter, "ds_tensor", parameter)  # the local shard under ZeRO 3
        with torch.no_grad():
            part.data[(0,) * part.dim()] = float("nan")

    name = "save" if PLAN["where"] == "weight before it is saved" else "step"
    plain = getattr(trainer.Trainer, name)

    def wrapped(self: Any, *arguments: Any) -> Any:
        if _fire():
            corrupt(self)
        return plain(self, *arguments)

    setattr(trainer.Trainer, name, wrapped)


def _clock(trainer: ModuleType) -> None:
    """Set the clock forward or back."""
    plain, step = time.time, trainer.Trainer.step

    def wrapped(self: Any, batches: Any) -> Any:
        if _fire():
            time.time = lambda: plain() + PLAN["seconds"]
        return step(self, batches)

    trainer.Trainer.step = wrapped


def _no_memory(trainer: ModuleType) -> None:
    """Limit the memory of a data worker so that its next allocation fails."""
    import multiprocessing
    import resource

    from data_shards.loader.tile_reader import TileReader

    plain = TileReader.read
    reads = 0

    def read(self: Any, wanted: Any) -> Any:
        nonlocal reads
        reads += 1
        if multiprocessing.parent_process() is not None and reads == 1 + PLAN["at"]:
            try:
                os.close(os.open(PLAN["fired"], os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return plain(self, wanted)
            resource.setrlimit(resource.RLIMIT_AS, (1 << 20, 1 << 20))
            bytearray(1 << 26)
        return plain(self, wanted)

    TileReader.read = read  # type: ignore[assignment]


STRIKES = {"in write": _in_write, "not finite": _not_finite, "clock": _clock, "no memory": _no_memory}
