"""The commands of docs/tutorial.md, read from the page and run in order on two small slides."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from time_limits import seconds

from data_shards.phantoms import render as phantom

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SIDE = 4  # tiles across a slide
SMALLER = {  # options appended to the page's commands, so that they end within seconds
    "attributegan-shard tile": "--workers 1",
    "attributegan-shard measure": "--workers 1",
    "attributegan-shard pack": "--workers 1 --val-fraction 0.5",
    "attributegan-train": "train.images=16 data.workers=0 run.grid_every=16",
    "attributegan-sample": "--precision fp32",
    "attributegan-explore": "--port 0 --precision fp32",
    "attributegan-evaluate": "--count 16 --sweeps 2 --max-real 32 --precision fp32",
}


def commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs" / "tutorial.md").read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def smaller(command: str) -> str:
    words = shlex.split(command)
    key = " ".join(words[: 2 if words[0] == "attributegan-shard" else 1])
    return f"{command} {SMALLER.get(key, '')}"


def write_slide(path: Path, seed: int) -> None:
    tifffile = pytest.importorskip("tifffile", reason="needs attributegan[slides]")
    levels = [[1 + (row + column + seed) % 4, 1 + row % 3, 1, 1 + column % 2, 1 + row % 4] for row in range(SIDE) for column in range(SIDE)]
    tiles = [phantom.render(each, 256, seed, number) for number, each in enumerate(levels)]
    rows = [np.concatenate(tiles[row * SIDE : (row + 1) * SIDE], axis=1) for row in range(SIDE)]
    grain_HWC = np.random.default_rng(seed).normal(0, 4, (SIDE * 256, SIDE * 256, 3))  # as of a camera: without it tiles count as blurred
    pixels_HWC = (np.concatenate(rows) + grain_HWC).clip(0, 255).astype(np.uint8)
    tifffile.imwrite(path, pixels_HWC, photometric="rgb", tile=(256, 256), resolution=(20_000, 20_000), resolutionunit="CENTIMETER")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as the page asks for: two slides, and the configurations of the repository."""
    for extra, module in (("slides", "openslide"), ("measure", "skimage"), ("explore", "starlette"), ("eval", "efficientnet_lite_pytorch")):
        pytest.importorskip(module, reason=f"needs attributegan[{extra}]")
    if not shutil.which("attributegan-shard", path=BIN):
        pytest.skip("the commands are not installed beside this Python")
    (tmp_path / "slides").mkdir()
    for number in range(2):
        write_slide(tmp_path / "slides" / f"slide{number}.tif", number)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    return tmp_path


def test_every_command_of_the_tutorial_runs(folder: Path) -> None:
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    page = commands()
    assert [command.split()[0] for command in page].count("attributegan-explore") == 1 and len(page) >= 7
    for command in map(smaller, page):
        if command.startswith("attributegan-explore"):
            assert "crowding" in explored(command, folder, environment)
            continue
        done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds(200))
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert len(list((folder / "tiles").glob("slide*/*.png"))) == 2 * SIDE**2
    for made in ("levels.csv", "levels.yaml", "shards/card.html", "sweep/sweep.png", "report/report.html", "runs/first/grids"):
        assert (folder / made).exists(), made


def explored(command: str, folder: Path, environment: dict[str, str]) -> str:
    """Start the explorer, fetch its page, and stop it."""
    with subprocess.Popen(shlex.split(command), cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            address = re.search(r"http://\S+/", line)
            assert address, f"no address in {line!r}"
            with urllib.request.urlopen(address[0], timeout=seconds(60)) as answer:
                return answer.read().decode()
        finally:
            process.terminate()
