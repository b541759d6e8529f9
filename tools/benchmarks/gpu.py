"""``attributegan-bench gpu``: checks and measures training on this machine's GPU in parts, which also run on CPUs.

Owns the command, the order, the time and the table. Results are kept by part, so that the same command resumes.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from attributegan import cli
from tools.benchmarks import gpu_report
from tools.benchmarks.gpu_parts import BY_NAME, PARTS, Outcome, Part
from tools.benchmarks.gpu_worker import Worker

SLOWER_ON_CPUS = 10  # times the time limit of a part
LEAST_S = 10.0  # what must be left of --minutes to begin a part
EXAMPLES = """\
  attributegan-bench gpu --out gpu                 stops after 7 minutes; rerun for the other parts
  attributegan-bench gpu --out gpu --only steps profile
  attributegan-bench gpu --out gpu --device cpu --tiny        a quick run on the CPU, without meaningful speeds"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to ``attributegan-bench``."""
    parser = cli.command(
        commands,
        "gpu",
        "check training on this machine's GPU, and measure its speed",
        "Check training on this machine's GPU and measure its speed. Writes report.md, report.json and a file for each part to DIR.\n"
        "Exits with 1 if a check fails.",
        EXAMPLES,
    )
    parser.add_argument("--out", type=Path, default=Path("gpu-bench"), metavar="DIR", help="output folder (default: %(default)s)")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="PART", help=f"run only these parts, even if they have results: {', '.join(BY_NAME)}"
    )
    parser.add_argument(
        "--minutes", type=float, default=7.0, metavar="M", help="stop after M minutes; rerun for the other parts (default: %(default)s)"
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="device; auto: the GPU if there is one, else the CPU (default: auto)",
    )
    parser.add_argument("--tiny", action="store_true", help="tiny sizes; speeds are then meaningless")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the parts, write the report and return the exit status."""
    status = 0

    def work() -> None:
        nonlocal status
        status = _run(arguments)

    return cli.exit_status(work) or status


def _run(arguments: argparse.Namespace) -> int:
    if unknown := [name for name in arguments.only if name not in BY_NAME]:
        raise ValueError(f"--only: unknown part {unknown[0]}; parts are {', '.join(BY_NAME)}")
    if arguments.minutes <= 0:
        raise ValueError(f"--minutes: {arguments.minutes} must be above 0")
    machine = gpu_report.machine(arguments.device)
    folder: Path = arguments.out
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    key = gpu_report.fingerprint(machine, arguments.tiny)
    _check_folder(folder, key)
    outcomes = _load(folder)
    done = [name for name, outcome in outcomes.items() if outcome.status in ("passed", "measured")]
    wanted = [part for part in PARTS if (part.name in arguments.only if arguments.only else part.name not in done)]
    print("\n".join(gpu_report.machine_lines(machine)), flush=True)
    print(gpu_report.HEADER, flush=True)
    for part in PARTS:
        if part not in wanted and part.name in outcomes:
            print(gpu_report.row(part, outcomes[part.name]), flush=True)
    until = time.monotonic() + 60 * arguments.minutes
    worker = Worker(machine["device"], arguments.tiny, folder / "worker.log")
    gpu_report.write(folder, machine, arguments.tiny, outcomes)
    try:
        for part in wanted:
            outcome = _outcome(worker, part, until - time.monotonic(), SLOWER_ON_CPUS if machine["device"] == "cpu" else 1)
            if outcome.status != "not run":
                outcomes[part.name] = outcome
                gpu_report.write_text(folder / "parts" / f"{part.name}.json", json.dumps(outcome.to_dict(), indent=2) + "\n")
            gpu_report.write(folder, machine, arguments.tiny, outcomes)
            print(gpu_report.row(part, outcome), flush=True)
    finally:
        worker.close()
    print(f"wrote {folder / 'report.md'} and {folder / 'report.json'}")
    return int(any(outcome.status == "failed" and BY_NAME[name].kind == "check" for name, outcome in outcomes.items()))


def _outcome(worker: Worker, part: Part, left_s: float, slower: int) -> Outcome:
    if left_s < LEAST_S:
        return Outcome("not run", "no time left; rerun the same command")
    outcome = worker.run(part, min(slower * part.limit_s, left_s))
    if outcome.status == "failed" and outcome.seconds >= left_s:
        return Outcome("not run", f"stopped after {outcome.seconds:.0f} s, at the end of --minutes; rerun the same command")
    return outcome


def _check_folder(folder: Path, key: str) -> None:
    """Refuse to mix results of different machines, versions or sizes."""
    path = folder / "machine.txt"
    if not path.exists():
        gpu_report.write_text(path, key)
    elif path.read_text() != key:
        raise ValueError(f"--out: {folder} has results of another machine, version or size; choose another folder")


def _load(folder: Path) -> dict[str, Outcome]:
    """Returns the outcomes of earlier calls by part."""
    files = {name: folder / "parts" / f"{name}.json" for name in BY_NAME}
    return {name: Outcome(**json.loads(path.read_text())) for name, path in files.items() if path.exists()}
