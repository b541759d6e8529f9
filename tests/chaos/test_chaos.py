"""A short sample of the chaos cases, and tests that its checks detect violations."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import case as cases
import faults
import promises
import pytest
import torch
from modes import TOKEN, every_mode, processes
from runs import ROOT
from time_limits import seconds

from attributegan.checkpoint import writer

RUNNER = Path(__file__).parent / "run.py"
SAMPLE = {
    "1 process": ("killed while writing a checkpoint", "disk full", "NaN in a weight that is saved"),
    "DDP": ("SIGKILL to one process",),
}


@pytest.mark.timeout(seconds(900))
@pytest.mark.parametrize("mode", SAMPLE)
def test_sample_keeps_every_promise(tmp_path: Path, mode: str) -> None:
    """Runs a few cases of ``make chaos``; mounting small disks may be forbidden, except in CI."""
    command = [sys.executable, str(RUNNER), "--cases", str(len(SAMPLE[mode])), "--seed", "1", "--mode", mode, "--out", str(tmp_path)]
    done = subprocess.run([*command, "--fault", *SAMPLE[mode]], cwd=ROOT, capture_output=True, text=True, timeout=seconds(800), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    played = json.loads((tmp_path / "cases.json").read_text())["cases"]
    left_out = {"disk full"} if "only root may" in done.stdout else set()
    assert not (left_out and os.environ.get("CI")), done.stdout
    assert {one["case"]["fault"] for one in played} == set(SAMPLE[mode]) - left_out
    assert all(one["end"].endswith("the same bits") and not one["violations"] for one in played)
    assert "| all |" in (tmp_path / "table.md").read_text()


def test_cases_depend_on_the_seed_and_cover_all_faults_and_modes() -> None:
    modes = list(every_mode())
    drawn = cases.draw(7, 300, modes)
    assert drawn == cases.draw(7, 300, modes) != cases.draw(8, 300, modes)
    met = {(one.fault, one.mode) for one in drawn}
    assert met == {(fault.name, mode) for fault in faults.FAULTS for mode in fault.modes}
    assert len({one.fault for one in drawn[: len(faults.FAULTS)]}) == len(faults.FAULTS)
    assert {one.mode for one in cases.draw(7, 50, ["DDP"])} == {"DDP"}


def write(run: Path, images: int, value: float = 1.0) -> Path:
    return writer.save(run / "checkpoints", images, state={}, generator={"w": torch.full((4,), value)})


def test_detects_different_weights(tmp_path: Path) -> None:
    for name, images, value in (("good", 80, 1.0), ("same", 80, 1.0), ("other", 80, 1.0000001), ("short", 72, 1.0)):
        write(tmp_path / name, images, value)
    assert promises.same_end(tmp_path / "same", tmp_path / "good") == []
    assert "1 tensors differ" in promises.same_end(tmp_path / "other", tmp_path / "good")[0]
    assert "ended with images-000000000072" in promises.same_end(tmp_path / "short", tmp_path / "good")[0]
    assert promises.same_end(tmp_path / "none", tmp_path / "good") != []


def test_detects_lost_and_different_tiles(tmp_path: Path) -> None:
    steps = [[[0, 11, [[1]]]], [[8, 22, [[2]]]], [[8, 22, [[2]]]]]  # the second one was repeated after a kill
    for name, kept in {"good": steps, "same": steps[:2], "lost": steps[:1], "other": [steps[0], [[8, 23, [[2]]]]]}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.jsonl").write_text("".join(f"{json.dumps(step)}\n" for step in kept))
    assert promises.same_tiles(tmp_path / "same", tmp_path / "good") == []
    assert "in one of the runs only" in promises.same_tiles(tmp_path / "lost", tmp_path / "good")[0]
    assert promises.same_tiles(tmp_path / "other", tmp_path / "good") == ["other tiles at rank 0, image 8"]


def test_detects_leftovers_and_missing_checkpoints(tmp_path: Path) -> None:
    run, temporary = tmp_path / "run", tmp_path / "tmp"
    write(run, 16)
    temporary.mkdir()
    (run / "train.log").write_text("12:00:00 saved /runs/a/checkpoints/images-000000000016\n")
    assert promises.nothing_left(run, temporary, "none", own_shm=False) == []
    assert promises.saved_images(run) == 16 and promises.saved_checkpoint_is_valid(run, 16, "") == []
    assert "the newest good one has 16" in promises.saved_checkpoint_is_valid(run, 32, "")[0]
    assert promises.saved_checkpoint_is_valid(run, 32, "images-000000000032/state.json: missing") == []
    (run / ".writing-status.json-host-1").touch()
    (temporary / "wandb").touch()
    waits = [sys.executable, "-c", "print('here', flush=True); input()"]
    with subprocess.Popen(waits, env=os.environ | {TOKEN: "left-over"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"here\n"  # its environment is in /proc from here on
        left = promises.nothing_left(run, temporary, "left-over", own_shm=False)
        assert processes("left-over") == [process.pid]
        process.communicate(b"\n")
    assert len(left) == 3 and f"process {process.pid} left" in left[0]
    (run / "metrics.jsonl").write_text('{"images": 8}\n{"images": 16}\n')
    assert promises.metrics_once(run, 8, 16) == [] != promises.metrics_once(run, 8, 24)
