"""``run.notify`` in real trainings: which events are sent, and that a command that fails changes nothing."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from runs import kill, output, start, wait_for
from time_limits import seconds

pytestmark = pytest.mark.slow


def events(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def test_events_of_a_run(shards: Path, tmp_path: Path) -> None:
    run, file = tmp_path / "run", tmp_path / "events"
    notify = f"run.notify=echo \"$ATTRIBUTEGAN_EVENT $ATTRIBUTEGAN_IMAGES $ATTRIBUTEGAN_MESSAGE\" >> '{file}'; exit 5"
    process = start(shards, run, notify, "train.images=4000")
    wait_for(run, 16, process)
    kill(process, signal.SIGUSR1)
    assert process.returncode == 128 + signal.SIGUSR1, output(run)
    began, stopped = events(file)
    assert began == "start 0 training to 4,000 images"
    images = int(stopped.split()[1])
    assert images >= 16 and stopped == f"stopped {images} stopped by SIGUSR1 at {images:,} images"
    assert "run.notify: the command for event start failed with status 5; the run is not affected" in (run / "train.log").read_text()
    assert start(shards, run, notify, f"train.images={images}").wait(timeout=seconds(120)) == 0, output(run)
    assert events(file)[2:] == [f"start {images} training to {images:,} images", f"finished {images} finished at {images:,} images"]
    assert start(shards, run, notify, "train.images=8").wait(timeout=seconds(120)) == 2
    assert events(file)[4].startswith("failed ") and len(events(file)) == 5
