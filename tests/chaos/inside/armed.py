"""What a chaos case does inside of a training process: note which tiles each step saw, and strike once at its moment.

The variable CHAOS is JSON:

    seen        folder for the tiles of each step, a file for each rank
    settings    {"module.NAME": value}: waiting times, shortened so that a case ends soon
    pause       seconds of sleep before each step
    strike      what happens (see `STRIKES`), "" for nothing
    at          from this number of images on
    rank        in this process alone
    fired       file that is made when it happens; a start that finds it is left in peace
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
IMAGES = 0  # seen by this process
TORN = 2  # a write that is cut short stops at this part of it


def arm(trainer: ModuleType) -> None:
    for name, value in PLAN["settings"].items():
        module, _, attribute = name.rpartition(".")
        setattr(importlib.import_module(module), attribute, value)
    rank = int(os.environ.get("RANK", "0"))
    _note_steps(trainer.Trainer, rank)
    if PLAN["strike"] and rank == PLAN["rank"] and not os.path.exists(PLAN["fired"]):
        STRIKES[PLAN["strike"]](trainer)


def _note_steps(cls: Any, rank: int) -> None:
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
    """Whether now is the moment; it comes once."""
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
    """At the ``nth`` call of ``call`` by the thread that writes checkpoints: die before, in the middle, or get an error."""
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
    """NaN in a loss, a gradient or a weight; the first two at every step from the moment on, while this start lasts."""
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

    def spoil(self: Any) -> None:
        import torch

        parameter = next(iter(self.generator.parameters.values()))
        part = getattr(parameter, "ds_tensor", parameter)  # ZeRO 3 has a share of it
        with torch.no_grad():
            part.data[(0,) * part.dim()] = float("nan")

    name = "save" if PLAN["where"] == "weight before it is saved" else "step"
    plain = getattr(trainer.Trainer, name)

    def wrapped(self: Any, *arguments: Any) -> Any:
        if _fire():
            spoil(self)
        return plain(self, *arguments)

    setattr(trainer.Trainer, name, wrapped)


def _clock(trainer: ModuleType) -> None:
    """The clock is set forward or back."""
    plain, step = time.time, trainer.Trainer.step

    def wrapped(self: Any, batches: Any) -> Any:
        if _fire():
            time.time = lambda: plain() + PLAN["seconds"]
        return step(self, batches)

    trainer.Trainer.step = wrapped


def _no_memory(trainer: ModuleType) -> None:
    """A reading process may not have any more memory."""
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

    TileReader.read = read


STRIKES = {"in write": _in_write, "not finite": _not_finite, "clock": _clock, "no memory": _no_memory}
