"""The sdist and the wheel: built, checked, installed, and used in a folder that has its own `tools`, `launch` and `slurm`."""

from __future__ import annotations

import json
import os
import re
import shutil
import site
import subprocess
import sys
import tarfile
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
from PIL import Image
from runs import ROOT, free_port
from time_limits import seconds

import attributegan
from attributegan.run_dir.code_digest import code_digest

TINY = (  # of the preset `small`, at 32 px
    "model.image_size=32",
    "model.latent_dim=16",
    "model.fmap_max=16",
    "model.fmap_inverse_coef=6",
    "train.precision=fp32",
    "train.batch=8",
    "data.workers=0",
    "data.shards=shards",
)
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def build(kind: str, source: Path, out: Path) -> Path:
    """What ``pip`` and ``build`` call, without isolation and network."""
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=seconds(120))
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist of what `docker build` copies of this checkout, and the wheel that is built from the sdist alone."""
    folder = tmp_path_factory.mktemp("dist")
    left = shutil.ignore_patterns(*(ROOT / ".dockerignore").read_text().replace("**/", "").split())
    shutil.copytree(ROOT, folder / "checkout", ignore=left)
    sdist = build("sdist", folder / "checkout", folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    return sdist, build("wheel", next((folder / "unpacked").iterdir()), folder)


class Installed:
    """The wheel in a new venv that has the packages of this one but not the checkout, and an otherwise hostile current folder."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.bin, self.here = folder / "venv" / "bin", folder / "here"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True, timeout=seconds(60))
        pip = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(self.bin / "python"),
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            str(wheel),
        ]
        subprocess.run(pip, check=True, timeout=seconds(60))
        packages = next((folder / "venv" / "lib").glob("python*")) / "site-packages"
        (packages / "dependencies.pth").write_text("".join(f"{path}\n" for path in site.getsitepackages()))
        for name in ("tools", "launch", "slurm"):
            (self.here / name).mkdir(parents=True)
            for module in ("__init__", "train", "evaluate", "sample", "doctor", "shard"):
                (self.here / name / f"{module}.py").write_text("raise SystemExit('a package of the user was imported')\n")

    def environment(self) -> dict[str, str]:
        alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        path = f"{self.bin}{os.pathsep}{os.environ['PATH']}"
        return alone | {"PATH": path, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}

    def run(self, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [str(self.bin / words[0]), *words[1:]]
        return subprocess.run(command, cwd=cwd or self.here, env=self.environment(), capture_output=True, text=True, timeout=seconds(120))

    def done(self, *words: str) -> str:
        result = self.run(*words)
        assert result.returncode == 0, result.stderr
        return result.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, dist: tuple[Path, Path]) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"), dist[1])


@pytest.fixture(scope="module")
def trained(installed: Installed) -> Installed:
    """Tiles packed and a run of 64 images, by the commands."""
    rng, rows = np.random.default_rng(0), ["file,cell_crowding,cell_polarity,mitosis,nucleoli,pleomorphism"]
    (installed.here / "tiles").mkdir()
    for k in range(24):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(installed.here / "tiles" / f"{k}.png")
        rows.append(f"{k}.png,{k % 4 + 1},{k % 3 + 1},{k % 3 + 1},{k % 2 + 1},{k % 4 + 1}")
    (installed.here / "levels.csv").write_text("\n".join(rows) + "\n")
    pack = ("--images", "tiles", "--labels", "levels.csv", "--attributes", "bladder", "--out", "shards", "--workers", "1")
    installed.done("attributegan-shard", "pack", *pack)
    installed.done("attributegan-train", "--config", "small", *TINY, "run.dir=run", "train.images=64")
    return installed


def test_distributions_pass_the_checks_of_the_registry(dist: tuple[Path, Path]) -> None:
    for command in (["twine", "check", "--strict", *map(str, dist)], ["check_wheel_contents", str(dist[1])]):
        done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=seconds(120))
        assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(dist[1]) as archive:
        names = archive.namelist()
        top_level = archive.read(next(name for name in names if name.endswith("top_level.txt"))).decode().split()
    assert top_level == ["attributegan", "data_shards"]
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"attributegan", "data_shards"}
    assert "attributegan/py.typed" in names
    assert dist[1].name.startswith(f"attributegan-{attributegan.__version__}-")
    carried = {name.removeprefix("attributegan/configs/") for name in names if name.startswith("attributegan/configs/")}
    assert carried == {str(path.relative_to(ROOT / "configs")) for path in (ROOT / "configs").rglob("*") if path.is_file()}
    demo = [entry for entry in zipfile.ZipFile(dist[1]).infolist() if "/explorer/demo/" in entry.filename]
    assert {Path(entry.filename).name for entry in demo} == {"README.md", "config.json", "model.safetensors"}
    assert max(entry.file_size for entry in demo) < 6e6


def test_every_python_file_is_in_the_wheel(dist: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(dist[1]) as archive:
        names = {name.removeprefix("attributegan/_bundled/") for name in archive.namelist()}
    packages = ("attributegan", "data_shards", "launch", "slurm", "tools")
    sources = {str(path.relative_to(ROOT)) for package in packages for path in (ROOT / package).rglob("*") if path.is_file()}
    assert {name for name in sources if "__pycache__" not in name} <= names


def test_files_of_the_apptainer_definition_make_the_same_wheel(dist: tuple[Path, Path], tmp_path: Path) -> None:
    """Its build step, on the files that it copies."""
    text = (ROOT / "configs" / "slurm" / "apptainer.def").read_text()
    for line in text.partition("%files\n")[2].partition("%post")[0].strip().splitlines():
        source, target = line.split()
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        (tmp_path / "src").mkdir(exist_ok=True)
        copy(ROOT / source, tmp_path / target.removeprefix("/"))
    with zipfile.ZipFile(build("wheel", tmp_path / "src", tmp_path)) as mine, zipfile.ZipFile(dist[1]) as other:
        assert {name for name in mine.namelist() if "__pycache__" not in name} == set(other.namelist())


def test_what_runs_is_the_wheel_and_has_the_digest_of_the_checkout(installed: Installed) -> None:
    program = "import attributegan; from attributegan.run_dir.code_digest import code_digest; print(attributegan.__file__, code_digest())"
    file, digest = installed.done("python", "-c", program).split()
    assert Path(file).is_relative_to(installed.bin.parent)
    assert digest == code_digest()
    assert installed.done("python", "-m", "attributegan", "--version") == f"attributegan {attributegan.__version__}\n"


def test_presets_by_name_and_errors_that_list_them(installed: Installed) -> None:
    path = installed.done("attributegan-presets", "--path", "accelerate/cpu").strip()
    assert Path(path).read_text() == (ROOT / "configs" / "accelerate" / "cpu.yaml").read_text()
    installed.done("attributegan-presets", "--copy", "copied")
    assert (installed.here / "copied" / "train" / "small.yaml").is_file()
    for given, said in (
        ("smal", "error: smal: not a preset and not a file; presets are controlled, paper, published, small"),
        ("configs/train/small.yaml", "error: configs/train/small.yaml: no such file; for the preset that ships, give small"),
    ):
        refused = installed.run("attributegan-train", "--config", given)
        assert refused.returncode == 2 and said in refused.stderr


def test_a_package_of_another_is_refused(installed: Installed, tmp_path: Path) -> None:
    """With ``-m`` Python puts the current folder first; a wheel does not hold `data_shards` in its bundle."""
    (tmp_path / "data_shards").mkdir()
    (tmp_path / "data_shards" / "__init__.py").touch()
    refused = installed.run("python", "-m", "attributegan", "runs", "--help", cwd=tmp_path)
    assert refused.returncode == 2
    assert f"the package data_shards comes from {tmp_path}/data_shards/__init__.py, not from {installed.bin.parent}" in refused.stderr
    assert installed.run("python", "-P", "-m", "attributegan", "runs", "--help", cwd=tmp_path).returncode == 0


def test_sample_and_export(trained: Installed) -> None:
    trained.done("python", "-m", "attributegan", "sample", "run", "--out", "sampled", "--count", "2")
    assert len(list((trained.here / "sampled").glob("0*.png"))) == 2
    trained.done("attributegan-export", "generator", "run", "--out", "exported")
    assert (trained.here / "exported" / "model.safetensors").is_file()


def test_parts_of_the_gpu_checks_run_in_their_own_process(installed: Installed) -> None:
    """A module and a command, each in a child process."""
    given = ("gpu", "--device", "cpu", "--tiny", "--only", "syncs", "resume", "--out", "checks")
    result = installed.run("attributegan-bench", *given)
    log = installed.here / "checks" / "worker.log"
    assert result.returncode == 0, result.stdout + result.stderr + (log.read_text() if log.exists() else "")


def test_accelerate_launches_the_training(trained: Installed) -> None:
    file = trained.done("attributegan-presets", "--path", "accelerate/cpu").strip()
    launch = ("accelerate.commands.accelerate_cli", "launch", "--config_file", file, "--main_process_port", "0")
    trained.done("python", "-m", *launch, "-m", "attributegan", "train", "--config", "small", *TINY, "run.dir=two", "train.images=8")
    assert json.loads((trained.here / "two" / "status.json").read_text())["processes"] == 2


@pytest.mark.parametrize(
    ("launcher", "command"),
    [  # all launchers start the same module; accelerate with train and torchrun with doctor have tests of their own
        *(("python", command) for command in ("train", "evaluate", "sample", "doctor")),
        *(("accelerate", command) for command in ("evaluate", "sample")),
        *(("torchrun", command) for command in ("train", "evaluate")),
    ],
)
def test_launchers_find_every_command(installed: Installed, launcher: str, command: str) -> None:
    words = {
        "accelerate": ("accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "1", "-m"),
        "torchrun": ("torch.distributed.run", "--nproc-per-node", "1", "--master-port", "0", "-m"),
        "python": (),
    }[launcher]
    assert f"usage: attributegan-{command}" in installed.done("python", "-m", *words, "attributegan", command, "--help")


def test_torchrun_launches_the_doctor(installed: Installed) -> None:
    torchrun = ("torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()))
    examined = installed.run("python", "-m", *torchrun, "-m", "attributegan", "doctor", "--processes", "2", "--seconds", "0.5")
    assert examined.stdout.startswith("2 processes\n"), examined.stdout + examined.stderr


def test_submission_from_a_wheel_trains(trained: Installed) -> None:
    """submitit's pickle, the copy of the code and the training process, on this machine."""
    (trained.here / "cluster.yaml").write_text("tasks_per_node: 1\n")
    options = ("--config", "small", "--cluster", "cluster.yaml", *TINY, "run.dir=submitted", "train.images=8", "--local")
    trained.done("attributegan-submit", *options)
    deadline, status = time.monotonic() + seconds(120), trained.here / "submitted" / "status.json"
    while json.loads(status.read_text())["state"] in ("queued", "running"):
        assert time.monotonic() < deadline, status.read_text()
        time.sleep(0.2)
    assert json.loads(status.read_text())["state"] == "finished", status.read_text()
    code = trained.here / "submitted" / "submissions" / "0001" / "code"
    assert {path.name for path in code.iterdir()} == {"attributegan", "data_shards", "launch", "slurm", "tools", "configs"}


@pytest.fixture
def demo(installed: Installed) -> Iterator[tuple[str, psutil.Process]]:
    """The address of the demo, and its process."""
    command = [str(installed.bin / "attributegan-explore"), "--demo", "--port", "0"]
    with subprocess.Popen(command, cwd=installed.here, env=installed.environment(), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"http://\S+", line)
            assert found, line
            yield f"http://{urlsplit(found[0]).netloc}", psutil.Process(process.pid)
        finally:
            process.terminate()


def test_demo_shows_a_tile_in_ten_seconds(demo: tuple[str, psutil.Process]) -> None:
    """Of CPU time of the reference machine: a busy one takes longer."""
    address, process = demo
    with urllib.request.urlopen(f"{address}/tile.png?a.atypia=3") as answer:
        assert answer.read()[:8] == b"\x89PNG\r\n\x1a\n"
    used = process.cpu_times()
    assert used.user + used.system < seconds(10)
    with urllib.request.urlopen(address) as answer:
        assert "AMi-Br" in answer.read().decode()
