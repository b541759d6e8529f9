"""The batch script of a submission, and what replaces it on a machine without Slurm.

Owns the environment of the job, what runs in front of the training processes and after them. The ``#SBATCH`` lines are those of
`ClusterConfig.parameters`.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slurm.cluster_config import ClusterConfig

if TYPE_CHECKING:  # slow import, deferred so that --help is fast
    from submitit.core.core import PicklingExecutor


def slurm_executor(submission: Path, cluster: ClusterConfig, name: str, dry: bool = False) -> Any:
    """Returns the executor that writes and submits the batch script; with ``dry`` it only writes it, and needs no Slurm."""
    from submitit import SlurmExecutor

    class Executor(SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 1 if dry else super().affinity()

        def script(self, array: int) -> str:
            """Returns the batch script, of a job array if ``array`` (its number of runs) is not 0."""
            self.parameters.update({"map_count": array} if array else {})
            text: str = self._make_submission_file_text(self._submitit_command_str, "")
            return text

    executor = Executor(submission, python=cluster.command)
    setup = [
        "trap : INT TERM USR1 USR2  # signals are for the processes of the step; the last line runs after they exit",
        *cluster.exports(),
        f"export PYTHONPATH={shlex.quote(str(submission / 'code'))}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1",
    ]
    requeue = f"{shlex.quote(sys.executable)} -m slurm.requeue {shlex.quote(str(submission))} $?"
    executor.update_parameters(**cluster.parameters(name, setup, [requeue]))
    return executor


def local_executor(submission: Path, cluster: ClusterConfig) -> PicklingExecutor:
    """Returns the executor that runs the job in processes of this machine."""
    from submitit import LocalExecutor

    os.environ.update(cluster.environment)
    os.environ |= {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(submission / "code"), os.environ.get("PYTHONPATH")])),
        "PYTHONSAFEPATH": "1",
    }
    executor = LocalExecutor(submission)
    executor.update_parameters(
        tasks_per_node=cluster.processes, gpus_per_node=cluster.gpus_per_node, timeout_min=cluster.minutes, signal_delay_s=cluster.signal_s
    )
    return executor


def last_line(error: BaseException) -> str:
    """Returns the last line that sbatch printed, from submitit's exception or its cause."""
    for cause in (error, error.__cause__, error.__context__):
        if output := getattr(cause, "stderr", None) or getattr(cause, "output", None):
            text = output.decode(errors="replace") if isinstance(output, bytes) else str(output)
            return text.strip().splitlines()[-1].rstrip(".")
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].rstrip(".")


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore SIGINT, SIGTERM and SIGHUP."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
