"""The doctor on healthy and on sick starts: real processes, and nodes in network namespaces."""

import dataclasses
import os
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
from launch.checks.timeout import bounded

DOCTOR = str(ROOT / "launch" / "doctor.py")
LIMIT_S = seconds(150)


def test_a_healthy_start(tmp_path: Path) -> None:
    run, shared = tmp_path / "run", tmp_path / "shared"
    shared.mkdir()
    command = [*launcher("zero2", 2), DOCTOR, "--processes", "2", "--shared", str(shared), "--seconds", "1"]
    assert begin(command, run).wait(timeout=LIMIT_S) == 0, output(run)
    said = output(run)
    assert "all is well" in said and f"{socket.gethostname()}: ranks 0-1" in said
    assert f"all-reduce within {socket.gethostname()}" in said and "MB/s" in said and "clocks: 0." in said
    assert list(shared.iterdir()) == []


@pytest.mark.root
def test_nodes_that_differ(tmp_path: Path) -> None:
    """Another version of the code, a clock that is ahead, and a folder that only looks like one disk."""
    first, second = copy_of_code(tmp_path / "first"), copy_of_code(tmp_path / "second")
    clock = second / "launch" / "checks" / "facts.py"
    clock.write_text(clock.read_text().replace("return time.time()", "return time.time() + 100"))
    for folder in (first, second):
        (folder / "shared").mkdir()
    with namespaces() as nodes:
        command = ["launch/doctor.py", "--processes", "2", "--shared", "shared", "--seconds", "1"]
        for process in launch(nodes, "multinode_ddp", tmp_path / "run", command, cwds=(first, second)):
            assert process.wait(timeout=LIMIT_S) == 1
    said = output(tmp_path / "run-0")
    assert "node0: rank 0\n" in said and "node1: rank 1\n" in said and "all-reduce across nodes" in said
    assert "attributegan's code is not the same everywhere: rank 0 (node0): " in said
    assert "the clock of node1 is 100.0 s ahead of that of node0" in said
    assert "rank 0 (node0) does not see in shared what rank 1 wrote there" in said
    assert "rank 1 (node1) does not see in shared what rank 0 wrote there" in said
    assert "4 problems:" in said
    assert not list(first.glob("shared/.*")) and not list(second.glob("shared/.*"))


@pytest.mark.root
def test_loopback_between_machines(tmp_path: Path) -> None:
    """Training would hang: the name of neither machine leads to an address of it."""
    with namespaces() as nodes:
        bare = [dataclasses.replace(node, environment={}) for node in nodes]
        for process in launch((bare[0], bare[1]), "multinode_ddp", tmp_path / "run", [DOCTOR, "--processes", "4"]):
            assert process.wait(timeout=LIMIT_S) == 1
    said = output(tmp_path / "run-0")
    assert "rank 0 (node0): the process group would use loopback (127.0.0.1)" in said
    assert "export GLOO_SOCKET_IFNAME=INTERFACE there (towards the others goes cable0 10.211.7.2)" in said
    assert "4 processes were asked for (--processes), the launcher gave 2" in said
    assert "not measured" in said


ZERO2 = ("--config_file", f"{ROOT}/configs/accelerate/zero2.yaml", "--main_process_ip", "127.0.0.1")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--cpu", "--num_processes", "2"), "started single ones"),
        ((*ZERO2, "--num_machines", "2", "--num_processes", "2"), "it has no hostfile"),
    ],
)
def test_starts_of_too_few_processes(arguments: tuple[str, ...], reason: str, tmp_path: Path) -> None:
    """Commands for two processes that start one, without a word; the second is DeepSpeed's default launcher."""
    run = tmp_path / "run"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    own = {"PATH": path, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}  # accelerate leaves a file where it starts DeepSpeed's launcher
    process = begin([*launcher("cpu", 2)[:4], *arguments, DOCTOR], run, cwd=tmp_path, **own)
    assert process.wait(timeout=LIMIT_S) != 0
    assert reason in output(run) and "1 problem:" in output(run)


def test_tasks_of_slurm_that_do_not_know_of_each_other(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    assert doctor.main([]) == 1
    assert "Slurm has 8 tasks for this and the processes know of 1" in capsys.readouterr().out
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert doctor.main([]) == 0


def test_a_process_that_never_comes_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(doctor, "MEET_S", 1.0)
    assert doctor.main([]) == 1
    assert "no word from ranks 1-2" in capsys.readouterr().out
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("MASTER_PORT", "1")  # where nobody listens
    assert doctor.main([]) == 1
    assert "rendezvous failed at 127.0.0.1:1" in capsys.readouterr().out


def test_bad_usage() -> None:
    assert doctor.main(["--seconds", "0"]) == 2
    with pytest.raises(SystemExit) as ended:
        doctor.main(["--no-such-option"])
    assert ended.value.code == 2


def test_what_never_returns_is_left_behind() -> None:
    start = time.monotonic()
    result, problem = bounded(lambda: time.sleep(seconds(3)), 0.1)
    assert result is None and "nothing came of it" in problem and time.monotonic() - start < seconds(2)
    assert bounded(lambda: 5, 5) == (5, "")
    assert bounded(lambda: 1 // 0, 5)[1].startswith("ZeroDivisionError")


def facts(rank: int, node: str = "a", **changes: object) -> facts_module.Facts:
    """Of a healthy process with a GPU of its own."""
    healthy = facts_module.Facts(
        rank=rank,
        local_rank=rank,
        local_world=2,
        host=node,
        node=node,
        versions={"torch": "2.13"},
        launch_problem="",
        slurm_tasks=0,
        cpu_wanted=False,
        gpus_there=8,
        gpus_seen=8,
        gpu=f"GPU-{node}{rank}",
        gpu_hidden_by="",
        interface="eth0",
        address="10.0.0.1",
        route="eth0 10.0.0.1",
        memory_free=2**40,
        shm_free=2**40,
    )
    return dataclasses.replace(healthy, **changes)  # type: ignore[arg-type]


def test_another_version_of_the_doctor_is_named() -> None:
    told = {rank: dataclasses.asdict(facts(rank)) for rank in range(2)}
    assert doctor.understood(told) == [facts(0), facts(1)]
    with pytest.raises(ValueError, match=r"rank 1 \(a\) runs another version of attributegan"):
        doctor.understood({0: told[0], 1: told[1] | {"humidity": 3}})


SICK = {
    "hidden": (diagnosis.of_gpus, [facts(0, gpus_seen=0, gpu="", gpu_hidden_by="driver")], "a has 8 GPUs and torch sees none: driver"),
    "few": (diagnosis.of_gpus, [facts(0, gpus_seen=1), facts(1, gpus_seen=1, gpu="")], "a has 2 processes and 1 GPUs"),
    "shared": (diagnosis.of_gpus, [facts(0, gpu="G"), facts(1, gpu="G")], "ranks 0-1 (a) share one GPU (G)"),
    "mixed": (diagnosis.of_gpus, [facts(0), facts(1, "b", gpus_there=0, gpus_seen=0, gpu="")], "rank 1 (b) see no GPU and the others do"),
    "versions": (diagnosis.of_versions, [facts(0), facts(1, "b", versions={"torch": "2.5"})], "rank 0 (a): 2.13; rank 1 (b): 2.5"),
    "memory": (diagnosis.of_room, [facts(0, memory_free=2**30)], "a has 1.0 GiB of memory free for 1 processes"),
    "shm": (diagnosis.of_room, [facts(0, shm_free=64 * 2**20)], "a has 64 MiB free in /dev/shm"),
    "interface": (diagnosis.of_addresses, [facts(0), facts(1, "b", interface="ib0", address="")], "names ib0, which has no address here"),
    "loopback": (diagnosis.of_addresses, [facts(0), facts(1, "b", address="::1")], "rank 1 (b): the process group would use loopback"),
    "twice": (lambda of: diagnosis.of_launch(of, 2, 0), [facts(0), facts(1, local_rank=0)], "all have local rank 0 on one machine"),
    "clock": (lambda of: diagnosis.of_clocks(of, [0, -3.2]), [facts(0), facts(1, "b")], "the clock of b is 3.2 s behind that of a"),
    "disk": (lambda of: diagnosis.of_disk(of, "d", ["No space left", ""], [[], []]), [facts(0), facts(1)], "rank 0 (a) can't write in d"),
}


@pytest.mark.parametrize("sickness", SICK)
def test_what_is_wrong_is_said(sickness: str) -> None:
    look, of, said = SICK[sickness]
    (problem,) = look(of)
    assert said in problem


def test_healthy_facts_are_no_problem() -> None:
    healthy = [facts(0), facts(1), facts(2, "b", local_rank=0, gpu="GPU-b0"), facts(3, "b", local_rank=1, gpu="GPU-b1")]
    assert diagnosis.of_launch(healthy, 4, 4) == []
    for look in (diagnosis.of_versions, diagnosis.of_gpus, diagnosis.of_addresses, diagnosis.of_room):
        assert look(healthy) == []
    slow = diagnosis.Speed("across nodes", True, 1e-3, 12e6)
    assert "12 MB/s" in diagnosis.of_speeds([slow])[0] and diagnosis.of_speeds([dataclasses.replace(slow, across=False)]) == []
    assert diagnosis.hosts(healthy) == ["a: ranks 0-1", "b: ranks 2-3"]
    # processes on the CPU by wish need no GPU that torch sees
    assert diagnosis.of_gpus([facts(0, gpus_seen=0, gpu="", cpu_wanted=True)]) == []
