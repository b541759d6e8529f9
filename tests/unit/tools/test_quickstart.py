"""`make quickstart`: the number of training images, and its commands and options exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from attributegan.run_dir import status
from tools import evaluate, quickstart


@pytest.mark.parametrize(
    ("speed", "images"),
    [(1.8, quickstart.MIN_IMAGES), (55.0, 19_000), (500.0, quickstart.IMAGES), (0.0, quickstart.IMAGES)],  # 0: not measured
)
def test_images_fit_the_machine_within_limits(tmp_path: Path, speed: float, images: int, capsys: pytest.CaptureFixture[str]) -> None:
    status.update(tmp_path, images=960, images_per_second=speed)
    assert quickstart._affordable(tmp_path, minutes=6.0) == images
    assert (f"trains {speed:.0f} images/s: {images:,} images" in capsys.readouterr().out) == (speed > 0)


def test_a_run_with_more_images_is_not_shortened(tmp_path: Path) -> None:
    status.update(tmp_path, images=100_000, images_per_second=55.0)
    assert quickstart._affordable(tmp_path, minutes=6.0) == 100_000


def test_options_exist() -> None:
    options = evaluate._parser().parse_args(["report", "run", "--shards", "shards", "--out", "out", *quickstart.EVALUATION])
    assert options.predictor_steps == 150 and options.max_real == 1024
