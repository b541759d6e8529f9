"""A job of an array: runs its share of the tasks, one after the other, and merges the results if it ends last.

``python -m slurm.array FOLDER JOB`` runs in the processes that task.py starts under Slurm, and those that local_array.py starts. Owns the
order of the work and what an error costs: invalid input costs its task; any other error is retried by starting the job again (requeue.py),
which runs only unfinished tasks. What a task does is in `tools.arrays`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attributegan import cli
from attributegan.cli import BAD_INPUT, STOP_SIGNALS
from attributegan.errors import TransientError
from attributegan.run_dir import status
from attributegan.run_dir.lock import RunLock
from attributegan.utils.file_lock import LockedError, exclusive_lock
from tools.arrays import state, workload
from tools.arrays.state import Array, Record
from tools.arrays.workload import Merged, Workload

LOCK_WAIT_S = 6 * 3600.0  # for another job to prepare or to merge
SIGNAL_S = 1.0  # for a stop signal that has killed a worker process first


def main() -> int:
    folder, job = Path(sys.argv[1]), int(sys.argv[2])
    cli.restrict_umask()
    code = 0

    def work() -> None:
        nonlocal code
        code = run_job(folder, job)

    return cli.exit_status(work) or code


def run_job(folder: Path, job: int) -> int:
    """Run the unfinished tasks of a job; returns the exit status.

    Returns:
        0; 1 if tasks had errors that a retry may fix; 2 if this job merged and something was left out; 128 + n after stop signal n.
    """
    array, home = Array.load(folder), state.job_folder(folder, job)
    os.chdir(array.folder)
    lock = RunLock(home, "training")
    try:
        with _stop_signals():
            lock.acquire()
            status.update(home, state="running", error="", **status.process_location())
            code = _run_tasks(folder, array, job) or _merge_if_last(folder, array)
            status.update(home, state="failed" if code else "finished")
            return code
    except KeyboardInterrupt as stop:
        number = stop.args[0] if stop.args else signal.SIGINT
        status.update(home, state="stopped" if number == signal.SIGINT else "preempted")
        print(f"stopped by signal {number}", file=sys.stderr, flush=True)
        return int(128 + number)
    finally:
        lock.release()


@contextmanager
def _stop_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt with the number of the first stop signal."""

    def stop(number: int, frame: Any) -> None:
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt(number)

    for number in STOP_SIGNALS:
        signal.signal(number, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # task.py starts this process with these signals blocked
    yield


def _run_tasks(folder: Path, array: Array, job: int) -> int:
    """Run the unfinished tasks of a job; returns 1 if some had errors that a retry may fix, else 0."""
    home, share = state.job_folder(folder, job), array.share(job)
    done = {task for task, record in state.records(home).items() if record.is_final}
    todo = [task for task in share if task not in done]
    if not todo:
        return 0
    command = _open(folder, array)
    errors = 0
    for number, task in enumerate(todo, start=1 + len(share) - len(todo)):
        record = _run_task(command, home, task)
        errors += not record.is_final
        outcome = f"done in {record.seconds:.1f} s" if record.state == "done" else record.error
        print(f"{number:,} of {len(share):,}: {outcome if task in outcome else f'{task}: {outcome}'}", flush=True)
    if errors:
        print(f"error: {errors:,} of {len(todo):,} tasks had errors; see above", file=sys.stderr, flush=True)
    return int(errors > 0)


def _open(folder: Path, array: Array) -> Workload:
    """Returns the command of the array, after what must be done before its first task."""
    command = workload.load(array.command, array.arguments, array.overrides)
    with exclusive_lock(folder / "prepare.lock", f"{folder}: another job is preparing the array", LOCK_WAIT_S):
        command.prepare(folder)
    return command


def _run_task(command: Workload, home: Path, task: str) -> Record:
    """Run a task and record the result."""
    began = time.monotonic()
    state.append(home, Record(task, "started"))
    try:
        try:
            command.run(task)
            record = Record(task, "done", state.seconds_since(began))
        except (LockedError, TransientError) as error:
            record = Record(task, "error", error=str(error))
        except ValueError as error:
            record = Record(task, "bad", state.seconds_since(began), str(error))
        except Exception as error:
            time.sleep(SIGNAL_S)
            traceback.print_exc()
            record = Record(task, "error", error=f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        state.append(home, Record(task, "stopped"))
        raise
    state.append(home, record)
    return record


def _merge_if_last(folder: Path, array: Array) -> int:
    """Merge and write the report, once, if all tasks of the array are finished; returns the exit status."""
    if not _is_complete(folder, array):
        return 0
    with exclusive_lock(folder / "merge.lock", f"{folder}: another job is merging the array", LOCK_WAIT_S):
        if (folder / state.REPORT).exists():
            return 0
        found = state.all_records(folder, array)
        problems = {task: found[task].error for task in array.tasks if found[task].state != "done"}
        try:
            merged = _open(folder, array).merge([task for task in array.tasks if task not in problems], list(problems))
        except LockedError:
            raise
        except ValueError as error:
            merged = Merged([f"error: {error}"], status=BAD_INPUT)
        lines = report(array, merged, problems)
        state.write_report(folder, lines)
    print("\n".join(lines), flush=True)
    skipped = "--skip-bad" in array.arguments and all(record.state != "failed" for record in found.values())
    code = merged.status or (BAD_INPUT if problems and not skipped else 0)
    if code:
        print(f"error: {lines[0]}; see {folder / state.REPORT}", file=sys.stderr, flush=True)
    return code


def _is_complete(folder: Path, array: Array) -> bool:
    """Returns whether all tasks of the array are finished."""
    found = state.all_records(folder, array)
    return all(task in found and found[task].is_final for task in array.tasks)


def report(array: Array, merged: Merged, problems: dict[str, str]) -> Sequence[str]:
    """Returns the lines of the report; they depend on the result alone, not on jobs and restarts."""
    failed = f", {len(problems):,} failed" if problems else ""
    left_out = f", {len(merged.left_out):,} left out" if merged.left_out else ""
    return [
        f"{array.command}: {len(array.tasks):,} tasks{failed}{left_out}",
        *merged.lines,
        *(f"failed: {error if task in error else f'{task}: {error}'}" for task, error in problems.items()),
        *(f"left out: {line}" for line in merged.left_out),
    ]


if __name__ == "__main__":
    sys.exit(main())
