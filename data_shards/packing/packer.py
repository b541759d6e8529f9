"""Packs tiles into a shard set, atomically.

Shards are written to a temporary folder beside the set, each with its own index, and the folder is renamed when it is complete. An
interrupted pack resumes after its complete shards. The assignment of tiles to shards is in plan.py, writing one shard in tar_writer.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from attributegan.attributes import AttributeSchema
from attributegan.utils import files
from attributegan.utils.file_lock import exclusive_lock
from data_shards import worker_pool
from data_shards.format import checksums, index
from data_shards.packing.labels import Labels
from data_shards.packing.plan import Options, make_plan
from data_shards.packing.sources import EncodedImage, Source
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
    """Write the set ``out``; does nothing if it exists already, packed from the same tiles with the same options.

    Args:
        processes: number of workers; does not affect the bytes written.
        skip_bad: leave out invalid tiles instead of raising.
        overwrite: replace another shard set in ``out``.

    Raises:
        ValueError: invalid rows or images (all are listed), or ``out`` is in use; no set is written.
    """
    plan = make_plan(labels, source, options)
    if found := check_output(out, plan.fingerprint, overwrite):
        return found
    work = _Work(labels.schema, source, plan.fingerprint, out.with_name(f".{out.name}.packing"))

    def run_on_shards(do: Callable[[_Shard], list[str]]) -> list[str]:
        shards = (_Shard(job.name, job.split, plan.rows(job)) for job in plan.jobs)
        return plan.bad + [line for bad in worker_pool.run(do, shards, processes, progress) for line in bad]

    if plan.bad and not skip_bad:
        _raise_bad(run_on_shards(work.check))
    if not plan.jobs:
        raise ValueError("no usable tiles" + "".join(f"\n  {line}" for line in plan.bad))
    out.parent.mkdir(parents=True, exist_ok=True)
    in_use = f"{work.folder}: another process is packing this set; wait for it or stop it"
    with exclusive_lock(work.folder.with_name(f"{work.folder.name}.lock"), in_use, LOCK_WAIT_S):
        work.prepare()
        left_out = run_on_shards(work.write)
        if left_out and not skip_bad:
            shutil.rmtree(work.folder)
            _raise_bad(left_out)
        header = finish(work.folder, [job.name for job in plan.jobs], work.fingerprint, left_out)
        files.replace_folder(work.folder, out)
    return header


def _raise_bad(bad: list[str]) -> None:
    lines = "".join(f"\n  {line}" for line in bad)
    raise ValueError(f"{len(bad):,} invalid tiles; nothing was written. Correct them, or use --skip-bad to leave them out:{lines}")


def check_output(out: Path, fingerprint: str, overwrite: bool) -> index.Header | None:
    """Returns the header of ``out`` if it has this fingerprint already, None if it may be written.

    Raises:
        ValueError: ``out`` has other contents that must not be replaced.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / index.FILE).is_file():
        raise ValueError(f"--out: {out} exists and is not a shard set; choose another folder")
    if overwrite:
        return None
    header = checksums.check_index(out)
    if header.source != fingerprint:
        raise ValueError(f"--out: {out} is a shard set of other tiles or options; choose another folder, or use --overwrite to replace it")
    return header


class _Shard(NamedTuple):
    """One shard to write, with its rows of the `Labels` table."""

    name: str
    split: str
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class _Work:
    """Checks or writes a shard in a worker process; both return the invalid tiles, one line each."""

    schema: AttributeSchema
    source: Source
    fingerprint: str
    folder: Path

    def part(self, name: str) -> Path:
        """Returns the path of the index of one shard, which exists if the shard is complete."""
        return self.folder / f"{name}.{index.FILE}"

    def prepare(self) -> None:
        """Create the folder, and empty it if a pack of other tiles or options left it."""
        self.folder.mkdir(exist_ok=True)
        if any(index.read_header(part).source != self.fingerprint for part in self.folder.glob(f"*.{index.FILE}")):
            _remove_files(self.folder, keep=())

    def check(self, shard: _Shard) -> list[str]:
        """Read the images without writing."""
        bad: list[str] = []
        for _ in self._tiles(shard.rows, bad):
            pass
        return bad

    def write(self, shard: _Shard) -> list[str]:
        """Write the tar and then its index, unless an interrupted pack did already."""
        part = self.part(shard.name)
        if part.exists():
            worker_pool.count_tiles(len(shard.rows))
            return list(index.read_header(part).left_out)
        bad: list[str] = []
        with files.atomic_write(self.folder / shard.name) as stream:
            entry, table, size = write_tar(stream, shard.name, shard.split, self.schema, self._tiles(shard.rows, bad))
        index.write(part, index.Header(self.schema, (entry,), size, self.fingerprint, tuple(bad)), [table])
        return bad

    def _tiles(self, rows: list[dict[str, Any]], bad: list[str]) -> Iterator[tuple[dict[str, Any], EncodedImage]]:
        for row in rows:
            worker_pool.count_tiles(1)
            try:
                yield row, self.source.read(row)
            except ValueError as error:
                bad.append(f"{row['where']}: {error}")


def finish(folder: Path, names: Sequence[str], fingerprint: str, left_out: Sequence[str]) -> index.Header:
    """Write the index of the whole set and remove the indexes of single shards."""
    header = index.merge(folder / index.FILE, [folder / f"{name}.{index.FILE}" for name in names], fingerprint, left_out)
    checksums.write(folder, header)
    _remove_files(folder, keep=[index.FILE, checksums.FILE, *(shard.name for shard in header.shards)])
    return header


def _remove_files(folder: Path, keep: Iterable[str]) -> None:
    kept = set(keep)
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()
