"""`attributegan-bench gpu`: all parts on a CPU, and how failures, time and earlier results are treated."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from attributegan.config import Config
from tools.bench import main
from tools.benchmarks import gpu, gpu_checks, gpu_report, gpu_speed, gpu_training, gpu_variants, gpu_worker
from tools.benchmarks.gpu_parts import BY_NAME, CHECKS, PARTS, SPEED, VARIANTS, Context, Outcome, Part, Skip, without_launcher
from tools.benchmarks.gpu_training import difference, differing, merged
from tools.benchmarks.gpu_worker import Worker, run_part

HERE = ["gpu", "--device", "cpu", "--tiny"]
FIRST = ["steps", "syncs", "checkpoint"]
OPTIONAL = ("simplejpeg", "webdataset", "tensorboard", "deepspeed", "onnx", "onnxscript", "onnxruntime", "starlette", "transformers")
SCALED = SimpleNamespace(loss_scale=SimpleNamespace(value=1.0))  # an engine


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_part_runs_on_a_cpu_and_results_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In two calls: the second runs what the first has left."""
    assert main([*HERE, "--out", str(tmp_path), "--only", *FIRST]) == 0
    assert {path.stem for path in (tmp_path / "parts").iterdir()} == set(FIRST)
    kept = {name: (tmp_path / "parts" / f"{name}.json").stat().st_mtime_ns for name in FIRST}
    assert "| not run |" in (tmp_path / "report.md").read_text()
    capsys.readouterr()
    assert main([*HERE, "--out", str(tmp_path), "--minutes", "60"]) == 0, (tmp_path / "report.md").read_text()
    assert kept == {name: (tmp_path / "parts" / f"{name}.json").stat().st_mtime_ns for name in FIRST}
    printed, page = capsys.readouterr().out, (tmp_path / "report.md").read_text()
    tree = json.loads((tmp_path / "report.json").read_text())
    assert list(tree["parts"]) == [part.name for part in PARTS]
    for part in PARTS:
        outcome = tree["parts"][part.name]
        assert outcome["status"] == ("passed" if part.kind == "check" else "measured") and outcome["seconds"] > 0, (part.name, outcome)
        assert f"| {part.name} | {part.kind} | {outcome['status']} |" in page and f"| {part.name} |" in printed
    assert "**No GPU**" in page and "They say nothing about GPUs" in page and torch.__version__ in page
    assert tree["machine"]["device"] == "cpu" and tree["machine"]["CPU"] in page and "Checks that failed: none" in page
    rows = tree["parts"]["steps"]["details"]["recipes"]
    assert [row["recipe"] for row in rows] == ["published", "controlled"] and all(0 < row["updates"] < 1e-2 for row in rows)
    assert len(tree["parts"]["profile"]["details"]["kernels"]) == 15
    assert 0 <= tree["parts"]["loader"]["details"]["wait share"] <= 1
    compiled = tree["parts"]["compile-speed"]
    assert "traced (eager)" in compiled["summary"] and [row["compile"] for row in compiled["details"]["compile"]] == [False, True]
    assert all(row["images/s"] > 0 and row["first step, s"] >= 0 for row in compiled["details"]["compile"])
    assert [row["channels_last"] for row in tree["parts"]["layouts"]["details"]["layouts"]] == [True, False]


@pytest.mark.slow
def test_no_other_packages_are_imported() -> None:
    """Beyond torch, accelerate, einops, pyarrow, safetensors, Pillow and their own requirements; `launch.train` is the part "resume"."""
    modules = [CHECKS, SPEED, VARIANTS, "tools.bench", "tools.benchmarks.gpu_report", "tools.shard", "launch.train"]
    program = f"import importlib, sys; sys.modules |= dict.fromkeys({OPTIONAL}); [*map(importlib.import_module, {modules})]"
    program += "; from tools.benchmarks.gpu_report import machine; machine('cpu')"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


class FakeWorker:
    """Returns the outcomes that a test sets."""

    outcomes: dict[str, Outcome] = {}

    def __init__(self, *_: object) -> None:
        self.ran: list[str] = []

    def run(self, part: Part, limit_s: float) -> Outcome:
        self.ran.append(part.name)
        return self.outcomes.get(part.name, Outcome("passed" if part.kind == "check" else "measured", "well"))

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("name", "status", "expected"),
    [("repeat", "failed", 1), ("profile", "failed", 0), ("zero", "skipped", 0), ("steps", "passed", 0)],
)
def test_status_and_rows(
    name: str, status: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "Worker", FakeWorker)
    monkeypatch.setattr(FakeWorker, "outcomes", {name: Outcome(status, "for | a\nreason")})  # type: ignore[arg-type]
    assert main([*HERE, "--out", str(tmp_path)]) == expected
    assert f"| {name} | {BY_NAME[name].kind} | {status} | 0 | {BY_NAME[name].title}: for / a reason |" in capsys.readouterr().out
    failed = name if expected else "none"
    assert f"Checks that failed: {failed}." in (tmp_path / "report.md").read_text()
    # again: failures and parts that lacked something, unless others are named
    monkeypatch.setattr(FakeWorker, "outcomes", {})
    assert main([*HERE, "--out", str(tmp_path), "--only", "syncs"]) == expected
    assert main([*HERE, "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "parts" / f"{name}.json").read_text())["status"] in ("passed", "measured")


def test_no_part_begins_when_the_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu, "Worker", FakeWorker)
    assert main([*HERE, "--out", str(tmp_path), "--minutes", "0.001"]) == 0
    assert capsys.readouterr().out.count("| not run |") == len(PARTS) and not list((tmp_path / "parts").iterdir())
    assert main([*HERE, "--out", str(tmp_path), "--minutes", "0"]) == 2 and "--minutes" in capsys.readouterr().err
    assert main([*HERE, "--out", str(tmp_path), "--only", "luck"]) == 2 and "--only: unknown part luck" in capsys.readouterr().err


def test_a_part_stopped_at_the_end_of_the_time_has_not_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = FakeWorker()
    for seconds, status in ((30.0, "not run"), (20.0, "failed")):
        monkeypatch.setattr(FakeWorker, "outcomes", {"steps": Outcome("failed", "stopped", {}, seconds)})
        assert gpu._outcome(worker, BY_NAME["steps"], 30.0, 1).status == status  # type: ignore[arg-type]


def test_the_report_is_written_after_every_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(FakeWorker):
        def run(self, part: Part, limit_s: float) -> Outcome:
            if self.ran:
                raise KeyboardInterrupt
            return super().run(part, limit_s)

    monkeypatch.setattr(gpu, "Worker", Interrupted)
    assert main([*HERE, "--out", str(tmp_path)]) == 130
    assert "| steps | check | passed |" in (tmp_path / "report.md").read_text()


def test_results_of_another_machine_are_not_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "Worker", FakeWorker)
    assert main([*HERE, "--out", str(tmp_path)]) == 0
    assert main(["gpu", "--device", "cpu", "--out", str(tmp_path)]) == 2  # not tiny
    assert "has results of another machine, version or size" in capsys.readouterr().err


def test_a_device_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["gpu", "--device", "cuda", "--out", str(tmp_path)]) == 2
    assert "--device: cuda is not available" in capsys.readouterr().err


def test_exceptions_become_outcomes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("parts_of_the_test")

    def lacks(context: Context) -> Outcome:
        raise Skip("no luck here")

    def breaks(context: Context) -> Outcome:
        raise RuntimeError("CUDA error: an illegal memory access\nand more")

    module.lacks, module.br_eaks = lacks, breaks  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, module.__name__, module)
    context = Context("cpu", True, tmp_path)
    assert run_part(Part("lacks", "check", "", module.__name__), context) == Outcome("skipped", "no luck here")
    found = run_part(Part("br-eaks", "check", "", module.__name__), context)
    assert (found.status, found.summary) == ("failed", "RuntimeError: CUDA error: an illegal memory access")
    assert any("illegal" in line for line in found.details["traceback"])
    missing = run_part(Part("lacks", "check", "", module.__name__, needs=("json", "no_such_package")), context)
    assert missing == Outcome("skipped", "not installed: no_such_package")


def test_parts_run_alone_under_a_launcher() -> None:
    environ = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "host", "ACCELERATE_USE_CPU": "true", "PATH": "/bin", "NCCL_DEBUG": "INFO"}
    assert without_launcher(environ) == {"PATH": "/bin", "NCCL_DEBUG": "INFO"}


def test_a_process_that_hangs_or_dies_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker("cpu", True, tmp_path / "log")
    hung = worker.run(BY_NAME["steps"], 0.05)  # its start takes longer
    assert hung.status == "failed" and "stopped after 0 s" in hung.summary and worker.child is None
    monkeypatch.setattr(gpu_worker.sys, "executable", "/bin/false")
    died = worker.run(BY_NAME["steps"], 20)
    assert died.status == "failed" and "its process ended early" in died.summary and died.seconds < 20
    worker.close()


def test_a_stopped_process_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    worker = Worker("cpu", True, tmp_path / "log")
    worker.child = subprocess.Popen(["sleep", "60"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    (tmp_path / f"{gpu_worker.FOLDER}{worker.child.pid}-x" / "run").mkdir(parents=True)
    worker.close()
    assert not list(tmp_path.iterdir())


def test_a_broken_gpu_does_not_hide_the_result_of_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    module = ModuleType("part_of_the_test")
    module.part = lambda context: Outcome("failed", "batch 64")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(torch.cuda, "empty_cache", broken)
    assert run_part(Part("part", "speed", "", module.__name__), Context("cuda", True, tmp_path)).summary == "batch 64"


def test_batches_double_until_they_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rate(context: Context, size: int, batch: int, mode: str) -> dict:
        if batch > 16 and error:
            raise RuntimeError(f"{error}\nin a kernel")
        fits = batch <= 32
        return {
            "precision": mode,
            "batch": batch,
            "images/s": batch * (2.0 if mode == "tf32" else 1.0) if fits else "",
            "peak GiB": 1 if fits else "out of memory",
        }

    monkeypatch.setattr(gpu_speed, "step_rate", rate)
    monkeypatch.setattr(gpu_speed, "convolution_rate", lambda context, mode: 1e3)
    monkeypatch.setattr(gpu_speed, "_operations", lambda context, size: 5.0)
    for error, status, batches in (("", "measured", [8] * 4 + [16, 32, 64]), ("illegal access", "failed", [8] * 4 + [16])):
        found = run_part(BY_NAME["speed-256"], Context("cpu", False, tmp_path))
        assert found.status == status and [row["batch"] for row in found.details["steps"]] == batches
        assert found.details["larger batches"] == ("don't fit" if status == "measured" else f"tf32, batch 32: {error}")
        assert {row["precision"] for row in found.details["steps"][4:]} == {"tf32"} and error in found.summary
        assert f"{batches[-2 if status == 'measured' else -1] * 2:,.1f} images/s in tf32" in found.summary


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("CUDA out of memory. Tried to allocate 2 GiB", "out of memory"),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "out of memory"),
        ("Expected canUse32BitIndexMath(input) to be true", "too large for 32-bit indices"),
        ("CUDA error: an illegal memory access was encountered", ""),
    ],
)
def test_batches_that_do_not_fit_are_rows(message: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trainer(*_: object) -> None:
        raise (torch.OutOfMemoryError if message.startswith("CUDA out") else RuntimeError)(message)

    monkeypatch.setattr(gpu_speed, "_trainer", trainer)
    context = Context("cpu", True, tmp_path)
    if reason:
        assert gpu_speed.step_rate(context, 32, 8, "bf16") == {"precision": "bf16", "batch": 8, "images/s": "", "peak GiB": reason}
    else:
        with pytest.raises(RuntimeError, match="illegal"):
            gpu_speed.step_rate(context, 32, 8, "bf16")


def test_calls_are_queued_while_they_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    clock = iter(range(100))
    monkeypatch.setattr(gpu_speed, "wait", lambda context: order.append("wait"))
    monkeypatch.setattr("tools.benchmarks.gpu_speed.time.perf_counter", lambda: 8 * next(clock))
    assert gpu_speed.seconds_of(Context("cpu", False, tmp_path), lambda: order.append("call"), warm_up=1, least_s=20) == 24 / 8
    assert order == ["call", "wait", *["call"] * 2, "wait", *["call"] * 2, "wait", *["call"] * 4, "wait"]


def test_kernels_of_a_profile() -> None:
    kinds = torch.autograd.DeviceType
    events = [
        SimpleNamespace(key=key, device_type=kind, is_user_annotation=annotation)
        for key, kind, annotation in (
            ("conv", kinds.CUDA, False),
            ("Optimizer.step#Adam.step", kinds.CUDA, True),  # a range that contains kernels
            ("aten::conv2d", kinds.CPU, False),
        )
    ]
    assert [event.key for event in gpu_speed.kernels(events, on_gpu=True)] == ["conv"]
    assert [event.key for event in gpu_speed.kernels(events, on_gpu=False)] == ["aten::conv2d"]


def test_a_run_that_ends_before_it_is_killed_proves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import sys; from attributegan.config import load; from pathlib import Path; settings = load(sys.argv[-1])"
    program += "; Path(settings.run.dir, 'checkpoints', f'images-{settings.train.images:012d}').mkdir(parents=True)"
    monkeypatch.setattr(gpu_checks, "child", lambda *words: [sys.executable, "-c", program, *words])
    monkeypatch.setattr(gpu_checks, "_wait_for_a_checkpoint", lambda run, process: process.wait())
    outcome = run_part(BY_NAME["resume"], Context("cpu", True, tmp_path))
    assert outcome.status == "failed" and "was not killed between its first and last checkpoint" in outcome.summary


def test_what_compiling_needs_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_training, "find_spec", lambda name: None)
    for name in ("compiled", "compile-speed"):
        assert run_part(BY_NAME[name], Context("cuda", True, tmp_path)) == Outcome("skipped", "not installed: triton")
    monkeypatch.setattr(gpu_training, "find_spec", lambda name: name)
    monkeypatch.setattr("tools.benchmarks.gpu_training.shutil.which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(Skip, match="C compiler"):
        gpu_training.require_compiler(Context("cuda", True, tmp_path))


def test_page_names_the_gpu(tmp_path: Path) -> None:
    machine = gpu_report.machine("cpu") | {"device": "cuda", "GPU": "NVIDIA H100, 80 GiB", "driver": "550.1", "CUDA": "12.4"}
    (line, _) = gpu_report.machine_lines(machine)
    assert "**NVIDIA H100, 80 GiB**, driver 550.1, CUDA 12.4, torch" in line and str(machine["CPU"]) in line and "flags" in line
    hidden = machine | {"device": "cpu", "GPU": "not used: CUDA_VISIBLE_DEVICES hides all GPUs"}
    assert "**No GPU**" in (line := gpu_report.machine_lines(hidden)[0]) and "is not used: CUDA_VISIBLE_DEVICES hides" in line
    details = {"steps": [{"precision": "bf16", "images/s": 5}], "output": ["one", "two"], "GFLOP": 3}
    gpu_report.write(tmp_path, machine, False, {"speed-256": Outcome("measured", "speed", details, 3.0)})
    page = (tmp_path / "report.md").read_text()
    assert "| precision | images/s |\n|---|---|\n| bf16 | 5 |" in page and "```\none\ntwo\n```" in page and "- GFLOP: 3" in page
    assert "Sizes are tiny" not in page and page.count("| not run |") == len(PARTS) - 1


def test_differences_of_trainings() -> None:
    start = {"a/w": torch.zeros(2), "b/w": torch.ones(2), "b/n": torch.tensor(3)}
    end = {"a/w": torch.tensor([3.0, 4.0]), "b/w": torch.tensor([1.0, 2.0]), "b/n": torch.tensor(4)}
    other = end | {"b/w": torch.tensor([1.0, 2.1])}
    assert difference(end, end) == 0 and differing(end, end) == []
    assert difference(other, end) == pytest.approx(0.1 / 5**0.5, rel=1e-5)
    assert difference(other, end, start) == pytest.approx(0.1, rel=1e-5)  # of a way of 1
    assert differing(other, end) == ["b/w"] and differing({}, {"x": torch.ones(1)}) == ["x"]
    assert merged({"a": {"x": 1, "y": 2}}, {"a": {"x": 3}, "b": {}}) == {"a": {"x": 3, "y": 2}, "b": {}}


@pytest.mark.parametrize("name", ["steps", "compiled", "zero", "repeat"])
@pytest.mark.parametrize("off", [0.0, 0.1])
def test_checks_fail_when_the_two_ways_differ(name: str, off: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def trained(settings: Config, count: int = 0, networks: tuple[str, ...] = ("generator", "average")) -> tuple[dict, dict]:
        nonlocal calls
        calls += 1
        end = {f"{network}/w": torch.tensor([1.0, 2.0 + off * (calls % 2 == 0)]) for network in networks}
        return end, {f"{network}/w": torch.zeros(2) for network in networks}

    monkeypatch.setattr(gpu_checks, "_trained", trained)
    outcome = run_part(BY_NAME[name], Context("cpu", True, tmp_path))
    assert outcome.status == ("failed" if off else "passed") and calls >= 2, outcome


def test_layouts_are_compared_at_three_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rate(context: Context, size: int, batch: int, mode: str, more: dict) -> dict:
        return {"images/s": "" if size == 1024 else 3.0 if more["train"]["channels_last"] else 2.0, "batch": batch}

    monkeypatch.setattr(gpu_variants, "step_rate", rate)
    full = run_part(BY_NAME["layouts"], Context("cpu", False, tmp_path))
    assert [row["size"] for row in full.details["layouts"]] == [256, 256, 512, 512, 1024, 1024]
    assert full.summary == "bf16, channels_last over row-major: 256 px 1.50, 512 px 1.50, 1024 px out of memory"


def test_batch_norm_that_is_off_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_checks, "_synchronised", lambda norm, x: norm(x) * 1.001)
    assert run_part(BY_NAME["sync-batchnorm"], Context("cpu", True, tmp_path)).status == "failed"


def test_weights_that_are_not_finite_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_checks, "trainer_of", lambda settings: SimpleNamespace(skipped={}, generator=SCALED, discriminator=SCALED))
    monkeypatch.setattr(gpu_checks, "take", lambda trainer, count: {"loss": torch.zeros(())})
    for value, status in ((0.0, "passed"), (float("nan"), "failed")):
        monkeypatch.setattr(gpu_checks, "state_of", lambda trainer, value=value: {"generator/w": torch.tensor(value)})
        assert run_part(BY_NAME["precisions"], Context("cpu", True, tmp_path)).status == status
