"""The lock of run folders, and the states that `attributegan-runs` reports for running, finished and dead runs."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import ROOT, kill, output, start, train, wait_for
from stores import wait_until
from time_limits import seconds

from attributegan.run_dir import lock, status
from attributegan.run_dir.lock import RunLock
from tools import runs


def listed(folder: Path) -> str:
    """Returns the line of a run in the list."""
    command = [sys.executable, "-m", "tools.runs", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds(60))
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[1]


def test_second_training_is_refused_while_the_first_lives_and_goes_on_when_it_is_dead(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = start(shards, run, "train.images=4000", "run.save_every=4000")
    wait_for(run, 16, first)
    assert " running " in listed(run)
    command = [sys.executable, "launch/train.py", "--config", str(tmp_path / "run.yaml"), f"data.shards={shards}", f"run.dir={run}"]
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds(120))
    assert second.returncode == 2 and f"is in use by the training on {os.uname().nodename} (process {first.pid})" in second.stderr
    assert first.poll() is None
    kill(first, signal.SIGKILL)
    assert " dead " in listed(run)
    train(shards, run, "train.images=32")
    line = listed(run)
    assert " finished " in line and "32 of 32 (100%)" in line and str(run / "checkpoints" / "images-000000000032") in line
    assert not (run / lock.FILE).exists()


def test_stopped_and_failed_runs_are_called_that(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(shards, run, "train.images=4000")
    wait_for(run, 8, process)
    kill(process, signal.SIGUSR1)
    assert process.returncode == 128 + signal.SIGUSR1, output(run)
    assert " stopped " in listed(run) and not (run / lock.FILE).exists()
    wide = ["model.latent_dim=65536", "model.fmap_max=65536", "model.fmap_inverse_coef=20"]
    assert start(shards, tmp_path / "wide", *wide).wait(timeout=seconds(120)) == 3, "too little memory would come again"
    assert " failed " in listed(tmp_path / "wide") and "can't allocate memory" in status.read(tmp_path / "wide").error


def held_by(folder: Path, **changes: object) -> RunLock:
    """Create a lock held by another process."""
    other = RunLock(folder, "training")
    other.me = dataclasses.replace(other.me, token="other", **changes)
    folder.mkdir(exist_ok=True)
    assert other._create()
    return other


def test_claim_of_another_machine_stands_while_it_is_refreshed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stale lock is taken over, even if its owner wakes up later."""
    monkeypatch.setattr(lock, "LEASE_S", seconds(1.0))
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.2)
    there = held_by(tmp_path, machine="elsewhere", host="node7", pid=77)
    there._heartbeat_thread.start()
    with pytest.raises(ValueError, match=r"in use by the training on node7 \(process 77\)"):
        RunLock(tmp_path, "training").acquire()
    there._released.set()
    there._heartbeat_thread.join()
    mine = RunLock(tmp_path, "training")
    mine.acquire()
    assert lock.owner_of(tmp_path) == mine.me
    there.release()
    assert lock.owner_of(tmp_path) == mine.me, "what another has now is not released"
    mine.release()
    assert lock.owner_of(tmp_path) is None


def test_training_whose_folder_was_taken_over_ends(tmp_path: Path) -> None:
    """A process that was suspended must not write to the run folder any more."""
    code = f"""
import time
from pathlib import Path
from attributegan.run_dir import lock
lock.HEARTBEAT_S = 0.2
lock.RunLock(Path({str(tmp_path)!r}), "training").acquire()
print("taken", flush=True)
time.sleep({seconds(120)})
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as sleeper:
        assert sleeper.stdout.readline() == "taken\n"
        held_by(tmp_path / "next", host="node7")
        os.replace(tmp_path / "next" / lock.FILE, tmp_path / lock.FILE)  # a heartbeat between removing and creating would create it again
        try:
            assert sleeper.wait(timeout=seconds(30)) == lock.LOCK_LOST
        finally:
            sleeper.kill()
        assert "was taken over by the training on node7" in sleeper.stderr.read()


def test_job_that_starts_again_does_not_wait_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held_by(tmp_path, machine="elsewhere", job="45", restart=0)
    monkeypatch.setenv("SLURM_JOB_ID", "45")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    began = time.monotonic()
    RunLock(tmp_path, "training").acquire()
    assert time.monotonic() - began < lock.LEASE_S / 2


def test_of_many_at_once_one_gets_a_dead_claim(tmp_path: Path) -> None:
    held_by(tmp_path, born="before")
    code = f"""
import time
from pathlib import Path
from attributegan.run_dir.lock import RunLock
RunLock(Path({str(tmp_path)!r}), "training").acquire()
print("taken", flush=True)
time.sleep({seconds(120)})
"""
    takers = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(6)
    ]
    try:
        said = [taker.stdout.readline() for taker in takers]  # "" at the exit of those that are refused
        assert sorted(said) == [""] * 5 + ["taken\n"]
        assert lock.owner_of(tmp_path).pid == takers[said.index("taken\n")].pid
    finally:
        for taker in takers:
            taker.kill()
            taker.communicate()


def test_list_takes_slurms_word_for_jobs_and_silence_for_death(tmp_path: Path) -> None:
    now = status.Status(state="running", job="45", updated_at=time.time() - 3600)
    assert runs.state_of(tmp_path, now, {}) == "dead"
    assert runs.state_of(tmp_path, now, {"45": "PENDING"}) == "queued"
    assert runs.state_of(tmp_path, now, {"45": "RUNNING"}) == "running"
    lost_node = dataclasses.replace(now, state="failed")
    assert runs.state_of(tmp_path, lost_node, {"45": "PENDING"}) == "queued"
    assert runs.state_of(tmp_path, lost_node, {}) == "failed"
    assert runs.state_of(tmp_path, dataclasses.replace(now, updated_at=time.time()), {}) == "running"


def test_follow_prints_the_log_until_the_run_ends(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(shards, run, "train.images=80")
    wait_for(run, 8, process)
    command = [sys.executable, "-m", "tools.runs", "--follow", str(run)]
    followed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds(120))
    assert process.wait(timeout=seconds(60)) == 0
    assert followed.returncode == 0 and "80 of 80 images (100%)" in followed.stdout and followed.stdout.endswith("-- finished\n")


def test_folders_without_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert runs.main([str(tmp_path / "absent")]) == 2
    assert runs.main([str(tmp_path)]) == 0
    assert runs.main(["--follow", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert "no runs in" in said.out and "no such folder" in said.err and "not a run folder" in said.err


def test_removal_that_a_kill_cut_short_blocks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "REMOVAL_TIMEOUT_S", 0.3)
    held_by(tmp_path, born="before")
    (tmp_path / f"{lock.FILE}.removing").mkdir()
    mine = RunLock(tmp_path, "training")
    mine.acquire()
    mine.release()
    assert os.listdir(tmp_path) == []


def test_claim_outlives_a_folder_that_is_away_for_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.1)
    folder, away = tmp_path / "run", tmp_path / "away"
    mine = RunLock(folder, "training")
    mine.acquire()
    folder.rename(away)
    time.sleep(0.5)
    away.rename(folder)
    before = lock._heartbeat_of(mine.path)
    wait_until(lambda: lock._heartbeat_of(mine.path) > before)
    mine.release()


def test_status_leaves_nothing_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    status.update(tmp_path, images=8)
    monkeypatch.setattr(status.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        status.update(tmp_path, images=16)
    assert os.listdir(tmp_path) == [status.FILE] and status.read(tmp_path).images == 8
