"""Pack tiles into a shard set that is either whole or not there.

Shards are written into a folder beside the set, each with a small index of its own, and the folder takes the set's name when it is
complete. A stopped pack finds its whole shards there and goes on behind them. What goes into which shard is in plan.py, the writing of
one shard in tar_writer.py.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from attributegan.attributes import AttributeSchema
from attributegan.utils import files
from data_shards import worker_pool
from data_shards.format import checksums, index
from data_shards.packing.labels import Labels
from data_shards.packing.plan import Options, make_plan
from data_shards.packing.sources import Member, Source
from data_shards.packing.tar_writer import write_tar

LOCK_WAIT_S = 10.0


def pack(
    labels: Labels,
    source: Source,
    out: Path,
    options: Options,
    *,
    processes: int = 1,
    skip_bad: bool = False,
    overwrite: bool = False,
    progress: worker_pool.Progress = lambda done: None,
) -> index.Header:
    """Write the set ``out``; nothing is done when it is there already, packed from the same tiles with the same options.

    Args:
        processes: any number writes the same bytes.
        skip_bad: leave out tiles that are wrong, instead of refusing all.
        overwrite: replace another shard set in ``out``.

    Raises:
        ValueError: bad rows or images (the message has them all), or ``out`` is in use; no set has been written then.
    """
    plan = make_plan(labels, source, options)
    if found := check_output(out, plan.fingerprint, overwrite):
        return found
    work = _Work(labels.schema, source, plan.fingerprint, out.with_name(f".{out.name}.packing"))

    def on_every_shard(do: Callable[[_Shard], list[str]]) -> list[str]:
        shards = (_Shard(job.name, job.split, plan.rows(job)) for job in plan.jobs)
        return plan.bad + [line for bad in worker_pool.run(do, shards, processes, progress) for line in bad]

    if plan.bad and not skip_bad:
        _refuse(on_every_shard(work.check))
    if not plan.jobs:
        raise ValueError("no tile is left" + "".join(f"\n  {line}" for line in plan.bad))
    with _locked(work.folder):
        work.prepare()
        left_out = on_every_shard(work.write)
        if left_out and not skip_bad:
            shutil.rmtree(work.folder)
            _refuse(left_out)
        header = finish(work.folder, [job.name for job in plan.jobs], work.fingerprint, left_out)
        publish(work.folder, out)
    return header


def _refuse(bad: list[str]) -> None:
    lines = "".join(f"\n  {line}" for line in bad)
    raise ValueError(f"{len(bad):,} tiles can't be packed; nothing was written. Correct them, or leave them out with --skip-bad:{lines}")


def check_output(out: Path, fingerprint: str, overwrite: bool) -> index.Header | None:
    """The set in ``out`` when it is the one wanted; ValueError when what is there must not be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / index.FILE).is_file():
        raise ValueError(f"--out: {out} is there and is not a shard set; choose another folder")
    if overwrite:
        return None
    header = checksums.check_index(out)
    if header.source != fingerprint:
        raise ValueError(f"--out: {out} has a shard set of other tiles or options; choose another folder, or replace it with --overwrite")
    return header


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder that shards are written into; ValueError when another process does.

    Workers inherit the lock, so those of a killed pack hold it until they have seen that their parent is gone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    until = time.monotonic() + LOCK_WAIT_S
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise ValueError(f"{folder}: another process is packing this set; wait for it or stop it") from None
                time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)


class _Shard(NamedTuple):
    """One shard to write, with its rows of the `Labels` table."""

    name: str
    split: str
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class _Work:
    """What worker processes do with a shard; both return the tiles that are wrong, a line each."""

    schema: AttributeSchema
    source: Source
    fingerprint: str
    folder: Path

    def part(self, name: str) -> Path:
        """The index of one shard, there when the shard is whole."""
        return self.folder / f"{name}.{index.FILE}"

    def prepare(self) -> None:
        """Remove what an earlier pack of other tiles or options left in the folder."""
        if any(index.read_header(part).source != self.fingerprint for part in self.folder.glob(f"*.{index.FILE}")):
            _remove_files(self.folder, keep=())

    def check(self, shard: _Shard) -> list[str]:
        """Read the images and write nothing."""
        bad: list[str] = []
        for _ in self._tiles(shard.rows, bad):
            pass
        return bad

    def write(self, shard: _Shard) -> list[str]:
        """Write the tar and then its index, unless an earlier pack did."""
        part = self.part(shard.name)
        if part.exists():
            worker_pool.count_tiles(len(shard.rows))
            return list(index.read_header(part).left_out)
        bad: list[str] = []
        with files.atomic_write(self.folder / shard.name) as stream:
            entry, table, size = write_tar(stream, shard.name, shard.split, self.schema, self._tiles(shard.rows, bad))
        index.write(part, index.Header(self.schema, (entry,), size, self.fingerprint, tuple(bad)), [table])
        return bad

    def _tiles(self, rows: list[dict[str, Any]], bad: list[str]) -> Iterator[tuple[dict[str, Any], Member]]:
        for row in rows:
            worker_pool.count_tiles(1)
            try:
                yield row, self.source.read(row)
            except ValueError as error:
                bad.append(f"{row['where']}: {error}")


def finish(folder: Path, names: Sequence[str], fingerprint: str, left_out: Sequence[str]) -> index.Header:
    """Write the index of the set of all shards, and remove those of single shards."""
    header = index.merge(folder / index.FILE, [folder / f"{name}.{index.FILE}" for name in names], fingerprint, left_out)
    checksums.write(folder, header)
    _remove_files(folder, keep=[index.FILE, checksums.FILE, *(shard.name for shard in header.shards)])
    return header


def _remove_files(folder: Path, keep: Iterable[str]) -> None:
    kept = set(keep)
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()


def publish(folder: Path, out: Path) -> None:
    """Give the finished folder the name of the set; an older set there goes away after that."""
    files.fsync_path(folder)
    old = out.with_name(f".{out.name}.replaced")
    if old.exists():
        shutil.rmtree(old)
    if out.exists():
        os.replace(out, old)
    os.replace(folder, out)
    files.fsync_path(out.parent)
    if old.exists():
        shutil.rmtree(old)
