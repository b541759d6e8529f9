"""Checks after a case; each function returns descriptions of the broken promises."""

from __future__ import annotations

import json
from pathlib import Path

from modes import processes
from runs import differing, tensors_in

from attributegan.checkpoint import store

LAUNCHERS_OWN = (
    "torchinductor_",
    "torchelastic_",
)  # left by torch's launcher in any case
KILLED_READERS = ("pymp-",)  # of multiprocessing, left by killed processes


def same_end(run: Path, undisturbed: Path) -> list[str]:
    """Checks that the last checkpoint is valid and bit-identical to that of the undisturbed run."""
    last, wanted = store.latest(run / "checkpoints"), store.latest(undisturbed / "checkpoints")
    if last is None or wanted is None or last.name != wanted.name:
        return [f"ended with {last and last.name}, not {wanted and wanted.name}"]
    wrong = differing(tensors_in(last), tensors_in(wanted))
    return [f"{len(wrong)} tensors differ from the undisturbed run, the first {wrong[0]}"] if wrong else []


def same_tiles(seen: Path, undisturbed: Path) -> list[str]:
    """Checks that each position was trained on the same tiles as in the undisturbed run: none lost, none repeated."""
    mine, theirs = _steps(seen), _steps(undisturbed)
    if mine.keys() != theirs.keys():
        return [f"steps at {sorted(mine.keys() ^ theirs.keys())} are in one of the runs only"]
    wrong = [key for key in mine if mine[key] != theirs[key]]
    return [f"other tiles at {wrong[0]}"] if wrong else []


def _steps(seen: Path) -> dict[str, object]:
    """Returns the tiles of each rank and position, from its last pass: steps after the last checkpoint are repeated."""
    steps = {}
    for path in sorted(seen.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            for cursor, crc, levels in json.loads(line):
                steps[f"rank {path.stem}, image {cursor}"] = (crc, levels)
    return steps


def metrics_once(run: Path, step: int, images: int) -> list[str]:
    """Checks that metrics.jsonl has one line per step."""
    lines = [json.loads(line)["images"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [] if lines == list(range(step, images + 1, step)) else [f"metrics.jsonl has the steps {lines}"]


def saved_checkpoint_is_valid(run: Path, before: int, damaged: str) -> list[str]:
    """Checks that the checkpoint logged as saved exists and is valid, unless the case damaged it."""
    newest = store.latest(run / "checkpoints")
    images = int(newest.name.partition("-")[2]) if newest else 0
    if images >= before or damaged.startswith(f"images-{before:012d}"):
        return []
    return [f"a checkpoint at {before} images had been saved, the newest good one has {images}"]


def saved_images(run: Path) -> int:
    """Returns the images of the latest checkpoint that the log reports as saved."""
    log = run / "train.log"
    names = [line.rpartition("images-")[2] for line in log.read_text().splitlines() if " saved " in line] if log.exists() else []
    return max((int(name) for name in names if name.isdigit()), default=0)


def nothing_left(run: Path, temporary: Path, token: str, own_shm: bool, readers_killed: bool = False) -> list[str]:
    """Checks that no process, partial file, lock, temporary file, or (if private) file in /dev/shm is left.

    Args:
        readers_killed: whether data workers got SIGKILL and could not clean up.
    """
    left = [f"process {pid} left: {_line(pid)}" for pid in processes(token)]
    names = (".writing-", ".deleting-", ".linking-", "claim.json", ".removing")
    left += [f"left: {path}" for path in run.rglob("*") if path.name.startswith(names) or path.name.endswith((".part", ".removing"))]
    others = LAUNCHERS_OWN + (KILLED_READERS if readers_killed else ())
    left += [f"left in TMPDIR: {path.name}" for path in temporary.iterdir() if not path.name.startswith(others)]
    for path in Path("/dev/shm").iterdir() if own_shm else ():
        left.append(f"left in /dev/shm: {path.name}")
        path.unlink()  # the next case starts clean
    return left


def _line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:120]
    except OSError:
        return ""
