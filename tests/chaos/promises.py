"""What must hold when a case is over; each function gives the broken promises in words."""

from __future__ import annotations

import json
from pathlib import Path

from modes import processes
from runs import differing, tensors_in

from attributegan.checkpoint import store

LAUNCHERS_OWN = (
    "torchinductor_",
    "torchelastic_",
)  # which torch's launcher leaves, however it ends
KILLED_READERS = ("pymp-",)  # of multiprocessing in processes that were killed themselves


def same_end(run: Path, undisturbed: Path) -> list[str]:
    """The last checkpoint is bit for bit that of the undisturbed run, and is whole."""
    last, wanted = store.latest(run / "checkpoints"), store.latest(undisturbed / "checkpoints")
    if last is None or wanted is None or last.name != wanted.name:
        return [f"ended with {last and last.name}, not {wanted and wanted.name}"]
    wrong = differing(tensors_in(last), tensors_in(wanted))
    return [f"{len(wrong)} tensors differ from the undisturbed run, the first {wrong[0]}"] if wrong else []


def same_tiles(seen: Path, undisturbed: Path) -> list[str]:
    """Every position of the order was trained on with the tiles of the undisturbed run: none lost, none twice."""
    mine, theirs = _steps(seen), _steps(undisturbed)
    if mine.keys() != theirs.keys():
        return [f"steps at {sorted(mine.keys() ^ theirs.keys())} are in one of the runs alone"]
    wrong = [key for key in mine if mine[key] != theirs[key]]
    return [f"other tiles at {wrong[0]}"] if wrong else []


def _steps(seen: Path) -> dict[str, object]:
    """What each rank saw at each position, by the last time it was there: steps after the last checkpoint come again."""
    steps = {}
    for path in sorted(seen.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            for cursor, crc, levels in json.loads(line):
                steps[f"rank {path.stem}, image {cursor}"] = (crc, levels)
    return steps


def metrics_once(run: Path, step: int, images: int) -> list[str]:
    """One line of metrics for each step."""
    lines = [json.loads(line)["images"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [] if lines == list(range(step, images + 1, step)) else [f"metrics.jsonl has the steps {lines}"]


def good_checkpoint_stands(run: Path, before: int, damaged: str) -> list[str]:
    """What was said to be saved is there and whole, but for the one that the case damaged."""
    newest = store.latest(run / "checkpoints")
    images = int(newest.name.partition("-")[2]) if newest else 0
    if images >= before or damaged.startswith(f"images-{before:012d}"):
        return []
    return [f"a checkpoint at {before} images had been saved, the newest good one has {images}"]


def saved_images(run: Path) -> int:
    """The newest checkpoint that the log calls saved."""
    log = run / "train.log"
    names = [line.rpartition("images-")[2] for line in log.read_text().splitlines() if " saved " in line] if log.exists() else []
    return max((int(name) for name in names if name.isdigit()), default=0)


def nothing_left(run: Path, temporary: Path, token: str, own_shm: bool, readers_killed: bool = False) -> list[str]:
    """No process, no half-written file, no claim, no temporary file, nothing in /dev/shm (where that is the case's own).

    Args:
        readers_killed: whether SIGKILL went to processes that read tiles, so that they could not clear up.
    """
    left = [f"process {pid} left: {_line(pid)}" for pid in processes(token)]
    names = (".writing-", ".deleting-", ".linking-", "claim.json", ".removing")
    left += [f"left: {path}" for path in run.rglob("*") if path.name.startswith(names) or path.name.endswith((".part", ".removing"))]
    others = LAUNCHERS_OWN + (KILLED_READERS if readers_killed else ())
    left += [f"left in TMPDIR: {path.name}" for path in temporary.iterdir() if not path.name.startswith(others)]
    for path in Path("/dev/shm").iterdir() if own_shm else ():
        left.append(f"left in /dev/shm: {path.name}")
        path.unlink()  # no fault of the next case
    return left


def _line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:120]
    except OSError:
        return ""
