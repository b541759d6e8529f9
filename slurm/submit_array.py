"""``attributegan-submit tile|measure|pack|sample|evaluate|study``: runs a command as a job array, on Slurm or on this machine.

Owns the command line, the checks before submission and the folder of the array, ``OUT.array``. What a job does is in array.py; jobs on this
machine are started by local_array.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from attributegan import cli
from attributegan.run_dir import status
from attributegan.run_dir.lock import RunLock
from data_shards import worker_pool
from launch import squeue
from slurm import batch_script, submission
from slurm import cluster_config as clusters
from slurm.cluster_config import ClusterConfig
from slurm.submission import Plan, Run
from tools.arrays import state, workload
from tools.arrays.state import Array
from tools.arrays.workload import Workload

MAX_JOBS = 100  # by default
HELP = {
    "tile": ("attributegan-shard tile", "a task for each slide", "slides/*.svs --out tiles --mpp 0.5 --size 512"),
    "measure": (
        "attributegan-shard measure",
        "a task for each range of tiles",
        "--images tiles --attributes crowding=area_fraction --out levels.csv",
    ),
    "pack": (
        "attributegan-shard pack",
        "a part of the shards for each job",
        "--images tiles --labels levels.csv --group slide --out shards",
    ),
    "sample": ("attributegan-sample", "a task for each shard", "runs/paper --format shards --count 100000 --out made"),
    "evaluate": ("attributegan-evaluate report", "a task for each run", "runs/a runs/b --shards shards --out reports"),
    "study": ("attributegan-study", "a task for each recipe and seed", "recipes --out study --seeds 3"),
}


def main(argv: Sequence[str]) -> int:
    """Submit the command that the first argument names, and return the exit status."""
    options, arguments = _parser(argv[0]).parse_known_args(argv[1:])
    cli.restrict_umask()
    code = 0

    def work() -> None:
        nonlocal code
        code = submit(argv[0], arguments, options)

    return cli.exit_status(work) or code


def _parser(command: str) -> argparse.ArgumentParser:
    name, division, example = HELP[command]
    examples = f"  attributegan-submit {command} --cluster cpu {example}\n  attributegan-submit {command} --local 2 {example}"
    parser = cli.parser(
        f"Run {name} as a job array: {division}. All other options are those of {name}.\n"
        "Finished work is kept: run the same command again to retry what failed. OUT.array has the logs and the report.",
        examples,
    )
    parser.prog = f"attributegan-submit {command}"
    parser.usage = f"{parser.prog} (--cluster NAME|FILE | --local N) [--jobs N] [--dry-run] OPTION ..."
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--cluster", metavar="NAME|FILE", help="a preset, such as cpu, or a cluster file; each job runs one process")
    where.add_argument("--local", type=int, metavar="N", help="run N jobs on this machine, without Slurm, and wait for them")
    jobs = f"{MAX_JOBS}" if command == "pack" else f"one for each task, at most {MAX_JOBS}"
    parser.add_argument("--jobs", type=int, metavar="N", help=f"number of jobs of the array (default: {jobs})")
    parser.add_argument("--dry-run", action="store_true", help="print the batch script without submitting it")
    return parser


def submit(command: str, arguments: Sequence[str], options: argparse.Namespace) -> int:
    """Submit an array, or run it on this machine; returns the exit status.

    Raises:
        ValueError: invalid options, an array that is already running, or no Slurm.
    """
    local = options.local
    for name in ("local", "jobs"):
        if (count := getattr(options, name)) is not None and count < 1:
            raise ValueError(f"--{name}: {count} must be above 0")
    if local and (options.jobs or options.dry_run):
        raise ValueError("--jobs and --dry-run: are for Slurm; --local N runs N jobs")
    if find_spec("submitit") is None:
        raise ValueError("submitting needs submitit: pip install 'attributegan[cluster]'")
    cluster = _one_process(clusters.load(options.cluster)) if options.cluster else ClusterConfig()
    workers = max(1, worker_pool.available() // local) if local else cluster.cpus_per_task
    decided = {"workers": workers}
    decided |= workload.load(command, arguments, decided).decided()
    work = workload.load(command, arguments, decided)
    folder = state.folder_of(work.out)
    if "%" in str(folder):
        raise ValueError(f"--out: {work.out} contains %, which Slurm replaces in the names of logs (as in %j); choose another name")
    array = _array(command, arguments, work, decided, local or options.jobs or 0)
    if options.dry_run:
        executor = batch_script.slurm_executor(folder / "submissions" / "0001", cluster, folder.name, dry=True)
        print(executor.script(array=array.jobs))
        return 0
    if not local and not shutil.which("srun"):
        raise ValueError("srun and sbatch are not on the PATH: submit from a login node of a Slurm cluster, or use --local N")
    with ExitStack() as locks:
        _lock(folder, locks)
        here = _write(folder, array, cluster, take_snapshot=not local)
        if local:
            from slurm import local_array

            return local_array.run(folder, array, here)
        ids = _sbatch(folder, array, here, cluster, options.cluster)
    print(f"{folder}: job {ids[0].partition('_')[0]}, {len(array.tasks):,} tasks in {array.jobs:,} jobs")
    print(f"logs:    {here}\nfollow:  attributegan-runs {shlex.quote(str(folder))}")
    return 0


def _one_process(cluster: ClusterConfig) -> ClusterConfig:
    """Returns what a job of an array requests: one process, with a GPU if the nodes have some."""
    return dataclasses.replace(cluster, nodes=1, tasks_per_node=1, gpus_per_node=min(1, cluster.gpus_per_node))


def _array(command: str, arguments: Sequence[str], work: Workload, decided: dict[str, Any], jobs: int) -> Array:
    """Divide the work; ``jobs`` is 0 for the default."""
    tasks = work.tasks(jobs or MAX_JOBS)
    if not tasks:
        raise ValueError(f"{command}: nothing to do")
    return Array(command, list(arguments), decided, os.getcwd(), tasks, min(jobs or MAX_JOBS, len(tasks)))


def _lock(folder: Path, locks: ExitStack) -> None:
    """Lock the folder of the array until ``locks`` closes.

    Raises:
        ValueError: its jobs are queued or running.
    """
    lock = RunLock(folder, "submission")
    lock.acquire()
    locks.callback(lock.release)
    if (folder / state.REPORT).exists():
        return
    found = [now.job for path in folder.glob(f"{state.JOBS}/*") if (now := status.read(path)) and now.job and now.state != "finished"]
    states = squeue.states(found)
    if states is None:
        raise ValueError(f"{folder}: was submitted as job {found[0]}, and squeue failed, so its state is unknown; try again later")
    if live := sorted(job for job, name in states.items() if name != "COMPLETING"):
        raise ValueError(f"{folder}: is already job {live[0]} ({states[live[0]]}); run scancel {live[0].partition('_')[0]} first")


def _write(folder: Path, array: Array, cluster: ClusterConfig, take_snapshot: bool) -> Path:
    """Write the array, its plan and the folders of its jobs; returns the folder of the submission."""
    (folder / state.REPORT).unlink(missing_ok=True)
    shutil.rmtree(folder / state.JOBS, ignore_errors=True)
    array.save(folder)
    here = submission.new_folder(folder)
    if take_snapshot:
        from slurm import snapshot

        snapshot.take(here)
    homes = [state.job_folder(folder, job) for job in range(array.jobs)]
    for home in homes:
        home.mkdir(parents=True)
        status.update(home, state="queued", processes=1)
    runs = [Run(str(home), command=["-m", "slurm.array", str(folder), str(job)]) for job, home in enumerate(homes)]
    Plan(1, cluster.max_requeues, cluster.network_environment(), runs).save(here)
    return here


def _sbatch(folder: Path, array: Array, here: Path, cluster: ClusterConfig, name: str) -> list[str]:
    """Submit the jobs; returns their IDs."""
    from submitit.core.utils import FailedJobError

    from slurm.job import TrainJob

    executor = batch_script.slurm_executor(here, cluster, folder.name)
    with batch_script.uninterrupted():  # a job without its pickle would never start
        try:
            submitted = executor.submit_array([TrainJob(str(here), job) for job in range(array.jobs)])
        except (subprocess.CalledProcessError, FailedJobError, OSError) as error:
            shutil.rmtree(folder / state.JOBS)
            raise ValueError(
                f"sbatch failed: {batch_script.last_line(error)}. Fix {name}, or run on this machine with --local N"
            ) from error
        for job, one in enumerate(submitted):
            now = status.read(home := state.job_folder(folder, job))
            if now and now.state == "queued" and not now.job:
                status.update(home, job=one.job_id)
    return [one.job_id for one in submitted]
