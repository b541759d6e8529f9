"""Launch modes of chaos cases, each started by the command of a user."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nodes
import slurm_cluster
import yaml
from runs import ROOT, SCRIPT, TINY, begin, launcher
from time_limits import seconds

INSIDE = Path(__file__).parent / "inside"
TOKEN = "CHAOS_CASE"  # environment variable that identifies the processes of a case
# From the start or the fault to the exit of the run; torch's launcher waits 300 s for a launcher killed on another machine.
LIMIT_S = seconds(420.0)


@dataclass
class Started:
    """A start of a run: the processes of the user's command and the training processes."""

    run: Path
    token: str
    commands: list[subprocess.Popen[bytes]]
    outputs: list[Path]

    def trainers(self) -> dict[int, int]:
        """Returns the PIDs of the live training processes by rank."""
        found: dict[int, int] = {}
        for pid in processes(self.token):
            if is_trainer(pid) and not is_trainer(parent(pid)):
                found[int(variable(pid, "RANK") or 0)] = pid
        return found

    def readers(self) -> list[int]:
        """Returns the PIDs of the data workers."""
        return [pid for pid in processes(self.token) if is_trainer(pid) and is_trainer(parent(pid))]

    def launchers(self) -> list[int]:
        return [command.pid for command in self.commands]

    def send(self, number: signal.Signals, pids: list[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def alive(self) -> bool:
        return any(command.poll() is None for command in self.commands)

    def wait(self, limit_s: float) -> int | None:
        """Returns the exit status: 0 if all commands succeeded, None if one still runs after ``limit_s``."""
        until = time.monotonic() + limit_s
        while self.alive():
            if time.monotonic() > until:
                return None
            time.sleep(0.05)
        return next((command.returncode for command in self.commands if command.returncode), 0)

    def output(self) -> str:
        """Returns the output of this start and those before it."""
        return "\n".join(path.read_text(errors="replace") for path in self.outputs if path.exists())


@dataclass
class Mode:
    """Runs on one machine: one process, or a launcher with two."""

    name: str
    file: str  # of configs/accelerate, or "one"
    world: int = 2
    nodes: tuple[nodes.Node, ...] = field(default=(), repr=False)

    def start(self, shards: str, run: Path, options: tuple[str, ...], environment: dict[str, str], token: str) -> Started:
        command = [*launcher(self.file, self.world), SCRIPT, *arguments(shards, run, self.world), *options]
        return Started(run, token, [begin(command, run, **variables(environment, token))], [run.with_name("run.out")])

    @contextlib.contextmanager
    def ready(self) -> Iterator[Mode]:
        yield self


class TwoMachines(Mode):
    """Runs a launcher on each of two machines: network namespaces joined by a virtual cable."""

    def start(self, shards: str, run: Path, options: tuple[str, ...], environment: dict[str, str], token: str) -> Started:
        command = [SCRIPT, *arguments(shards, run, 2), *options]
        started = nodes.launch(self.nodes, self.file, run, command, **variables(environment, token))  # type: ignore[arg-type]
        return Started(run, token, started, [run.with_name(f"run-{rank}.out") for rank in range(2)])

    @contextlib.contextmanager
    def ready(self) -> Iterator[Mode]:
        with nodes.namespaces() as pair:
            self.nodes = pair
            yield self


class Slurm(Mode):
    """Runs a Slurm job of two nodes, which requeues itself."""

    cluster: slurm_cluster.Cluster

    def start(self, shards: str, run: Path, options: tuple[str, ...], environment: dict[str, str], token: str) -> Started:
        cluster = {"nodes": 2, "cpus_per_task": 2, "memory": "2G", "time": "01:00:00", "signal_s": 60}
        file = run.with_name("cluster.yaml")
        run.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(cluster))
        given = [argument for argument in arguments(shards, run, 0) if not argument.startswith("train.world_size")]
        command = [sys.executable, "-m", "slurm.submit", *given, "--cluster", str(file), *options]
        before = self.cluster.environment | variables(environment, token)
        submitted = subprocess.run(
            self.cluster.command(*command), env=before, cwd=ROOT, capture_output=True, text=True, timeout=seconds(120), check=False
        )
        with run.with_name("run.out").open("a") as stream:
            stream.write(submitted.stdout + submitted.stderr)
        assert submitted.returncode == 0, submitted.stderr
        job = json.loads((run / "status.json").read_text())["job"]
        return StartedJob(run, token, [], [run.with_name("run.out"), run / "train.log"], self.cluster, job)

    @contextlib.contextmanager
    def ready(self) -> Iterator[Mode]:
        with slurm_cluster.running() as self.cluster:
            yield self


@dataclass
class StartedJob(Started):
    cluster: slurm_cluster.Cluster
    job: str

    def launchers(self) -> list[int]:
        """The process of each task that starts the training."""
        return [pid for pid in processes(self.token) if b"submitit.core._submit" in _read(pid, "cmdline") and is_python(pid)]

    def alive(self) -> bool:
        state = self.cluster.job(self.job)["JobState"]
        return state not in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL") or bool(processes(self.token))

    def wait(self, limit_s: float) -> int | None:
        until = time.monotonic() + limit_s
        while self.alive():
            if time.monotonic() > until:
                return None
            time.sleep(0.3)
        return 0 if self.cluster.job(self.job)["JobState"] == "COMPLETED" else 1

    def output(self) -> str:
        logs = sorted(self.run.glob("submissions/*/*_log.*"))
        status = (self.run / "status.json").read_text() if (self.run / "status.json").exists() else ""
        return "\n".join([super().output(), status, *(path.read_text(errors="replace") for path in logs)])


def every_mode() -> dict[str, Mode]:
    modes = [
        Mode("1 process", "one", world=1),
        Mode("DDP", "cpu"),
        Mode("ZeRO-1", "zero1"),
        Mode("ZeRO-2", "zero2"),
        Mode("ZeRO-3", "zero3"),  # the generator; the discriminator is at 2
        TwoMachines("2 machines", "multinode_ddp"),
        Slurm("Slurm", ""),
    ]
    return {mode.name: mode for mode in modes}


def arguments(shards: str, run: Path, processes: int) -> list[str]:
    config = run.with_name("config.yaml")
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(yaml.safe_dump(TINY))
    return ["--config", str(config), f"data.shards={shards}", f"run.dir={run}", f"train.world_size={processes}"]


def variables(environment: dict[str, str], token: str) -> dict[str, str]:
    return {"PYTHONPATH": f"{ROOT}{os.pathsep}{INSIDE}", TOKEN: token, "OMP_NUM_THREADS": "1", **environment}


def processes(token: str) -> list[int]:
    """Returns the PIDs of all live processes of a case."""
    mark = f"{TOKEN}={token}".encode()
    return [
        pid
        for pid in (int(path.name) for path in Path("/proc").glob("[0-9]*"))
        if mark in _read(pid, "environ").split(b"\0") and state(pid) not in ("Z", "X", "")
    ]


def is_trainer(pid: int) -> bool:
    line = _read(pid, "cmdline").split(b"\0")
    return (
        is_python(pid)
        and not any(b"accelerate" in word or b"_submit" in word for word in line)
        and any(word.endswith(b"launch/train.py") for word in line)
    )


def is_python(pid: int) -> bool:
    return b"python" in _read(pid, "cmdline").split(b"\0")[0]


def parent(pid: int) -> int:
    return int((_stat(pid) or ["", "0"])[1])


def state(pid: int) -> str:
    return (_stat(pid) or [""])[0]


def variable(pid: int, name: str) -> str:
    found = [entry for entry in _read(pid, "environ").split(b"\0") if entry.startswith(f"{name}=".encode())]
    return found[0].partition(b"=")[2].decode() if found else ""


def _stat(pid: int) -> list[str]:
    return _read(pid, "stat").decode().rpartition(")")[2].split()


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
