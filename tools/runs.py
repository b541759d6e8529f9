"""``attributegan-runs``: what runs do and how far they are, read from their folders; and the log of one as it grows."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from attributegan import cli
from attributegan.run_dir import status
from attributegan.run_dir.checkpoint_dirs import list_checkpoints
from attributegan.run_dir.lock import LEASE_S, seconds_since_heartbeat
from attributegan.run_dir.status import Status
from launch import squeue

EXAMPLES = """\
  attributegan-runs                          all runs below runs/
  attributegan-runs runs/sweep /data/runs    below these folders
  attributegan-runs --follow runs/paper      the log of one, until it ends
States: queued, running, preempted (saved, waits for its next turn), stopped (by a person), failed, finished, and dead: it said that it
runs, but nobody has heard of it for long and Slurm, where there is one, doesn't have its job."""

LIVE = ("queued", "running", "preempted")
COLUMNS = ("run", "state", "images", "img/s", "loss G/D", "nodes", "job", "requeues", "last word", "newest checkpoint")
SILENT_S = 2 * LEASE_S  # clocks of machines differ a little


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.parser("List training runs, or follow one.", EXAMPLES)
    parser.add_argument("folders", nargs="*", metavar="DIR", type=Path, help="run folders, or folders with some in them (default: runs)")
    parser.add_argument("--follow", metavar="RUN", type=Path, help="print the log of this run as it grows, until the run ends")
    options = parser.parse_args(argv)
    return cli.exit_status(lambda: follow(options.follow) if options.follow else show(options))


def show(options: argparse.Namespace) -> None:
    """Print a table of the runs; ValueError when a folder is not there."""
    folders = options.folders or [Path("runs")]
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; give the folder of a run, or one with runs in it")
    found = {folder: now for folder in sorted(_run_folders(folders)) if (now := status.read(folder))}
    if not found:
        print(f"no runs in {', '.join(map(str, folders))}")
        return
    jobs = squeue.states([now.job for now in found.values() if now.job and now.state != "finished"]) or {}
    print(_table([COLUMNS, *(_row(folder, now, jobs) for folder, now in found.items())]))
    for folder, now in found.items():
        if now.error:
            print(f"\n{folder}: {_last_line(now.error)}")


def _run_folders(folders: Sequence[Path]) -> Iterator[Path]:
    """Those with a status in them, at any depth; what lies in a run folder is the run's own."""
    for folder in folders:
        for path, names, files in os.walk(folder):
            if status.FILE in files:
                yield Path(path)
                names.clear()
            names[:] = [name for name in names if name != "submissions" and not name.startswith(".")]


def state_of(folder: Path, now: Status, jobs: Mapping[str, str]) -> str:
    """The state that is true: what the run said last, unless nothing is there any more that could have gone on.

    Args:
        jobs: states of the jobs that Slurm still has, as `launch.squeue.states` gives them.
    """
    if jobs.get(now.job) == "PENDING" and now.state != "finished":
        return "queued"  # whatever ended it, Slurm starts it again
    if now.state not in LIVE or now.job in jobs:
        return now.state
    silent_s = min(time.time() - now.updated_at, seconds_since_heartbeat(folder))
    return "dead" if silent_s > SILENT_S or _ended_here(folder) else now.state


def _ended_here(folder: Path) -> bool:
    """Whether the run's process was one of this machine and is gone."""
    from attributegan.run_dir.lock import RunLock, owner_of

    held = owner_of(folder)
    return held is not None and held.is_gone(RunLock(folder, "training").me) is True


def latest_checkpoint(folder: Path) -> Path | None:
    return max(list_checkpoints(folder), default=None)


def _row(folder: Path, now: Status, jobs: Mapping[str, str]) -> tuple[str, ...]:
    images = f"{now.images:,} of {now.total:,}" + (f" ({min(1, now.images / now.total):.0%})" if now.total else "")
    losses = "/".join(f"{now.losses[name]:.3f}" for name in ("generator", "discriminator") if name in now.losses)
    running = state_of(folder, now, jobs)
    rate = f"{now.images_per_second:.1f}" if now.images_per_second else ""
    return (
        str(folder),
        running,
        images,
        rate,
        losses,
        now.nodes,
        now.job,
        str(now.requeues),
        _ago(time.time() - now.updated_at),
        str(latest_checkpoint(folder) or ""),
    )


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(0, seconds):.0f} s ago"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


def follow(folder: Path) -> None:
    """Print train.log of a run as it grows and its state as it changes, until the run has ended."""
    if status.read(folder) is None:
        raise ValueError(f"{folder}: no run in it; attributegan-runs DIR lists those in a folder")
    shown, place = "", 0
    while True:
        now = status.read(folder)
        assert now is not None
        state = state_of(folder, now, squeue.states([now.job] if now.job and now.state != "finished" else []) or {})
        place = _print_from(folder / "train.log", place)
        if state != shown:
            print(f"-- {state}{f': {now.error}' if now.error else ''}", flush=True)
            shown = state
        if state not in LIVE:
            return
        time.sleep(1)


def _print_from(path: Path, place: int) -> int:
    """Print what the file has after ``place`` bytes; where it ends now."""
    try:
        with path.open("rb") as file:
            file.seek(place)
            text = file.read()
    except FileNotFoundError:
        return place
    sys.stdout.write(text.decode(errors="replace"))
    sys.stdout.flush()
    return place + len(text)


if __name__ == "__main__":
    sys.exit(main())
