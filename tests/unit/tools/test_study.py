"""Studies: the suites in configs/, which runs are repeated and which not, and the table."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from runs import TINY
from time_limits import seconds

from tools import study

REPORT = "report-000000000016-tests.helpers.fake-features-pooled"
ROOT = Path(__file__).parents[3]
SUITE = {
    "common": TINY | {"data": {"workers": 0}},
    "studies": {"first": {"base": "published"}, "second": {"base": "paper", "change": {"loss": {"contrastive": 0}}}},
}


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "studies").glob("*.yaml")), ids=lambda path: path.name)
def test_suites_that_ship_are_valid_and_no_two_studies_are_the_same(path: Path) -> None:
    studies = study.read_suite(path)
    assert {"published", "paper", "controlled"} <= set(studies)
    texts = [json.dumps(tree, sort_keys=True) for tree in studies.values()]
    assert len(set(texts)) == len(texts)


def test_later_options_override_earlier_ones() -> None:
    assert study.merged({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"c": 3}}, {"d": []}) == {"a": {"b": 1, "c": 3}, "d": []}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite of two, of which one was run."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "suite.yaml").write_text(yaml.safe_dump(SUITE))
    assert study.main(command(folder, "--only", "second", "--images", "16")) == 0
    return folder


def command(folder: Path, *more: str) -> list[str]:
    return [
        str(folder / "suite.yaml"),
        "--out",
        str(folder / "out"),
        "--features",
        "tests.helpers.fake_features:pooled",
        "--tiles",
        "400",
        *more,
    ]


def test_only_missing_runs_are_started(out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (row,) = json.loads((out / "out" / "table.json").read_text())
    assert (row["study"], row["seed"], row["images"]) == ("second", 0, 16)
    assert set(row["spearman"]) and row["kid"] is not None
    before = (out / "out" / "second" / "seed-0" / REPORT / "result.json").stat().st_mtime_ns
    assert study.main(command(out, "--images", "16")) == 0
    output = capfd.readouterr().out
    assert output.count("$ attributegan-train") == output.count("$ attributegan-evaluate") == 1 and "second/seed-0" not in output
    assert (out / "out" / "second" / "seed-0" / REPORT / "result.json").stat().st_mtime_ns == before
    assert {row["study"] for row in json.loads((out / "out" / "table.json").read_text())} == {"first", "second"}


def test_table_only_runs_nothing(out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert study.main(command(out, "--images", "16", "--table")) == 0
    output = capfd.readouterr().out
    assert "$ python" not in output and "| second | 1 |" in output


def test_rows_of_other_studies_stay_in_the_table(out: Path) -> None:
    assert study.main(command(out, "--images", "16", "--only", "second")) == 0
    assert {row["study"] for row in json.loads((out / "out" / "table.json").read_text())} == {"first", "second"}


def test_a_folder_keeps_the_options_of_its_runs(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = out / "suite.yaml"
    suite.write_text(yaml.safe_dump(study.merged(SUITE, {"studies": {"second": {"change": {"loss": {"contrastive": 0.5}}}}})))
    try:
        assert study.main(command(out, "--images", "24", "--only", "second")) == 2
    finally:
        suite.write_text(yaml.safe_dump(SUITE))
    assert "the existing run of second has other options: loss.contrastive was 0.0, is 0.5; use another --out" in capsys.readouterr().err
    assert study.main(command(out, "--images", "24", "--only", "second", "--shards", "elsewhere")) == 2
    assert "data.shards was" in capsys.readouterr().err


def test_fewer_images_than_the_run_has_are_an_error(out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert study.main(command(out, "--images", "8", "--only", "second")) == 2
    output = capfd.readouterr()
    assert "is already at 16 images" in output.err and "$ python" not in output.out


@pytest.mark.slow
def test_a_failed_study_does_not_stop_the_others(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    suite = study.merged(SUITE, {"studies": {"first": {"change": {"data": {"split": "absent"}}}}})
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
    assert study.main(command(tmp_path, "--images", "8")) == 2
    assert "first, seed 0: attributegan-train failed with exit status 2" in capfd.readouterr().err.splitlines()[-1]
    assert [row["study"] for row in json.loads((tmp_path / "out" / "table.json").read_text())] == ["second"]


def test_runs_with_other_options_are_skipped_in_the_table(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = out / "suite.yaml"
    suite.write_text(yaml.safe_dump(study.merged(SUITE, {"studies": {"second": {"change": {"loss": {"contrastive": 0.5}}}}})))
    try:
        assert study.main(command(out, "--images", "16", "--table")) == 0
    finally:
        suite.write_text(yaml.safe_dump(SUITE))
    output = capsys.readouterr()
    assert "| second |" not in output.out and "seed-0, its options differ: loss.contrastive was 0.0, is 0.5" in output.err


def test_the_same_shards_by_another_path_are_the_same(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(out)
    assert study.main(["suite.yaml", "--out", "out", *command(out, "--images", "16", "--only", "second")[3:]]) == 0


def test_signals_are_forwarded_to_the_training(out: Path, tmp_path: Path) -> None:
    shards = next((out / "out").glob("phantoms-*"))
    options = command(out, "--images", "1_000_000", "--only", "second", "--shards", str(shards))
    options[2] = str(tmp_path)
    log = tmp_path / "second" / "seed-0" / "run" / "metrics.jsonl"
    with subprocess.Popen([sys.executable, "-m", "tools.study", *options], cwd=ROOT, start_new_session=True) as process:
        try:
            until = time.monotonic() + seconds(120)
            while not (log.exists() and log.read_text()) and process.poll() is None and time.monotonic() < until:
                time.sleep(0.1)
            process.terminate()
            assert process.wait(seconds(60)) == 130
            with pytest.raises(ProcessLookupError):
                os.killpg(process.pid, 0)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert list((log.parent / "checkpoints").glob("images-*"))


def test_leakage_is_reported_only_with_control() -> None:
    numbers = {
        "kind": "generator",
        "control": {"a": {"spearman": [0.1]}},
        "leak": {"mean": 0.05},
        "quality": {"kid": [0.3]},
        "measured": {"a": 0.2},
        "paths": {"a": {"changed": 0.1}, "b": {"changed": 0.5}},
    }
    real = {"kind": "ceiling", "measured": {"a": 0.8}}
    rows = [study._row(study.Run("x", 0, Path(), {}), 8, {"rows": [real, numbers | {"obeys": score}]}) for score in (0.1, 0.9)]
    assert [row["leak"] for row in rows] == [None, 0.05]
    assert "| x | 2 | 0.10 | 0.50 | 0.25 | 0.05 | 0.30 | – | 300 |" in list(study._markdown(rows, 8))


@pytest.mark.parametrize(
    ("tree", "named"),
    [
        ({"studies": {}}, "two sections"),
        ({"common": {}, "studies": {"one": {"change": {}}}}, "one: a study needs a `base`"),
        ({"common": {"train": {"batsh": 3}}, "studies": {"one": {"base": "paper"}}}, "one: train.batsh: unknown option"),
        (
            {"common": {}, "studies": {"one": {"base": "absent"}}},
            "needs a `base`, one of controlled, paper, published, small",
        ),
        ({"common": {}, "studies": {"one": {"base": ["paper"]}}}, "one: a study needs a `base`"),
        ({"common": {}, "studies": {"one": {"base": "paper", "change": [1]}}}, "one: change: expected sections"),
        ({"common": {}, "studies": {1: {"base": "paper"}}}, "a study name may have only"),
        ({"common": {}, "studies": {"../one": {"base": "paper"}}}, "a study name may have only"),
        (SUITE, "--only third: unknown"),
    ],
)
def test_invalid_suites_are_errors(tree: dict, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(tree))
    assert study.main(command(tmp_path, "--only", "third")) == 2
    assert named in capsys.readouterr().err
