"""``attributegan-runs``: lists training runs and arrays with their state and progress, or follows the log of a run.

Reads only the folders of runs and arrays.
"""

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
from tools.arrays import state as array_state

EXAMPLES = """\
  attributegan-runs                          all runs in runs/
  attributegan-runs runs/sweep /data/runs    all runs in these folders
  attributegan-runs --follow runs/paper      the log of a run, until it ends
  attributegan-runs tiles.array              an array of attributegan-submit: finished tasks and the time left
States: queued, running, preempted (saved, waiting to be restarted), stopped (by the user), failed, finished, and dead: its last status is
running, but its heartbeat has stopped and Slurm, if used, does not have its job."""

LIVE = ("queued", "running", "preempted")
COLUMNS = ("run", "state", "images", "img/s", "loss G/D", "nodes", "job", "requeues", "updated", "latest checkpoint")
ARRAY_COLUMNS = ("array", "state", "tasks", "failed", "time left", "jobs", "job", "requeues", "updated")
SHOWN_PROBLEMS = 5  # of an array
MAX_SILENCE_S = 2 * LEASE_S  # allows for clock skew between machines


def main(argv: Sequence[str] | None = None) -> int:
    """List or follow runs with ``argv`` (default: ``sys.argv``) and return the exit status."""
    options = _parser().parse_args(argv)
    return cli.exit_status(lambda: follow(options.follow) if options.follow else show(options.folders))


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("List training runs and arrays with their state and progress, or follow the log of a run.", EXAMPLES)
    parser.add_argument(
        "folders", nargs="*", metavar="DIR", type=Path, help="run folders, or folders that contain them at any depth (default: runs)"
    )
    parser.add_argument("--follow", metavar="RUN", type=Path, help="follow the log of this run until the run ends")
    return parser


def show(folders: Sequence[Path] = ()) -> None:
    """Print a table of the runs.

    Args:
        folders: run folders, or folders that contain them; by default ``runs``.

    Raises:
        ValueError: a folder does not exist.
    """
    folders = folders or [Path("runs")]
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; give a run folder, or a folder that contains runs")
    found, arrays = {}, []
    for folder in sorted(_run_folders(folders)):
        if (folder / array_state.FILE).is_file():
            arrays.append(folder)
        elif now := status.read(folder):
            found[folder] = now
    if not (found or arrays):
        print(f"no runs in {', '.join(map(str, folders))}")
        return
    of_arrays = [now for folder in arrays for now in _jobs(folder).values()]
    jobs = squeue.states([now.job for now in [*found.values(), *of_arrays] if now.job and now.state != "finished"]) or {}
    if found:
        print(_table([COLUMNS, *(_row(folder, now, jobs) for folder, now in found.items())]))
    if arrays:
        print(_table([ARRAY_COLUMNS, *(_array_row(folder, jobs) for folder in arrays)]))
    for folder, now in found.items():
        if now.error:
            print(f"\n{folder}: {_last_line(now.error)}")
    for folder in arrays:
        _print_problems(folder)


def _run_folders(folders: Sequence[Path]) -> Iterator[Path]:
    """Yield the folders of runs and arrays in ``folders`` at any depth; does not descend into them."""
    for folder in folders:
        for path, names, files in os.walk(folder):
            if status.FILE in files or array_state.FILE in files:
                yield Path(path)
                names.clear()
            names[:] = [name for name in names if name != "submissions" and not name.startswith(".")]


def state_of(folder: Path, now: Status, jobs: Mapping[str, str]) -> str:
    """Return the actual state of a run: its last status, unless its process or job no longer exists.

    Args:
        now: last status of the run.
        jobs: states of the jobs in the Slurm queue, from `launch.squeue.states`.
    """
    if jobs.get(now.job) == "PENDING" and now.state != "finished":
        return "queued"  # Slurm will restart it
    if now.state not in LIVE or now.job in jobs:
        return now.state
    silence_s = min(time.time() - now.updated_at, seconds_since_heartbeat(folder))
    return "dead" if silence_s > MAX_SILENCE_S or _ended_here(folder) else now.state


def _ended_here(folder: Path) -> bool:
    """Return whether the run's process ran on this machine and has exited."""
    from attributegan.run_dir.lock import RunLock, owner_of

    held = owner_of(folder)
    return held is not None and held.is_gone(RunLock(folder, "training").me) is True


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the latest checkpoint of a run, or None."""
    return max(list_checkpoints(folder), default=None)


def _row(folder: Path, now: Status, jobs: Mapping[str, str]) -> tuple[str, ...]:
    images = f"{now.images:,} of {now.total:,}" + (f" ({min(1, now.images / now.total):.0%})" if now.total else "")
    losses = "/".join(f"{now.losses[name]:.3f}" for name in ("generator", "discriminator") if name in now.losses)
    state = state_of(folder, now, jobs)
    rate = f"{now.images_per_second:.1f}" if now.images_per_second else ""
    return (
        str(folder),
        state,
        images,
        rate,
        losses,
        now.nodes,
        now.job,
        str(now.requeues),
        _ago(time.time() - now.updated_at),
        str(latest_checkpoint(folder) or ""),
    )


def _jobs(folder: Path) -> dict[Path, Status]:
    """Return the status of each job of an array."""
    return {path: now for path in sorted(folder.glob(f"{array_state.JOBS}/*")) if (now := status.read(path))}


def _array_row(folder: Path, jobs: Mapping[str, str]) -> tuple[str, ...]:
    array, found = array_state.Array.load(folder), _jobs(folder)
    now = array_state.progress(array, list(array_state.all_records(folder, array).values()))
    states = [state_of(path, job, jobs) for path, job in found.items()]
    left_s = now.seconds_left(states.count("running"))
    return (
        str(folder),
        "finished" if (folder / array_state.REPORT).exists() else _state_of_jobs(states),
        f"{now.done:,} of {now.total:,} ({now.done / now.total:.0%})",
        f"{len(now.problems):,}",
        "" if left_s is None or not now.remaining else _duration(left_s),
        ", ".join(f"{states.count(name)} {name}" for name in dict.fromkeys(states)),
        next((job.job.partition("_")[0] for job in found.values() if job.job), ""),
        str(sum(job.requeues for job in found.values())),
        _ago(time.time() - max((job.updated_at for job in found.values()), default=0.0)),
    )


def _state_of_jobs(states: Sequence[str]) -> str:
    """Return the state of an array without a report from those of its jobs."""
    return next((name for name in ("running", "preempted", "queued", "dead", "failed", "stopped") if name in states), "failed")


def _print_problems(folder: Path) -> None:
    array = array_state.Array.load(folder)
    problems = array_state.progress(array, list(array_state.all_records(folder, array).values())).problems
    for task, error in list(problems.items())[:SHOWN_PROBLEMS]:
        print(f"\n{folder}: {task}: {_last_line(error)}")
    if len(problems) > SHOWN_PROBLEMS:
        print(f"\n{folder}: {len(problems) - SHOWN_PROBLEMS:,} more failed tasks")


def _duration(seconds: float) -> str:
    return _ago(seconds).removesuffix(" ago")


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
    """Print new lines of train.log and changes of the state until the run ends.

    Raises:
        ValueError: not a run folder.
    """
    if status.read(folder) is None:
        raise ValueError(f"{folder}: not a run folder; `attributegan-runs DIR` lists the runs in a folder")
    shown, offset = "", 0
    while True:
        now = status.read(folder)
        assert now is not None
        state = state_of(folder, now, squeue.states([now.job] if now.job and now.state != "finished" else []) or {})
        offset = _print_from(folder / "train.log", offset)
        if state != shown:
            print(f"-- {state}{f': {now.error}' if now.error else ''}", flush=True)
            shown = state
        if state not in LIVE:
            return
        time.sleep(1)


def _print_from(path: Path, offset: int) -> int:
    """Print the contents of a file from ``offset`` in bytes on, and return the new offset."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            text = file.read()
    except FileNotFoundError:
        return offset
    sys.stdout.write(text.decode(errors="replace"))
    sys.stdout.flush()
    return offset + len(text)


if __name__ == "__main__":
    sys.exit(main())
