"""Starts training as users do, in real processes, and compares checkpoints."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from time_limits import seconds

ROOT = Path(__file__).parents[2]
TINY: dict[str, dict[str, Any]] = {
    "model": {
        "image_size": 32,
        "latent_dim": 16,
        "fmap_max": 16,
        "fmap_inverse_coef": 6,
        "attention_heads": 1,
        "generator_attention": [16],
        "discriminator_attention": [16],
        "label_columns": "levels",
        "proxy": "level",
    },
    "loss": {"r1_gamma": 0.1},
    "optim": {"generator_lr": 1e-3, "discriminator_lr": 1e-3, "ema_half_life": 50},
    "data": {"workers": 1},
    "train": {"images": 80, "batch": 8, "precision": "fp32"},
    "run": {"log_every": 8, "grid_every": 1000, "save_every": 16, "keep_last": 0},
}

CONTROL = (  # overrides of TINY: all other loss terms, and unknown levels
    "model.conditioning=projection",
    "model.generator_modulation=true",
    "model.generator_levels=ordinal",
    "model.auxiliary_heads=true",
    "loss.adversarial=relativistic",
    "loss.auxiliary=1",
    "loss.control=1",
    "loss.diversity=1",
    "loss.residual=1",
    "loss.r2_gamma=0.1",
    "loss.contrastive_over=attribute",
    "data.attributes=[cell_crowding, mitosis, pleomorphism]",
)

MODES = ("one", "cpu", "zero1", "zero2", "zero3")  # one process, or a file of configs/accelerate
SCRIPT = str(ROOT / "launch" / "train.py")


def launcher(mode: str, processes: int, *arguments: str) -> list[str]:
    """Returns the command prefix of the script: python, or ``accelerate launch`` with a shipped configuration."""
    if mode == "one":
        return [sys.executable]
    accelerate = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    file = str(ROOT / "configs" / "accelerate" / f"{mode}.yaml")
    return [*accelerate, "--config_file", file, "--num_processes", str(processes), *(arguments or ("--main_process_port", "0"))]


def free_port() -> int:
    """Returns a port that is free, and that the kernel does not give to other connections before it is bound."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_768)  # below net.ipv4.ip_local_port_range
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def write_config(run: Path) -> Path:
    config = run.with_name(f"{run.name}.yaml")
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(yaml.safe_dump(TINY))
    return config


def start(shards: Path, run: Path, *overrides: str, processes: int = 1, mode: str = "") -> subprocess.Popen:
    """Start training in a new process group, with output in ``{run}.out``."""
    before = launcher(mode or ("cpu" if processes > 1 else "one"), processes)
    options = ["--config", str(write_config(run)), f"data.shards={shards}", f"run.dir={run}", f"train.world_size={processes}"]
    return begin([*before, SCRIPT, *options, *overrides], run)


def begin(arguments: list[str], run: Path, cwd: Path = ROOT, **environment: str) -> subprocess.Popen:
    """Start a command in a new process group, with output in ``{run}.out``."""
    variables = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(cwd)} | environment
    run.parent.mkdir(parents=True, exist_ok=True)
    with run.with_name(f"{run.name}.out").open("ab") as output:
        return subprocess.Popen(arguments, cwd=cwd, env=variables, stdout=output, stderr=output, start_new_session=True)


def output(run: Path) -> str:
    return run.with_name(f"{run.name}.out").read_text()


def train(shards: Path, run: Path, *overrides: str, processes: int = 1) -> dict[str, torch.Tensor]:
    """Train to the end and return every tensor of the last checkpoint, as ``{file}/{name}``."""
    process = start(shards, run, *overrides, processes=processes)
    assert process.wait(timeout=seconds(240)) == 0, output(run)
    return tensors(run)


def train_all(shards: Path, folder: Path, *runs: tuple[str, ...], processes: int = 1) -> dict[str, dict[str, torch.Tensor]]:
    """Train several runs in one launch (many_runs.py); returns the tensors of the last checkpoint of each, by name.

    Args:
        runs: folder name in ``folder`` and overrides of each run; a repeated name resumes the run.
    """
    config = str(write_config(folder / "all"))
    common = [f"data.shards={shards}", f"train.world_size={processes}"]
    jobs = [{"config": config, "overrides": [*common, f"run.dir={folder / name}", *overrides]} for name, *overrides in runs]
    (folder / "all.json").write_text(json.dumps(jobs))
    command = [*launcher("cpu" if processes > 1 else "one", processes), str(ROOT / "tests" / "helpers" / "many_runs.py")]
    process = begin([*command, str(folder / "all.json")], folder / "all")
    assert process.wait(timeout=seconds(280)) == 0, output(folder / "all")
    return {name: tensors(folder / name) for name, *_ in runs}


def tensors(run: Path, images: int | None = None) -> dict[str, torch.Tensor]:
    """The tensors of the checkpoint at ``images``, or the last one."""
    last = max((run / "checkpoints").glob(f"images-{images:012d}" if images else "images-*"))
    return tensors_in(last)


def tensors_in(last: Path) -> dict[str, torch.Tensor]:
    return {f"{path.stem}/{name}": tensor for path in sorted(last.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def wait_for(run: Path, images: int, process: subprocess.Popen) -> None:
    """Wait until the run has logged ``images`` images."""
    deadline = time.monotonic() + seconds(120)
    metrics = run / "metrics.jsonl"
    while time.monotonic() < deadline:
        ended = process.poll() is not None  # asked first, since the line may be its last
        if metrics.exists() and f'"images": {images},' in metrics.read_text():
            return
        assert not ended, output(run)
        time.sleep(0.01)
    raise AssertionError(f"{run} did not reach {images} images: {output(run)}")


def process_of(rank: int, launched: subprocess.Popen) -> int:
    """Wait for the training process of ``rank`` under a launcher; returns its PID."""
    deadline = time.monotonic() + seconds(60)
    while time.monotonic() < deadline:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == launched.pid and f"RANK={rank}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                    return int(folder.name)
            except OSError:
                continue
        time.sleep(0.05)
    raise AssertionError(f"no process of rank {rank}")


def kill(process: subprocess.Popen, number: signal.Signals) -> int:
    """Send a signal to the process group and wait for its exit; returns the exit status."""
    os.killpg(process.pid, number)
    return process.wait(timeout=seconds(120))


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    """Returns the names of tensors that are not bit-identical."""
    assert a.keys() == b.keys() and a
    return [name for name in a if not torch.equal(a[name], b[name])]


def largest_relative_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Returns the largest relative difference (norm of the difference / norm) over the networks (weights and buffers).

    Computed per network, not per tensor: the gradient of a bias before a batch norm is only rounding error.
    """
    assert a.keys() == b.keys() and a

    def norm(tensors: list[torch.Tensor]) -> float:
        return torch.cat([tensor.double().flatten() for tensor in tensors]).norm().item()

    networks = {name.split("/")[0] for name in a if "optimizer" not in name}
    names = {network: [name for name in a if name.startswith(f"{network}/")] for network in networks}
    return max(norm([a[n] - b[n] for n in of]) / norm([a[n] for n in of]) for of in names.values())
