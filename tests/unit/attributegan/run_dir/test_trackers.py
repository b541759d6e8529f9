"""Trackers of ``run.trackers``: offline modes of the real packages, which are skipped where they are not installed."""

from __future__ import annotations

import importlib.util
import json
import logging
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import PartialState
from PIL import Image
from time_limits import seconds

from attributegan import config
from attributegan.run_dir import trackers
from attributegan.run_dir.trackers import Trackers, require_installed

OPTIONS = {"train.batch": 8, "run.dir": "runs/first", "optim.betas": [0.5, 0.9]}


@pytest.fixture
def accelerate_state() -> Iterator[None]:
    """The state of `accelerate` that a training has, which its loggers require."""
    PartialState(cpu=True)
    yield
    PartialState._reset_state()


def log_run(name: str, folder: Path, images: int) -> None:
    """Log a start of a run: scalars, a grid, and an evaluation that finishes late."""
    image_HWC = np.full((32, 64, 3), 200, np.uint8)
    grid = folder / "grids" / f"attributes-{images:012d}.png"
    grid.parent.mkdir(exist_ok=True)
    Image.fromarray(image_HWC).save(grid)
    started = Trackers((name,), folder)
    started.start(images, OPTIONS)
    assert list(started.active) == [name]
    started.scalars(images + 8, {"generator/adversarial": 0.5, "real_score": 1.0})
    started.image(images + 8, "attributes", image_HWC, grid)
    started.scalars(images + 16, {"generator/adversarial": 0.25, "real_score": 2.0})
    with (folder / trackers.EVALUATION).open("a") as stream:
        line = json.dumps({"images": images + 8, "of": {"count": 100}, "kid": 0.125, "control_score": 0.75})
        stream.write(f'{line}\n{{"images": {images + 16}, "error": "corrupted"}}\n{{"images": 99, "k')
    started.evaluations()
    with (folder / trackers.EVALUATION).open("a") as stream:
        stream.write("\n")
    started.evaluations()
    started.close()


def test_default_is_tensorboard_alone_and_unknown_names_are_refused() -> None:
    assert config.RunConfig().trackers == ("tensorboard",)
    with pytest.raises(ValueError, match=r"run.trackers.*neptune"):
        config.from_dict({"run": {"trackers": ["neptune"]}}, "here")


def test_tensorboard_has_scalars_and_grids_and_drops_repeated_points(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log_run("tensorboard", tmp_path, 0)
    time.sleep(1)  # files are read in the order of their names, which have the second of the start
    log_run("tensorboard", tmp_path, 8)  # resumed: 16 is repeated
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("generator/adversarial")] == [(8, 0.5), (16, 0.5), (24, 0.25)]
    assert [event.step for event in board.Images("attributes")] == [8, 16]
    assert not [tag for tag in board.Tags()["scalars"] if tag.startswith("evaluation/")]  # written by the evaluation


def test_a_missing_package_is_an_error_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else object())
    require_installed(("tensorboard", "mlflow"))
    with pytest.raises(ValueError, match=r"run.trackers: wandb is not installed; pip install 'attributegan\[trackers\]'"):
        require_installed(("tensorboard", "wandb"))


def test_a_tracker_that_fails_is_turned_off_and_the_others_continue(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def scalars(self, *_: Any) -> None:
            raise ConnectionError("server is gone")

    class Counting:
        count = 0

        def scalars(self, *_: Any) -> None:
            self.count += 1

        def close(self) -> None:
            self.count += 100

    both, counting = Trackers((), tmp_path), Counting()
    both.active = {"mlflow": Broken(), "wandb": counting}  # type: ignore[dict-item]
    with caplog.at_level(logging.WARNING, "attributegan"):
        both.scalars(8, {"loss": 1.0})
        both.scalars(16, {"loss": 1.0})
        both.close()
    assert counting.count == 102
    [record] = caplog.records
    assert record.getMessage() == "run.trackers: mlflow failed and is turned off until the next start: ConnectionError: server is gone"


@pytest.mark.slow
@pytest.mark.usefixtures("accelerate_state")
def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed (pip install 'attributegan[trackers]')")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for variable in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{variable}_DIR", str(tmp_path / variable))
    folder = tmp_path / "first"
    folder.mkdir()
    log_run("wandb", folder, 0)
    run_id = json.loads((folder / trackers.FILE).read_text())["wandb"]
    [written] = (folder / "wandb").glob(f"offline-run-*-{run_id}")
    deadline, records = time.monotonic() + seconds(30), list[Any]()
    while not records or records[-1].WhichOneof("record_type") != "exit":  # wandb's process writes the last ones after the run has ended
        assert time.monotonic() < deadline
        time.sleep(0.1)
        records = list(_wandb_records(next(written.glob("*.wandb"))))
    options = {item.key or item.nested_key[0]: item.value_json for record in records for item in record.config.update}
    assert json.loads(options["train.batch"]) == 8
    history = [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    points = {(row["images"], name): value for row in history for name, value in row.items()}
    assert points[8, "generator/adversarial"] == 0.5 and points[16, "real_score"] == 2.0
    assert points[8, "evaluation/kid"] == 0.125 and points[8, "evaluation/control_score"] == 0.75
    assert sum(name == "evaluation/kid" for _, name in points) == 1
    assert list((written / "files" / "media" / "images").glob("attributes*.png"))
    log_run("wandb", folder, 16)
    assert len(list((folder / "wandb").glob(f"offline-run-*-{run_id}"))) >= 1  # the resumed run has the same identifier
    assert json.loads((folder / trackers.FILE).read_text())["wandb"] == run_id


def _wandb_records(path: Path) -> Iterator[Any]:
    """Yield the records of an offline run: a LevelDB log of protocol buffers, in blocks of 32 KiB, after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, position, message = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if (left := 2**15 - position % 2**15) < 7:  # too short for a chunk
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)  # checksum; 1: whole, 2: first, 3: middle, 4: last chunk
        if position + 7 + length > len(data):  # being written
            return
        message += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(message)
            yield record
            message = b""


@pytest.mark.slow
@pytest.mark.usefixtures("accelerate_state")
def test_mlflow_file_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed (pip install 'attributegan[trackers]')")
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.setenv(variable, "")  # restored after the test
        monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "first"
    folder.mkdir()
    log_run("mlflow", folder, 0)
    run_id = json.loads((folder / trackers.FILE).read_text())["mlflow"]
    log_run("mlflow", folder, 16)  # resumes the same run
    mlflow.set_tracking_uri((folder / "mlflow").as_uri())
    client = mlflow.MlflowClient()
    assert [run.info.run_id for run in client.search_runs([client.get_experiment_by_name("attributegan").experiment_id])] == [run_id]
    run = client.get_run(run_id)
    assert run.data.params["train.batch"] == "8" and run.data.params["optim.betas"] == "[0.5, 0.9]" and run.info.run_name == "first"
    assert [(metric.step, metric.value) for metric in client.get_metric_history(run_id, "generator/adversarial")] == [
        (8, 0.5),
        (16, 0.25),
        (24, 0.5),
        (32, 0.25),
    ]
    assert [(metric.step, metric.value) for metric in client.get_metric_history(run_id, "evaluation/kid")] == [(8, 0.125), (24, 0.125)]
    assert len(list((folder / "mlflow").rglob("grids/attributes-*.png"))) == 2
    assert not (tmp_path / "mlruns").exists() and not (tmp_path / "mlflow.db").exists()
