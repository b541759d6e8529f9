"""Follow-up jobs of a training: ``attributegan-evaluate`` and ``attributegan-sample`` of its run, after it has finished.

Each is a Slurm job of one process on one node, with the cluster file of the training, that depends on the training's job (``afterok``):
a training keeps its job ID when it requeues, so that the dependency waits for its final end, and Slurm cancels the follow-up if it fails.
As a module (``python -m slurm.follow_up``) it is what runs in the job, and after it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attributegan import commands, config
from attributegan.cli import STOP_SIGNALS
from attributegan.config import Config
from attributegan.run_dir import status
from slurm import requeue
from slurm.cluster_config import ClusterConfig

FOLDERS = {"evaluate": "report", "sample": "samples"}  # of the output in the run folder, by command
FILE = "follow-ups.json"  # in the folder of the submission


@dataclass(frozen=True)
class FollowUp:
    """One command to run on one run of a submission, as ``attributegan-COMMAND ARGUMENTS``."""

    command: str
    arguments: list[str]
    run: int  # index of the run in the submission

    def __str__(self) -> str:
        return shlex.join([f"attributegan-{self.command}", *self.arguments])


def parse(texts: Sequence[str], runs: Sequence[Config]) -> list[FollowUp]:
    """Returns the commands of ``--then`` for each run.

    Args:
        texts: ``evaluate,sample``, or one command with its options, such as ``sample --count 64``.

    Raises:
        ValueError: an unknown command, options that the command refuses, or two commands with one output folder.
    """
    found: list[FollowUp] = []
    for index, run in enumerate(runs):
        outputs: set[str] = set()
        for text in texts:
            for command, words in _commands(text):
                arguments, out = _arguments(text, command, words, run)
                if out in outputs:
                    raise ValueError(f"--then: two commands write to {out}; give each its own --out")
                if len(runs) > 1 and not Path(out).is_relative_to(run.run.dir):
                    raise ValueError(f"--then: {text!r}: all runs of the array would write to {out}; use a relative --out")
                outputs.add(out)
                found.append(FollowUp(command, arguments, index))
    return found


def _commands(text: str) -> list[tuple[str, list[str]]]:
    """Returns the commands in one value of ``--then``, each with its options."""
    try:
        first, *words = shlex.split(text) or [""]
    except ValueError as error:
        raise ValueError(f"--then: {text!r}: {error}; quote the options as for a shell") from error
    names = first.split(",")
    if unknown := [name for name in names if name not in FOLDERS]:
        raise ValueError(f"--then: {unknown[0]!r} is not {' or '.join(FOLDERS)}; separate commands by commas, without spaces")
    if words and len(names) > 1:
        raise ValueError(f"--then: {text!r}: options after several commands; use --then once per command")
    return [(name, words) for name in names]


def _arguments(text: str, command: str, words: list[str], run: Config) -> tuple[list[str], str]:
    """Returns the complete arguments of the command and its output folder; a relative ``--out`` is in the run folder."""
    from data_shards.storage import stores
    from launch.evaluator import data_options

    data = data_options(run) if command == "evaluate" else []
    given = ["--shards", stores.redact(run.data.shards)] if command == "evaluate" else []  # the job reads the URL from the configuration
    folder = Path(run.run.dir)
    try:
        out = str(folder / commands.settings(command, [str(folder), *given, "--out", FOLDERS[command], *words]).out)
    except ValueError as error:
        raise ValueError(f"--then: {text!r}: {error}") from None
    if "%" in out:
        raise ValueError(f"--then: {out} contains %; choose another --out")
    return [str(folder), *data, *words, "--out", out], out


def job_cluster(cluster: ClusterConfig, job: str) -> ClusterConfig:
    """Returns the request of a job for one process on one node that starts once ``job`` has succeeded."""
    sbatch = {**cluster.sbatch, "dependency": f"afterok:{job}", "kill-on-invalid-dep": "yes"}
    return dataclasses.replace(cluster, nodes=1, tasks_per_node=1, gpus_per_node=min(1, cluster.gpus_per_node), sbatch=sbatch)


def executor(submission: Path, cluster: ClusterConfig, name: str, follow_ups: Sequence[FollowUp], number: int, job: str, dry: bool) -> Any:
    """Returns submitit's executor for follow-up ``number``, and the command of its job."""
    from slurm import batch_script

    made = batch_script.slurm_executor(submission, job_cluster(cluster, job), f"{name}-{follow_ups[number].command}", dry)
    words = f"-m slurm.follow_up {shlex.quote(str(submission))} {number}"
    made.update_parameters(teardown=[f"{shlex.quote(sys.executable)} {words} $? {cluster.max_requeues}"])
    return made, f"{cluster.command} -u {words}"


def scripts(submission: Path, cluster: ClusterConfig, name: str, follow_ups: Sequence[FollowUp]) -> str:
    """Returns the batch scripts as comments, to print after that of the training."""
    lines = []
    for number, one in enumerate(follow_ups):
        made, command = executor(submission, cluster, name, follow_ups, number, "JOB", dry=True)
        lines += [
            "",
            f"# then, as another job: {one}",
            *(f"# {line}" for line in made._make_submission_file_text(command, "").splitlines()),
        ]
    return "\n".join(lines)


def submit(submission: Path, cluster: ClusterConfig, name: str, follow_ups: Sequence[FollowUp], jobs: Sequence[str]) -> list[str]:
    """Submit the follow-ups of the runs, whose jobs are ``jobs``; returns their job IDs."""
    (submission / FILE).write_text(json.dumps([dataclasses.asdict(one) for one in follow_ups], indent=1) + "\n")
    submitted = []
    for number, one in enumerate(follow_ups):
        made, command = executor(submission, cluster, name, follow_ups, number, jobs[one.run], dry=False)
        submitted.append(str(made._submit_command(command).job_id))
    return submitted


def run(submission: Path, number: int) -> None:
    """Replace this process by the command of the follow-up."""
    from launch.evaluator import SHARDS

    one = FollowUp(**json.loads((submission / FILE).read_text())[number])
    shards = config.load(submission / f"config-{one.run}.yaml").data.shards  # may contain a secret, so it is passed in the environment
    again = ["--overwrite"] if one.command == "sample" and status.slurm_restarts() else []
    print(one, flush=True)
    line = commands.child(one.command, *one.arguments, *again)
    os.execve(line[0], line, os.environ | {SHARDS: shards})  # noqa: S606  # no shell


def conclude(srun_status: int, max_requeues: int) -> int:
    """Requeue the job if a signal other than SIGINT stopped it (preemption, time limit); returns its exit status.

    A follow-up starts from the beginning, so the number of requeues is limited.
    """
    job, restarts = status.slurm_job(), status.slurm_restarts()
    if srun_status - 128 not in {*STOP_SIGNALS} - {signal.SIGINT} or requeue.job_state(job) != "running":
        return srun_status
    if restarts >= max_requeues:
        print(f"error: stopped by a signal after {restarts} requeues; is `time` in the cluster file too short?", file=sys.stderr)
        return srun_status
    print(f"stopped by a signal; requeueing the job, {restarts + 1} of at most {max_requeues} times", file=sys.stderr, flush=True)
    if error := requeue.requeue(job):
        print(f"error: {error}", file=sys.stderr)
    return srun_status


def main() -> int:
    submission, number, *after = sys.argv[1:]
    if not after:
        run(Path(submission), int(number))
    for stop in STOP_SIGNALS:  # must not be interrupted; exits soon anyway
        signal.signal(stop, signal.SIG_IGN)
    return conclude(*map(int, after))


if __name__ == "__main__":
    sys.exit(main())
