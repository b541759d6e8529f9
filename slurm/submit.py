"""``attributegan-submit``: hand a training run, or a sweep of them, to Slurm.

Owns the command line, the checks before anything is submitted, and the folder of a submission. What then runs is job.py and requeue.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attributegan import cli, config
from attributegan.config import Config
from attributegan.run_dir import status
from slurm import cluster_config as clusters
from slurm.cluster_config import ClusterConfig

if TYPE_CHECKING:  # imports slowly, and help texts should not
    from submitit.core.core import Job, PicklingExecutor

EXAMPLES = """\
  attributegan-submit --config paper --cluster gpu data.shards=shards run.dir=runs/paper
  attributegan-submit --config … --cluster … data.shards=shards run.dir=runs/paper --dry-run      print the batch script
  attributegan-submit --config … --cluster … data.shards=shards run.dir=runs/sweep --array rates
  attributegan-runs runs                                                                          what became of them
docs/cluster.md leads through a new cluster in ten minutes."""


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_intermixed_args(argv)
    cli.restrict_umask()
    return cli.exit_status(lambda: submit(options))


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("Submit a training run to Slurm; it survives preemption, time limits and dead nodes.", EXAMPLES)
    parser.add_argument("--config", required=True, metavar="NAME|FILE", help="a preset, such as paper, or a configuration of yours")
    parser.add_argument("--cluster", required=True, metavar="NAME|FILE", help="a preset, such as gpu, or a cluster file of yours")
    parser.add_argument("--array", metavar="FILE", help="a sweep: every combination of its values is a run in a folder of run.dir")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--dry-run", action="store_true", help="print the batch script and submit nothing")
    where.add_argument("--local", action="store_true", help="run the same job in processes of this machine, to look for mistakes")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="options that replace those of the file")
    return parser


def submit(options: argparse.Namespace) -> None:
    """Submit what the command line says.

    Raises:
        ValueError: bad settings or data, a run that is alive or waits already, or no Slurm.
    """
    cluster = clusters.load(options.cluster)
    if find_spec("submitit") is None:
        raise ValueError("submitting needs submitit: pip install 'attributegan[cluster]'")
    if options.array and options.local:
        raise ValueError("--array: is for Slurm; try one of the runs with --local first")
    home = Path(config.load(options.config, options.overrides).run.dir).resolve()
    runs = [_settled(run, cluster.processes) for run in _runs(options, home)]
    if options.dry_run:
        print(_executor(home / "submissions" / "0001", cluster, home.name, dry=True).script(array=len(runs) if len(runs) > 1 else 0))
        return
    if not options.local and not shutil.which("srun"):
        raise ValueError("srun and sbatch are not on the PATH: submit from a login node of a Slurm cluster, or use --local")
    _check_data(runs)
    with ExitStack() as locks:
        for run in runs:
            _lock(Path(run.run.dir), locks)
        submission = _write_submission(home, runs, cluster)
        jobs = _hand_over(submission, home.name, runs, cluster, options)
    print("\n".join(f"{run.run.dir}: job {job.job_id}, {cluster.processes} processes" for run, job in zip(runs, jobs, strict=True)))
    print(f"logs:    {submission}\nfollow:  attributegan-runs --follow {shlex.quote(runs[0].run.dir)}")


def _runs(options: argparse.Namespace, home: Path) -> list[Config]:
    if not options.array:
        return [config.load(options.config, options.overrides)]
    from slurm import sweep

    return [
        config.load(options.config, [*options.overrides, *overrides, f"run.dir={home / name}"])
        for name, overrides in sweep.read(options.array).items()
    ]


def _settled(run: Config, processes: int) -> Config:
    """``run`` with its full path and the number of processes that it must find."""
    train, share = run.train, run.train.grad_accumulation * processes
    if train.world_size not in (0, processes):
        raise ValueError(f"train.world_size: {train.world_size} were asked for, the cluster file gives {processes}; leave it out")
    if train.batch % share:
        raise ValueError(
            f"train.batch: {train.batch} does not divide into {processes} processes x {train.grad_accumulation} micro-batches "
            "(train.grad_accumulation); choose a multiple"
        )
    folder = str(Path(run.run.dir).resolve())
    if "%" in folder:
        raise ValueError(
            f"run.dir: {folder} has a %, with which Slurm begins patterns such as %j in the names of logs; choose another name"
        )
    return dataclasses.replace(run, train=dataclasses.replace(train, world_size=processes), run=dataclasses.replace(run.run, dir=folder))


def _check_data(runs: Sequence[Config]) -> None:
    """What training would refuse is refused before it has waited in a queue."""
    from launch.train import model_schema, open_shards

    for run in {(r.data, r.model.attributes): r for r in runs}.values():
        model_schema(run, open_shards(run).schema)


def _lock(folder: Path, locks: ExitStack) -> None:
    """The run folder for this submission alone, until it is over; ValueError when its run is alive or waits."""
    from attributegan.run_dir.lock import RunLock, born
    from launch import squeue

    lock = RunLock(folder, "submission")
    lock.acquire()
    locks.callback(lock.release)
    now = status.read(folder)
    if now is None or now.state == "finished":
        return
    if now.state == "queued" and now.host == socket.gethostname() and born(now.pid):
        raise ValueError(f"run.dir: {folder} is about to be trained in on this machine (process {now.pid}); stop that first")
    if not now.job:
        return
    known = squeue.states([now.job])
    if known is None:
        raise ValueError(f"run.dir: {folder} was submitted as job {now.job}, and Slurm does not answer what became of it; try again later")
    if known.get(now.job, "COMPLETING") != "COMPLETING":
        raise ValueError(
            f"run.dir: {folder} is job {now.job} already ({known[now.job]}); scancel {now.job} first, or choose another folder"
        )


def _write_submission(home: Path, runs: Sequence[Config], cluster: ClusterConfig) -> Path:
    """A new folder with code, configurations and the plan of what is to be done."""
    from slurm import snapshot
    from slurm.submission import Plan, Run

    parent = home / "submissions"
    parent.mkdir(parents=True, exist_ok=True)
    submission = parent / f"{1 + max((int(path.name) for path in parent.glob('[0-9]*')), default=0):04d}"
    submission.mkdir()
    snapshot.take(submission)
    planned = []
    for index, run in enumerate(runs):
        path = submission / f"config-{index}.yaml"
        path.touch(mode=0o600)  # the address of its shards may have a secret
        path.write_text(config.dump(run))
        planned.append(Run(run.run.dir, str(path)))
    Plan(cluster.processes, cluster.max_requeues, cluster.network_environment(), planned).save(submission)
    return submission


def _hand_over(submission: Path, name: str, runs: Sequence[Config], cluster: ClusterConfig, options: argparse.Namespace) -> list[Job[Any]]:
    from submitit.core.utils import FailedJobError

    from slurm.job import TrainJob

    executor = _local_executor(submission, cluster) if options.local else _executor(submission, cluster, name)
    before = {run.run.dir: status.read(Path(run.run.dir)) for run in runs}
    waiting = {"state": "queued", "processes": cluster.processes, "job": "", "host": "", "pid": 0, "error": "", "requeues": 0}
    for run in runs:
        status.update(Path(run.run.dir), total=run.train.images, **waiting)
    jobs = [TrainJob(str(submission), index) for index in range(len(runs))]
    with _uninterrupted(), _quiet(submission if options.local else None):  # a job without its pickle would wait for it in vain
        try:
            submitted = executor.submit_array(jobs) if options.array else [executor.submit(jobs[0])]
        except (subprocess.CalledProcessError, FailedJobError, OSError) as error:
            for run in runs:
                status.restore(Path(run.run.dir), before[run.run.dir])
            raise ValueError(
                f"sbatch refuses the job: {_last_line(error)}. Correct {options.cluster}, submit where sbatch works, or try "
                "the run on this machine with --local"
            ) from error
        for run, job in zip(runs, submitted, strict=True):
            now = status.read(Path(run.run.dir))
            who = {"host": socket.gethostname(), "pid": int(job.job_id)} if options.local else {"job": job.job_id}
            if now and now.state == "queued" and not now.job:
                status.update(Path(run.run.dir), **who)
    return submitted


def _last_line(error: BaseException) -> str:
    """What sbatch said last, as submitit hands it on."""
    for cause in (error, error.__cause__, error.__context__):
        if said := getattr(cause, "stderr", None) or getattr(cause, "output", None):
            text = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
            return text.strip().splitlines()[-1].rstrip(".")
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].rstrip(".")


@contextmanager
def _uninterrupted() -> Iterator[None]:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _quiet(submission: Path | None) -> Iterator[None]:
    """What is started here and stays says what it has to say in ``submission``, so that nothing waits for its output."""
    if submission is None:
        yield
        return
    saved = [os.dup(number) for number in (1, 2)]
    with (submission / "local.log").open("ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    try:
        yield
    finally:
        for number, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, number)
            os.close(copy)


def _executor(submission: Path, cluster: ClusterConfig, name: str, dry: bool = False) -> Any:
    from submitit import SlurmExecutor

    class Executor(SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 1 if dry else super().affinity()

        def script(self, array: int) -> str:
            """The batch script, for ``array`` runs when that is not 0."""
            self.parameters.update({"map_count": array} if array else {})
            return self._make_submission_file_text(self._submitit_command_str, "")

    executor = Executor(submission, python=cluster.command)
    setup = [
        "trap : INT TERM USR1 USR2  # signals are for the training; what comes after it decides on the next start",
        *cluster.exports(),
        f"export PYTHONPATH={shlex.quote(str(submission / 'code'))}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1",
    ]
    after = f"{shlex.quote(sys.executable)} -m slurm.requeue {shlex.quote(str(submission))} $?"
    executor.update_parameters(**cluster.parameters(name, setup, [after]))
    return executor


def _local_executor(submission: Path, cluster: ClusterConfig) -> PicklingExecutor:
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


if __name__ == "__main__":
    sys.exit(main())
