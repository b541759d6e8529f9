"""``attributegan-submit``: submits a training run, or a sweep of them, to Slurm. Other commands are submitted by submit_array.py.

Owns the command line, the checks before submission, and the submission folder. The batch script is in batch_script.py, the job in job.py
and requeue.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attributegan import cli, config, option_help
from attributegan.config import Config
from attributegan.run_dir import status
from slurm import batch_script, follow_up
from slurm import cluster_config as clusters
from slurm.cluster_config import ClusterConfig
from tools.arrays.workload import COMMANDS

if TYPE_CHECKING:  # slow import, deferred so that --help is fast
    from submitit.core.core import Job

EXAMPLES = """\
  attributegan-submit --config paper --cluster gpu data.shards=shards run.dir=runs/paper
  attributegan-submit --config … --cluster … data.shards=shards run.dir=runs/paper --dry-run      print the batch script
  attributegan-submit --config … --cluster … data.shards=shards run.dir=runs/sweep --array rates
  attributegan-submit --config … --cluster … data.shards=shards run.dir=runs/paper --then evaluate --then 'sample --count 64'
  attributegan-runs runs                                                                          show their states
To set up a new cluster, see docs/cluster.md.

Instead of a training, a command as a job array (attributegan-submit COMMAND --help):
  COMMAND
    tile      cut tissue tiles from whole-slide images
    measure   measure nuclei and stains of tiles
    pack      pack a folder of tiles into a shard set
    sample    generate tiles into a shard set
    evaluate  evaluate several runs
    study     train and evaluate a suite of recipes"""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] and arguments[0] in COMMANDS:
        from slurm import submit_array

        return submit_array.main(arguments)
    options = _parser().parse_intermixed_args(arguments[arguments[:1] == ["train"] :])
    cli.restrict_umask()
    return cli.exit_status(lambda: submit(options))


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(
        "Submit a training run, or another command, to Slurm; it survives preemption, time limits and dead nodes.", EXAMPLES, add_help=False
    )
    option_help.add_option_help(parser)
    parser.add_argument("--config", required=True, metavar="NAME|FILE", help="a preset, such as paper, or a YAML file")
    parser.add_argument("--cluster", required=True, metavar="NAME|FILE", help="a preset, such as gpu, or a cluster file")
    parser.add_argument("--array", metavar="NAME|FILE", help="sweep, such as rates: a job array with a run for each combination of values")
    parser.add_argument(
        "--then",
        action="append",
        default=[],
        metavar="COMMAND,…|'COMMAND OPTIONS'",
        help="also submit jobs that run attributegan-evaluate or attributegan-sample on the finished run: evaluate,sample, or one command "
        "with its options, such as 'sample --count 64'; repeatable. A relative --out (default: report, samples) is in the run folder",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--dry-run", action="store_true", help="print the batch script without submitting it")
    mode.add_argument("--local", action="store_true", help="run the job on this machine without Slurm, to test it")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="options that override the file")
    return parser


def submit(options: argparse.Namespace) -> None:
    """Submit the runs of the command line.

    Raises:
        ValueError: invalid settings or data, a run that is already running or queued, or no Slurm.
    """
    cluster = clusters.load(options.cluster)
    if find_spec("submitit") is None:
        raise ValueError("submitting needs submitit: pip install 'attributegan[cluster]'")
    if options.array and options.local:
        raise ValueError("--array: requires Slurm; test a single run with --local first")
    if options.then and options.local:
        raise ValueError("--then: requires Slurm; with --local, run the commands after the training")
    base = config.load(options.config, options.overrides)
    home = Path(base.run.dir).resolve()
    runs = [_resolve(run, cluster.processes) for run in _runs(options, base, home)]
    then = follow_up.parse(options.then, runs)
    if options.dry_run:
        folder = home / "submissions" / "0001"
        print(batch_script.slurm_executor(folder, cluster, home.name, dry=True).script(array=len(runs) if len(runs) > 1 else 0))
        print(follow_up.scripts(folder, cluster, home.name, then), end="\n" * bool(then))
        return
    if not options.local and not shutil.which("srun"):
        raise ValueError("srun and sbatch are not on the PATH: submit from a login node of a Slurm cluster, or use --local")
    _check_data(runs)
    with ExitStack() as locks:
        for run in runs:
            _lock(Path(run.run.dir), locks)
        submission = _write_submission(home, runs, cluster)
        jobs = _submit_jobs(submission, home.name, runs, cluster, options)
    print("\n".join(f"{run.run.dir}: job {job.job_id}, {cluster.processes} processes" for run, job in zip(runs, jobs, strict=True)))
    for one, job in zip(then, _submit_follow_ups(submission, cluster, home.name, then, jobs), strict=True):
        print(f"then:    job {job}, {one}")
    print(f"logs:    {submission}\nfollow:  attributegan-runs --follow {shlex.quote(runs[0].run.dir)}")


def _runs(options: argparse.Namespace, base: Config, home: Path) -> list[Config]:
    """Returns the configuration of each run; those of a sweep get a folder in ``home``."""
    if not options.array:
        return [base]
    from slurm import sweep

    return [
        config.override(base, [*overrides, f"run.dir={home / name}"], str(options.config))
        for name, overrides in sweep.read(options.array).items()
    ]


def _resolve(run: Config, processes: int) -> Config:
    """Returns ``run`` with an absolute run.dir and with train.world_size set to ``processes``."""
    train, divisor = run.train, run.train.grad_accumulation * processes
    if train.world_size not in (0, processes):
        raise ValueError(
            f"train.world_size: is {train.world_size}, but the cluster configuration has {processes} processes; remove the option"
        )
    if train.batch % divisor:
        raise ValueError(
            f"train.batch: {train.batch} is not divisible by {processes} processes x {train.grad_accumulation} micro-batches "
            "(train.grad_accumulation); choose a multiple"
        )
    folder = str(Path(run.run.dir).resolve())
    if "%" in folder:
        raise ValueError(f"run.dir: {folder} contains %, which Slurm replaces in the names of logs (as in %j); choose another name")
    return dataclasses.replace(run, train=dataclasses.replace(train, world_size=processes), run=dataclasses.replace(run.run, dir=folder))


def _check_data(runs: Sequence[Config]) -> None:
    """Check the data of each run, so that errors appear before the job waits in the queue.

    Reads indexes of remote sets through a temporary folder, since ``data.cache`` may be a disk that only compute nodes have.
    """
    from launch.train import model_schema, open_shards

    with tempfile.TemporaryDirectory() as folder:
        for run in {(r.data, r.model.attributes): r for r in runs}.values():
            checked = dataclasses.replace(run, data=dataclasses.replace(run.data, cache=folder)) if run.data.cache else run
            model_schema(checked, open_shards(checked).schema)


def _lock(folder: Path, locks: ExitStack) -> None:
    """Lock the run folder until ``locks`` closes.

    Raises:
        ValueError: its run is already running or queued.
    """
    from attributegan.run_dir.lock import RunLock, process_start_time
    from launch import squeue

    lock = RunLock(folder, "submission")
    lock.acquire()
    locks.callback(lock.release)
    now = status.read(folder)
    if now is None or now.state == "finished":
        return
    if now.state == "queued" and now.host == socket.gethostname() and process_start_time(now.pid):
        raise ValueError(f"run.dir: {folder} is already queued on this machine (process {now.pid}); stop that process first")
    if not now.job:
        return
    states = squeue.states([now.job])
    if states is None:
        raise ValueError(f"run.dir: {folder} was submitted as job {now.job}, and squeue failed, so its state is unknown; try again later")
    if states.get(now.job, "COMPLETING") != "COMPLETING":
        raise ValueError(
            f"run.dir: {folder} is already job {now.job} ({states[now.job]}); run scancel {now.job} first, or choose another folder"
        )


def _write_submission(home: Path, runs: Sequence[Config], cluster: ClusterConfig) -> Path:
    """Create the submission folder with a snapshot of the code, the configurations and the plan."""
    from slurm import snapshot
    from slurm.submission import Plan, Run, new_folder

    submission = new_folder(home)
    snapshot.take(submission)
    planned = []
    for index, run in enumerate(runs):
        path = submission / f"config-{index}.yaml"
        path.touch(mode=0o600)  # the URL of the shards may contain a secret
        path.write_text(config.dump(run))
        planned.append(Run(run.run.dir, str(path)))
    Plan(cluster.processes, cluster.max_requeues, cluster.network_environment(), planned).save(submission)
    return submission


def _submit_jobs(
    submission: Path, name: str, runs: Sequence[Config], cluster: ClusterConfig, options: argparse.Namespace
) -> list[Job[Any]]:
    """Submit a job for each run, with status "queued" in its run folder; restores the status if sbatch fails."""
    from submitit.core.utils import FailedJobError

    from slurm.job import TrainJob

    executor = batch_script.local_executor(submission, cluster) if options.local else batch_script.slurm_executor(submission, cluster, name)
    before = {run.run.dir: status.read(Path(run.run.dir)) for run in runs}
    queued = {"state": "queued", "processes": cluster.processes, "job": "", "host": "", "pid": 0, "error": "", "requeues": 0}
    for run in runs:
        status.update(Path(run.run.dir), total=run.train.images, **queued)
    jobs = [TrainJob(str(submission), index) for index in range(len(runs))]
    with batch_script.uninterrupted(), _output_to_log(submission if options.local else None):  # a job without its pickle would never start
        try:
            submitted = executor.submit_array(jobs) if options.array else [executor.submit(jobs[0])]
        except (subprocess.CalledProcessError, FailedJobError, OSError) as error:
            for run in runs:
                status.restore(Path(run.run.dir), before[run.run.dir])
            reason = batch_script.last_line(error)
            raise ValueError(
                f"sbatch failed: {reason}. Fix {options.cluster}, submit from a login node, or run on this machine with --local"
            ) from error
        for run, job in zip(runs, submitted, strict=True):
            now = status.read(Path(run.run.dir))
            process = {"host": socket.gethostname(), "pid": int(job.job_id)} if options.local else {"job": job.job_id}
            if now and now.state == "queued" and not now.job:
                status.update(Path(run.run.dir), **process)
    return submitted


def _submit_follow_ups(
    submission: Path, cluster: ClusterConfig, name: str, then: Sequence[follow_up.FollowUp], jobs: Sequence[Job[Any]]
) -> list[str]:
    """Submit the jobs of ``--then``; returns their IDs."""
    from submitit.core.utils import FailedJobError

    try:
        with batch_script.uninterrupted():
            return follow_up.submit(submission, cluster, name, then, [job.job_id for job in jobs]) if then else []
    except (subprocess.CalledProcessError, FailedJobError, OSError) as error:
        raise ValueError(
            f"--then: sbatch failed: {batch_script.last_line(error)}. The training is submitted as job {jobs[0].job_id.partition('_')[0]}; "
            "run the commands of --then after it has finished"
        ) from error


@contextmanager
def _output_to_log(submission: Path | None) -> Iterator[None]:
    """Redirect stdout and stderr to local.log in ``submission``: a local job outlives this command and must not hold its pipes open."""
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


if __name__ == "__main__":
    sys.exit(main())
