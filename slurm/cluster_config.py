"""The cluster configuration (configs/slurm/*.yaml): resources to request from Slurm and the environment of the processes.

Owns each option with its default, help and check, and the conversion to parameters of submitit.
"""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attributegan import config
from attributegan.config import read_yaml
from attributegan.errors import require

_TIME = re.compile(r"(?:(\d+)-)?(\d{1,3}):(\d\d)(?::(\d\d))?")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class NetworkConfig:
    """Network between the processes of a job: interfaces, time-outs and NCCL settings."""

    interface: str = ""  # network interface for gloo and NCCL, such as ib0; "": the one with the route to the first node
    environment: dict[str, str] = field(default_factory=dict)  # NCCL_*, GLOO_*, TORCH_NCCL_*: set in all training processes


@dataclass(frozen=True)
class ClusterConfig:
    nodes: int = 1
    gpus_per_node: int = 0  # 0: train on CPUs
    tasks_per_node: int = 0  # training processes per node; 0: one per GPU, or one
    cpus_per_task: int = 4  # for a training process and its data.workers
    memory: str = ""  # per node, such as 64G; "": the default of the cluster
    time: str = (
        "24:00:00"  # limit as hours:minutes:seconds or days-hours:minutes:seconds, in quotes; the job is requeued when it is reached
    )
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    mail: str = ""  # address to notify of end and failure
    sbatch: dict[str, str] = field(default_factory=dict)  # other options of sbatch, such as {exclude: node7, reservation: course}
    srun: tuple[str, ...] = ()  # extra arguments of srun, such as --container-image=image.sqsh
    setup: tuple[str, ...] = ()  # shell lines before training, such as module load cuda
    environment: dict[str, str] = field(default_factory=dict)  # environment variables of the job
    container: str = ""  # command prefix of python, such as apptainer exec --nv image.sif
    python: str = ""  # on the nodes (inside the container, if set); "": the Python that submits
    signal_s: int = 120  # seconds before the time limit at which Slurm signals the run to save; longer than a step and a checkpoint
    max_requeues: int = 3  # after consecutive errors without a new checkpoint; preemption and time limits do not count
    network: NetworkConfig = field(default_factory=NetworkConfig)

    def __post_init__(self) -> None:
        for name in ("nodes", "cpus_per_task", "signal_s"):
            require(getattr(self, name) > 0, f"{name}: {getattr(self, name)} must be above 0")
        for name in ("gpus_per_node", "tasks_per_node", "max_requeues"):
            require(getattr(self, name) >= 0, f"{name}: {getattr(self, name)} is negative")
        require(bool(_TIME.fullmatch(self.time)), f"time: {self.time!r} is not days-hours:minutes:seconds; put it in quotes: '24:00:00'")
        require(self.minutes * 60 > self.signal_s, f"signal_s: {self.signal_s} seconds must be less than the time limit, {self.time}")
        for where, names in (("environment", self.environment), ("network.environment", self.network.environment)):
            bad = [name for name in names if not _NAME.fullmatch(name)]
            require(not bad, f"{where}: {bad} are not names of environment variables")

    @property
    def minutes(self) -> int:
        """The time limit in minutes, rounded up, the unit of Slurm."""
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
        """The shell command that starts Python on a node."""
        return f"{self.container} {self.python or shlex.quote(sys.executable)}".strip()

    def parameters(self, name: str, setup: list[str], teardown: list[str]) -> dict[str, Any]:
        """Returns parameters for submitit's SlurmExecutor; ``setup`` and ``teardown`` are shell lines before and after training."""
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
            # A failed process terminates the others. srun does not inherit --cpus-per-task from sbatch.
            "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={self.cpus_per_task}", *self.srun],
            "setup": [*self.setup, *setup],
            "teardown": teardown,
            "additional_parameters": {"requeue": True, **self.sbatch},
            **{key: value for key, value in optional.items() if value},
        }

    def exports(self) -> list[str]:
        """Returns the shell lines that export the environment variables of the job."""
        return [f"export {name}={shlex.quote(value)}" for name, value in self.environment.items()]

    def network_environment(self) -> dict[str, str]:
        """Returns the environment variables of the network settings."""
        interfaces = {"GLOO_SOCKET_IFNAME": self.network.interface, "NCCL_SOCKET_IFNAME": self.network.interface}
        return {name: value for name, value in interfaces.items() if value} | self.network.environment


def load(path: str | Path) -> ClusterConfig:
    """Read a cluster configuration.

    Raises:
        ValueError: an unknown key, or a value of the wrong type or range; the message names the file, the key and the fix.
    """
    return config.fill(ClusterConfig, read_yaml(path), where=str(path))
