"""Simulates two nodes on this machine: on loopback, or in two network namespaces joined by a virtual cable (veth)."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from runs import ROOT, begin, free_port, launcher

INTERFACE = "cable0"


@dataclass(frozen=True)
class Node:
    """A node: the prefix of its commands, its environment, and the address of the first node."""

    before: tuple[str, ...]
    environment: dict[str, str]
    first_address: str


LOOPBACK = Node((), {}, "127.0.0.1")


@contextlib.contextmanager
def two_nodes() -> Iterator[tuple[Node, Node]]:
    """Yields two nodes: in namespaces if permitted, else on loopback; CI must have the rights."""
    if _missing() and not os.environ.get("CI"):
        yield LOOPBACK, LOOPBACK
        return
    with namespaces() as nodes:
        yield nodes


@contextlib.contextmanager
def namespaces() -> Iterator[tuple[Node, Node]]:
    """Yields two nodes connected only to each other, and removes them. Skips without the rights, except in CI."""
    if problem := _missing():
        if os.environ.get("CI"):
            pytest.fail(f"network namespaces: {problem}")
        pytest.skip(f"network namespaces: {problem}")
    names = [f"nodes-{os.getpid()}-{rank}" for rank in range(2)]
    try:
        for rank, name in enumerate(names):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
            if rank == 1:
                _ip("-n", names[0], "link", "add", INTERFACE, "type", "veth", "peer", "name", INTERFACE, "netns", names[1])
        for rank, name in enumerate(names):
            _ip("-n", name, "addr", "add", f"10.211.7.{rank + 1}/24", "dev", INTERFACE)
            _ip("-n", name, "link", "set", INTERFACE, "up")
        first, second = (
            Node(_inside(name, f"node{rank}"), {"GLOO_SOCKET_IFNAME": INTERFACE}, "10.211.7.1") for rank, name in enumerate(names)
        )
        yield first, second
    finally:
        for name in names:  # also removes the cable
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def launch(
    nodes: tuple[Node, Node], mode: str, run: Path, *commands: list[str], cwds: tuple[Path, Path] = (ROOT, ROOT), **environment: str
) -> list[subprocess.Popen]:
    """Start ``mode`` on both nodes, with one command for both or one for each; output goes to ``{run}-{node}.out``.

    Args:
        cwds: the working directory of each, also its PYTHONPATH unless ``environment`` sets that.
    """
    port = free_port() if nodes[0] is LOOPBACK else 29500
    started = []
    for rank, node in enumerate(nodes):
        rendezvous = ("--num_machines", "2", "--machine_rank", str(rank), "--main_process_ip", node.first_address)
        arguments = [*node.before, *launcher(mode, 2, *rendezvous, "--main_process_port", str(port)), *commands[rank % len(commands)]]
        started.append(begin(arguments, run.with_name(f"{run.name}-{rank}"), cwd=cwds[rank], **node.environment | environment))
    return started


def copy_of_code(folder: Path) -> Path:
    """Copy the packages needed for training, to modify them and pass the folder in ``cwds`` of `launch`."""
    for package in ("attributegan", "data_shards", "launch"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def _inside(namespace: str, host: str) -> tuple[str, ...]:
    """Returns the command prefix that runs a command in a namespace, with the host name ``host``."""
    named = ("unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', host)
    return "ip", "netns", "exec", namespace, *named


def _missing() -> str:
    if not shutil.which("ip"):
        return "no `ip` here (Debian package iproute2)"
    if os.geteuid() != 0:
        return "requires root"
    trial = subprocess.run(["unshare", "--net", "--uts", "true"], capture_output=True, text=True)
    return trial.stderr.strip()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
