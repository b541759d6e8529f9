"""Commands as arrays on one machine (`attributegan-submit COMMAND --local N`): the bytes of one process, damaged input, killed jobs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from runs import ROOT
from small_inputs import contents, write_labelled_tiles, write_slides
from time_limits import seconds

from attributegan.run_dir import status
from slurm.submit import main as submit
from tools import runs, sample, shard, study
from tools.arrays import state, workload
from tools.evaluation.options import EvaluationSettings

A_SLIDE = ("a.svs", "--out", "x", "--mpp", "1", "--size", "64")
TILE_OPTIONS = ("--mpp", "0.5", "--size", "64", "--sharpness", "0", "--workers", "1")


def report(out: Path) -> str:
    return (state.folder_of(out) / state.REPORT).read_text()


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "slurm.submit", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + seconds(60)
    while not condition():
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.02)


def last_record(out: Path, job: int = 0) -> str:
    """The state of the task that a job started last."""
    found = list(state.records(state.job_folder(state.folder_of(out), job)).values())
    return found[-1].state if found else ""


def process_of(out: Path, job: int = 0) -> int:
    """The PID of a job."""
    return int(json.loads((state.job_folder(state.folder_of(out), job) / "status.json").read_text())["pid"])


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six small slides; the second is damaged, and the third has most tiles, so that signals hit it."""
    return write_slides(tmp_path_factory.mktemp("slides"), 6, damaged=1, sides={2: 1536})


@pytest.fixture(scope="module")
def tiles(slides: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiles of the slides, cut by one process."""
    out = tmp_path_factory.mktemp("one") / "tiles"
    assert shard.main(["tile", *map(str, slides), "--out", str(out), *TILE_OPTIONS, "--skip-bad"]) == 0
    return out


def test_tiles_of_an_array_equal_those_of_one_process(
    slides: list[Path], tiles: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tiles"
    command = ["tile", "--local", "2", *map(str, slides), "--out", str(out), *TILE_OPTIONS]
    assert submit(command) == 2
    assert contents(out) == contents(tiles)
    first = report(out)
    assert capfd.readouterr().out == first
    assert first.startswith("tile: 6 tasks, 1 failed\n") and f"\nfailed: {slides[1]}: " in first
    assert f"{out}/tiles.csv: {len((tiles / 'tiles.csv').read_text().splitlines()) - 1:,} tiles\n" in first

    (out / "tiles.csv").unlink()
    assert submit([*command, "--skip-bad"]) == 0, "the damaged slide is accepted"
    assert contents(out) == contents(tiles) and report(out) == first


def test_killed_job_repeats_only_its_task(slides: list[Path], tiles: Path, tmp_path: Path) -> None:
    """One job, killed while it cuts the large slide; and then the command itself, which takes the job with it."""
    out = tmp_path / "tiles"
    command = ("tile", "--local", "1", *slides, "--out", out, *TILE_OPTIONS)
    process = start(*command)
    wait(lambda: last_record(out) == "started" and list(out.glob(".tiling-*/slide-02/*")), "start of the large slide")
    os.kill(process_of(out), signal.SIGKILL)
    wait(lambda: "preempted" in (jobs := state.job_folder(state.folder_of(out), 0) / "status.json").read_text() or jobs, "restart")
    output, errors = process.communicate(timeout=seconds(60))
    assert process.returncode == 2 and output == report(out)
    assert (
        "was killed by signal 9 (SIGKILL)" in errors
        and "requeueing the job, 1 of at most 3 consecutive times without a finished task" in errors
    )
    lines = [json.loads(line) for line in (state.job_folder(state.folder_of(out), 0) / state.TASKS).read_text().splitlines()]
    assert [line["task"] for line in lines if line["state"] == "started"] == [str(slides[k]) for k in (0, 1, 2, 2, 3, 4, 5)]
    assert contents(out) == contents(tiles)

    (out / "slide-02").rename(tmp_path / "gone")
    process = start(*command)
    wait(lambda: last_record(out) == "started" and list(out.glob(".tiling-*/slide-02/*")), "start of the large slide")
    job = process_of(out)
    process.kill()
    process.communicate()
    wait(lambda: not Path(f"/proc/{job}").exists(), "end of the job")
    process = start(*command)
    assert process.wait(timeout=seconds(60)) == 2 and contents(out) == contents(tiles)


def test_stopped_job_resumes(slides: list[Path], tiles: Path, tmp_path: Path) -> None:
    """After the signal that Slurm sends to all processes of a job before its time limit; the interrupted task is repeated."""
    out = tmp_path / "tiles"
    process = start("tile", "--local", "1", *slides, "--out", out, *TILE_OPTIONS[:-1], "2")
    wait(lambda: last_record(out) == "started" and list(out.glob(".tiling-*/slide-02/*")), "start of the large slide")
    job = process_of(out)
    workers = Path(f"/proc/{job}/task/{job}/children").read_text().split()
    assert len(workers) == 2
    for pid in (*map(int, workers), job):
        os.kill(pid, signal.SIGUSR2)
    output, errors = process.communicate(timeout=seconds(60))
    assert process.returncode == 2 and contents(out) == contents(tiles) and output == report(out) and "error" not in errors
    states = [json.loads(line)["state"] for line in (state.job_folder(state.folder_of(out), 0) / state.TASKS).read_text().splitlines()]
    assert states[:6] == ["started", "done", "started", "bad", "started", "stopped"] and states.count("stopped") == 1
    assert "stopped by signal 12" in next(state.folder_of(out).glob("submissions/0001/0_log.out")).read_text()


def test_two_arrays_of_one_output_are_refused(slides: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tiles"
    command = ["tile", "--local", "1", *map(str, slides), "--out", str(out), *TILE_OPTIONS]
    process = start(*command)
    wait(lambda: last_record(out), "start")
    assert submit(command) == 2
    assert f"{out}.array is in use by the submission on" in capfd.readouterr().err
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=seconds(60))
    assert process.returncode == 130 and not (state.folder_of(out) / state.REPORT).exists()
    assert json.loads((state.job_folder(state.folder_of(out), 0) / "status.json").read_text())["state"] == "stopped"


@pytest.fixture
def labelled(tmp_path: Path) -> list[str]:
    """Options of pack for 60 tiles, of which one is damaged."""
    return write_labelled_tiles(tmp_path, 60, damaged=7)


def test_packed_array_equals_an_undivided_pack(labelled: list[str], tmp_path: Path) -> None:
    assert shard.main(["pack", *labelled, "--out", str(tmp_path / "one"), "--skip-bad"]) == 0
    out = tmp_path / "many"
    assert submit(["pack", "--local", "2", *labelled, "--out", str(out)]) == 2, "as the command, without --skip-bad"
    assert not out.exists() and "007.png" in report(out) and "1 tasks failed, so nothing was written" in report(out)
    assert submit(["pack", "--local", "3", *labelled, "--out", str(out), "--skip-bad"]) == 0, "keeps the number of parts"
    assert report(out).startswith("pack: 2 tasks, 1 left out\n") and "\nleft out: " in report(out)
    assert contents(out) == contents(tmp_path / "one")


def test_measured_array_equals_one_process(labelled: list[str], tmp_path: Path) -> None:
    pytest.importorskip("skimage", reason="needs the extra `measure`")
    options = ["--images", str(tmp_path / "images"), "--attributes", "crowding=hematoxylin_density", "--levels", "2", "--workers", "1"]
    assert shard.main(["measure", *options, "--out", str(tmp_path / "one.csv")]) == 2
    out = tmp_path / "many.csv"
    assert submit(["measure", "--local", "2", *options, "--out", str(out)]) == 2
    for end in (".csv", ".yaml"):
        assert out.with_suffix(end).read_bytes() == (tmp_path / "one").with_suffix(end).read_bytes()
    assert report(out).startswith("measure: 2 tasks, 1 left out\n") and "left out: 007.png: " in report(out)


def test_a_task_that_kills_its_job_is_given_up(labelled: list[str], tmp_path: Path) -> None:
    """Its error is in the report, and the other tasks are done; no table is written without its tiles."""
    pytest.importorskip("skimage", reason="needs the extra `measure`")
    for number in range(60):
        if number not in (1, 41):
            (tmp_path / "images" / f"{number:03d}.png").unlink()
    Image.new("RGB", (32, 32)).save(tmp_path / "images" / "041.png")
    out = tmp_path / "many.csv"
    options = ["--images", str(tmp_path / "images"), "--segment", "tests.helpers.fake_segmenter:deadly", "--workers", "1"]
    assert submit(["measure", "--local", "2", *options, "--out", str(out)]) == 2
    assert "1 tasks failed, so nothing was written" in report(out) and "failed: 1-2: rank 0 of 1, on " in report(out)
    assert "was killed by signal 9 (SIGKILL)" in report(out) and not out.exists()
    found = state.all_records(state.folder_of(out), state.Array.load(state.folder_of(out)))
    assert {task: record.state for task, record in found.items()} == {"0-1": "done", "1-2": "failed"}


def test_sampled_shards_of_an_array_equal_those_of_one_process(run: Path, tmp_path: Path) -> None:
    options = [str(run), "--format", "shards", "--count", "20", "--shard-count", "8", "--batch", "4", "--precision", "fp32"]
    assert sample.main([*options, "--out", str(tmp_path / "one")]) == 0
    out = tmp_path / "many"
    assert submit(["sample", "--local", "2", *options, "--out", str(out)]) == 0
    assert contents(out) == contents(tmp_path / "one") and report(out).startswith("sample: 3 tasks\n")
    assert state.Array.load(state.folder_of(out)).overrides["model"].endswith("images-000000001234"), "the same checkpoint in all jobs"
    assert submit(["sample", "--local", "1", *options, "--out", str(tmp_path / "one")]) == 2, "a set that no array has made"
    assert not (tmp_path / "one.array").exists()


def test_runs_of_an_array_are_evaluated_one_by_one_and_compared(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With evaluation and comparison replaced by records of their arguments; the real ones are tested in test_evaluate.py."""
    from tools.arrays import evaluate
    from tools.evaluation import compare

    for name in ("a", "b"):
        shutil.copytree(run, tmp_path / name)
    evaluated: list[EvaluationSettings] = []

    def record(settings: EvaluationSettings) -> None:
        evaluated.append(settings)
        settings.out.mkdir()
        (settings.out / "result.json").touch()

    compared = []
    monkeypatch.setattr(evaluate, "evaluate", record)
    monkeypatch.setattr(compare, "compare", lambda reports, page: compared.append((reports, page)))
    out, options = tmp_path / "reports", ["--shards", "shards", "--count", "32"]
    work = workload.load("evaluate", [str(tmp_path / "a"), str(tmp_path / "b"), *options, "--out", str(out)], {"workers": 1})
    assert work.tasks(2) == ["a", "b"]
    work.prepare(tmp_path)
    for task in ("b", "a", "b"):
        work.run(task)  # the last does nothing
    expected = [EvaluationSettings(model=str(tmp_path / name), out=out / name, shards="shards", count=32) for name in "ba"]
    assert evaluated == expected
    assert work.merge(["a", "b"], []).lines == [str(out / "a"), str(out / "b"), str(out / "comparison.html")]
    assert compared == [([out / "a", out / "b"], out / "comparison.html")]
    with pytest.raises(ValueError, match="nowhere"):
        workload.load("evaluate", [str(tmp_path / "nowhere"), *options, "--out", str(out)], {}).tasks(1)


def test_rows_of_a_study_make_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With training and evaluation replaced by a result, in another order than the table's; a row that failed is not in it."""
    result = {
        "kind": "generator",
        "control": {"mitosis": {"spearman": [0.5]}},
        "obeys": 0.5,
        "leak": {"mean": 0.1},
        "quality": {"kid": [0.1]},
    }

    def finish(row: study.Run, shards: str, settings: study.StudySettings) -> None:
        folder = row.report(settings.images, settings.features)
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps({"rows": [{"kind": "ceiling", "measured": {}}, result]}))

    monkeypatch.setattr(study, "train_and_evaluate", finish)
    options = ["recipes", "--only", "paper", "controlled", "--seeds", "2", "--shards", str(tmp_path), "--out"]
    assert study.main([*options, str(tmp_path / "one")]) == 0
    work = workload.load("study", [*options, str(tmp_path / "many")], {})
    tasks = work.tasks(100)
    assert sorted(tasks) == ["controlled 0", "controlled 1", "paper 0", "paper 1"]
    work.prepare(tmp_path)
    for task in reversed(tasks):
        work.run(task)
    lines = work.merge(tasks, []).lines
    for name in ("table.json", "table.md"):
        assert (tmp_path / "many" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert (
        lines == (tmp_path / "one" / "table.md").read_text().splitlines()
        and len(json.loads((tmp_path / "many/table.json").read_text())) == 4
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tile", "--local", "2", ".DS_Store", *A_SLIDE[1:]], "SLIDE: none of the files given is a slide"),
        (["tile", "--local", "2", *A_SLIDE[:2], "a%j", *A_SLIDE[3:]], "contains %, which Slurm replaces"),
        (["tile", "--local", "0", *A_SLIDE], "--local: 0 must be above 0"),
        (
            ["tile", "--local", "2", "--jobs", "3", "a.svs", "--out", "x", "--mpp", "1", "--size", "64"],
            "--jobs and --dry-run: are for Slurm",
        ),
        (["tile", "--local", "2", "b/a.tif", *A_SLIDE], "would use the same folder"),
        (["tile", "--local", "2", *A_SLIDE[:-1], "1"], "--size: 1 is not between"),
        (["pack", "--local", "2", "--images", "tests", "--labels", "no.csv", "--out", "x"], "no.csv"),
        (["pack", "--local", "2", "--images", "tests", "--labels", "no.csv", "--out", "x", "--part", "1/2"], "--part: an array packs all"),
        (["tile", "--cluster", "cpu", *A_SLIDE], "srun and sbatch are not on the PATH"),
    ],
)
def test_invalid_arrays_are_refused(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tests").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert submit(arguments) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / "tests"], "nothing was written"


def test_batch_script_of_an_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    command = [
        "tile",
        "--cluster",
        "cpu",
        "--dry-run",
        "--jobs",
        "2",
        "a.svs",
        "b.svs",
        "c.svs",
        "--out",
        "x",
        "--mpp",
        "1",
        "--size",
        "64",
    ]
    assert submit(command) == 0
    script = capsys.readouterr().out
    for line in ("--array=0-1%2", "--nodes=1", "--ntasks-per-node=1", "--job-name=x.array", "--signal=USR2@120"):
        assert f"#SBATCH {line}\n" in script
    train = ["--config", "paper", "--cluster", "cpu", "--dry-run", "data.shards=x", "run.dir=y"]
    assert submit(["train", *train]) == 0
    script = capsys.readouterr().out
    assert submit(train) == 0 and capsys.readouterr().out == script and "--job-name=y" in script
    assert not list(tmp_path.iterdir())


def test_a_task_that_always_fails_costs_only_itself(tmp_path: Path) -> None:
    """After `max_requeues` errors in a row, and any number of errors between which other tasks finish."""
    from slurm import requeue
    from slurm.exit_records import ExitRecord
    from slurm.submission import Plan, Run

    Plan(1, 2, {}, [Run(str(tmp_path))]).save(tmp_path)
    killed = [ExitRecord(0, 1, "node1", -signal.SIGKILL, 1)]
    for task in ("a", "b"):
        state.append(tmp_path, state.Record(task, "started"))
        assert [requeue.conclude(tmp_path, 0, killed) for _ in range(2)] == ["requeue", "requeue"]
        if task == "a":
            state.append(tmp_path, state.Record(task, "done", 1.0))
    assert requeue.conclude(tmp_path, 0, killed) == "requeue"
    found = state.records(tmp_path)
    assert (found["a"].state, found["b"].state) == ("done", "failed") and "SIGKILL" in found["b"].error
    assert [requeue.conclude(tmp_path, 0, killed) for _ in range(3)] == ["requeue", "requeue", "end"], "errors outside of tasks"


def test_records_survive_a_killed_writer(tmp_path: Path) -> None:
    state.append(tmp_path, state.Record("a", "done", 2.0))
    with (tmp_path / state.TASKS).open("ab") as stream:
        stream.write(b'{"task": "b", "sta')
    state.append(tmp_path, state.Record("b", "bad", error="damaged"))
    found = state.records(tmp_path)
    assert found["b"] == state.Record("b", "bad", error="damaged") and len(found) == 2
    array = state.Array("tile", [], {}, "/", ["a", "b", "c", "d"], 2)
    now = state.progress(array, list(found.values()))
    assert (now.done, now.remaining, now.problems, now.seconds_left(2)) == (2, 2, {"b": "damaged"}, 2.0)


def test_list_of_an_array(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two jobs run, of which one has a damaged slide; then both are done."""
    folder = tmp_path / "tiles.array"
    folder.mkdir()
    state.Array("tile", [], {}, "/", ["a", "b", "c", "d", "e", "f"], 2).save(folder)
    assert (folder / state.FILE).stat().st_mode & 0o777 == 0o600, "URLs in options may have secrets"
    for job in (0, 1):
        home = state.job_folder(folder, job)
        home.mkdir(parents=True)
        status.update(home, state="running", job=f"45_{job}", requeues=job)
        state.append(home, state.Record("ab"[job], "done", 100.0))
    state.append(home, state.Record("d", "bad", error="d: damaged"))
    runs.show([tmp_path])
    shown = capsys.readouterr().out
    assert shown.splitlines()[0].split("  ")[0] == "array" and "images" not in shown
    assert " running  3 of 6 (50%)  1       2 min      2 running  45   1 " in shown and f"\n{folder}: d: d: damaged\n" in shown
    status.update(home, state="failed", error="error: tile: 6 tasks, 1 failed")
    runs.show([tmp_path])
    assert "5 min      1 running, 1 failed" in capsys.readouterr().out
    state.write_report(folder, ["tile: 6 tasks"])
    runs.show([tmp_path])
    assert " finished  3 of 6 (50%)" in capsys.readouterr().out
