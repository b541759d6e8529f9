"""``make mutants``: mutation testing of the numeric core: applies one small change at a time and runs the fast tests of its module.

    python tests/mutants/run.py --sample 40 --seed 1                     the score per module; exits with 1 if one is below --least
    python tests/mutants/run.py --module losses --module ema
    python tests/mutants/run.py --module losses --only "level_B < 0"     repeats these mutants and shows the output
    python tests/mutants/run.py --report                                 reports existing results, runs nothing

The same seed and sample give the same mutants (operators.py). Each runs in a fork of this process, which has imported torch and other
packages but nothing of the project; hook/ imports the mutant instead of its module. Only tests that cover the mutated line run, or all
if coverage found none (lines that run in other processes). Results are appended to MODULE.jsonl in --out and reused: a mutant runs again if
its module has changed, or if it survived, is not listed, and its tests have changed. Survivors listed in harmless.yaml, with a reason, do
not count.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import coverage
import operators
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
HOOK = Path(__file__).parent / "hook"
HEAVY = (  # imported once, before the forks
    "numpy",
    "torch",
    "torch._dynamo",
    "torch.testing",
    "torch.utils.tensorboard",
    "torch.distributed.fsdp",
    "accelerate",
    "pyarrow",
    "pyarrow.parquet",
    "PIL.Image",
    "scipy.stats",
    "scipy.linalg",
    "safetensors.torch",
    "webdataset",
    "hypothesis",
    "_hypothesis_pytestplugin",
    "pytest_timeout",
    "huggingface_hub",
    "submitit",
)
MEMORY = 8 << 30  # memory limit of a mutant in bytes; some allocate without bound


@dataclass
class Clean:
    """The tests of a module without a mutant."""

    seconds: dict[str, float] = field(default_factory=dict)  # CPU seconds of each test that is not slow, in order
    tests_of_line: dict[int, list[str]] = field(default_factory=dict)
    total_s: float = 0.0


def main() -> int:
    options = _parser().parse_args()
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "helpers")]
    table = yaml.safe_load((Path(__file__).parent / "modules.yaml").read_text())
    wanted = [name for one in options.module for name in table if f".{name}".endswith(f".{one}")] if options.module else list(table)
    if not wanted:
        raise SystemExit(f"error: --module {options.module}: modules.yaml has {', '.join(table)}")
    if not options.report:
        for name in HEAVY:
            importlib.import_module(name)
        importlib.import_module("time_limits").calibrate()  # once, not in each fork
        sys.dont_write_bytecode = False  # tests are compiled once
        gc.collect()
        gc.freeze()  # excludes the imported objects from garbage collection in the forks
    harmless = yaml.safe_load((Path(__file__).parent / "harmless.yaml").read_text()) or {}
    scores = []
    for name in wanted:
        results, missing = _run(name, [f"tests/{file}" for file in table[name]], [*harmless.get(name, {})], options)
        scores.append(_score(name, results, [*harmless.get(name, {})]) | {"missing": missing})
    return _print(scores, options.least)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", action="append", default=[], help="such as losses or metrics.control (default: all in modules.yaml)")
    parser.add_argument("--sample", type=int, default=40, metavar="N", help="mutants per module, 0 for all (default: 40)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--slow", type=float, default=4.0, metavar="SECONDS", help="skip tests that take more CPU time (default: 4)")
    parser.add_argument(
        "--least",
        type=float,
        default=0.9,
        metavar="SCORE",
        help="exit with 1 if the score of a module is lower, or not all mutants were run (default: 0.9)",
    )
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument(
        "--only", action="append", default=[], metavar="TEXT", help="repeat mutants whose label contains TEXT and show the output"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "mutants", help="folder of the results (default: build/mutants)")
    return parser


def _run(module: str, files: list[str], harmless: list[str], options: argparse.Namespace) -> tuple[list[dict[str, Any]], int]:
    """Returns the results of the sample, from the file or run now, and the number of mutants without one."""
    path = ROOT / (module.replace(".", "/") + ".py")
    drawn = operators.mutants(path.read_text())
    if options.only:
        drawn = [mutant for mutant in drawn if any(text in mutant.label for text in options.only)]
    elif options.sample:
        drawn = random.Random(f"{options.seed}/{module}").sample(drawn, len(drawn))[
            : options.sample
        ]  # a larger sample includes the smaller one
    source, tests = _digest([path]), _digest([ROOT / file for file in files])
    record = options.out / f"{module}.jsonl"
    lines = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    lines = [line for line in lines if line["source"] == source]
    known = {line["mutant"]: line for line in lines if line["killed"] or line["tests"] == tests or _is_listed(line["mutant"], harmless)}
    todo = [mutant for mutant in drawn if mutant.label not in known or options.only]
    if options.report or not todo:
        return [known[mutant.label] for mutant in drawn if mutant.label in known], len(todo)
    options.out.mkdir(parents=True, exist_ok=True)
    clean = _clean(path, files, options.slow)
    print(f"{module}: {len(todo)} mutants, {len(clean.seconds)} tests in {clean.total_s:.1f} s", flush=True)
    for mutant in todo:
        chosen = clean.tests_of_line.get(mutant.line) or list(clean.seconds)
        limit_s = 10 + 3 * clean.total_s
        description = {"module": module, "path": str(path), "source": mutant.source}
        begin = time.monotonic()
        outcome = _forked(lambda about=description, tests=chosen: _test(about, files, tests, clean.seconds), limit_s, bool(options.only))
        line = {"mutant": mutant.label, "line": mutant.line, **outcome, "seconds": round(time.monotonic() - begin, 2)}
        line |= {"tests_run": len(chosen), "source": source, "tests": tests}
        with record.open("a") as file:
            file.write(json.dumps(line) + "\n")
        known[mutant.label] = line
        if not line["killed"]:
            print(f"  survived: {path.name}:{mutant.line} {mutant.label}", flush=True)
    return [known[mutant.label] for mutant in drawn], 0


def _digest(paths: list[Path]) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]


def _clean(path: Path, files: list[str], slow_s: float) -> Clean:
    """Run the tests once without a mutant; records the time of each test and the lines of the module it covers."""
    answer = _forked(lambda: _observe(path, files, slow_s), 900)
    if answer.get("status") != 0:
        raise SystemExit(f"error: the tests {' '.join(files)} fail without a mutant:\n{answer.get('output', answer.get('by'))}")
    return Clean(answer["seconds"], {int(line): tests for line, tests in answer["tests_of_line"].items()}, sum(answer["seconds"].values()))


def _observe(path: Path, files: list[str], slow_s: float) -> dict[str, Any]:
    watch = coverage.Coverage(data_file=None, include=[str(path)], config_file=False)
    watch.start()
    watcher = _Watcher(watch)
    status = int(pytest.main([*_arguments(), *files], plugins=[watcher]))
    watch.stop()
    seconds = {test: s for test, s in sorted(watcher.seconds.items(), key=lambda item: item[1]) if s <= slow_s}
    seconds = {test: seconds[test] for file in files for test in seconds if test.split("::")[0] == file}
    contexts = watch.get_data().contexts_by_lineno(str(path))
    # What runs at import or in a fixture may matter to any test.
    lines = {line: [test for test in seconds if test in tests] for line, tests in contexts.items() if "" not in tests}
    return {"status": status, "seconds": seconds, "tests_of_line": lines}


class _Watcher:
    """Pytest plugin that records coverage and CPU time of each test, including its child processes."""

    def __init__(self, watch: coverage.Coverage) -> None:
        self.watch = watch
        self.seconds: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Any:
        self.watch.switch_context(item.nodeid)
        begin = sum(os.times()[:4])
        try:
            result = yield
            self.seconds[item.nodeid] = sum(os.times()[:4]) - begin
            return result
        finally:
            self.watch.switch_context("")


class _Chosen:
    """Pytest plugin that runs only these tests, in their order, and records the first failure."""

    def __init__(self, tests: list[str], seconds: dict[str, float]) -> None:
        self.places = {test: k for k, test in enumerate(tests)}
        self.seconds = seconds
        self.failed = ""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((item for item in items if item.nodeid in self.places), key=lambda item: self.places[item.nodeid])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Any:
        signal.setitimer(signal.ITIMER_VIRTUAL, 2 + 5 * self.seconds[item.nodeid])  # ends endless loops
        try:
            return (yield)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid


def _test(description: dict[str, str], files: list[str], tests: list[str], seconds: dict[str, float]) -> dict[str, Any]:
    """Run the tests against the mutant in a separate process; returns whether they detect it."""
    where = Path(os.environ["TMPDIR"]) / "mutant.json"
    where.write_text(json.dumps(description))
    os.environ |= {"MUTANT": str(where), "PYTHONPATH": os.pathsep.join([str(HOOK), *filter(None, [os.environ.get("PYTHONPATH")])])}
    sys.path.insert(0, str(HOOK))
    sys.modules.pop("sitecustomize", None)
    importlib.import_module("sitecustomize")
    chosen = _Chosen(tests, seconds)
    needed = [file for file in files if any(test.split("::")[0] == file for test in tests)]
    status = int(pytest.main([*_arguments(), "-x", *needed], plugins=[chosen]))
    assert status in (0, 1, 2, 3), f"pytest ended with status {status}"
    return {"killed": status != 0, "by": chosen.failed or ("" if status == 0 else "import")}


def _arguments() -> list[str]:
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # takes a fifth of the time of a short session
    options = "-q -p pytest_timeout -p _hypothesis_pytestplugin -p no:cacheprovider -o timeout=0 --no-header --tb=short"
    return [*options.split(), "-W", "ignore::pytest.PytestAssertRewriteWarning", f"--basetemp={os.environ['TMPDIR']}/pytest"]


def _forked(work: Callable[[], dict[str, Any]], limit_s: float, show: bool = False) -> dict[str, Any]:
    """Run ``work`` in a fork and return its result.

    The fork and its children are killed after ``limit_s`` of CPU, or after waiting much longer; the mutant then counts as detected.
    """
    folder = Path(tempfile.mkdtemp(prefix="mutant-"))
    process = os.fork()
    if process == 0:
        try:
            os.setsid()
            descriptor = os.open(folder / "output", os.O_WRONLY | os.O_CREAT, 0o600)
            for number in (1, 2):
                os.dup2(descriptor, number)
            resource.setrlimit(resource.RLIMIT_CPU, (int(limit_s) + 1, int(limit_s) + 3))
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            os.environ["TMPDIR"] = str(folder)
            (folder / "answer").write_text(json.dumps(work()))
        except BaseException:
            (folder / "error").write_text(traceback.format_exc())
        finally:
            os._exit(0)
    waited_s, killed = 0.0, "a crash, or too much time"
    while os.waitpid(process, os.WNOHANG)[0] == 0:
        if waited_s > 60 + 10 * limit_s:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            killed = "waiting"
            break
        time.sleep(0.02)
        waited_s += 0.02  # not wall-clock time, since both processes may be suspended
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)  # its remaining children
    output = (folder / "output").read_text(errors="replace")[-20_000:] if (folder / "output").exists() else ""
    if (folder / "error").exists():
        raise SystemExit(f"error: the search itself failed:\n{output}\n{(folder / 'error').read_text()}")
    if show:
        print(output)
    answer = json.loads((folder / "answer").read_text()) if (folder / "answer").exists() else {"killed": True, "by": killed}
    shutil.rmtree(folder, ignore_errors=True)
    return answer | ({"output": output} if "status" in answer or "killed" not in answer else {})


def _score(module: str, results: list[dict[str, Any]], harmless: list[str]) -> dict[str, Any]:
    survived = [line for line in results if not line["killed"]]
    matter = [line for line in survived if not _is_listed(line["mutant"], harmless)]
    killed = len(results) - len(survived)
    return {"module": module, "mutants": len(results), "killed": killed, "harmless": len(survived) - len(matter), "survived": matter}


def _is_listed(mutant: str, harmless: list[str]) -> bool:
    """Match by label, or by the part before the arrow of an entry that ends in ``-> *``."""
    return any(mutant == entry or (entry.endswith(" -> *") and mutant.startswith(entry[:-1])) for entry in harmless)


def _print(scores: list[dict[str, Any]], least: float) -> int:
    for score in scores:
        for line in score["survived"]:
            print(f"survived: {score['module']}:{line['line']} {line['mutant']}")
    print("\n| module | mutants | killed | harmless | survived | not run | score |\n|---|---|---|---|---|---|---|")
    low = False
    columns = ("mutants", "killed", "harmless", "lost", "missing")
    rows = [score | {"lost": len(score["survived"])} for score in scores]
    for row in [*rows, {"module": "all"} | {name: sum(row[name] for row in rows) for name in columns}]:
        judged = row["killed"] + row["lost"]
        share = row["killed"] / judged if judged else 1.0
        low = low or share < least or row["missing"] > 0
        print(f"| {row['module']} | " + " | ".join(str(row[name]) for name in columns) + f" | {share:.0%} |")
    return int(low)


if __name__ == "__main__":
    sys.exit(main())
