"""``make chaos``: runs random cases one after the other; exits with 1 if a promise is broken.

    python tests/chaos/run.py --cases 100 --seed 7
    python tests/chaos/run.py --seed 7 --cases 100 --only 31       repeats one case; its folder is kept if a promise is broken
    python tests/chaos/run.py --cases 5 --fault "disk full"

The same seed, number of cases and modes give the same cases. Writes cases.json and table.md to --out. Runs in a private mount namespace if
permitted, because faults mount small disks; skips and reports faults without the necessary rights.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / "helpers"), str(Path(__file__).parents[2])]
import time_limits  # noqa: E402

time_limits.calibrate()
import case as cases  # noqa: E402
import faults  # noqa: E402
import slurm_cluster  # noqa: E402
from modes import every_mode  # noqa: E402

INSIDE_NAMESPACE = "CHAOS_NAMESPACE"


def main() -> int:
    options = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # runs the clean-up handlers
    may_mount = not os.geteuid() and subprocess.run(["unshare", "--mount", "--net", "true"], capture_output=True).returncode == 0
    if may_mount and INSIDE_NAMESPACE not in os.environ:
        os.environ[INSIDE_NAMESPACE] = "1"
        os.execvp("unshare", ["unshare", "--mount", "--propagation", "private", sys.executable, *sys.argv])
    if may_mount:
        subprocess.run(["mount", "-t", "tmpfs", "chaos", "/dev/shm"], check=True)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    print(f"seed {seed}: python tests/chaos/run.py --cases {options.cases} --seed {seed}", flush=True)
    modes, missing = _ready(options.mode, may_mount)
    for why in missing:
        print(f"skipped: {why}", flush=True)
    logging.getLogger("attributegan").setLevel(logging.ERROR)  # corrupted checkpoints are expected
    drawn = _drawn(options, seed, list(modes), may_mount)
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True)))
        for name in {one.mode for one in drawn}:
            stack.enter_context(modes[name].ready())
        outcomes = _play(cases.Player(work, _shards(work), modes, seed, may_mount), drawn, Path(options.out), seed)
        bad = [outcome for outcome in outcomes if outcome.violations]
        if bad:
            kept = Path(options.out) / "broken"
            shutil.rmtree(kept, ignore_errors=True)
            for outcome in bad:
                with contextlib.suppress(OSError, shutil.Error):
                    shutil.copytree(work / f"case-{outcome.case.number}", kept / f"case-{outcome.case.number}")
            print(f"{len(bad)} cases broke a promise; their folders are in {kept}")
    print(f"{len(outcomes)} cases, {len(bad)} with a broken promise; {Path(options.out) / 'table.md'}")
    return 1 if bad else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10, metavar="N", help="number of cases to draw (default: %(default)s)")
    parser.add_argument("--seed", type=int, metavar="S", help="seed of the draw (default: random, printed)")
    parser.add_argument("--only", type=int, nargs="+", metavar="K", help="run only these cases of the draw")
    parser.add_argument("--mode", nargs="+", choices=tuple(every_mode()), help="draw only from these modes")
    parser.add_argument("--fault", nargs="+", choices=tuple(faults.BY_NAME), help="draw only from these faults")
    parser.add_argument("--out", default="build/chaos", metavar="DIR", help="folder of cases.json and table.md (default: %(default)s)")
    return parser


def _ready(wanted: list[str] | None, may_mount: bool) -> tuple[dict, list[str]]:
    modes = {name: mode for name, mode in every_mode().items() if not wanted or name in wanted}
    missing = []
    if not may_mount:
        missing.append("faults that mount file systems: only root may, with CAP_SYS_ADMIN")
        modes.pop("2 machines", None)
    if "Slurm" in modes and (why := slurm_cluster.missing()):
        missing.append(f"Slurm: {why}")
        modes.pop("Slurm")
    return modes, missing


def _drawn(options: argparse.Namespace, seed: int, modes: list[str], may_mount: bool) -> list[cases.Case]:
    among = [faults.BY_NAME[name] for name in options.fault or faults.BY_NAME]
    drawn = cases.draw(seed, options.cases, modes, [fault for fault in among if may_mount or not fault.mounts])
    return [one for one in drawn if not options.only or one.number in options.only]


def _shards(work: Path) -> Path:
    from tools.shard import main as shard

    folder = work / "shards"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        shard(["phantom", "--count", "96", "--size", "32", "--shard-count", "12", "--out", str(folder), "--workers", "1"])
    return folder


def _play(player: cases.Player, drawn: list[cases.Case], out: Path, seed: int) -> list[cases.Outcome]:
    outcomes = []
    out.mkdir(parents=True, exist_ok=True)
    for one in drawn:
        outcome = player.play(one)
        outcomes.append(outcome)
        broken = "".join(f"\n      BROKEN: {violation}" for violation in outcome.violations)
        print(
            f"{one.number:4} {one.mode:10} {one.fault} at {one.at} ({outcome.struck}): {outcome.end}; "
            f"{outcome.starts} starts, {outcome.seconds:.0f} s{broken}",
            flush=True,
        )
        _write(out, outcomes, seed)
    return outcomes


def _write(out: Path, outcomes: list[cases.Outcome], seed: int) -> None:
    (out / "cases.json").write_text(json.dumps({"seed": seed, "cases": [outcome.to_dict() for outcome in outcomes]}, indent=1) + "\n")
    (out / "table.md").write_text(table(outcomes))


def table(outcomes: list[cases.Outcome]) -> str:
    """Returns a Markdown table with a row per fault: cases, modes, identical ends, broken promises."""
    lines = ["| fault | cases | modes | ended with the same bits | broken promises |", "|---|---|---|---|---|"]
    for fault in faults.FAULTS:
        of = [outcome for outcome in outcomes if outcome.case.fault == fault.name]
        if of:
            modes = ", ".join(f"{mode} {count}" if count > 1 else mode for mode, count in Counter(o.case.mode for o in of).items())
            same, broken = sum("the same bits" in o.end for o in of), sum(bool(o.violations) for o in of)
            lines.append(f"| {fault.name} | {len(of)} | {modes} | {same} | {broken} |")
    total = f"| all | {len(outcomes)} | | {sum('the same bits' in o.end for o in outcomes)} | {sum(bool(o.violations) for o in outcomes)} |"
    return "\n".join([*lines, total]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
