"""Resolution of "auto" on CPUs with and without native bf16, and the warning about slow precisions."""

import json
import os
import subprocess
import sys

import pytest
import torch
from instruction_sets import AVX2, needs_x86
from runs import ROOT
from time_limits import seconds

from attributegan.utils import precision


def without_bf16() -> dict:
    """The results of a process limited to AVX2."""
    code = """
import json
from attributegan.utils import precision
print(json.dumps({
    "native": precision.native_bf16(), "chosen": precision.choose("cpu"), "cpu": precision.cpu_name(),
    "slowdown": precision.slowdown("bf16", "cpu"), "warning": precision.warning("bf16", "cpu", "train.precision="),
    "fp32": precision.warning("fp32", "cpu", "train.precision="),
}))"""
    environment = os.environ | AVX2 | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds(60))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow  # starts a process
@needs_x86
def test_without_native_bf16_auto_is_fp32_and_bf16_is_warned_of() -> None:
    found = without_bf16()
    assert found["native"] == "" and found["chosen"] == ["fp32", "this CPU has no native bf16 (AVX2)"]
    assert found["cpu"].endswith("(AVX2)")
    assert found["slowdown"] > 1 and found["fp32"] == ""
    assert found["warning"].startswith("train.precision=bf16 is ") and " times slower than fp32 on this CPU (AVX2)" in found["warning"]
    assert "use train.precision=fp32, or train.precision=auto" in found["warning"]


def test_auto_is_bf16_exactly_where_it_is_native() -> None:
    chosen, reason = precision.choose("cpu")
    assert (chosen, bool(precision.native_bf16())) in (("bf16", True), ("fp32", False))
    assert precision.native_bf16() in reason and "this CPU has" in reason
    assert precision.choose("meta") == ("fp32", "meta devices")


@pytest.mark.parametrize("limit", precision.WITHOUT_BF16)
def test_limit_of_onednn_that_emulates_bf16_is_none(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit.lower())
    assert precision.native_bf16() == "" and precision.choose("cpu")[0] == "fp32"


@pytest.mark.parametrize(("factor", "warned"), [(7.26, True), (1.05, False), (0.5, False)])
def test_warning_is_of_what_is_slower(factor: float, warned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "native_bf16", lambda: "")
    monkeypatch.setattr(precision, "slowdown", lambda *_: factor)
    message = precision.warning("fp16", "cpu", "--precision ")
    assert ("--precision fp16 is 7.3 times slower than fp32" in message and "use --precision fp32" in message) == warned
    assert bool(message) == warned and precision.warning("fp64", "cpu", "--precision ") == ""


def test_native_bf16_is_not_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "native_bf16", lambda: "AMX-BF16")
    monkeypatch.setattr(precision, "slowdown", lambda *_: pytest.fail("measured"))
    assert precision.warning("bf16", "cpu", "--precision ") == ""


@pytest.mark.parametrize(("chosen", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_autocast_is_in_the_precision(chosen: str, dtype: torch.dtype) -> None:
    with precision.autocast(chosen, "cpu"):
        assert torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype == dtype


def test_slowdown_of_full_precision_is_none() -> None:
    assert precision.slowdown("fp32", "cpu") == precision.slowdown("fp64", "cpu") == 1.0
