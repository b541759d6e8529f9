"""The faults of chaos cases: from outside (signals, disks, networks, shards, a store) or inside the process (see inside/armed.py)."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modes import LIMIT_S, Mode, Started, processes
from nodes import INTERFACE

STEP, IMAGES, SAVE_EVERY = 8, 80, 16  # images
LOCAL = ("1 process", "DDP", "ZeRO-1", "ZeRO-2", "ZeRO-3")
LAUNCHED = ("DDP", "ZeRO-1", "ZeRO-2", "ZeRO-3", "2 machines", "Slurm")
EVERYWHERE = (*LOCAL, "2 machines", "Slurm")


@dataclass
class Scene:
    """The state of a running case."""

    rng: random.Random
    mode: Mode
    folder: Path
    shards: str
    at: int  # images at which to inject the fault
    started: Started | None = None
    undo: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)  # clean-up at the end
    struck: str = ""  # description of the injected fault
    readers_killed: bool = False  # by SIGKILL, so that they could not clean up
    store: Any = None  # the web server with the shards
    again: Callable[[], Started] = field(default=lambda: None)  # type: ignore[assignment,return-value]  # starts the run a second time

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def wait_until(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait for ``condition`` and return its value; returns the last value if the run ends first."""
        until = time.monotonic() + LIMIT_S
        while not (value := condition()):
            if self.started and not self.started.alive():
                return condition()
            assert time.monotonic() < until, f"no {what} in {LIMIT_S:.0f} s"
            time.sleep(0.02)
        return value

    def wait_images(self, images: int) -> None:
        metrics = self.run / "metrics.jsonl"
        self.wait_until(lambda: metrics.exists() and f'"images": {images},' in metrics.read_text(), f"{images} images")

    def wait_moment(self) -> None:
        """Wait for ``at`` images, or for the training processes if it is 0."""
        if self.at:
            self.wait_images(self.at)
        else:
            self.wait_until(lambda: len(self.started.trainers()) == self.mode.world, "training process")
            time.sleep(self.rng.uniform(0, 3))

    def wait_checkpoint(self) -> Path | None:
        """Wait for ``at`` images and a checkpoint; returns the latest."""
        self.wait_moment()
        return self.wait_until(lambda: max((self.run / "checkpoints").glob("images-*"), default=None), "checkpoint")


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Args:
        name: what happens.
        modes: launch modes in which it can happen.
        messages: the run must print or log one of these; empty if the fault leaves no message.
        strike: injects the fault from outside.
        inside: returns the part of CHAOS that injects the fault inside the process.
        prepare: runs before the start; may mount, serve or wrap the command.
        heal: fixes what a user would fix, after the run has ended and before it is restarted.
        options: of the disturbed run.
        may_differ: the end may differ from that of the undisturbed run if one of ``messages`` is printed; an equal end needs no message.
        window: data.shuffle_window, which selects the run to compare with.
        ends: whether the fault must end the run (True), must not (False), or may (None).
        at_least: earliest injection, in images.
        mounts: whether it needs the right to mount file systems.
    """

    name: str
    modes: tuple[str, ...]
    messages: tuple[str, ...] = ()
    strike: Callable[[Scene], None] | None = None
    inside: Callable[[random.Random], dict[str, Any]] | None = None
    prepare: Callable[[Scene], dict[str, str]] | None = None
    heal: Callable[[Scene], None] | None = None
    options: tuple[str, ...] = ()
    may_differ: bool = False
    window: int = 0
    ends: bool | None = True
    at_least: int = 0
    mounts: bool = False


GOES_ON = "resuming from"
ANOTHER = (
    "has sent no heartbeat",
    "does not respond",
    "Root Cause",
    "another process of this run has ended",
    "exitcode",
    "was killed by signal",
)


# Signals


def _signal(number: signal.Signals, whom: Callable[[Scene], list[int]]) -> Callable[[Scene], None]:
    def strike(scene: Scene) -> None:
        scene.wait_moment()
        pids = whom(scene)
        scene.struck = f"{number.name} to {len(pids)} of {scene.mode.world}"
        scene.started.send(number, pids)

    return strike


def _one(scene: Scene) -> list[int]:
    trainers = sorted(scene.started.trainers().items())
    return [scene.rng.choice(trainers)[1]] if trainers else []


def _stop(scene: Scene) -> None:
    """Stop one process: for good under one launcher, which kills it; on two machines until the other machine has given up."""
    scene.wait_moment()
    pids, scene.readers_killed = _one(scene), True  # the launcher kills it with its children
    scene.struck = f"{signal.SIGSTOP.name} to {len(pids)} of {scene.mode.world}"
    scene.started.send(signal.SIGSTOP, pids)
    if scene.mode.name == "2 machines":
        scene.wait_until(lambda: any(command.poll() is not None for command in scene.started.commands), "exit on the other machine")
        scene.started.send(signal.SIGCONT, pids)


def _all(scene: Scene) -> list[int]:
    return list(scene.started.trainers().values())


def _launchers(scene: Scene) -> list[int]:
    found = sorted(scene.started.launchers())
    return [scene.rng.choice(found)] if found else []


def _reader(scene: Scene) -> list[int]:
    found, scene.readers_killed = scene.wait_until(scene.started.readers, "reading process") or [], True
    return [scene.rng.choice(found)] if found else []


def _every_process(scene: Scene) -> list[int]:
    scene.readers_killed = True
    return processes(scene.started.token)


# The disk


def _tmpfs(path: Path, size: str, undo: contextlib.ExitStack) -> None:
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "chaos", str(path)], check=True)
    undo.callback(subprocess.run, ["umount", "--lazy", str(path)], check=False)


def _small_disk(scene: Scene) -> dict[str, str]:
    _tmpfs(scene.run, "64m", scene.undo)
    return {}


def _fill(scene: Scene) -> None:
    """Fill the disk with a file, which `_free` deletes."""
    scene.wait_moment()
    with contextlib.suppress(OSError), (scene.run / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    scene.struck = "disk full"


def _free(scene: Scene) -> None:
    (scene.run / "ballast").unlink(missing_ok=True)


def _read_only(scene: Scene) -> None:
    scene.wait_moment()
    subprocess.run(["mount", "--bind", str(scene.run), str(scene.run)], check=True)
    remount = ["mount", "-o", "remount,ro,bind", str(scene.run)]
    scene.wait_until(lambda: subprocess.run(remount, capture_output=True).returncode == 0, "moment in which no file is being written")
    scene.struck = "run folder read-only"


def _writable(scene: Scene) -> None:
    subprocess.run(["umount", "--lazy", str(scene.run)], check=False)


def _vanish(scene: Scene) -> None:
    scene.wait_moment()
    os.rename(scene.run, scene.folder / "away")
    scene.struck = "run folder gone"


def _come_back(scene: Scene) -> None:
    if (scene.folder / "away").exists():
        shutil.rmtree(scene.run, ignore_errors=True)
        os.rename(scene.folder / "away", scene.run)


def _small_shm(scene: Scene) -> dict[str, str]:
    """Mount a /dev/shm that is too small for a batch; restored when the run has ended."""
    size = scene.rng.choice([4, 16, 64])
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "chaos", "/dev/shm"], check=True)
    scene.undo.callback(_large_shm, scene)
    scene.struck = f"/dev/shm of {size} KiB"
    return {}


def _large_shm(scene: Scene) -> None:
    size = shutil.disk_usage("/dev/shm").total
    if size <= 1 << 16:
        subprocess.run(["umount", "--lazy", "/dev/shm"], check=False)


# Checkpoints and shards


def _damage_checkpoint(how: str) -> Callable[[Scene], None]:
    def strike(scene: Scene) -> None:
        scene.wait_checkpoint()
        scene.started.send(signal.SIGKILL, _every_process(scene))
        scene.wait_until(lambda: not processes(scene.started.token), "end of all processes")
        if not (newest := max((scene.run / "checkpoints").glob("images-*"), default=None)):
            return
        path = scene.rng.choice(sorted(newest.iterdir()))
        scene.struck = f"{newest.name}/{path.name}: {how}"
        if how == "missing":
            path.unlink()
        elif how == "truncated":
            os.truncate(path, scene.rng.randrange(path.stat().st_size))
        else:
            data = bytearray(path.read_bytes())
            data[scene.rng.randrange(len(data))] ^= 1 << scene.rng.randrange(8)
            path.write_bytes(data)

    return strike


def _own_shards(scene: Scene) -> dict[str, str]:
    copy = scene.folder / "shards"
    shutil.copytree(scene.shards, copy)
    scene.shards = str(copy)
    return {}


def _damage_shard(scene: Scene) -> None:
    """Overwrite one tile of every shard in place during training."""
    from data_shards.format import index

    scene.wait_moment()
    rows = index.read_table(Path(scene.shards) / index.FILE).to_pylist()
    for shard in sorted({row["shard"] for row in rows if row["split"] == "train"}):
        row = scene.rng.choice([row for row in rows if row["shard"] == shard])
        with (Path(scene.shards) / shard).open("r+b") as stream:
            stream.seek(row["offset"])
            stream.write(scene.rng.randbytes(row["length"]))
    scene.struck = "a tile of each shard overwritten"


def _truncate_shards(scene: Scene) -> None:
    scene.wait_moment()
    for path in Path(scene.shards).glob("train-*.tar"):
        os.truncate(path, 512)
    scene.struck = "shards truncated"


def _whole_shards(scene: Scene) -> None:
    """Copy the shards again, as a user would: a restart refuses the damaged set."""
    shards, whole = Path(scene.shards), scene.folder.parent / "shards"
    for path in whole.glob("train-*.tar"):
        shutil.copyfile(path, shards / path.name)


def _served(faults: Callable[[random.Random, list[str]], dict[str, list[str]]]) -> Callable[[Scene], dict[str, str]]:
    """Serve the shards from loopback, with a separate cache."""

    def prepare(scene: Scene) -> dict[str, str]:
        from stores import web

        folder = Path(scene.shards)
        names = [path.name for path in folder.glob("train-*.tar")]
        site = scene.undo.enter_context(web(folder))
        for name, wrong in faults(scene.rng, names).items():
            site.faults[name] += wrong
            scene.struck = f"{name}: {', '.join(wrong[:4])}{' ...' if len(wrong) > 4 else ''}"
        scene.shards = site.url
        scene.store = site
        return {"XDG_CACHE_HOME": str(scene.folder / "cache")}

    return prepare


def _now_and_then(rng: random.Random, names: list[str]) -> dict[str, list[str]]:
    name = rng.choice([*names, "index.parquet", "SHA256SUMS"])
    return {name: rng.choices(["stall", "500", "429", "cut", "wrong"], k=rng.randint(1, 4))}


def _for_good(rng: random.Random, names: list[str]) -> dict[str, list[str]]:
    return {rng.choice(names): [rng.choice(["stall", "500", "cut", "wrong"])] * 200}


def _store_mended(scene: Scene) -> None:
    scene.store.faults.clear()


# The network, nodes, other users


def _cut(seconds: float) -> Callable[[Scene], None]:
    """Cut the network between the two machines, for ``seconds`` or until the run has ended (0)."""

    def strike(scene: Scene) -> None:
        scene.wait_moment()
        _cable(scene, "down")
        scene.struck = f"cable pulled for {seconds:g} s" if seconds else "cable pulled"
        if seconds:
            time.sleep(seconds)
            _cable(scene, "up")

    return strike


def _cable(scene: Scene, state: str) -> None:
    name = scene.mode.nodes[1].before[3]
    subprocess.run(["ip", "-n", name, "link", "set", INTERFACE, state], check=True)


def _cable_back(scene: Scene) -> None:
    _cable(scene, "up")


def _node_lost(scene: Scene) -> None:
    cluster, host = scene.mode.cluster, scene.rng.choice(["node1", "node2"])  # type: ignore[attr-defined]
    scene.wait_moment()
    cluster.fail(host)
    scene.struck, scene.readers_killed = f"{host} lost", True
    cluster.wait_until(lambda: "RUNNING" not in cluster.job(scene.started.job)["JobState"], 120, "requeue after the node failure")  # type: ignore[union-attr]
    cluster.heal(host)


def _slurm(*command: str) -> Callable[[Scene], None]:
    def strike(scene: Scene) -> None:
        scene.wait_moment()
        scene.struck = " ".join(command)
        scene.mode.cluster.run(*command, scene.started.job, check=False)  # type: ignore[attr-defined,union-attr]

    return strike


def _second_start(scene: Scene) -> None:
    scene.wait_moment()
    status = scene.again().wait(LIMIT_S)
    scene.struck = f"second start exited with status {status}"
    assert status not in (0, None), scene.struck


# From inside

CALLS = ("mkdir", "ftruncate", "pwrite", "fsync", "rename", "write_text", "rmdir", "unlink")


def _dies_in_write(rng: random.Random) -> dict[str, Any]:
    call = rng.choice(CALLS)
    how = rng.choice(["before", "torn"] if call in ("pwrite", "write_text") else ["before", "after"])
    return {"strike": "in write", "call": call, "nth": _nth(rng, call), "how": how}


def _error_in_write(rng: random.Random) -> dict[str, Any]:
    call = rng.choice([call for call in CALLS if call not in ("rmdir", "unlink")])
    return {"strike": "in write", "call": call, "nth": _nth(rng, call), "how": "error"}


def rank_of(rng: random.Random, world: int, inside: dict[str, Any]) -> int:
    """Draw the rank to inject into; some calls are made on rank 0 only."""
    rank = rng.randrange(world)
    return 0 if inside.get("call") in ("ftruncate", "rename", "write_text", "rmdir", "unlink") else rank


def _nth(rng: random.Random, call: str) -> int:
    """Draw which call to inject into, up to the number of calls for one checkpoint."""
    return rng.randint(1, {"pwrite": 60, "fsync": 12, "write_text": 2, "ftruncate": 5, "unlink": 6}.get(call, 1))


def _not_finite(where: str) -> Callable[[random.Random], dict[str, Any]]:
    return lambda rng: {"strike": "not finite", "where": where}


def _clock_jump(rng: random.Random) -> dict[str, Any]:
    return {"strike": "clock", "seconds": rng.choice([-10, 10]) * rng.choice([60, 86400, 365 * 86400])}


def _no_memory(rng: random.Random) -> dict[str, Any]:
    return {"strike": "no memory"}


def _slow(rng: random.Random) -> dict[str, Any]:
    return {"pause": 2.0}


UNMET = ("rendezvous failed", "no response in")  # before the rendezvous: they wait for train.timeout_s
KILLED = (GOES_ON, *ANOTHER)
DIVERGED, TWICE = ("not finite",), ("train.max_nonfinite=2",)
FAULTS = (
    Fault("SIGKILL to one process", EVERYWHERE, KILLED, _signal(signal.SIGKILL, _one)),
    Fault("SIGKILL to all processes", EVERYWHERE, KILLED, _signal(signal.SIGKILL, _all)),
    Fault("SIGKILL to a launcher", LAUNCHED, KILLED, _signal(signal.SIGKILL, _launchers)),
    Fault("SIGKILL to launcher and all", EVERYWHERE, (GOES_ON, "tiles,"), _signal(signal.SIGKILL, _every_process)),
    Fault("SIGKILL to a reading process", LOCAL, ("DataLoader worker",), _signal(signal.SIGKILL, _reader), at_least=8),
    Fault("SIGTERM to one process", EVERYWHERE, ("stopped and saved", "signal", GOES_ON), _signal(signal.SIGTERM, _one)),
    Fault("SIGTERM to all processes", EVERYWHERE, ("stopped and saved", "signal", GOES_ON), _signal(signal.SIGTERM, _all)),
    Fault("SIGTERM to a launcher", LAUNCHED, ("stopped and saved", "signal", GOES_ON), _signal(signal.SIGTERM, _launchers)),
    Fault("one process stands still", LAUNCHED[:5], ANOTHER, _stop, at_least=8),
    Fault("killed while writing a checkpoint", EVERYWHERE, KILLED, inside=_dies_in_write, options=("run.keep_last=2",), ends=None),
    Fault("error while writing a checkpoint", EVERYWHERE, ("Input/output error",), inside=_error_in_write),
    Fault("disk full", LOCAL, ("No space left",), _fill, prepare=_small_disk, heal=_free, mounts=True),
    Fault("run folder read-only", LOCAL, ("Read-only file system",), _read_only, heal=_writable, mounts=True),
    Fault("run folder vanishes", LOCAL, ("No such file",), _vanish, heal=_come_back),
    Fault("checkpoint: flipped bit", LOCAL, ("skipping corrupted checkpoint", "tiles,"), _damage_checkpoint("flipped bit")),
    Fault("checkpoint: missing file", LOCAL, ("skipping corrupted checkpoint", "tiles,"), _damage_checkpoint("missing")),
    Fault("checkpoint: truncated file", LOCAL, ("skipping corrupted checkpoint", "tiles,"), _damage_checkpoint("truncated")),
    Fault("tiles damaged while training", LOCAL, ("damaged (",), _damage_shard, prepare=_own_shards, may_differ=True, ends=None),
    Fault(
        "shards cut off while training",
        LOCAL,
        ("too many damaged tiles",),
        _truncate_shards,
        prepare=_own_shards,
        heal=_whole_shards,
        may_differ=True,
        ends=None,
    ),
    Fault("store fails for a while", LOCAL, ("try 2 of 5",), prepare=_served(_now_and_then), window=8, ends=False),
    Fault("store fails", LOCAL, ("download failed 5 times",), prepare=_served(_for_good), heal=_store_mended, window=8),
    Fault("clock jumps", EVERYWHERE, (), inside=_clock_jump, ends=False),
    Fault("network cut for a moment", ("2 machines",), (), _cut(2.0), ends=None),
    Fault("network cut", ("2 machines",), (*ANOTHER, *UNMET), _cut(0.0), heal=_cable_back, options=("train.timeout_s=90",)),
    Fault("node lost and back", ("Slurm",), (GOES_ON, "tiles,"), _node_lost, ends=None),
    Fault("signalled by Slurm", ("Slurm",), ("stopped and saved", "tiles,"), _slurm("scancel", "--signal=USR2"), ends=None),
    Fault("requeued by Slurm", ("Slurm",), (GOES_ON, "tiles,"), _slurm("scontrol", "requeue"), ends=None),
    Fault("NaN in a loss", LOCAL, DIVERGED, inside=_not_finite("loss"), options=TWICE),
    Fault("NaN in a gradient", LOCAL, DIVERGED, inside=_not_finite("gradient"), options=TWICE),
    Fault("NaN in a weight", LOCAL, DIVERGED, inside=_not_finite("weight"), options=TWICE),
    Fault("NaN in a weight that is saved", LOCAL, DIVERGED, inside=_not_finite("weight before it is saved"), options=TWICE),
    Fault("reading process out of memory", LOCAL, ("MemoryError", "DataLoader worker"), inside=_no_memory),
    Fault("/dev/shm too small", LOCAL, ("shared memory", "/dev/shm"), prepare=_small_shm, heal=_large_shm, mounts=True),
    Fault("second start on the run folder", LOCAL, ("is in use by the training on",), _second_start, inside=_slow, ends=False),
)
BY_NAME = {fault.name: fault for fault in FAULTS}
