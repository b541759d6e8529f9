"""Exit records, the first failure, and requeueing of jobs, with a fake scontrol."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from attributegan.cli import BAD_INPUT, PERMANENT_ERROR
from attributegan.run_dir import status
from launch import notify
from slurm import exit_records, missed_events, requeue, task
from slurm.exit_records import ExitRecord
from slurm.submission import Plan, Run
from tools.arrays import state as array_state
from tools.arrays.state import Record

STOPPED = 128 + signal.SIGTERM


def record(rank: int, code: int | None, when: int = 0, output: str = "") -> ExitRecord:
    return ExitRecord(rank, 4, f"node{rank}", code, when, output)


@pytest.mark.parametrize(
    ("code", "stopped", "failed", "is_permanent"),
    [
        (None, False, False, False),
        (0, False, False, False),
        (1, False, True, False),
        (BAD_INPUT, False, True, True),
        (PERMANENT_ERROR, False, True, True),
        (STOPPED, True, False, False),
        (-signal.SIGTERM, True, False, False),
        (-signal.SIGKILL, False, True, False),
        (128 + signal.SIGKILL, False, True, False),
    ],
)
def test_exit_status_classification(code: int | None, stopped: bool, failed: bool, is_permanent: bool) -> None:
    found = record(0, code)
    assert (found.stopped, found.failed, found.is_permanent) == (stopped, failed, is_permanent)


def test_record_describes_rank_host_and_exit() -> None:
    assert str(record(1, 3)) == "rank 1 of 4, on node1, exited with status 3"
    assert str(record(1, -9, output="last line")) == "rank 1 of 4, on node1, was killed by signal 9 (SIGKILL):\nlast line"
    assert str(record(1, None)).startswith("rank 1 of 4, on node1, died without an exit status")


def test_records_are_read_by_rank(tmp_path: Path) -> None:
    where = exit_records.folder(tmp_path, "45_3", 2)
    assert where == tmp_path / "endings" / "45_3-2" and exit_records.read(where) == []
    where.mkdir(parents=True)
    records = [record(rank, rank, when=rank, output="é") for rank in (100, 0, 20, 3)]
    for one in records:
        exit_records.write(where, one)
    assert exit_records.read(where) == sorted(records, key=lambda one: one.rank)
    assert sorted(path.name for path in where.iterdir()) == [f"rank-{rank:05d}.json" for rank in (0, 3, 20, 100)]
    exit_records.write(where, record(3, None))
    assert exit_records.read(where)[1] == record(3, None)


@pytest.mark.parametrize(
    ("records", "rank"),
    [
        ([record(0, 1, when=5), record(1, 1, when=4), record(2, STOPPED, when=1)], 1),
        ([record(0, 1, when=5), record(1, None), record(2, None)], 1),
        ([record(0, 0), record(1, None)], 1),
        ([record(0, 0), record(1, STOPPED)], None),
        ([], None),
    ],
)
def test_first_failure(records: list[ExitRecord], rank: int | None) -> None:
    first = exit_records.first_failure(records)
    assert (first.rank if first else None) == rank


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A submission of two runs, in its job array task 45_1; `scontrol` is a script that logs its arguments."""
    for name in ("one", "two"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        status.update(tmp_path / name, state="running", error="old")
    Plan(4, 2, {}, [Run(str(tmp_path / "one"), "a.yaml"), Run(str(tmp_path / "two"), "b.yaml")]).save(tmp_path)
    for key, value in {"ARRAY_JOB_ID": "45", "ARRAY_TASK_ID": "1", "RESTART_COUNT": "1"}.items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(requeue, "time", SimpleNamespace(sleep=lambda s: (tmp_path / "slept").open("a").write(f"{s:g} ")))
    monkeypatch.setattr(requeue.signal, "signal", lambda number, handler: (tmp_path / "ignored").open("a").write(f"{int(number)} "))
    scontrol(tmp_path, "JobState=RUNNING Restarts=1")
    return tmp_path


def scontrol(folder: Path, shown: str, failures: int = 0) -> None:
    """Write a fake scontrol that shows ``shown`` and fails the first ``failures`` requeues."""
    script = f"""#!/bin/sh
echo "$@" >> {folder}/calls
if [ "$1" = show ]; then echo "JobId=45 {shown} x=y"; exit 0; fi
if [ "$(grep -c requeue {folder}/calls)" -le {failures} ]; then echo "no controller" >&2; exit 1; fi
"""
    (folder / "scontrol").write_text(script)
    (folder / "scontrol").chmod(0o755)


def main(job: Path, monkeypatch: pytest.MonkeyPatch, records: list[ExitRecord], srun: int) -> tuple[int, str]:
    """Run requeue.main; returns its exit status and the state of the run."""
    where = exit_records.folder(job, "45_1", 1)
    where.mkdir(parents=True, exist_ok=True)
    for one in records:
        exit_records.write(where, one)
    monkeypatch.setattr(requeue.sys, "argv", ["after", str(job), str(srun)])
    code = requeue.main()
    assert status.read(job / "one").state == "running", "the other run of the array"
    return code, status.read(job / "two").state


@pytest.mark.parametrize(
    ("codes", "srun", "expected", "state", "requeued"),
    [
        ([0, 0], 0, 0, "running", False),
        ([STOPPED, STOPPED], STOPPED, STOPPED, "queued", True),
        ([1, STOPPED], 1, 1, "queued", True),
        ([1], 7, 1, "queued", True),
        ([3, 1], 7, 3, "failed", False),
        ([-9, 1], 137, 137, "queued", True),
        ([], STOPPED, STOPPED, "queued", True),  # stopped before any process started
        ([None, None], STOPPED, STOPPED, "queued", True),
        ([], 1, 1, "queued", True),
        ([None, 0], 0, 0, "queued", True),
    ],
)
def test_job_after_exit(
    job: Path, monkeypatch: pytest.MonkeyPatch, codes: list[int | None], srun: int, expected: int, state: str, requeued: bool
) -> None:
    assert main(job, monkeypatch, [record(rank, code, when=rank) for rank, code in enumerate(codes)], srun) == (expected, state)
    assert (job / "calls").read_text().split("\n")[:-1] == ["show job -o 45_1"] + ["requeue 45_1"] * requeued
    ignored = {int(number) for number in (job / "ignored").read_text().split()}
    assert {signal.SIGTERM, signal.SIGUSR2} <= ignored


def test_stop_before_the_start_is_not_an_error(job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(job, monkeypatch, [], STOPPED) == (STOPPED, "queued")
    assert capsys.readouterr().err == "" and not (job / "errors-1.json").exists()


@pytest.mark.parametrize(
    ("shown", "before", "state"),
    [
        ("JobState=PENDING Restarts=2", "running", "queued"),  # Slurm has requeued it: a node failed
        ("JobState=PENDING Restarts=1", "running", "stopped"),
        ("JobState=CANCELLED Restarts=1", "running", "stopped"),
        ("JobState=CANCELLED", "running", "stopped"),
        ("JobState=CANCELLED Restarts=1", "finished", "finished"),
    ],
)
def test_job_already_requeued_or_cancelled(job: Path, monkeypatch: pytest.MonkeyPatch, shown: str, before: str, state: str) -> None:
    scontrol(job, shown)
    status.update(job / "two", state=before)
    assert main(job, monkeypatch, [record(0, 1)], 9) == (9, state)
    assert (job / "calls").read_text() == "show job -o 45_1\n"
    assert status.read(job / "two").error == ("old" if before == "finished" else "")


def test_run_without_status_file_gets_none(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol(job, "JobState=CANCELLED Restarts=1")
    (job / "two" / status.FILE).unlink()
    monkeypatch.setattr(requeue.sys, "argv", ["after", str(job), "9"])
    assert requeue.main() == 9 and status.read(job / "two") is None


@pytest.mark.parametrize(("failures", "slept", "state"), [(0, "", "queued"), (2, "1 2 ", "queued"), (5, "1 2 4 8 16 ", "failed")])
def test_requeue_is_retried(
    job: Path, monkeypatch: pytest.MonkeyPatch, failures: int, slept: str, state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    scontrol(job, "JobState=RUNNING Restarts=1", failures=failures)
    assert main(job, monkeypatch, [record(0, STOPPED)], STOPPED) == (STOPPED, state)
    assert ((job / "slept").read_text() if slept else "") == slept and (job / "slept").exists() == bool(slept)
    if state == "failed":
        assert "scontrol requeue 45_1 failed: no controller" in status.read(job / "two").error
        assert "no controller" in capsys.readouterr().err


def test_missing_scontrol_fails_the_run(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (job / "scontrol").unlink()
    monkeypatch.setenv("PATH", str(job))
    code, state = main(job, monkeypatch, [record(0, STOPPED)], STOPPED)
    assert (code, state) == (STOPPED, "failed") and "scontrol" in status.read(job / "two").error


def test_scontrol_timeout_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, timeout: float, **options: object) -> subprocess.CompletedProcess[str]:
        assert timeout == 60 and options == {"capture_output": True, "text": True}
        raise subprocess.TimeoutExpired("scontrol", timeout)

    monkeypatch.setattr(requeue.subprocess, "run", run)
    result = requeue._scontrol("show")
    assert result.returncode == 1 and "timed out" in result.stderr


def test_error_count_restarts_after_a_new_checkpoint(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fail = [record(0, 1, 1, "KeyError")]
    assert requeue.conclude(job, 1, fail, 1) == "requeue"
    assert "error: rank 0 of 4, on node0, exited with status 1:\nKeyError\nrequeueing the job, 1 of at most 2" in capsys.readouterr().err
    assert status.read(job / "two").state == "queued" and status.read(job / "two").error.startswith("rank 0 of 4")
    assert requeue.conclude(job, 1, fail, 1) == "requeue" and "requeueing the job, 2 of at most 2" in capsys.readouterr().err
    (job / "two" / "checkpoints" / "images-000000000008").mkdir()
    assert requeue.conclude(job, 1, fail, 1) == "requeue" and "requeueing the job, 1 of at most 2" in capsys.readouterr().err
    (job / "two" / "checkpoints" / "images-000000000004").mkdir()  # not newer
    assert [requeue.conclude(job, 1, fail, 1) for _ in range(2)] == ["requeue", "end"]
    assert status.read(job / "two").state == "failed" and status.read(job / "two").error.startswith("rank 0 of 4")


def test_task_of_an_array_is_given_up_after_too_many_errors(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Plan(4, 1, {}, [Run(str(job / "one"), "a.yaml"), Run(str(job / "two"), command=["-m", "x"])]).save(job)
    for name, state in (("t0", "done"), ("t1", "started")):
        array_state.append(job / "two", Record(name, state))
    error = [record(0, 1, 1, "KeyError")]
    assert requeue.conclude(job, 1, error, 1) == "requeue"
    assert "requeueing the job, 1 of at most 1 consecutive times without a finished task" in capsys.readouterr().err
    assert requeue.conclude(job, 1, [record(3, 1)], 1) == "requeue" and "giving up the task" in capsys.readouterr().err
    assert status.read(job / "two").state == "queued" and status.read(job / "two").error.startswith("rank 3 of 4")
    assert array_state.records(job / "two")["t1"].state == "failed" and array_state.records(job / "two")["t0"].state == "done"
    array_state.append(job / "two", Record("t2", "started"))
    assert requeue.conclude(job, 1, error, 1) == "requeue" and "1 of at most 1" in capsys.readouterr().err  # a task was finished
    assert requeue.conclude(job, 1, [record(0, BAD_INPUT)], 1) == "end"  # a permanent error is that of the array, not of a task
    assert array_state.records(job / "two")["t2"].state == "started" and status.read(job / "two").state == "failed"
    array_state.append(job / "two", Record("t2", "done"))
    assert [requeue.conclude(job, 1, error, 1) for _ in range(2)] == ["requeue", "end"]  # no task to give up


def test_failure_before_any_process_started_names_the_log(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert requeue.conclude(job, 1, [], 5) == "requeue"
    assert f"srun exited with status 5 before any training process started; see the log in {job}" in capsys.readouterr().err
    assert requeue.conclude(job, 1, [], 0) == "end"
    assert requeue.conclude(job, 1, [record(0, 0)], 5) == "requeue"


def test_status_0_is_no_signal() -> None:
    assert "signal" not in str(ExitRecord(0, 1, "node0", 0)) and "status 0" in str(ExitRecord(0, 1, "node0", 0))
    assert "signal 9 (SIGKILL)" in str(ExitRecord(0, 1, "node0", -9))


def notifying(job: Path, file: Path) -> None:
    """Let both runs send their events to ``file``."""
    for name in ("a.yaml", "b.yaml"):
        notify = f'echo "$ATTRIBUTEGAN_EVENT $ATTRIBUTEGAN_IMAGES $ATTRIBUTEGAN_MESSAGE" >> {file}'
        (job / name).write_text(json.dumps({"data": {"shards": "x"}, "run": {"dir": str(job / "two"), "notify": notify}}))
    Plan(4, 2, {}, [Run(str(job / "one"), str(job / "a.yaml")), Run(str(job / "two"), str(job / "b.yaml"))]).save(job)
    status.update(job / "two", images=48)


@pytest.mark.parametrize(
    ("codes", "srun", "shown", "event"),
    [
        ([-9, 1], 137, "RUNNING", "failed 48 rank 0 of 4, on node0, was killed by signal 9 (SIGKILL): last line"),
        (
            [None, 1],
            137,
            "RUNNING",
            "failed 48 rank 0 of 4, on node0, died without an exit status: killed together with its parent process",
        ),
        ([3, 3], 3, "RUNNING", "failed 48 rank 0 of 4, on node0, exited with status 3: last line"),
        ([], 1, "RUNNING", "failed 48 srun exited with status 1"),
        ([-signal.SIGTERM], 143, "RUNNING", "stopped 48 stopped by a signal"),
        ([None, None], 9, "PENDING Restarts=2", "failed 48 the job was requeued by Slurm"),
        ([None, None], 9, "CANCELLED", "stopped 48 the job was cancelled"),
        ([0, 0], 0, "RUNNING", ""),
    ],
)
def test_event_of_a_killed_process_is_sent_once(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codes: list[int | None], srun: int, shown: str, event: str
) -> None:
    notifying(job, tmp_path / "events")
    scontrol(job, f"JobState={shown}")
    main(job, monkeypatch, [record(rank, code, rank, "last line" if code else "") for rank, code in enumerate(codes)], srun)
    sent = (tmp_path / "events").read_text() if event else ""
    assert sent.startswith(event) and sent.count("\n") == bool(event) and (tmp_path / "events").exists() == bool(event)
    for path in job.glob("errors-*"):
        path.unlink()
    main(job, monkeypatch, [], srun)
    assert not event or (tmp_path / "events").read_text() == sent


def test_event_of_a_process_that_sent_one_is_not_repeated(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notifying(job, tmp_path / "events")
    where = exit_records.folder(job, "45_1", 1)
    where.mkdir(parents=True)
    monkeypatch.setenv(notify.SENT, str(where / missed_events.SENT))
    for event in ("start", "failed"):
        notifier = notify.Notifier(f"echo {event} >> {tmp_path / 'events'}", job / "two")
        notifier.send(event, 48, "")
        notifier.close()
        assert (where / missed_events.SENT).exists() == (event == "failed")
    main(job, monkeypatch, [record(0, -9)], 137)
    assert (tmp_path / "events").read_text() == "start\nfailed\n"


def test_event_of_a_lost_node_is_sent_by_the_next_start(job: Path, tmp_path: Path) -> None:
    notifying(job, tmp_path / "events")
    task._report_lost_start(job, 1, "45_1")
    assert not (tmp_path / "events").exists(), "there was no start before"
    exit_records.folder(job, "45_1", 0).mkdir(parents=True)
    for _ in range(2):
        task._report_lost_start(job, 1, "45_1")
    assert (tmp_path / "events").read_text() == f"failed 48 {missed_events.LOST}\n"
