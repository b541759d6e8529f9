"""Runs resumed on another type of CPU keep their precision and log it."""

from pathlib import Path

import yaml
from instruction_sets import AVX2, needs_x86
from runs import SCRIPT, begin, launcher, output, train, write_config
from time_limits import seconds

from attributegan.utils.precision import native_bf16


def resume(shards: Path, run: Path, **environment: str) -> str:
    """Train to 16 images with ``train.precision=auto``; returns the output."""
    before = len(output(run))
    options = ["--config", str(write_config(run)), f"data.shards={shards}", f"run.dir={run}", "train.world_size=1", "train.images=16"]
    process = begin([*launcher("one", 1), SCRIPT, *options, "train.precision=auto"], run, **environment)
    assert process.wait(timeout=seconds(240)) == 0, output(run)
    return output(run)[before:]


def precision_of(run: Path) -> str:
    return yaml.safe_load((run / "config.yaml").read_text())["train"]["precision"]


@needs_x86
def test_bf16_run_keeps_bf16_without_hardware_for_it(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(shards, run, "train.images=8", "train.precision=bf16")
    said = resume(shards, run, **AVX2)
    assert f"train.precision: bf16 (as in {run}/config.yaml, which is resumed)" in said
    assert "train.precision=bf16 is " in said and "times slower than fp32 on this CPU (AVX2)" in said
    assert "option changed" not in said and precision_of(run) == "bf16"


def test_fp32_run_keeps_fp32_with_or_without_hardware_for_bf16(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(shards, run, "train.images=8", "train.precision=fp32")
    said = resume(shards, run)
    assert f"train.precision: fp32 (as in {run}/config.yaml, which is resumed)" in said
    assert "times slower" not in said and "option changed" not in said and precision_of(run) == "fp32"


def test_new_run_writes_what_auto_was(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(shards, run, "train.images=8", "train.precision=auto")
    expected = "bf16" if native_bf16() else "fp32"
    assert f"train.precision: {expected} (this CPU has " in output(run) and precision_of(run) == expected
