"""Invalid launches exit soon on all nodes, with the ranks and the reason named. Real launches on two nodes.

The time limits are those of a busy machine; none of these ends by a time-out of its own (those are train.timeout_s, ten minutes).
"""

import os
import signal
import socket
import sys
from pathlib import Path

import pytest
from nodes import LOOPBACK, copy_of_code, launch
from runs import ROOT, SCRIPT, begin, free_port, kill, launcher, output, process_of, write_config
from time_limits import seconds

from attributegan.distributed import launcher as launcher_module
from attributegan.distributed.rendezvous import RendezvousError, wait_for_all_ranks

NODES = (LOOPBACK, LOOPBACK)
LIMIT_S = seconds(90)


def refused(folder: Path, mode: str, *options: list[str], **places: object) -> list[str]:
    """Launch two nodes with ``options``, which both must refuse; returns their outputs."""
    config = str(write_config(folder / "run"))
    commands = [[SCRIPT, "--config", config, f"run.dir={folder}/run", *of_node] for of_node in options]
    started = launch(NODES, mode, folder / "run", *commands, **places)
    for process in started:
        assert process.wait(timeout=LIMIT_S) != 0
    assert not list(folder.glob("run/checkpoints/*"))
    return [output(folder / f"run-{node}") for node in range(2)]


def test_other_options_code_and_data(shards: Path, tmp_path: Path) -> None:
    """Launches two nodes that differ in a seed, the sharding of a network, the code, and the target of a relative path."""
    from tools.shard import main

    first, second = copy_of_code(tmp_path / "first"), copy_of_code(tmp_path / "second")
    with (second / "attributegan" / "training" / "phases.py").open("a") as file:
        file.write("# changed\n")
    (first / "tiles").symlink_to(shards)
    assert main(["phantom", "--count", "24", "--size", "32", "--out", str(second / "tiles"), "--workers", "1"]) == 0
    sharded = f"deepspeed.generator={ROOT}/configs/deepspeed/zero2.json"
    options = [["data.shards=tiles", "train.seed=1"], ["data.shards=tiles", "train.seed=2", sharded]]
    for said in refused(tmp_path, "multinode_ddp", *options, cwds=(first, second)):
        assert f"train.seed: rank 0 ({socket.gethostname()}) has 1; rank 1 ({socket.gethostname()}) has 2" in said
        assert "code: rank 0" in said and "data.shards (index): rank 0" in said and "sharding of the generator: rank 0" in said
        assert "train.batch: rank" not in said and "sharding of the discriminator" not in said  # equal options are not listed


def test_data_that_one_node_does_not_have(shards: Path, tmp_path: Path) -> None:
    for said in refused(tmp_path, "multinode_zero2", [f"data.shards={shards}"], [f"data.shards={tmp_path}/none"]):
        assert f"rank 0 ({socket.gethostname()}): no problem" in said
        assert f"rank 1 ({socket.gethostname()}): {tmp_path}/none" in said


def test_options_that_one_node_can_not_read(shards: Path, tmp_path: Path) -> None:
    """One rank fails before the process group is initialized; the other must not wait for it."""
    for said in refused(tmp_path, "multinode_ddp", [f"data.shards={shards}"], [f"data.shards={shards}", "train.sed=1"]):
        assert f"rank 1 ({socket.gethostname()}): " in said and "train.sed: unknown option" in said
        assert "rank 0 (" not in said.split("not all processes can start")[1].split("Traceback")[0]


def test_options_that_the_nodes_can_not_run_with(shards: Path, tmp_path: Path) -> None:
    for said in refused(
        tmp_path, "multinode_ddp", [f"data.shards={shards}", "train.batch=9"], [f"data.shards={shards}", "train.world_size=3"]
    ):
        assert f"rank 0 ({socket.gethostname()}): train.batch: 9 does not divide into 2 processes" in said
        assert f"rank 1 ({socket.gethostname()}): train.world_size: 3 were asked for, the launcher gave 2" in said


def test_fewer_processes_than_asked_for(shards: Path, tmp_path: Path) -> None:
    """Refuses commands that start single processes, which would train separate models without an error."""
    run = tmp_path / "run"
    accelerate = [*launcher("cpu", 2)[:4], "--cpu", "--num_processes", "2"]
    command = [SCRIPT, "--config", str(write_config(run)), f"data.shards={shards}", f"run.dir={run}"]
    process = begin([*accelerate, *command], run)
    assert process.wait(timeout=LIMIT_S) != 0
    assert "asked for several processes but started one process per machine" in output(run)
    assert not run.exists()


def test_processes_that_no_launcher_holds_together(shards: Path, tmp_path: Path) -> None:
    """Started like Slurm: rank 0 has the store of the process group, even if rank 0 can't start."""

    def start(name: str, *of_first: str) -> list[int]:
        rendezvous = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        run = tmp_path / name
        command = [sys.executable, SCRIPT, "--config", str(write_config(run)), f"data.shards={shards}", f"run.dir={run}", "train.images=16"]
        started = [
            begin(
                [*command, *(of_first if rank == 0 else ())],
                tmp_path / f"{name}-{rank}",
                **rendezvous,
                RANK=str(rank),
                LOCAL_RANK=str(rank),
            )
            for rank in range(2)
        ]
        return [process.wait(timeout=LIMIT_S) for process in started]

    assert start("good") == [0, 0]
    assert start("bad", "train.sed=1") == [2, 2]
    for rank in range(2):
        assert f"rank 0 ({socket.gethostname()}): " in output(tmp_path / f"bad-{rank}")
        assert "train.sed: unknown option" in output(tmp_path / f"bad-{rank}")


def test_a_process_that_never_comes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RendezvousError, match=r"not all processes can start:\n  rank 1: no response in 1 s\n  rank 2: no response in 1 s"):
        wait_for_all_ranks(1.0)


def test_bare_srun_is_seen() -> None:
    """Refuses ``srun python launch/train.py``, a separate run per task, but not a launcher or a single task."""
    assert "srun started 2 processes" in launcher_module.launch_problem({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"})
    assert (
        launcher_module.launch_problem({"SLURM_STEP_NUM_TASKS": "2", "WORLD_SIZE": "4"})
        == ""
        == launcher_module.launch_problem({"SLURM_NTASKS": "2"})
    )


def test_process_that_hangs_before_it_trains_is_named_by_the_other(shards: Path, tmp_path: Path) -> None:
    """One rank is killed while it opens the data; the other exits before the time-out of a collective."""
    first, second = copy_of_code(tmp_path / "first"), copy_of_code(tmp_path / "second")
    for folder in (first, second):
        watchdog = folder / "attributegan" / "distributed" / "watchdog.py"
        assert "\nTIMEOUT_S = 20.0" in watchdog.read_text()
        watchdog.write_text(watchdog.read_text().replace("\nTIMEOUT_S = 20.0", "\nTIMEOUT_S = 5.0"))
    read = second / "data_shards" / "loader" / "shard_set.py"
    assert read.read_text().count("if not str(path):") == 1
    stops = "import os, signal\n        os.kill(os.getpid(), signal.SIGSTOP)\n        if not str(path):"
    read.write_text(read.read_text().replace("if not str(path):", stops))
    run = tmp_path / "run"
    command = [SCRIPT, "--config", str(write_config(run)), f"data.shards={shards}", f"run.dir={run}"]
    waiting, hanging = launch(NODES, "multinode_ddp", run, command, cwds=(first, second))
    try:
        assert waiting.wait(timeout=LIMIT_S) != 0
        assert "rank 1 (" in output(tmp_path / "run-0") and "has sent no heartbeat for 5 s" in output(tmp_path / "run-0")
    finally:
        os.kill(process_of(1, hanging), signal.SIGKILL)
        kill(hanging, signal.SIGKILL)
        if waiting.poll() is None:
            kill(waiting, signal.SIGKILL)
