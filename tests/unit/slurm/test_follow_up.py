"""``attributegan-submit --then``: the commands, their batch scripts, and the end of their jobs; sbatch and scontrol are scripts."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from runs import ROOT, TINY
from time_limits import seconds

from attributegan import config
from attributegan.config import Config
from slurm import follow_up, requeue, submit
from slurm.cluster_config import ClusterConfig
from slurm.follow_up import FollowUp

URL = "https://store/set?signature=secret"


@pytest.fixture
def run(tmp_path: Path) -> Config:
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(TINY))
    options = [f"run.dir={tmp_path}/run", f"data.shards={URL}", "data.assessable_only=true", "evaluate.split=test"]
    return config.load(tmp_path / "train.yaml", options)


def test_commands_get_the_run_and_its_data(run: Config) -> None:
    folder = run.run.dir
    evaluation, sampling, more = follow_up.parse(["evaluate,sample", "sample --count 64 --levels 'mitosis=3' --out more"], [run])
    data = ["--train=train", "--held-out=test", "--shards-cache=", "--shards-cache-gb=50.0", "--assessable-only"]
    assert evaluation == FollowUp("evaluate", [folder, *data, "--out", f"{folder}/report"], 0)
    assert sampling == FollowUp("sample", [folder, "--out", f"{folder}/samples"], 0)
    assert more.arguments == [folder, "--count", "64", "--levels", "mitosis=3", "--out", "more", "--out", f"{folder}/more"]
    assert "secret" not in str([evaluation, sampling, more])
    assert str(sampling) == f"attributegan-sample {folder} --out {folder}/samples"
    assert follow_up.parse([], [run]) == []


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["evaluation"], "--then: 'evaluation' is not evaluate or sample"),
        (["train"], "--then: 'train' is not evaluate or sample"),
        ([""], "--then: '' is not evaluate or sample"),
        (["evaluate, sample"], "--then: '' is not evaluate or sample"),
        (["evaluate,sample --count 3"], "--then: 'evaluate,sample --count 3': options after several commands"),
        (["sample --count 0"], "--then: 'sample --count 0': --count: 0 must be at least 1"),
        (["sample --cout 3"], "--then: 'sample --cout 3': unrecognized arguments: --cout 3"),
        (["sample --count x"], "--then: 'sample --count x': argument --count: invalid int value: 'x'"),
        (["sample --help"], "--then: 'sample --help': prints its help; remove --help"),
        (["sample 'a"], '--then: "sample \'a": No closing quotation'),
        (["evaluate compare a b"], "--then: 'evaluate compare a b': unrecognized arguments: compare a b"),
        (["evaluate --sweeps 1"], "--then: 'evaluate --sweeps 1': --sweeps: 1 must be at least 2"),
        (["sample", "sample"], "--then: two commands write to .*/run/samples; give each its own --out"),
        (["sample --out x", "evaluate --out x"], "--then: two commands write to .*/run/x"),
        (["sample --out %j"], "--then: .*/run/%j contains %"),
    ],
)
def test_invalid_commands_are_refused(run: Config, texts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        follow_up.parse(texts, [run])


def test_each_run_of_a_sweep_gets_its_own_output(run: Config) -> None:
    runs = [config.override(run, [f"run.dir=/runs/{name}"], "here") for name in "ab"]
    found = follow_up.parse(["sample --out tiles", "evaluate"], runs)
    assert [(one.run, one.command, one.arguments[-1]) for one in found] == [
        (0, "sample", "/runs/a/tiles"),
        (0, "evaluate", "/runs/a/report"),
        (1, "sample", "/runs/b/tiles"),
        (1, "evaluate", "/runs/b/report"),
    ]
    with pytest.raises(ValueError, match="--then: 'sample --out /tiles': all runs of the array would write to /tiles"):
        follow_up.parse(["sample --out /tiles"], runs)


def submitted(tmp_path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "cluster.yaml").write_text(
        "nodes: 2\ngpus_per_node: 2\nmemory: 9G\nsetup: [module load cuda]\ncontainer: apptainer exec x.sif\npython: python3\n"
        "sbatch: {exclude: node7, dependency: 'singleton'}\n"
    )
    options = [f"--config={tmp_path}/train.yaml", f"--cluster={tmp_path}/cluster.yaml", f"run.dir={tmp_path}/run", *arguments]
    command = [sys.executable, "-m", "slurm.submit", *options]
    return subprocess.run(command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, timeout=seconds(120))


def test_dry_run_shows_the_scripts_as_comments(tmp_path: Path, run: Config) -> None:
    plain = submitted(tmp_path, f"data.shards={URL}", "--dry-run")
    done = submitted(tmp_path, f"data.shards={URL}", "--dry-run", "--then", "evaluate", "--then", "sample --count 64")
    assert plain.returncode == done.returncode == 0, done.stderr
    assert done.stdout.startswith(plain.stdout) and "secret" not in done.stdout and not (tmp_path / "run").exists()
    added = done.stdout.removeprefix(plain.stdout)
    assert all(line.startswith("# ") or not line for line in added.splitlines())
    _, evaluation, sampling = added.split("# then, as another job: ")
    assert evaluation.startswith(f"attributegan-evaluate {tmp_path}/run --train=train")
    assert sampling.startswith(f"attributegan-sample {tmp_path}/run --count 64 --out {tmp_path}/run/samples\n")
    expected = (
        "nodes=1 ntasks-per-node=1 gpus-per-node=1 mem=9G exclude=node7 requeue dependency=afterok:JOB kill-on-invalid-dep=yes "
        "job-name=run-sample"
    )
    for option in expected.split():
        assert f"\n# #SBATCH --{option}\n" in sampling
    assert sampling.index("module load cuda") < sampling.index("export PYTHONPATH=") < sampling.index("# srun --unbuffered")
    folder = f"{tmp_path}/run/submissions/0001"
    assert f"apptainer exec x.sif python3 -u -m slurm.follow_up {folder} 1\n" in sampling
    assert sampling.rstrip().endswith(f"{sys.executable} -m slurm.follow_up {folder} 1 $? 3")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--then", "sample", "--local"], "error: --then: requires Slurm"),
        (["--then", "samples", "--dry-run"], "error: --then: 'samples' is not evaluate or sample"),
        (["--array", "nope", "--dry-run"], "error: --array: nope: not a preset and not a file; presets are rates"),
    ],
)
def test_invalid_submission_is_refused(tmp_path: Path, run: Config, arguments: list[str], message: str) -> None:
    done = submitted(tmp_path, f"data.shards={URL}", *arguments)
    assert done.returncode == 2 and message in done.stderr and not (tmp_path / "run").exists()


@pytest.mark.parametrize("array", [[], ["--array=rates"]])
def test_notice_of_an_old_name_is_printed_once(tmp_path: Path, run: Config, array: list[str]) -> None:
    done = submitted(tmp_path, f"data.shards={URL}", "train.processes=4", *array, "--dry-run")
    assert done.returncode == 0 and done.stderr.count("train.processes is now train.world_size") == 1, done.stderr


def test_jobs_depend_on_the_job_of_their_run(tmp_path: Path, run: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    for program in ("srun", "sbatch"):
        script = f"#!/bin/sh\necho . >> {tmp_path}/count\necho Submitted batch job $((45 + $(wc -l < {tmp_path}/count)))\n"
        (tmp_path / "bin" / program).write_text(script)
        (tmp_path / "bin" / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    submission = tmp_path / "run" / "submissions" / "0001"
    submission.mkdir(parents=True)
    (submission / "config-1.yaml").write_text(config.dump(run))
    runs = [config.override(run, [f"run.dir={tmp_path}/{name}"], "here") for name in "ab"]
    found = follow_up.parse(["sample"], runs)
    assert follow_up.submit(submission, ClusterConfig(), "run", found, ["45_0", "45_1"]) == ["46", "47"]
    for job, array in (("46", "45_0"), ("47", "45_1")):
        assert f"#SBATCH --dependency=afterok:{array}\n" in (submission / f"{job}_submission.sh").read_text()

    started: list[tuple[list[str], str]] = []
    monkeypatch.setattr(os, "execve", lambda program, line, variables: started.append((line, variables["ATTRIBUTEGAN_SHARDS"])))
    follow_up.run(submission, 1)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    follow_up.run(submission, 1)
    line = ["sample", f"{tmp_path}/b", "--out", f"{tmp_path}/b/samples"]
    assert [(words[words.index("attributegan") + 1 :], shards) for words, shards in started] == [(line, URL), ([*line, "--overwrite"], URL)]


def test_error_of_sbatch_names_the_training_that_was_submitted(tmp_path: Path, run: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    error = subprocess.CalledProcessError(1, "sbatch", output=b"", stderr=b"sbatch: error: too many jobs")
    monkeypatch.setattr(follow_up, "submit", lambda *_: (_ for _ in ()).throw(error))
    jobs = [SimpleNamespace(job_id="45_0")]
    with pytest.raises(ValueError, match="^--then: sbatch failed: sbatch: error: too many jobs. The training is submitted as job 45; run"):
        submit._submit_follow_ups(tmp_path, ClusterConfig(), "run", [FollowUp("sample", [], 0)], jobs)  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("srun", "restarts", "state", "requeued", "printed"),
    [
        (0, 0, "RUNNING", False, ""),
        (2, 0, "RUNNING", False, ""),
        (128 + signal.SIGUSR2, 0, "RUNNING", True, "requeueing the job, 1 of at most 3 times"),
        (128 + signal.SIGTERM, 2, "RUNNING", True, "requeueing the job, 3 of at most 3 times"),
        (128 + signal.SIGUSR2, 3, "RUNNING", False, "error: stopped by a signal after 3 requeues; is `time`"),
        (128 + signal.SIGINT, 0, "RUNNING", False, ""),
        (128 + signal.SIGTERM, 0, "CANCELLED", False, ""),
        (137, 0, "RUNNING", False, ""),
    ],
)
def test_job_is_requeued_after_a_signal(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    srun: int,
    restarts: int,
    state: str,
    requeued: bool,
    printed: str,
) -> None:
    calls: list[tuple[str, ...]] = []

    def scontrol(*arguments: str) -> subprocess.CompletedProcess[str]:
        calls.append(arguments)
        return subprocess.CompletedProcess(arguments, 0, f"JobId=45 JobState={state} Restarts={restarts}", "")

    monkeypatch.setattr(requeue, "_scontrol", scontrol)
    monkeypatch.setenv("SLURM_JOB_ID", "45")
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
    assert follow_up.conclude(srun, 3) == srun
    assert (("requeue", "45") in calls) == requeued
    assert printed in capsys.readouterr().err


def test_record_of_the_commands_reads_back(tmp_path: Path) -> None:
    one = FollowUp("sample", ["/a b", "--out", "c"], 2)
    assert FollowUp(**json.loads(json.dumps(vars(one)))) == one and shlex.split(str(one))[1] == "/a b"
    parsed = submit._parser().parse_intermixed_args(["--config=a", "--cluster=b", "--then", "sample", "x.y=1", "--then=evaluate"])
    assert parsed == argparse.Namespace(**vars(parsed) | {"then": ["sample", "evaluate"], "overrides": ["x.y=1"]})
