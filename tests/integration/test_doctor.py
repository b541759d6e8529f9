"""launch/doctor.py on healthy and on faulty launches: real processes, and nodes in network namespaces."""

import dataclasses
import os
import re
import socket
import sys
import time
from pathlib import Path

import pytest
from nodes import copy_of_code, launch, namespaces
from runs import ROOT, begin, free_port, launcher, output
from time_limits import seconds

from launch import doctor
from launch.checks import diagnosis
from launch.checks import facts as facts_module
from launch.checks.timeout import run_with_timeout

DOCTOR = str(ROOT / "launch" / "doctor.py")
LIMIT_S = seconds(150)


def test_healthy_launch(tmp_path: Path) -> None:
    run, shared = tmp_path / "run", tmp_path / "shared"
    shared.mkdir()
    command = [*launcher("zero2", 2), DOCTOR, "--processes", "2", "--shared", str(shared), "--seconds", "1"]
    assert begin(command, run).wait(timeout=LIMIT_S) == 0, output(run)
    report = output(run)
    assert "all checks passed" in report and f"{socket.gethostname()}: ranks 0-1" in report
    assert f"all-reduce within {socket.gethostname()}" in report and "MB/s" in report and "clocks: 0." in report
    assert list(shared.iterdir()) == []


@pytest.mark.root
def test_finds_differences_between_nodes(tmp_path: Path) -> None:
    """Finds different code, a clock that is ahead, and a folder that is not shared."""
    first, second = copy_of_code(tmp_path / "first"), copy_of_code(tmp_path / "second")
    clock = second / "launch" / "checks" / "facts.py"
    clock.write_text(clock.read_text().replace("return time.time()", "return time.time() + 100"))
    for folder in (first, second):
        (folder / "shared").mkdir()
    with namespaces() as nodes:
        command = ["launch/doctor.py", "--processes", "2", "--shared", "shared", "--seconds", "1"]
        for process in launch(nodes, "multinode_ddp", tmp_path / "run", command, cwds=(first, second)):
            assert process.wait(timeout=LIMIT_S) == 1
    report = output(tmp_path / "run-0")
    assert "node0: rank 0\n" in report and "node1: rank 1\n" in report and "all-reduce across nodes" in report
    assert "attributegan's code differs between processes: rank 0 (node0): " in report
    assert re.search(r"the clock of node1 is (99\.[5-9]|100\.[0-5]) s ahead of that of node0", report), report  # read one after the other
    assert "rank 0 (node0) does not see the files that rank 1 wrote in shared" in report
    assert "rank 1 (node1) does not see the files that rank 0 wrote in shared" in report
    assert "4 problems:" in report
    assert not list(first.glob("shared/.*")) and not list(second.glob("shared/.*"))


@pytest.mark.root
def test_loopback_between_machines(tmp_path: Path) -> None:
    """Finds host names that resolve to loopback only, which would make training hang."""
    with namespaces() as nodes:
        bare = [dataclasses.replace(node, environment={}) for node in nodes]
        for process in launch((bare[0], bare[1]), "multinode_ddp", tmp_path / "run", [DOCTOR, "--processes", "4"]):
            assert process.wait(timeout=LIMIT_S) == 1
    report = output(tmp_path / "run-0")
    assert "rank 0 (node0): the process group would use loopback (127.0.0.1)" in report
    assert "export GLOO_SOCKET_IFNAME=INTERFACE there (the route to MASTER_ADDR is cable0 10.211.7.2)" in report
    assert "4 processes were requested (--processes), but the launcher started 2" in report
    assert "not measured" in report


ZERO2 = ("--config_file", f"{ROOT}/configs/accelerate/zero2.yaml", "--main_process_ip", "127.0.0.1")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--cpu", "--num_processes", "2"), "started one process per machine"),
        ((*ZERO2, "--num_machines", "2", "--num_processes", "2"), "it has no hostfile"),
    ],
)
def test_finds_launches_of_too_few_processes(arguments: tuple[str, ...], reason: str, tmp_path: Path) -> None:
    """Finds commands for two processes that silently start one; the second uses DeepSpeed's default launcher."""
    run = tmp_path / "run"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # accelerate writes a file to the working directory when it starts DeepSpeed's launcher
    own = {"PATH": path, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    process = begin([*launcher("cpu", 2)[:4], *arguments, DOCTOR], run, cwd=tmp_path, **own)
    assert process.wait(timeout=LIMIT_S) != 0
    assert reason in output(run) and "1 problem:" in output(run)


def test_finds_slurm_tasks_that_are_separate_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    assert doctor.main([]) == 1
    assert "Slurm started 8 tasks, but WORLD_SIZE is 1" in capsys.readouterr().out
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert doctor.main([]) == 0


def test_one_process_claims_no_check_of_network_and_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    doctor.main(["--shared", str(tmp_path)])
    report = capsys.readouterr().out
    assert report.startswith("1 process\n") and "network, clocks and shared disk: not checked" in report and ": checked" not in report


def test_names_missing_ranks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(doctor, "RENDEZVOUS_S", 1.0)
    assert doctor.main([]) == 1
    assert "no answer from ranks 1-2" in capsys.readouterr().out
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("MASTER_PORT", "1")  # nothing listens there
    assert doctor.main([]) == 1
    assert "rendezvous failed at 127.0.0.1:1" in capsys.readouterr().out


def test_refuses_invalid_options() -> None:
    assert doctor.main(["--seconds", "0"]) == 2
    with pytest.raises(SystemExit) as ended:
        doctor.main(["--no-such-option"])
    assert ended.value.code == 2


def test_run_with_timeout_returns_in_time() -> None:
    start = time.monotonic()
    result, problem = run_with_timeout(lambda: time.sleep(seconds(3)), 0.1)
    assert result is None and "timed out after" in problem and time.monotonic() - start < seconds(2)
    assert run_with_timeout(lambda: 5, 5) == (5, "")
    assert run_with_timeout(lambda: 1 // 0, 5)[1].startswith("ZeroDivisionError")


def facts(rank: int, node: str = "a", **changes: object) -> facts_module.Facts:
    """Returns the facts of a healthy process with its own GPU."""
    healthy = facts_module.Facts(
        rank=rank,
        local_rank=rank,
        local_world=2,
        host=node,
        node=node,
        versions={"torch": "2.13"},
        launch_problem="",
        slurm_tasks=0,
        cpu_requested=False,
        gpus_installed=8,
        gpus_visible=8,
        gpu=f"GPU-{node}{rank}",
        gpu_hidden_by="",
        interface="eth0",
        address="10.0.0.1",
        route="eth0 10.0.0.1",
        memory_free=2**40,
        shm_free=2**40,
    )
    return dataclasses.replace(healthy, **changes)  # type: ignore[arg-type]


def test_names_rank_with_another_version() -> None:
    gathered = {rank: dataclasses.asdict(facts(rank)) for rank in range(2)}
    assert doctor.parse_facts(gathered) == [facts(0), facts(1)]
    with pytest.raises(ValueError, match=r"rank 1 \(a\) runs another version of attributegan"):
        doctor.parse_facts({0: gathered[0], 1: gathered[1] | {"humidity": 3}})


FAULTY = {
    "hidden": (
        diagnosis.check_gpus,
        [facts(0, gpus_visible=0, gpu="", gpu_hidden_by="driver")],
        "a has 8 GPUs, but torch sees none: driver",
    ),
    "few": (diagnosis.check_gpus, [facts(0, gpus_visible=1), facts(1, gpus_visible=1, gpu="")], "a has 2 processes and 1 GPUs"),
    "shared": (diagnosis.check_gpus, [facts(0, gpu="G"), facts(1, gpu="G")], "ranks 0-1 (a) share one GPU (G)"),
    "mixed": (
        diagnosis.check_gpus,
        [facts(0), facts(1, "b", gpus_installed=0, gpus_visible=0, gpu="")],
        "rank 1 (b) see no GPU, but the other processes do",
    ),
    "versions": (diagnosis.check_versions, [facts(0), facts(1, "b", versions={"torch": "2.5"})], "rank 0 (a): 2.13; rank 1 (b): 2.5"),
    "memory": (diagnosis.check_memory, [facts(0, memory_free=2**30)], "a has 1.0 GiB of free memory for 1 processes"),
    "shm": (diagnosis.check_memory, [facts(0, shm_free=64 * 2**20)], "a has 64 MiB free in /dev/shm"),
    "interface": (
        diagnosis.check_addresses,
        [facts(0), facts(1, "b", interface="ib0", address="")],
        "names ib0, which has no address here",
    ),
    "loopback": (diagnosis.check_addresses, [facts(0), facts(1, "b", address="::1")], "rank 1 (b): the process group would use loopback"),
    "twice": (
        lambda facts: diagnosis.check_launch(facts, 2, 0),
        [facts(0), facts(1, local_rank=0)],
        "all have local rank 0 on one machine",
    ),
    "clock": (
        lambda facts: diagnosis.check_clocks(facts, [0, -3.2]),
        [facts(0), facts(1, "b")],
        "the clock of b is 3.2 s behind that of a",
    ),
    "disk": (
        lambda facts: diagnosis.check_disk(facts, "d", ["No space left", ""], [[], []]),
        [facts(0), facts(1)],
        "rank 0 (a) can't write in d",
    ),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_reports_each_fault(fault: str) -> None:
    check, found, expected = FAULTY[fault]
    (problem,) = check(found)
    assert expected in problem


def test_reports_nothing_on_healthy_facts() -> None:
    healthy = [facts(0), facts(1), facts(2, "b", local_rank=0, gpu="GPU-b0"), facts(3, "b", local_rank=1, gpu="GPU-b1")]
    assert diagnosis.check_launch(healthy, 4, 4) == []
    for check in (diagnosis.check_versions, diagnosis.check_gpus, diagnosis.check_addresses, diagnosis.check_memory):
        assert check(healthy) == []
    slow = diagnosis.Speed("across nodes", True, 1e-3, 12e6)
    assert "12 MB/s" in diagnosis.check_speeds([slow])[0] and diagnosis.check_speeds([dataclasses.replace(slow, across_nodes=False)]) == []
    assert diagnosis.format_hosts(healthy) == ["a: ranks 0-1", "b: ranks 2-3"]
    # processes started for the CPU need no GPU
    assert diagnosis.check_gpus([facts(0, gpus_visible=0, gpu="", cpu_requested=True)]) == []
