"""A cluster as a file in configs/slurm/: what a job asks Slurm for, and what is set for its processes.

Owns every option, its default, its meaning and its check, and their translation for submitit.
"""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attributegan import config, presets
from attributegan.config import read_yaml
from attributegan.errors import require

_TIME = re.compile(r"(?:(\d+)-)?(\d{1,3}):(\d\d)(?::(\d\d))?")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class NetworkConfig:
    """How the processes of a job reach each other: the one place for network cards, time-outs and NCCL."""

    interface: str = ""  # network card for gloo and NCCL, such as ib0; "" takes the one that leads to the first node
    environment: dict[str, str] = field(default_factory=dict)  # NCCL_*, GLOO_*, TORCH_NCCL_*: set in every training process


@dataclass(frozen=True)
class ClusterConfig:
    nodes: int = 1
    gpus_per_node: int = 0  # 0: train on CPU cores
    tasks_per_node: int = 0  # training processes of each node; 0: one for each GPU, or one
    cpus_per_task: int = 4  # a training process and its data.workers
    memory: str = ""  # of each node, such as 64G; "" leaves it to the cluster
    time: str = "24:00:00"  # limit, hours:minutes:seconds or days-hours:minutes:seconds; in quotes; the job goes on in a new turn after it
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    mail: str = ""  # address for word at the end and on failure
    sbatch: dict[str, str] = field(default_factory=dict)  # any other option of sbatch: {exclude: node7, reservation: course}
    srun: tuple[str, ...] = ()  # extra arguments of srun, such as --container-image=image.sqsh
    setup: tuple[str, ...] = ()  # shell lines before training, such as module load cuda
    environment: dict[str, str] = field(default_factory=dict)  # variables of the job
    container: str = ""  # command in front of python, such as apptainer exec --nv image.sif
    python: str = ""  # of the nodes (in the container, if there is one); "" takes the one that submits
    signal_s: int = 120  # seconds before the time limit at which the run is told to save; longer than a step and a checkpoint
    max_requeues: int = 3  # after errors in a row without a new checkpoint; preemption and time limit don't count
    network: NetworkConfig = field(default_factory=NetworkConfig)

    def __post_init__(self) -> None:
        for name in ("nodes", "cpus_per_task", "signal_s"):
            require(getattr(self, name) > 0, f"{name}: {getattr(self, name)} must be above 0")
        for name in ("gpus_per_node", "tasks_per_node", "max_requeues"):
            require(getattr(self, name) >= 0, f"{name}: {getattr(self, name)} is negative")
        require(bool(_TIME.fullmatch(self.time)), f"time: {self.time!r} is not days-hours:minutes:seconds; put it in quotes: '24:00:00'")
        require(self.minutes * 60 > self.signal_s, f"signal_s: {self.signal_s} seconds are not within the time limit of {self.time}")
        for where, names in (("environment", self.environment), ("network.environment", self.network.environment)):
            bad = [name for name in names if not _NAME.fullmatch(name)]
            require(not bad, f"{where}: {bad} are not names of variables")

    @property
    def minutes(self) -> int:
        """The time limit, in whole minutes as Slurm counts."""
        match = _TIME.fullmatch(self.time)
        assert match
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return (days * 24 + hours) * 60 + minutes + (seconds > 0)

    @property
    def processes_per_node(self) -> int:
        return self.tasks_per_node or max(1, self.gpus_per_node)

    @property
    def processes(self) -> int:
        return self.nodes * self.processes_per_node

    @property
    def command(self) -> str:
        """What starts python on a node, as shell text."""
        return f"{self.container} {self.python or shlex.quote(sys.executable)}".strip()

    def parameters(self, name: str, setup: list[str], teardown: list[str]) -> dict[str, Any]:
        """For submitit's SlurmExecutor; ``setup`` and ``teardown`` are shell lines around the training."""
        optional = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "mem": self.memory,
            "gpus_per_node": self.gpus_per_node,
            "mail_user": self.mail,
            "mail_type": "END,FAIL" if self.mail else "",
        }
        return {
            "job_name": name,
            "nodes": self.nodes,
            "ntasks_per_node": self.processes_per_node,
            "cpus_per_task": self.cpus_per_task,
            "time": self.minutes,
            "signal_delay_s": self.signal_s,
            # One process that fails ends the others; Slurm does not hand the cores of a task on to srun.
            "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={self.cpus_per_task}", *self.srun],
            "setup": [*self.setup, *setup],
            "teardown": teardown,
            "additional_parameters": {"requeue": True, **self.sbatch},
            **{key: value for key, value in optional.items() if value},
        }

    def exports(self) -> list[str]:
        """Shell lines that set the variables of the job."""
        return [f"export {name}={shlex.quote(value)}" for name, value in self.environment.items()]

    def network_environment(self) -> dict[str, str]:
        cards = {"GLOO_SOCKET_IFNAME": self.network.interface, "NCCL_SOCKET_IFNAME": self.network.interface}
        return {name: value for name, value in cards.items() if value} | self.network.environment


def load(path: str | Path) -> ClusterConfig:
    """Read a cluster file, or a preset by its name.

    Raises:
        ValueError: an unknown key or a value of the wrong type or range; names the file, the key and the fix.
    """
    path = presets.resolve("slurm", path)
    return config.fill(ClusterConfig, read_yaml(path), where=str(path))
