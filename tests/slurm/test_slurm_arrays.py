"""Commands as arrays on a real two-node Slurm: tiling, packing and sampling give the bytes of one process after faults of every kind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import slurm_cluster
import yaml
from runs import ROOT
from slurm_cluster import Cluster
from small_inputs import contents, write_labelled_tiles, write_slides
from time_limits import seconds

from tools import sample, shard
from tools.arrays import state
from tools.arrays.state import Array

pytestmark = pytest.mark.timeout(seconds(900))
HOLD = """\
import os, sys, time
if "slurm.array" in sys.orig_argv:
    from tools.arrays import workload
    load = workload.load
    def load_held(*arguments):
        work = load(*arguments)
        run = work.run
        def held(task):
            while os.path.exists("HOLD_FILE"):
                time.sleep(0.1)
            run(task)
        work.run = held
        return work
    workload.load = load_held
"""  # tasks start but wait while a file exists, so that every fault hits a task of every array
URGENT = ("--partition=urgent", "--nodelist=node1", "--exclusive", "--output=/dev/null", "--wrap=true")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    yield from slurm_cluster.for_tests()


class Submitted:
    """An array, submitted and observed as a user does."""

    def __init__(self, cluster: Cluster, out: Path, command: list[str]) -> None:
        self.cluster, self.out, self.folder = cluster, out, state.folder_of(out)
        done = self._run("slurm.submit", *command, "--out", str(out), "--cluster", str(out.parent / f"{out.name}.yaml"))
        assert done.returncode == 0, done.stderr
        self.array = Array.load(self.folder)
        self.jobs = [state.job_folder(self.folder, job) for job in range(self.array.jobs)]

    def _run(self, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        variables = ("env", f"PYTHONPATH={ROOT}", "PYTHONSAFEPATH=1", "OMP_NUM_THREADS=1")
        command = self.cluster.command(*variables, sys.executable, "-m", module, *arguments)
        return subprocess.run(command, env=self.cluster.environment, capture_output=True, text=True, timeout=seconds(120))

    def status(self, job: int) -> dict:
        return json.loads((self.jobs[job] / "status.json").read_text())

    def is_in_task(self, job: int) -> bool:
        found = list(state.records(self.jobs[job]).values())
        return self.status(job)["state"] == "running" and bool(found) and found[-1].state == "started"

    def in_task(self) -> set[str]:
        """The nodes on which a job of the array is in a task."""
        jobs = [job for job in range(self.array.jobs) if self.is_in_task(job)]
        return {host for host in ("node1", "node2") if {self.status(job)["job"] for job in jobs} & set(running(self.cluster, host))}

    def report(self) -> str:
        path = self.folder / state.REPORT
        return path.read_text() if path.exists() else ""

    def listed(self) -> str:
        shown = self._run("tools.runs", str(self.folder))
        assert shown.returncode == 0, shown.stderr
        return shown.stdout

    def story(self) -> str:
        logs = [path.read_text(errors="replace")[-2000:] for path in sorted(self.folder.glob("submissions/*/*log*"))]
        return "\n".join([self.cluster.run("scontrol", "show", "job", check=False)[-3000:], *logs])


def running(cluster: Cluster, *hosts: str) -> list[str]:
    """The IDs of the running jobs, of one host if given."""
    return cluster.run("squeue", "-h", "-t", "RUNNING", "-o", "%F_%K", *(f"--nodelist={host}" for host in hosts)).split()


def wait(condition: Callable[[], object], what: str, *arrays: Submitted) -> None:
    deadline = time.monotonic() + seconds(400)
    while not condition():
        assert time.monotonic() < deadline, f"no {what}: {[array.story() for array in arrays]}"
        time.sleep(0.05)


def test_faults_leave_the_bytes_and_the_report_of_a_quiet_run(cluster: Cluster, run: Path, tmp_path: Path) -> None:
    """Tiles of 24 slides, shards of tiles, and generated shards; a killed task of each, a lost node, and a preemption of all."""
    slides = [str(path) for path in write_slides(tmp_path / "slides", 24, damaged=9)]
    commands = {
        "tile": [*slides, "--mpp", "0.5", "--size", "64", "--sharpness", "0", "--workers", "1"],
        "pack": [*write_labelled_tiles(tmp_path / "labelled", 150, damaged=7), "--skip-bad"],
        "sample": [str(run), "--format", "shards", "--count", "40", "--shard-count", "4", "--batch", "4", "--precision", "fp32"],
    }
    assert shard.main(["tile", *commands["tile"], "--out", str(tmp_path / "one-tile"), "--skip-bad"]) == 0
    assert shard.main(["pack", *commands["pack"], "--out", str(tmp_path / "one-pack")]) == 0
    assert sample.main([*commands["sample"], "--out", str(tmp_path / "one-sample")]) == 0

    hold = tmp_path / "hold"
    hold.touch()
    (tmp_path / "sitecustomize.py").write_text(HOLD.replace("HOLD_FILE", str(hold)))
    environment = {"OMP_NUM_THREADS": 1, "PYTHONPATH": str(tmp_path)}
    arrays = []
    for name in commands:  # 2 jobs of 2, 1 and 1 CPUs fill 2 nodes of 4 CPUs; a job of each array runs on each node
        settings = {"cpus_per_task": 2 if name == "tile" else 1, "memory": "1G", "time": "01:00:00", "signal_s": 60}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(settings | {"environment": environment}))
        arrays.append(Submitted(cluster, tmp_path / name, [name, *commands[name], "--jobs", "2"]))
    tile = arrays[0]

    wait(lambda: all(array.in_task() == {"node1", "node2"} for array in arrays), "tasks on both nodes", *arrays)
    for array in arrays:
        os.kill(array.status(0)["pid"], signal.SIGKILL)
    wait(lambda: all(array.status(0)["requeues"] == 1 for array in arrays), "requeueing of killed jobs", *arrays)
    wait(lambda: all(array.in_task() == {"node1", "node2"} for array in arrays), "tasks on both nodes", *arrays)
    lost = running(cluster, "node2")
    cluster.fail("node2")
    again = tile._run("slurm.submit", "tile", *tile.array.arguments, "--cluster", str(tmp_path / "tile.yaml"))
    assert again.returncode == 2 and "is already job" in again.stderr
    wait(lambda: "down" in cluster.run("sinfo", "-hNo", "%n %T", "-n", "node2"), "failure of node2", *arrays)
    preempted = running(cluster, "node1")
    cluster.run("sbatch", *URGENT)
    wait(lambda: all(cluster.job(job)["PreemptTime"] != "None" for job in preempted), "preemption", *arrays)
    hold.unlink()
    cluster.heal("node2")
    assert "running" in (shown := tile.listed()) or "queued" in shown
    wait(lambda: all(array.report() for array in arrays), "reports", *arrays)
    cluster.wait_until(lambda: not cluster.run("squeue", "-h"), 60, "empty queue")

    for array in arrays:
        assert contents(array.out) == contents(tmp_path / f"one-{array.out.name}"), array.out
        assert sum(array.status(job)["requeues"] for job in (0, 1)) >= 3, f"killed, lost, preempted: {array.story()}"
    assert len(lost) == len(preempted) == 3 and all(int(cluster.job(job)["Restarts"]) for job in {*lost, *preempted}), (lost, preempted)
    assert "finished  24 of 24 (100%)  1 " in (shown := tile.listed()) and str(slides[9]) in shown, shown
    reports = {array.out.name: array.report() for array in arrays}
    assert reports["tile"].startswith("tile: 24 tasks, 1 failed\n") and f"\nfailed: {slides[9]}: " in reports["tile"]
    assert reports["pack"].startswith("pack: 2 tasks, 1 left out\n") and "007.png" in reports["pack"]
    assert reports["sample"].startswith("sample: 10 tasks\n")
    exits = {cluster.job(tile.status(job)["job"])["ExitCode"] for job in (0, 1)}
    assert "2:0" in exits, "the job that merged reports the damaged slide"
