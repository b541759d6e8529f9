"""Collects what one process of a cluster sees: host, versions, GPUs, addresses, clock, free memory. Judged in `diagnosis`."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from attributegan.distributed import launcher
from attributegan.run_dir import code_digest
from attributegan.utils.devices import cpu_requested
from launch.checks import nccl as nccl_settings

NVIDIA = "0x10de"  # PCI vendor


@dataclass(frozen=True)
class Facts:
    """The environment of one process; JSON-compatible."""

    rank: int
    local_rank: int
    local_world: int  # processes on this node
    host: str
    node: str  # ID of the machine and its network namespace
    versions: dict[str, str]  # must be equal on all ranks
    launch_problem: str  # why the launcher probably started too few processes, or ""
    slurm_tasks: int  # of the Slurm step, else of the job; 0 outside Slurm
    cpu_requested: bool  # whether the launcher was configured for CPU
    gpus_installed: int  # NVIDIA GPUs in the machine, visible to torch or not
    gpus_visible: int  # to torch
    gpu: str  # UUID of the GPU of this process, or ""
    gpu_hidden_by: str  # why torch sees no GPUs, with the fix; or ""
    interface: str  # of the process group; "" if the backend chooses it
    address: str  # of that interface
    route: str  # interface and local address of the route to MASTER_ADDR
    memory_free: int  # bytes
    shm_free: int  # bytes in /dev/shm, through which data workers pass tiles


def collect(environ: Mapping[str, str] = os.environ) -> Facts:
    """Collect the facts of this process."""
    interface, address = gloo_address(environ) if not torch.cuda.is_available() else nccl_address(environ)
    local_rank = int(environ.get("LOCAL_RANK", "0"))
    return Facts(
        rank=int(environ.get("RANK", "0")),
        local_rank=local_rank,
        local_world=int(environ.get("LOCAL_WORLD_SIZE", environ.get("LOCAL_SIZE", "1"))),
        host=socket.gethostname(),
        node=_node(),
        versions=versions(),
        launch_problem=launcher.launch_problem(environ),
        slurm_tasks=int(environ.get("SLURM_STEP_NUM_TASKS", environ.get("SLURM_NTASKS", "0"))),
        cpu_requested=cpu_requested(environ),
        gpus_installed=_gpus_installed(),
        gpus_visible=torch.cuda.device_count(),
        gpu=str(torch.cuda.get_device_properties(local_rank).uuid) if local_rank < torch.cuda.device_count() else "",
        gpu_hidden_by=_gpu_hidden_by(environ),
        interface=interface,
        address=address,
        route=_route(environ),
        memory_free=_memory_free(),
        shm_free=psutil.disk_usage("/dev/shm").free if Path("/dev/shm").exists() else 0,  # noqa: S108  # only its size is read
    )


def versions() -> dict[str, str]:
    """Returns the versions that must be equal on all ranks, by their name in messages."""
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if torch.cuda.is_available() else ""
    return {
        "attributegan's code": code_digest.code_digest(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "accelerate": _installed("accelerate"),
        "deepspeed": _installed("deepspeed"),
        "NCCL": nccl or "not used",
        "NVIDIA driver": _driver() or "none",
        "NCCL settings": nccl_settings.settings(os.environ),
    }


def now() -> float:
    """Returns the wall-clock time of this machine in seconds."""
    return time.time()


def gloo_address(environ: Mapping[str, str]) -> tuple[str, str]:
    """Returns the interface and address gloo listens on: GLOO_SOCKET_IFNAME, else the address of the host name, else loopback."""
    if name := environ.get("GLOO_SOCKET_IFNAME", "").split(",")[0]:
        return name, _address_of(name)
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
    except OSError:
        found = []
    for family, _, _, _, address in found:
        with socket.socket(family, socket.SOCK_STREAM) as candidate:
            try:
                candidate.bind((address[0], 0))
            except OSError:  # not an address of this machine
                continue
            return _interface_of(str(address[0])), str(address[0])
    return "lo", "127.0.0.1"


def nccl_address(environ: Mapping[str, str]) -> tuple[str, str]:
    """Returns the interface and address that NCCL_SOCKET_IFNAME selects; empty if NCCL chooses."""
    wanted = environ.get("NCCL_SOCKET_IFNAME", "")
    if not wanted or wanted.startswith("^"):
        return "", ""
    exact, prefixes = wanted.startswith("="), wanted.removeprefix("=").split(",")
    for name in psutil.net_if_addrs():
        if name in prefixes or (not exact and name.startswith(tuple(prefixes))):
            return name, _address_of(name)
    return wanted, ""


def _route(environ: Mapping[str, str]) -> str:
    """Returns interface and local address of the route to MASTER_ADDR; connecting a UDP socket sends nothing."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((environ.get("MASTER_ADDR", "127.0.0.1"), int(environ.get("MASTER_PORT", "1"))))
            address = str(probe.getsockname()[0])
    except OSError:
        return ""
    return f"{_interface_of(address)} {address}"


def _address_of(interface: str) -> str:
    addresses = psutil.net_if_addrs().get(interface, [])
    of_ip = [entry for entry in addresses if entry.family in (socket.AF_INET, socket.AF_INET6)]
    return sorted(of_ip, key=lambda entry: entry.family != socket.AF_INET)[0].address if of_ip else ""


def _interface_of(address: str) -> str:
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, entries in interfaces if any(entry.address == address for entry in entries)), "lo")


def _node() -> str:
    """Returns an ID that processes in the same machine, network namespace and container share."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # not Linux
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/net")]
    return " ".join(parts)


def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _driver() -> str:
    try:
        found = re.search(r"Kernel Module(?: for \S+)?\s+(\d[\d.]*)", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return ""
    return found.group(1) if found else ""


def _gpus_installed() -> int:
    """Count GPUs from the driver, else from the PCI bus (display controllers), else from device files (containers)."""
    if known := list(Path("/proc/driver/nvidia/gpus").glob("*")):
        return len(known)
    on_bus = [device for device in Path("/sys/bus/pci/devices").glob("*") if _is_gpu(device)]
    return len(on_bus) or len([device for device in Path("/dev").glob("nvidia*") if device.name[6:].isdigit()])


def _is_gpu(device: Path) -> bool:
    try:
        return (device / "vendor").read_text().strip() == NVIDIA and (device / "class").read_text().startswith("0x03")
    except OSError:
        return False


def _gpu_hidden_by(environ: Mapping[str, str]) -> str:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA: install a CUDA build"
    if environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides all GPUs: unset it, or request GPUs from Slurm (--gpus-per-node)"
    if not _driver():
        return "the NVIDIA driver is not loaded: install it, or start the container with GPUs (--gpus all, --nv)"
    if not torch.cuda.is_available():
        return f"torch needs CUDA {torch.version.cuda}; driver {_driver()} may be too old; nvidia-smi shows which it supports"
    return ""


def _memory_free() -> int:
    """Returns the free bytes of the machine, or of the cgroup limit of this container or job if that is less."""
    free: int = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        path = next(line.split("::")[1].strip() for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        folder = group / path.lstrip("/") if (group / path.lstrip("/") / "memory.max").exists() else group
        limit = (folder / "memory.max").read_text().strip()
        return free if limit == "max" else min(free, int(limit) - int((folder / "memory.current").read_text()))
    except (OSError, StopIteration, ValueError):
        return free
