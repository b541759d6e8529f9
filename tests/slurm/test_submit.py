"""Submission without Slurm: cluster configurations, batch scripts, sweeps, local jobs, requeueing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from runs import ROOT, TINY, differing, tensors, train
from stores import web
from time_limits import seconds

from attributegan.run_dir import status
from slurm import cluster_config, exit_records, requeue, sweep, task_env
from slurm.cluster_config import ClusterConfig
from slurm.exit_records import ExitRecord
from slurm.submission import Plan, Run


def submit(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "slurm.submit", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, timeout=seconds(120))


@pytest.fixture
def files(tmp_path: Path, shards: Path) -> list[str]:
    """Arguments of a submission with two processes on one node."""
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(TINY))
    (tmp_path / "cluster.yaml").write_text("nodes: 1\ntasks_per_node: 2\nenvironment: {OMP_NUM_THREADS: 1}\n")
    return [f"--config={tmp_path}/train.yaml", f"--cluster={tmp_path}/cluster.yaml", f"data.shards={shards}", f"run.dir={tmp_path}/run"]


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "slurm").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_cluster_configs_make_a_batch_script(path: Path, tmp_path: Path, files: list[str]) -> None:
    done = submit(files[0], f"--cluster={path}", *files[2:], "train.batch=64", "--dry-run")
    assert done.returncode == 0, done.stderr
    settings = cluster_config.load(path)
    assert settings != ClusterConfig()
    assert f"#SBATCH --nodes={settings.nodes}\n" in done.stdout and f"#SBATCH --time={settings.minutes}\n" in done.stdout
    assert f"--kill-on-bad-exit=1 --cpus-per-task={settings.cpus_per_task}" in done.stdout
    assert settings.command in done.stdout and not (tmp_path / "run").exists()


def test_every_option_reaches_the_script(tmp_path: Path, files: list[str]) -> None:
    everything = {
        "nodes": 3,
        "gpus_per_node": 4,
        "cpus_per_task": 7,
        "memory": "50G",
        "time": "1-02:03:04",
        "partition": "fast",
        "account": "lab",
        "qos": "high",
        "constraint": "a100",
        "mail": "me@lab.org",
        "sbatch": {"exclude": "node7"},
        "srun": ["--mpi=none"],
        "setup": ["module load cuda"],
        "environment": {"A": "b c"},
        "container": "apptainer exec x.sif",
        "python": "python3",
        "signal_s": 77,
        "max_requeues": 5,
    }
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(everything))
    script = submit(files[0], f"--cluster={tmp_path}/all.yaml", *files[2:], "train.batch=12", "--dry-run").stdout
    expected = (
        "nodes=3 gpus-per-node=4 ntasks-per-node=4 cpus-per-task=7 mem=50G time=1564 partition=fast account=lab qos=high constraint=a100 "
        "mail-user=me@lab.org exclude=node7 signal=USR2@77 requeue"
    )
    for option in expected.split():
        assert f"#SBATCH --{option}\n" in script
    assert "--mpi=none apptainer exec x.sif python3 -u -m submitit" in script
    assert script.index("module load cuda") < script.index("export A='b c'") < script.index("srun")


@pytest.mark.parametrize(
    ("tree", "named"),
    [
        ({"node": 2}, "node: unknown option"),
        ({"network": {"card": "ib0"}}, "network.card: unknown option"),
        ({"nodes": 0}, "nodes: 0 must be at least 1"),
        ({"time": 86400}, "time: '86400' is not"),
        ({"time": "00:01:00"}, "signal_s: 120 seconds must be less than the time limit"),
        ({"environment": {"A B": 1}}, "environment: .'A B'. are not names"),
        ({"environment": ["A=1"]}, "environment: expected a mapping"),
        ({"setup": "module load cuda"}, "setup: expected a list"),
        ({"max_requeues": -1}, "max_requeues: -1 must be at least 0"),
    ],
)
def test_invalid_cluster_config_is_refused(tmp_path: Path, tree: dict, named: str) -> None:
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(ValueError, match=f"bad.yaml: {named}"):
        cluster_config.load(tmp_path / "bad.yaml")


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (["train.batch=9"], "train.batch: 9 is not divisible by 2 processes"),
        (["train.world_size=4"], "train.world_size: is 4, but the cluster configuration has 2"),
        (["data.shards=nowhere", "--local"], "nowhere"),
        (["--array=absent.yaml"], "absent.yaml"),
        (["--array=absent.yaml", "--local"], "--array: requires Slurm"),
        ([], "srun and sbatch are not on the PATH"),
    ],
)
def test_invalid_submission_is_refused_without_side_effects(tmp_path: Path, files: list[str], extra: list[str], named: str) -> None:
    done = submit(*files, *extra, PATH="/nowhere")
    assert done.returncode == 2 and named in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()


def test_sbatch_error_is_shown_and_nothing_is_queued(tmp_path: Path, files: list[str]) -> None:
    """Covers an unknown account or partition, and an unreachable cluster."""
    for program in ("sbatch", "srun", "squeue"):
        (tmp_path / program).write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: fast' >&2\nexit 1\n")
        (tmp_path / program).chmod(0o755)
    done = submit(*files, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "error: sbatch failed: sbatch: error: invalid partition specified: fast. Fix" in done.stderr
    assert status.read(tmp_path / "run") is None


def test_sweep_is_every_combination(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("optim.betas: [[0.0, 0.9], [0.5, 0.9]]\nloss.r1_gamma: [0.1, 1]\n")
    runs = sweep.read(path)
    assert list(runs) == [f"betas={betas},r1_gamma={gamma}" for betas in ("0.0_0.9", "0.5_0.9") for gamma in ("0.1", "1")]
    assert runs["betas=0.5_0.9,r1_gamma=1"] == ["optim.betas=[0.5, 0.9]", "loss.r1_gamma=1"]
    for bad in ("", "train.seed: 1", "seed: [1]", "run.dir: [a]", "train.seed: [1, 1]", "train.seed: []"):
        path.write_text(bad)
        with pytest.raises(ValueError, match="sweep.yaml"):
            sweep.read(path)


def test_shipped_sweeps_are_valid(files: list[str]) -> None:
    for path in (ROOT / "configs" / "sweep").glob("*.yaml"):
        done = submit(*files, "--array", path, "--dry-run")
        assert done.returncode == 0 and "#SBATCH --array=0-3%4\n" in done.stdout, done.stderr


def wait_until_over(run: Path) -> status.Status:
    deadline = time.monotonic() + seconds(180)
    while time.monotonic() < deadline:
        if (now := status.read(run)) and now.state not in ("queued", "running"):
            return now
        time.sleep(0.1)
    raise AssertionError([path.read_text()[-2000:] for path in run.glob("submissions/*/*log*")])


def test_local_job_equals_two_processes_and_names_a_killed_rank(shards: Path, tmp_path: Path, files: list[str]) -> None:
    run = tmp_path / "run"
    done = submit(*files, "--local", "train.images=24")
    assert done.returncode == 0, done.stderr
    assert submit(*files, "--local").returncode == 2, "the run is alive"
    assert wait_until_over(run).state == "finished"
    assert differing(tensors(run), train(shards, tmp_path / "other", "train.images=24", processes=2)) == []

    deadline = time.monotonic() + seconds(60)
    while submit(*files, "--local", "train.images=4000").returncode:
        assert time.monotonic() < deadline
    while not (pids := _local_processes(run, rank=1)) or status.read(run).images < 32:
        assert time.monotonic() < deadline + seconds(60)
        time.sleep(0.1)
    os.kill(pids[0], signal.SIGKILL)
    now: status.Status | None = wait_until_over(run)
    while "rank 1" not in (now := status.read(run)).error:
        assert time.monotonic() < deadline + seconds(120)
        time.sleep(0.1)
    assert now.state == "failed" and "was killed by signal 9 (SIGKILL)" in now.error


def _local_processes(run: Path, rank: int) -> list[int]:
    """Returns the PIDs that train as ``rank``, oldest first."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line, variables = (path / "cmdline").read_bytes(), (path / "environ").read_bytes()
        except OSError:
            continue
        if f"{run}/submissions".encode() in line and b"launch/train.py" in line and f"\0RANK={rank}\0".encode() in variables:
            found.append(int(path.name))
    return sorted(found)


def record(rank: int, code: int | None, when: int = 0, output: str = "") -> ExitRecord:
    return ExitRecord(rank, 4, f"node{rank}", code, when, output)


def test_configuration_of_a_submission_is_private(tmp_path: Path, files: list[str], shards: Path) -> None:
    from attributegan.config import load
    from slurm.submit import _write_submission

    submission = _write_submission(tmp_path, [load(tmp_path / "train.yaml")], ClusterConfig())
    assert (submission / "config-0.yaml").stat().st_mode & 0o777 == 0o600


def test_data_is_checked_where_the_cache_disk_is_missing(tmp_path: Path, files: list[str], shards: Path) -> None:
    """The login node lacks the disk of data.cache, as of a scratch disk of compute nodes."""
    from attributegan.config import load
    from slurm.submit import _check_data

    with web(shards) as site:
        set_options = [f"data.shards={site.url}/set", "data.cache=/dev/null/scratch"]
        _check_data([load(tmp_path / "train.yaml", set_options)])
        assert site.asked["index.parquet"] == 1
        with pytest.raises(ValueError, match=r"data\.split: .*absent"):
            _check_data([load(tmp_path / "train.yaml", [*set_options, "data.split=absent"])])


def test_first_failure_is_a_silent_death_or_the_first_error() -> None:
    reset = [record(rank, 1, when=5 + rank, output="Connection reset") for rank in (0, 2, 3)]
    assert exit_records.first_failure([*reset, record(1, 1, when=4, output="KeyError")]).output_tail == "KeyError"
    assert exit_records.first_failure([*reset, record(1, -9, when=4)]).rank == 1
    assert "died without an exit status" in str(exit_records.first_failure([*reset, record(1, None)]))
    assert exit_records.first_failure([record(0, 128 + signal.SIGUSR2), record(1, -signal.SIGTERM), record(2, 0)]) is None


def submission(tmp_path: Path, max_requeues: int = 2) -> Path:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    status.update(tmp_path / "run", state="running")
    Plan(4, max_requeues, {}, [Run(str(tmp_path / "run"), "config.yaml")]).save(tmp_path)
    return tmp_path


def test_consecutive_errors_without_a_checkpoint_are_bounded(tmp_path: Path) -> None:
    here = submission(tmp_path)
    fail = [record(0, 1, 1, "KeyError")]
    assert [requeue.conclude(here, 0, fail) for _ in range(2)] == ["requeue", "requeue"]
    (tmp_path / "run" / "checkpoints" / "images-000000000008").mkdir()
    assert [requeue.conclude(here, 0, fail) for _ in range(3)] == ["requeue", "requeue", "end"]
    now = status.read(tmp_path / "run")
    assert now.state == "failed" and now.error == "rank 0 of 4, on node0, exited with status 1:\nKeyError"


@pytest.mark.parametrize(
    ("codes", "srun", "expected", "state"),
    [
        ([0, 0], 0, "end", "running"),  # the status of a finished run is kept
        ([128 + signal.SIGUSR2, 128 + signal.SIGTERM], 0, "requeue", "queued"),
        ([-signal.SIGUSR2], 140, "requeue", "queued"),
        ([2, 2], 1, "end", "failed"),
        ([3, 3], 1, "end", "failed"),
        ([1, 1], 1, "requeue", "queued"),
        ([None, 1], 137, "requeue", "queued"),
        ([], 1, "requeue", "queued"),
    ],
)
def test_requeue_decision(tmp_path: Path, codes: list[int | None], srun: int, expected: str, state: str) -> None:
    here = submission(tmp_path)
    assert requeue.conclude(here, 0, [record(rank, code, when=rank) for rank, code in enumerate(codes)], srun) == expected
    assert status.read(tmp_path / "run").state == state


def test_run_stopped_by_a_user_is_not_requeued(tmp_path: Path) -> None:
    here = submission(tmp_path)
    status.update(tmp_path / "run", state="stopped")
    assert requeue.conclude(here, 0, [record(0, 128 + signal.SIGINT)]) == "end"


class FakeJob:
    """A fake submitit JobEnvironment."""

    def __init__(self, hostnames: list[str], tasks: int) -> None:
        self.hostnames, self.num_nodes, self.num_tasks = hostnames, len(hostnames), tasks
        self.global_rank, self.local_rank, self.raw_job_id = 1, 1, "45"


def test_environment_of_torch_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="4 training processes were asked for, the job has 1"):
        task_env.environment(FakeJob(["a"], 1), 4)
    with pytest.raises(ValueError, match="the first node, node.invalid, has no address here"):
        task_env.environment(FakeJob(["node.invalid", "b"], 4), 4)
    with pytest.raises(ValueError, match="the first node, localhost, resolves to 127.0.0.1 here"):
        task_env.environment(FakeJob(["localhost", "b"], 4), 4)
    variables = task_env.environment(FakeJob(["a"], 4), 4)
    assert (variables["RANK"], variables["WORLD_SIZE"], variables["MASTER_ADDR"], variables["GLOO_SOCKET_IFNAME"]) == (
        "1",
        "4",
        "127.0.0.1",
        "lo",
    )
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert variables["MASTER_PORT"] != task_env.environment(FakeJob(["a"], 4), 4)["MASTER_PORT"], "a requeued job uses another port"


def test_plan_reads_back(tmp_path: Path) -> None:
    plan = Plan(4, 3, {"NCCL_DEBUG": "WARN"}, [Run("a", "b"), Run("c", "d")])
    plan.save(tmp_path)
    assert Plan.load(tmp_path) == plan


@pytest.mark.parametrize("module", ["slurm.submit", "tools.runs"])
def test_help_does_not_import_slow_packages(module: str) -> None:
    imported = f"import sys, {module}; print([name for name in ('torch', 'submitit', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", imported], cwd=ROOT, capture_output=True, text=True, timeout=seconds(60))
    assert done.stdout == "[]\n", done.stderr


def test_cluster_guide_lists_every_option() -> None:
    guide = (ROOT / "docs" / "cluster.md").read_text()
    for name in ClusterConfig.__dataclass_fields__:
        assert f"`{name}`" in guide or f"`{name}." in guide, name
    assert json.dumps(ClusterConfig().signal_s) in guide and f"`'{ClusterConfig().time}'`" in guide
