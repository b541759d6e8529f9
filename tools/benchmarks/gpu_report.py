"""The machine, the table and the two files of ``attributegan-bench gpu``: report.json and report.md."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attributegan.utils.files import atomic_write
from tools.benchmarks.gpu_parts import BY_NAME, PARTS, Outcome, Part

HEADER = "| part | kind | status | seconds | result |\n|---|---|---|---:|---|"
PACKAGES = ("accelerate", "deepspeed", "onnxruntime", "einops", "safetensors", "pyarrow")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "sve", "asimd")  # of the CPU, that decide which kernels torch takes


def machine(device: str) -> dict[str, Any]:
    """What the results depend on.

    Raises:
        ValueError: ``device`` is not available.
    """
    import torch

    from attributegan.run_dir.code_digest import code_digest
    from attributegan.utils import devices, precision
    from data_shards import worker_pool
    from launch.checks import facts

    kind, problem = devices.choose(device, {})
    if problem:
        raise ValueError(problem.replace("train.device", "--device"))
    here = facts.collect()
    found: dict[str, Any] = {
        "device": kind,
        "GPU": f"not used: {here.gpu_hidden_by or '--device cpu'}" if here.gpus_installed else "none",
        "CPU": precision.cpu_name(),
        "CPU flags": " ".join(flag for flag in FLAGS if flag in _cpu_flags()) or "unknown",
        "cores": worker_pool.available(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "CUDA": torch.version.cuda or "not in this torch",
        "cuDNN": str(torch.backends.cudnn.version() or "none") if kind == "cuda" else "not used",
        "code": code_digest(),
    }
    if kind == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "GPU": f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB",
            "compute capability": f"{properties.major}.{properties.minor}",
            "GPUs": torch.cuda.device_count(),
        }
    found |= {"driver": here.versions["NVIDIA driver"], "NCCL": here.versions["NCCL"]}
    return found | {name: _installed(name) for name in PACKAGES}


def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu_flags() -> set[str]:
    """Flags of /proc/cpuinfo; empty where it does not exist."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return set(line.partition(":")[2].split())
    return set()


def fingerprint(machine: Mapping[str, Any], tiny: bool) -> str:
    """Returns what must be equal for results to share a table."""
    return json.dumps({"machine": dict(machine), "tiny": tiny}, sort_keys=True, indent=2) + "\n"


def machine_lines(machine: Mapping[str, Any]) -> list[str]:
    """Returns the first lines of the report."""
    where = (
        f"These results are of **{machine['GPU']}**, driver {machine['driver']}, CUDA {machine['CUDA']}, torch {machine['torch']}, "
        f"on a host with {machine['CPU']} ({machine['cores']} cores; flags {machine['CPU flags']})."
    )
    if machine["device"] == "cpu":
        where = (
            f"**No GPU**: these results are of a CPU, {machine['CPU']} ({machine['cores']} cores; flags {machine['CPU flags']}), with "
            f"torch {machine['torch']}. They say nothing about GPUs."
        ) + (f" The GPU of this machine is {machine['GPU']}." if machine["GPU"] != "none" else "")
    return [where, ""]


def row(part: Part, outcome: Outcome) -> str:
    """A line of the table."""
    summary = outcome.summary.replace("|", "/").replace("\n", " ")
    return f"| {part.name} | {part.kind} | {outcome.status} | {outcome.seconds:.0f} | {part.title}: {summary} |"


def write(folder: Path, machine: Mapping[str, Any], tiny: bool, outcomes: Mapping[str, Outcome]) -> None:
    """Write report.json and report.md; parts without an outcome are rows that say so."""
    missing = Outcome("not run", "rerun the same command")
    tree = {
        "machine": dict(machine),
        "tiny": tiny,
        "parts": {part.name: outcomes.get(part.name, missing).to_dict() for part in PARTS},
    }
    write_text(folder / "report.json", json.dumps(tree, indent=2) + "\n")
    failed = [name for name, outcome in outcomes.items() if outcome.status == "failed" and BY_NAME[name].kind == "check"]
    lines = ["# Correctness and speed on one machine", "", *machine_lines(machine)]
    if tiny:
        lines += ["Sizes are tiny: speeds mean nothing.", ""]
    lines += [f"Checks that failed: {', '.join(failed) or 'none'}.", "", *HEADER.splitlines()]
    lines += [row(part, outcomes.get(part.name, missing)) for part in PARTS]
    lines += ["", "## Machine", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in machine.items())]
    for part in PARTS:
        if details := outcomes.get(part.name, missing).details:
            lines += ["", f"## {part.name}", "", part.title, "", *_details(details)]
    write_text(folder / "report.md", "\n".join(lines) + "\n")


def _details(details: Mapping[str, Any]) -> list[str]:
    """Rows of equal keys become a table, all else a list."""
    lines = []
    for name, value in details.items():
        if isinstance(value, list) and value and all(isinstance(entry, Mapping) for entry in value):
            columns = list(value[0])
            lines += ["", f"{name}:", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
            lines += ["| " + " | ".join(str(entry.get(column, "")).replace("|", "/") for column in columns) + " |" for entry in value]
            lines += [""]
        elif isinstance(value, list):
            lines += ["", f"{name}:", "", "```", *map(str, value), "```", ""]
        else:
            lines.append(f"- {name}: {value}")
    return lines


def write_text(path: Path, text: str) -> None:
    """Write a file atomically."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(atomic_write(path)).write(text.encode())
