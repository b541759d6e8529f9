"""Mutation testing: which mutants it generates, and that it recognizes survivors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import yaml
from time_limits import seconds

FOLDER = Path(__file__).parents[1] / "mutants"
sys.path.insert(0, str(FOLDER))
import operators  # noqa: E402

SOURCE = '''
"""A text + 1."""
LIMIT = 3

def mean(values: list = [1 + 1]) -> float:
    """1 < 2"""
    assert len(values) > 0, 1 + 1
    if not values or LIMIT <= 0.5:
        raise ValueError(f"{1 + 1}")
    notify(values)
    low = min(values, 9) if True else 0
    return sum(values, start=0) / len(values)
'''


def test_each_operator_number_condition_argument_and_statement_is_changed_once() -> None:
    found = operators.mutants(SOURCE)
    assert [mutant.label for mutant in found] == [
        "module: LIMIT = 3 -> LIMIT = 4",
        "mean: [1 + 1] -> [1 - 1]",
        "mean: [1 + 1] -> [2 + 1]",
        "mean: [1 + 1] -> [1 + 2]",
        "mean: if not values or LIMIT <= 0.5 -> if not (not values or LIMIT <= 0.5)",
        "mean: not values or LIMIT <= 0.5 -> not values and LIMIT <= 0.5",
        "mean: not values or LIMIT <= 0.5 -> values or LIMIT <= 0.5",
        "mean: not values or LIMIT <= 0.5 -> not values or LIMIT < 0.5",
        "mean: not values or LIMIT <= 0.5 -> not values or LIMIT > 0.5",
        "mean: not values or LIMIT <= 0.5 -> not values or LIMIT <= 1.5",
        "mean: not values or LIMIT <= 0.5 -> not values or LIMIT <= 0.25",
        "mean: notify(values) -> pass",
        "mean: min(values, 9) if True else 0 -> min(values, 9) if not True else 0",
        "mean: min(values, 9) if True else 0 -> min(values, 9) if False else 0",
        "mean: min(values, 9) if True else 0 -> min(values) if True else 0",
        "mean: min(values, 9) if True else 0 -> min(values, 9) if True else 1",
        "mean: min(values, 9) if True else 0 -> min(values, 10) if True else 0",
        "mean: sum(values, start=0) / len(values) -> sum(values, start=0) * len(values)",
        "mean: sum(values, start=0) / len(values) -> sum(values) / len(values)",
        "mean: sum(values, start=0) / len(values) -> sum(values, start=1) / len(values)",
    ]
    assert len({mutant.source for mutant in found}) == len(found)
    for mutant in found:
        compile(mutant.source, "mutant", "exec")
        assert "raise ValueError(f'{1 + 1}')" in mutant.source and "assert len(values) > 0, 1 + 1" in mutant.source


def search(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / "run.py"), "--out", str(out), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds(200))


def test_a_mutant_that_matters_is_killed_and_one_that_can_not_is_listed(tmp_path: Path) -> None:
    """An equivalent mutant survives, so not everything counts as detected."""
    done = search(tmp_path, "--module", "losses", "--module", "adam", "--only", "level_B <= 0", "--only", "REGISTER + len(tail)")
    assert done.returncode == 0, done.stdout + done.stderr
    killed, survived = (
        json.loads((tmp_path / f"attributegan.{name}.jsonl").read_text()) for name in ("training.losses", "distributed.adam")
    )
    assert killed["killed"] and "test_generated_tiles_of_the_lowest_level" in killed["by"]
    assert not survived["killed"] and survived["tests_run"] > 0
    assert (
        "| attributegan.training.losses | 1 | 1 | 0 | 0 | 0 | 100% |" in done.stdout
        and "| attributegan.distributed.adam | 1 | 0 | 1 | 0 | 0 | 100% |" in done.stdout
    )
    again = search(tmp_path, "--module", "losses", "--report", "--sample", "0")
    others = len(list(operators.mutants((FOLDER.parents[1] / "attributegan/training/losses.py").read_text()))) - 1
    assert again.returncode == 1 and f"| attributegan.training.losses | 1 | 1 | 0 | 0 | {others} | 100% |" in again.stdout


def test_every_survivor_that_is_listed_is_a_mutant_of_now_and_has_its_reason() -> None:
    root = FOLDER.parent.parent
    modules, harmless = (yaml.safe_load((FOLDER / name).read_text()) for name in ("modules.yaml", "harmless.yaml"))
    assert set(harmless) <= set(modules)
    for files in modules.values():
        assert all((FOLDER.parent / file).is_file() for file in files)
    for module, entries in harmless.items():
        labels = [mutant.label for mutant in operators.mutants((root / f"{module.replace('.', '/')}.py").read_text())]
        for entry, reason in entries.items():
            assert len(reason) > 20, entry
            assert any(label == entry or (entry.endswith(" -> *") and label.startswith(entry[:-1])) for label in labels), entry
