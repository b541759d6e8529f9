"""The watchdog: a failed process is named by the others, which exit within seconds."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from runs import ROOT, free_port
from time_limits import seconds


@pytest.fixture
def pair():
    """Starts both processes; kills those that remain at the end."""
    started: list[subprocess.Popen] = []

    def start(how: str) -> list[subprocess.Popen]:
        common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "PYTHONPATH": str(ROOT)}
        for rank in range(2):
            environment = os.environ | common | {"RANK": str(rank), "OMP_NUM_THREADS": "1"}
            arguments = [sys.executable, str(ROOT / "tests" / "helpers" / "faulty_rank.py"), how]
            started.append(subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True))
        return started

    yield start
    for process in started:
        process.send_signal(signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raise", "failed: KeyError: 'a tile'; exiting"),
        ("kill", "has sent no heartbeat for 3 s; exiting"),
        ("hang", "has sent no heartbeat for 3 s; exiting"),
    ],
)
def test_fault_of_one_process_ends_the_other_and_is_named(pair, how: str, said: str) -> None:
    waiting, faulty = pair(how)
    _, stderr = waiting.communicate(timeout=seconds(60))
    assert waiting.returncode == 1
    assert f"rank 1 ({socket.gethostname()}, process {faulty.pid}) {said}" in stderr
    if how == "raise":
        assert faulty.wait(timeout=seconds(10)) == 1


def test_process_whose_store_does_not_respond_exits(pair) -> None:
    waiting, cut_off = pair("stuck")
    _, stderr = cut_off.communicate(timeout=seconds(60))
    assert (
        cut_off.returncode == 1 and "the store of the process group (on rank 0's node, or its launcher) has not responded for 4 s" in stderr
    )
    assert waiting.wait(timeout=seconds(30)) == 1


def test_work_longer_than_the_timeout_of_a_collective_is_waited_for() -> None:
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "PYTHONPATH": str(ROOT)}
    common |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "slow_main_process.py")]
    started = [subprocess.Popen(command, env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)]
    try:
        assert [process.wait(timeout=seconds(150)) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_process_that_exits_normally_is_not_reported(pair) -> None:
    started = time.monotonic()
    assert [process.wait(timeout=seconds(60)) for process in pair("end")] == [0, 0]
    assert time.monotonic() - started > 4
