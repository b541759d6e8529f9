"""A run folder of the version before the renaming (commit 522c234) can be resumed and sampled from; old option and file names are read."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import ROOT, begin, output
from time_limits import seconds

from attributegan import config
from attributegan.checkpoint import store
from attributegan.run_dir import status
from tools.sample import main as sample

OLD = ROOT / "tests" / "data" / "run_of_522c234"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return shutil.copytree(OLD, tmp_path / "run")


def test_resumes_with_options_by_their_old_names(run: Path) -> None:
    command = [sys.executable, str(ROOT / "launch" / "train.py"), "--config", str(run / "config.yaml"), f"data.shards={run / 'shards'}"]
    process = begin([*command, f"run.dir={run}", "train.images=24", "run.keep=2", "loss.contrastive_over=tile"], run)
    assert process.wait(timeout=seconds(240)) == 0, output(run)
    lines = output(run)
    assert f"resuming from {run}/checkpoints/images-000000000016" in lines
    assert "train.accumulation is now train.grad_accumulation" in lines and "run.keep is now run.keep_last" in lines
    assert "loss.contrastive_over=tile is now label" in lines
    changed = [line for line in lines.splitlines() if " option changed since the checkpoint: " in line and " data.shards is " not in line]
    assert not changed, "renamed options are not changed ones"
    assert store.latest(run / "checkpoints") == run / "checkpoints" / "images-000000000024"
    written = config.load(run / "config.yaml")
    assert (written.train.grad_accumulation, written.train.world_size, written.run.keep_last) == (2, 1, 2)
    assert (written.data.attributes, written.data.shuffle_window) == (("grade",), 1)
    assert (written.model.generator_levels, written.evaluate.best) == ("ordinal", "control_score")


def test_makes_the_tiles_that_it_made_then(run: Path, tmp_path: Path) -> None:
    assert sample([str(run), "--out", str(tmp_path / "tiles"), "--count", "4"]) == 0
    for path in sorted((OLD / "tiles").glob("*.png")):
        then, now = (np.asarray(Image.open(folder / path.name)).astype(int) for folder in (path.parent, tmp_path / "tiles"))
        assert np.abs(then - now).max() <= 1, path.name


def test_old_names_of_options_and_fields_are_read(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample([str(run), "--out", str(tmp_path / "tiles"), "--count", "1", "--raw"]) == 0
    assert "--raw was renamed to --no-ema" in capsys.readouterr().err
    found = status.read(run)
    assert found is not None and found.updated_at > 1e9 and found.state == "finished"


def test_option_by_both_names_is_refused() -> None:
    with pytest.raises(ValueError, match=r"run\.keep is now run\.keep_last, which is also given"):
        config.from_dict({"run": {"keep": 1, "keep_last": 2}})
