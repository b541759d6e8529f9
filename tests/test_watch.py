"""Processes that watch each other: the fault of one is named by the others, and ends them within seconds."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from runs import ROOT, free_port


@pytest.fixture
def pair():
    """Start both processes; stop what is left of them."""
    started: list[subprocess.Popen] = []

    def start(how: str) -> list[subprocess.Popen]:
        common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "PYTHONPATH": str(ROOT)}
        for rank in range(2):
            environment = os.environ | common | {"RANK": str(rank), "OMP_NUM_THREADS": "1"}
            arguments = [sys.executable, str(ROOT / "tests" / "watched.py"), how]
            started.append(subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True))
        return started

    yield start
    for process in started:
        process.send_signal(signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raise", "failed: KeyError: 'a tile'; ending"),
        ("kill", "has given no sign of life for 3 s; ending"),
        ("hang", "has given no sign of life for 3 s; ending"),
    ],
)
def test_fault_of_one_process_ends_the_other_and_is_named(pair, how: str, said: str) -> None:
    waiting, faulty = pair(how)
    _, told = waiting.communicate(timeout=60)
    assert waiting.returncode == 1
    assert f"rank 1 ({socket.gethostname()}, process {faulty.pid}) {said}" in told
    if how == "raise":
        assert faulty.wait(timeout=10) == 1


def test_process_that_ends_well_is_not_missed(pair) -> None:
    started = time.monotonic()
    assert [process.wait(timeout=60) for process in pair("end")] == [0, 0]
    assert time.monotonic() - started > 4
