"""Cluster files (configs/slurm/): what a job requests from Slurm, and the environment of its processes.

Owns every option, its default, its help and its checks, and their translation for submitit.
docs/reference/configuration.md and configs/slurm/schema.json are made from the fields below; after a change, run
``python docs/reference.py``.
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
from attributegan.options import check_limits, option

_TIME = re.compile(r"(?:(\d+)-)?(\d{1,3}):(\d\d)(?::(\d\d))?")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class NetworkConfig:
    """Network between the processes of a job: interface, timeouts and NCCL settings."""

    interface: str = option(
        "",
        'Network interface for Gloo and NCCL, such as ib0. "" lets Gloo take the interface of the route to the first node and NCCL choose.',
    )
    environment: dict[str, str] = option({}, "Variables set in every training process, such as NCCL_DEBUG: WARN.")


@dataclass(frozen=True)
class ClusterConfig:
    """One Slurm cluster and the size of the job."""

    nodes: int = option(1, "Number of nodes.", minimum=1)
    gpus_per_node: int = option(0, "GPUs per node. 0 trains on CPU cores.", minimum=0)
    tasks_per_node: int = option(0, "Training processes per node. 0 is one per GPU, or one on CPUs.", minimum=0)
    cpus_per_task: int = option(4, "CPU cores per training process, shared with its data.workers.", minimum=1)
    memory: str = option("", 'Memory per node, such as 64G. "" takes the cluster\'s default.')
    time: str = option(
        "24:00:00",
        "Time limit, as hours:minutes:seconds or days-hours:minutes:seconds, in quotes. At the limit the job saves, requeues and resumes.",
    )
    partition: str = option("", 'Partition. "" takes the cluster\'s default.')
    account: str = option("", "Account to charge.")
    qos: str = option("", "Quality of service.")
    constraint: str = option("", "Required node features.")
    mail: str = option("", "Address for mail at the end of the job and on failure.")
    sbatch: dict[str, str] = option({}, "Any other options of sbatch, such as {exclude: node7, reservation: course}.")
    srun: tuple[str, ...] = option((), "Extra arguments of srun, such as --container-image=image.sqsh.")
    setup: tuple[str, ...] = option((), "Shell lines to run before the training, such as module load cuda.")
    environment: dict[str, str] = option({}, "Environment variables of the job.")
    container: str = option("", "Command in front of python, such as apptainer exec --nv image.sif.")
    python: str = option("", 'Python on the nodes, or in the container. "" takes the Python that submits.')
    signal_s: int = option(
        120, "Seconds before the time limit at which the run is signalled to save. Must exceed a step plus a checkpoint.", minimum=1
    )
    max_requeues: int = option(
        3,
        "Number of requeues after consecutive failures without a new checkpoint. Preemption and time limits do not count, except for the "
        "jobs of --then, which start again from the beginning.",
        minimum=0,
    )
    network: NetworkConfig = field(default_factory=NetworkConfig)

    def __post_init__(self) -> None:
        check_limits(self)
        require(bool(_TIME.fullmatch(self.time)), f"time: {self.time!r} is not days-hours:minutes:seconds; put it in quotes: '24:00:00'")
        require(self.minutes * 60 > self.signal_s, f"signal_s: {self.signal_s} seconds must be less than the time limit, {self.time}")
        for where, names in (("environment", self.environment), ("network.environment", self.network.environment)):
            bad = [name for name in names if not _NAME.fullmatch(name)]
            require(not bad, f"{where}: {bad} are not names of environment variables")

    @property
    def minutes(self) -> int:
        """The time limit in whole minutes, rounded up."""
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
        """Returns the parameters of submitit's SlurmExecutor; ``setup`` and ``teardown`` are shell lines around the training."""
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
            # A failed process ends the others; Slurm does not pass the cores of a task on to srun.
            "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={self.cpus_per_task}", *self.srun],
            "setup": [*self.setup, *setup],
            "teardown": teardown,
            "additional_parameters": {"requeue": True, **self.sbatch},
            **{key: value for key, value in optional.items() if value},
        }

    def exports(self) -> list[str]:
        """Returns shell lines that export the environment variables of the job."""
        return [f"export {name}={shlex.quote(value)}" for name, value in self.environment.items()]

    def network_environment(self) -> dict[str, str]:
        """Returns the environment variables of the network settings."""
        interfaces = {"GLOO_SOCKET_IFNAME": self.network.interface, "NCCL_SOCKET_IFNAME": self.network.interface}
        return {name: value for name, value in interfaces.items() if value} | self.network.environment


def load(path: str | Path) -> ClusterConfig:
    """Read a cluster file, or a preset by name. Raises ValueError as `attributegan.options.fill`."""
    path = presets.resolve("slurm", path, "--cluster")
    return config.fill(ClusterConfig, read_yaml(path), where=str(path))
