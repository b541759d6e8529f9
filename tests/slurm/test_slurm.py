"""Training on a real two-node Slurm: submission, signals, SIGKILL, node failures; and the output of `attributegan-runs`."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import slurm_cluster
import yaml
from runs import ROOT, TINY, differing, tensors, train
from slurm_cluster import NODES, Cluster
from time_limits import seconds

CLUSTER = {
    "nodes": 2,
    "cpus_per_task": 2,
    "memory": "2G",
    "time": "01:00:00",
    "signal_s": 60,
    "environment": {"OMP_NUM_THREADS": 1},
}
IMAGES = 240
pytestmark = pytest.mark.timeout(seconds(600))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    yield from slurm_cluster.for_tests()


@pytest.fixture(autouse=True)
def empty_cluster(cluster: Cluster) -> Iterator[None]:
    """Cancel the jobs of each test and wait until the cluster is empty."""
    yield
    cluster.run("scancel", "--user=root", check=False)
    cluster.wait_until(lambda: not cluster.run("squeue", "-h"), 60, "empty queue")
    cluster.wait_until(lambda: not cluster.job_processes(), 10, f"end of {cluster.job_processes()}")


@pytest.fixture(scope="module")
def one_host(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of two processes on one host, with a checkpoint at every step."""
    run = tmp_path_factory.mktemp("one_host") / "run"
    train(shards, run, f"train.images={IMAGES}", "run.save_every=8", processes=2)
    return run


class Job:
    """A run, submitted and observed with the commands of a user."""

    def __init__(self, cluster: Cluster, shards: Path, run: Path, *overrides: str, root: Path = ROOT, **settings: object) -> None:
        self.cluster, self.run, self.root = cluster, run, root
        self.files = run.with_name(f"{run.name}-train.yaml"), run.with_name(f"{run.name}-cluster.yaml")
        for path, content in zip(self.files, (TINY, CLUSTER | settings), strict=True):
            path.write_text(yaml.safe_dump(content))
        self.arguments = [
            "--config",
            str(self.files[0]),
            "--cluster",
            str(self.files[1]),
            f"data.shards={shards}",
            f"run.dir={run}",
            *overrides,
        ]

    def command(self, module: str, *arguments: str) -> list[str]:
        path = f"PYTHONPATH={self.root}"  # the code under test, even if another version is installed
        return self.cluster.command("env", path, "PYTHONSAFEPATH=1", sys.executable, "-m", module, *arguments)

    def submit(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = self.command("slurm.submit", *self.arguments, *arguments)
        return subprocess.run(command, env=self.cluster.environment, cwd=self.root, capture_output=True, text=True, timeout=seconds(120))

    def submitted(self, *arguments: str) -> "Job":
        done = self.submit(*arguments)
        assert done.returncode == 0, done.stderr
        self.id = self.status()["job"]
        return self

    def status(self) -> dict:
        return json.loads((self.run / "status.json").read_text())

    def listed(self, run: Path | None = None) -> str:
        """Returns the line of `attributegan-runs` for the run."""
        command = self.command("tools.runs", str(run or self.run))
        shown = subprocess.run(command, env=self.cluster.environment, capture_output=True, text=True, timeout=seconds(60))
        assert shown.returncode == 0, shown.stderr
        return shown.stdout.splitlines()[1]

    def state(self) -> str:
        return self.listed().split()[1]

    def images(self) -> int:
        """Returns the images of the last line in metrics.jsonl."""
        path = self.run / "metrics.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []  # without an incomplete last line
        return json.loads(lines[-1])["images"] if lines else 0

    def wait(self, condition: Callable[[], object], limit: float, what: str) -> None:
        deadline = time.monotonic() + seconds(limit)
        while not condition():
            assert time.monotonic() < deadline, f"no {what} in {seconds(limit):.0f} s: {self.story()}"
            time.sleep(0.1)

    def wait_images(self, images: int) -> None:
        self.wait(lambda: self.images() >= images and self.status()["state"] == "running", 120, f"{images} images")

    def wait_start(self, restarts: int) -> None:
        """Wait until the job runs after at least ``restarts`` requeues; Slurm may requeue more often than necessary."""
        self.wait(lambda: self.status()["requeues"] >= restarts and self.status()["state"] == "running", 120, f"start after {restarts}")

    def wait_end(self, *states: str) -> None:
        self.wait(lambda: self.cluster.job(self.id)["JobState"] in states, 150, " or ".join(states))

    def story(self) -> str:
        logs = [path.read_text(errors="replace")[-3000:] for path in sorted(self.run.glob("submissions/*/*log*"))]
        return "\n".join([self.cluster.run("scontrol", "show", "job", check=False)[-3000:], *logs, str(self.run / "status.json")])

    def training(self, rank: int, module: str = "launch/train.py") -> int:
        """Returns the PID of the training process of ``rank``, or of its parent in ``module``."""
        found = []
        for pid in self.cluster.processes(list(NODES)[rank]):
            with contextlib.suppress(OSError):  # has exited
                line = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
                parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
                if (
                    "python" in line[0]
                    and any(part.endswith(module) for part in line)
                    and module not in Path(f"/proc/{parent}/cmdline").read_text()
                ):
                    found.append(pid)
        assert len(found) == 1, found
        return found[0]


def test_submitit_and_plain_sbatch_equal_one_host(cluster: Cluster, shards: Path, tmp_path: Path, one_host: Path) -> None:
    """Both run at once; the submit command is interrupted after sbatch, and the plain script is signalled once."""
    job = Job(cluster, shards, tmp_path / "run", "train.images=80")
    submission = subprocess.Popen(job.command("slurm.submit", *job.arguments), env=cluster.environment, cwd=ROOT, start_new_session=True)
    job.wait(lambda: cluster.run("squeue", "-h"), 60, "job in the queue")
    job.id = cluster.run("squeue", "-h", "-o", "%i").strip()
    os.killpg(submission.pid, signal.SIGINT)
    submission.wait(timeout=seconds(60))
    job.wait(lambda: job.status()["job"] or job.status()["state"] == "running", 60, "job ID or start of the run")
    assert job.state() in ("queued", "running")
    again = job.submit()
    assert again.returncode == 2 and ("already job 1" in again.stderr or "in use by" in again.stderr)

    plain = Job(cluster, shards, tmp_path / "plain", "train.images=80", "run.save_every=1000")
    arguments = [argument for argument in plain.arguments if argument not in ("--cluster", str(plain.files[1]))]
    paths = f"PYTHONPATH={ROOT}", f"PATH={Path(sys.executable).parent}:{cluster.environment['PATH']}"
    options = ["--cpus-per-task=2", "--mem=2G", f"--output={tmp_path}/plain.out", f"--chdir={ROOT}"]
    script = str(ROOT / "configs/slurm/plain.sbatch")
    plain.id = cluster.run("env", "OMP_NUM_THREADS=1", *paths, "sbatch", "--parsable", *options, script, *arguments).strip()
    plain.wait(lambda: plain.images() >= 24, 120, "24 images")
    assert plain.state() == "running"
    cluster.run("scancel", "--signal=USR2", plain.id)
    assert job.state() in ("running", "finished") and "node[1-2]" in job.listed()
    for one in (job, plain):
        one.wait_end("COMPLETED")
        assert one.state() == "finished" and "80 of 80" in one.listed(), one.story()
        assert differing(tensors(one.run), tensors(one_host, 80)) == []
    assert cluster.job(plain.id)["Restarts"] == "1" and cluster.job(job.id)["Restarts"] == "0"


def test_preemption_requeue_and_node_failure_give_the_weights_of_an_uninterrupted_run(
    cluster: Cluster, shards: Path, tmp_path: Path, one_host: Path
) -> None:
    job = Job(cluster, shards, tmp_path / "run", f"train.images={IMAGES}", "run.save_every=64").submitted()
    seed = int(os.environ.get("SLURM_TEST_SEED", time.time_ns() % 10**6))
    print(f"SLURM_TEST_SEED={seed}", flush=True)
    steps = sorted(random.Random(seed).sample(range(1, IMAGES // 8 - 2), 7))
    signalled = [_user_signal, _preempted, _time_limit, _user_signal, _user_signal]
    without_notice = [_requeued, _node_lost]
    faults = random.Random(seed).sample(signalled + without_notice, 7)
    for step, fault in zip(steps, faults, strict=True):
        job.wait_images(8 * step)
        before = job.status()["requeues"]
        print(f"{fault.__name__} at {job.images()} images", flush=True)
        assert "running" in job.listed()
        fault(job)
        job.wait_start(before + 1)
    job.wait_end("COMPLETED")
    assert job.state() == "finished" and int(cluster.job(job.id)["Restarts"]) >= 7
    assert differing(tensors(job.run), tensors(one_host, IMAGES)) == []
    images = [json.loads(line)["images"] for line in (job.run / "metrics.jsonl").read_text().splitlines()]
    assert images == list(range(8, IMAGES + 1, 8))
    starts = (job.run / "train.log").read_text().split("tiles, world size 2")
    saved = [re.search(r"stopped and saved at (\d+) images", start) for start in starts]
    lost = [
        start
        for stop, start in zip(saved, starts, strict=True)
        if stop and f"resuming from {job.run}/checkpoints/images-{int(stop[1]):012d}" not in start
    ]
    assert len([stop for stop in saved if stop]) >= len(signalled) and not lost, "no step is lost after a signal"


def _user_signal(job: Job) -> None:
    job.cluster.run("scancel", "--signal=USR2", job.id)
    job.wait(lambda: job.state() == "queued", 60, "requeue")


def _preempted(job: Job) -> None:
    """Submit a job of higher priority that needs the nodes."""
    job.cluster.run("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")
    job.wait(lambda: "urgent" not in job.cluster.run("squeue", "-h", "-o", "%P"), 120, "end of the urgent job")


def _time_limit(job: Job) -> None:
    """Set the time limit to two minutes from now: Slurm sends its signal up to a minute early. Training is stopped until then."""
    ran_s = time.time() - int(job.cluster.run("date", "+%s", "-d", job.cluster.job(job.id)["StartTime"]))
    job.cluster.run("scontrol", "update", f"JobId={job.id}", f"TimeLimit={ran_s // 60 + 2:.0f}")
    pids = [job.training(rank) for rank in (0, 1)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    job.wait(lambda: any(map(_signal_arrived, pids)), 60, "signal before the time limit")
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # Slurm may have sent SIGCONT before
            os.kill(pid, signal.SIGCONT)
    job.wait(lambda: job.status()["state"] == "queued", 60, "requeue")
    job.cluster.run("scontrol", "update", f"JobId={job.id}", "TimeLimit=60")


def _signal_arrived(pid: int) -> bool:
    """Returns whether SIGUSR2 is pending for a stopped process, or the process has exited."""
    try:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    except OSError:
        return True
    return bool(int(lines["ShdPnd"], 16) >> (signal.SIGUSR2 - 1) & 1)


def _requeued(job: Job) -> None:
    job.cluster.run("scontrol", "requeue", job.id)


def _node_lost(job: Job) -> None:
    job.cluster.fail("node2")
    job.wait(lambda: job.state() == "queued", 60, "requeue after the node failure")
    job.cluster.heal("node2")


def test_killed_processes_requeue_the_job_once(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    events = tmp_path / "events"
    notify = f'run.notify=echo "$ATTRIBUTEGAN_EVENT $ATTRIBUTEGAN_MESSAGE" >> {events}'
    job = Job(cluster, shards, tmp_path / "run", "train.images=4000", "run.save_every=4000", notify, max_requeues=1).submitted()
    job.wait_images(16)
    os.kill(job.training(1), signal.SIGKILL)
    killed = time.monotonic()
    job.wait(lambda: not cluster.job_processes(), 15, "end of all processes")
    took = time.monotonic() - killed
    job.wait(lambda: job.state() == "queued", 15, "requeue")
    assert "rank 1 of 2, on node2, was killed by signal 9 (SIGKILL)" in job.status()["error"]
    job.wait(lambda: len(events.read_text().splitlines()) == 2, 15, "event")  # may follow the status
    started, failed = events.read_text().splitlines()
    assert started.startswith("start training to") and failed.startswith("failed ")

    job.wait_start(1)
    job.wait_images(16)
    os.kill(job.training(0, module="submitit.core._submit"), signal.SIGKILL)
    killed = time.monotonic()
    job.wait(lambda: not cluster.job_processes(), 15, "end of all processes")
    print(f"ended in {took:.1f} s and {time.monotonic() - killed:.1f} s")
    job.wait_end("FAILED")
    assert job.state() == "failed" and "rank 0 of 2, on node1" in job.status()["error"]
    assert events.read_text().splitlines()[-1].startswith("failed rank 0 of 2, on node1, died without an exit status")

    job.submitted()  # submitted again, preempted before training starts, and cancelled
    # node2 runs nothing but the step. Before the step starts, scancel has nothing to send the signal to.
    job.wait(lambda: cluster.job_processes("node2"), 60, "start of the step")
    _user_signal(job)
    job.wait_start(1)
    job.wait_images(8)
    cluster.run("scancel", job.id)
    job.wait_end("CANCELLED")
    job.wait(lambda: job.state() == "stopped", 15, "stopped run")


def test_submitted_code_runs_and_the_first_failure_is_named(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    """A bug on one rank stays in the submitted job and after its requeue, although it is fixed in the checkout."""
    checkout = tmp_path / "checkout"
    for package in ("attributegan", "configs", "data_shards", "launch", "slurm", "tools"):
        shutil.copytree(ROOT / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__"))
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "original"]):
        subprocess.run(["git", *command], cwd=checkout, check=True)
    loop = checkout / "attributegan" / "training" / "trainer.py"
    fixed = loop.read_text()
    start = "        self.images += self.config.train.batch\n"
    assert start in fixed
    loop.write_text(
        fixed.replace(start, f'{start}        if self.runtime.rank == 1 and self.images == 24:\n            raise KeyError("planted")\n')
    )
    job = Job(cluster, shards, tmp_path / "run", "train.images=80", "run.save_every=1000", root=checkout, max_requeues=1).submitted()
    loop.write_text(fixed)

    job.wait_end("FAILED")
    assert cluster.job(job.id)["Restarts"] == "1" and job.state() == "failed"
    error = job.status()["error"]
    assert error.startswith("rank 1 of 2, on node2, exited with status 1:\nTraceback") and "KeyError: 'planted'" in error
    submission = job.run / "submissions" / "0001"
    assert "KeyError: 'planted'" in (submission / f"{job.id}_0_log.err").read_text(), "in the log of the job"
    result = Job.command(job, "pickletools", str(submission / f"{job.id}_0_result.pkl"))
    assert "planted" in subprocess.run(result, env=cluster.environment, capture_output=True, text=True).stdout, "in submitit's result"
    assert "+            raise KeyError" in (submission / "changes.diff").read_text()
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True).stdout
    assert (submission / "commit.txt").read_text() == head
    assert "torch==" in (submission / "environment.txt").read_text()


def test_array_of_four(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    """Two of the runs diverge, a permanent error, so they are not requeued."""
    (tmp_path / "sweep.yaml").write_text("optim.discriminator_lr: [1.0e-3, 1.0e+38]\ntrain.seed: [0, 1]\n")
    options = ["optim.name=sgd", "train.max_nonfinite=2", "train.images=32"]
    job = Job(cluster, shards, tmp_path / "sweep", *options, nodes=1)
    done = job.submit("--array", str(tmp_path / "sweep.yaml"))
    assert done.returncode == 0, done.stderr
    runs = [tmp_path / "sweep" / f"discriminator_lr={rate},seed={seed}" for rate in ("0.001", "1e+38") for seed in (0, 1)]
    assert all(str(run) in done.stdout for run in runs)
    assert {job.listed(run).split()[1] for run in runs} <= {"queued", "running"}
    job.wait(lambda: not cluster.run("squeue", "-h"), 150, "end of the array")
    assert [job.listed(run).split()[1] for run in runs] == ["finished", "finished", "failed", "failed"]
    for task, run in enumerate(runs):
        now = json.loads((run / "status.json").read_text())
        assert now["job"] == f"1_{task}" or now["job"].endswith(f"_{task}")
        assert now["requeues"] == 0 and ("Diverged" in now["error"]) == (task > 1)
    assert differing(tensors(runs[0]), tensors(runs[1])) != []


def test_follow_ups_wait_until_a_requeued_run_has_finished(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    job = Job(cluster, shards, tmp_path / "run", "train.images=160", "run.save_every=1000")
    done = job.submit("--then", "sample --count 4", "--then", "sample --count 2 --out some")
    assert done.returncode == 0, done.stderr
    job.id = job.status()["job"]
    follow_ups = re.findall(r"then:    job (\d+), attributegan-sample", done.stdout)
    assert len(follow_ups) == 2
    job.wait_images(16)
    waiting = {cluster.job(one)["JobState"] + " " + cluster.job(one)["Reason"] for one in follow_ups}
    assert waiting == {"PENDING Dependency"}
    for restart in (1, 2):
        _user_signal(job)
        assert {cluster.job(one)["JobState"] for one in follow_ups} == {"PENDING"}
        job.wait_start(restart)
    job.wait_end("COMPLETED")
    job.wait(lambda: {cluster.job(one)["JobState"] for one in follow_ups} == {"COMPLETED"}, 120, "samples")
    assert cluster.job(job.id)["Restarts"] == "2" and job.state() == "finished"
    for folder, count in (("samples", 4), ("some", 2)):
        assert len((job.run / folder / "samples.csv").read_text().splitlines()) == 1 + count
    log = (job.run / "submissions" / "0001" / f"{follow_ups[0]}_0_log.out").read_text()
    assert f"attributegan-sample {job.run} --count 4 --out {job.run}/samples\n4 tiles, samples.csv in" in log
    assert "(model after 160 images)" in log


def test_wrong_number_of_processes_is_not_requeued(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    job = Job(cluster, shards, tmp_path / "run", srun=["--ntasks=1", "--nodes=1"])
    done = job.submit("--then", "sample")
    job.id, (follow_up,) = job.status()["job"], re.findall(r"then:    job (\d+)", done.stdout)
    job.wait_end("FAILED")
    job.wait(lambda: cluster.job(follow_up)["JobState"] == "CANCELLED", 30, "end of the job that depends on it")
    assert cluster.job(job.id)["Restarts"] == "0" and cluster.job(job.id)["ExitCode"] == "2:0"
    assert "2 training processes were asked for, the job has 1" in job.status()["error"] and job.state() == "failed"
