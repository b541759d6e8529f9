"""What one process of a cluster sees: its host, versions, GPUs, address, clock and room. Looks only; `diagnosis` judges."""

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
from launch.checks import nccl as nccl_settings

NVIDIA = "0x10de"  # PCI vendor


@dataclass(frozen=True)
class Facts:
    """Of one process; JSON-like."""

    rank: int
    local_rank: int
    local_world: int  # processes that the launcher started on this node
    host: str
    node: str  # equal for processes that share a machine and its network
    versions: dict[str, str]  # that must be equal everywhere
    launch_problem: str  # why the launcher is thought to have started too few processes, or ""
    slurm_tasks: int  # of the Slurm step, or of the job outside of steps; 0 outside of Slurm
    cpu_wanted: bool  # whether the launcher was told to leave GPUs alone
    gpus_there: int  # NVIDIA GPUs in the machine, whatever torch says
    gpus_seen: int  # by torch
    gpu: str  # the one of this process, by an identity that no other has; or ""
    gpu_hidden_by: str  # what keeps torch from GPUs that are there, or ""
    interface: str  # of the process group; "" when the backend chooses for itself
    address: str  # of that interface
    route: str  # interface and address by which this machine reaches the meeting point
    memory_free: int  # bytes
    shm_free: int  # bytes of /dev/shm, through which data workers hand over tiles


def look(environ: Mapping[str, str] = os.environ) -> Facts:
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
        cpu_wanted=environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1", "yes"),
        gpus_there=_gpus_there(),
        gpus_seen=torch.cuda.device_count(),
        gpu=str(torch.cuda.get_device_properties(local_rank).uuid) if local_rank < torch.cuda.device_count() else "",
        gpu_hidden_by=_gpu_hidden_by(environ),
        interface=interface,
        address=address,
        route=_route(environ),
        memory_free=_memory_free(),
        shm_free=psutil.disk_usage("/dev/shm").free if Path("/dev/shm").exists() else 0,  # noqa: S108  # looked at alone
    )


def versions() -> dict[str, str]:
    """What has to be the same on every process, by the name that messages give it."""
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
    """Seconds of this machine's clock."""
    return time.time()


def gloo_address(environ: Mapping[str, str]) -> tuple[str, str]:
    """Interface and address at which gloo listens on this machine: as GLOO_SOCKET_IFNAME says, else the host name's, else loopback."""
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
    """Interface and address that NCCL_SOCKET_IFNAME names; empty when NCCL chooses for itself."""
    wanted = environ.get("NCCL_SOCKET_IFNAME", "")
    if not wanted or wanted.startswith("^"):
        return "", ""
    exact, prefixes = wanted.startswith("="), wanted.removeprefix("=").split(",")
    for name in psutil.net_if_addrs():
        if name in prefixes or (not exact and name.startswith(tuple(prefixes))):
            return name, _address_of(name)
    return wanted, ""


def _route(environ: Mapping[str, str]) -> str:
    """Asks the kernel; nothing is sent."""
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
    """Processes of one machine and one network namespace, and of one container, have this in common."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # no Linux
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


def _gpus_there() -> int:
    """By the driver, else by the PCI bus (display controllers), else by the device files of a container."""
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
        return f"torch {torch.__version__} is built without CUDA: install a CUDA build (README, Choosing torch)"
    if environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES is empty: unset it, or ask Slurm for GPUs (--gpus-per-node)"
    if not _driver():
        return "the NVIDIA driver is not loaded here: install it, or start the container with its GPUs (--gpus all, --nv)"
    if not torch.cuda.is_available():
        return f"torch wants CUDA {torch.version.cuda}, which driver {_driver()} may be too old for: nvidia-smi tells what it can"
    return ""


def _memory_free() -> int:
    """What the machine has, or what is left of this container's or job's limit if that is less."""
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        path = next(line.split("::")[1].strip() for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        folder = group / path.lstrip("/") if (group / path.lstrip("/") / "memory.max").exists() else group
        limit = (folder / "memory.max").read_text().strip()
        return free if limit == "max" else min(free, int(limit) - int((folder / "memory.current").read_text()))
    except (OSError, StopIteration, ValueError):
        return free
