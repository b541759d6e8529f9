"""Evaluation during training: evaluates new checkpoints, keeps the best, leaves no process behind."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import runs
import torch
from time_limits import seconds
from untrained_run import untrained_run

from attributegan.checkpoint import loading
from tools import evaluate
from tools.evaluation import history

OPTIONS = [
    "--count",
    "20",
    "--sweeps",
    "2",
    "--features",
    "tests.helpers.fake_features:pooled",
    "--feature-size",
    "32",
    "--predictor",
    "features",
]


def save(run: Path, images: int, brightness: float) -> Path:
    """Save a checkpoint whose tiles have one shade; the nearer to that of the phantoms, the smaller the KID."""
    return untrained_run(run, images, lambda weights: weights | {"to_image.bias": torch.full_like(weights["to_image.bias"], brightness)})


def watch(run: Path, shards: Path, *arguments: str) -> int:
    return evaluate.main(["watch", str(run), "--shards", str(shards), "--cache", str(run / "cache"), "--once", *OPTIONS, *arguments])


def best(run: Path) -> list[str]:
    return [path.name for path in (run / "best" / "checkpoints").iterdir()]


def test_every_checkpoint_is_evaluated_once_and_the_best_is_kept(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for images, brightness in ((100, -5.0), (200, 0.4), (300, 5.0)):
        save(run, images, brightness)
    assert watch(run, shards) == 0
    lines = history.lines(run)
    assert [line["images"] for line in lines] == [100, 200, 300]
    assert lines[1]["kid"] == min(line["kid"] for line in lines)
    assert best(run) == ["images-000000000200"]
    assert loading.load_for_sampling(run / "best").images == 200
    assert (run / "evaluation" / "images-000000000300" / "report.html").is_file()
    assert not any((run / "evaluation" / ".held").iterdir())
    shutil.rmtree(run / "checkpoints" / "images-000000000200")  # as training deletes old ones
    assert loading.load_for_sampling(run / "best").images == 200
    assert watch(run, shards) == 0 and len(history.lines(run)) == 3


def test_only_multiples_of_every_and_damaged_ones_are_passed_over(shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tmp_path / "run"
    for images in (90, 110, 130, 210):
        save(run, images, 0.0)
    (run / "checkpoints" / "images-000000000110" / "generator_ema.safetensors").write_bytes(b"")
    assert watch(run, shards, "--every", "100") == 0
    lines = history.lines(run)
    assert [line["images"] for line in lines] == [110, 210] and "error" in lines[0] and "kid" in lines[1]
    assert "skipping corrupted checkpoint" in caplog.text
    assert best(run) == ["images-000000000210"]


def test_a_line_that_a_kill_cut_short_takes_no_other_with_it(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    save(run, 100, 0.0)
    (run / "evaluation.jsonl").write_text('{"images": 50, "kid": 0.1}\n{"images": 7')
    assert watch(run, shards) == 0
    assert [line["images"] for line in history.lines(run)] == [50, 100]


def test_results_of_other_features_do_not_decide_what_is_best(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    save(run, 100, 0.4)
    assert watch(run, shards) == 0
    save(run, 200, -5.0)  # worse, but the first with these features
    assert watch(run, shards, "--feature-size", "16") == 0
    assert best(run) == ["images-000000000200"]
    assert [line["images"] for line in history.comparable(history.lines(run))] == [200]


def test_training_with_evaluation_on_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: Path) -> None:
    """Started by the configuration: the run exits after its last checkpoint is evaluated, all ranks with status 0."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(runs.ROOT))
    run = tmp_path / "run"
    overrides = [
        "train.images=40",
        "evaluate.every=16",
        "evaluate.count=16",
        "evaluate.sweeps=2",
        "evaluate.features=tests.helpers.fake_features:pooled",
        "run.keep_last=1",
    ]
    process = runs.start(shards, run, *overrides, processes=2)
    assert process.wait(timeout=seconds(280)) == 0, runs.output(run)
    lines = [json.loads(line) for line in (run / "evaluation.jsonl").read_text().splitlines()]
    assert lines[-1]["images"] == 40 and "kid" in lines[-1], (run / "evaluation.log").read_text()
    assert best(run)[0] in {f"images-{line['images']:012d}" for line in lines}


def test_evaluation_ends_with_a_training_that_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(runs.ROOT))
    run = tmp_path / "run"
    process = runs.start(shards, run, "train.images=100000", "evaluate.every=16", "evaluate.features=tests.helpers.fake_features:pooled")
    runs.wait_for(run, 32, process)
    watchers = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", "attributegan evaluate"], capture_output=True, text=True
    ).stdout.split()
    assert len(watchers) == 1
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=seconds(120)) == 128 + signal.SIGTERM, runs.output(run)
    deadline = time.monotonic() + seconds(30)
    while Path(f"/proc/{watchers[0]}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{watchers[0]}").exists()


def test_held_out_split_that_is_not_there_is_refused_before_training(tmp_path: Path, shards: Path) -> None:
    process = runs.start(shards, tmp_path / "run", "evaluate.every=16", "evaluate.split=test")
    assert process.wait(timeout=seconds(60)) == 2
    assert "evaluate.split: " in runs.output(tmp_path / "run") and "no split 'test'" in runs.output(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_bad_options_are_refused(tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert watch(tmp_path, shards, "--every", "0") == 2
    assert "--every: 0 must be at least 1" in capsys.readouterr().err
