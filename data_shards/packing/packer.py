"""Packs tiles into a shard set, atomically: at once, or in parts.

Shards are written to a temporary folder beside the set, each with its own index, and the folder is renamed when it is complete. An
interrupted pack resumes after its complete shards. The assignment of tiles to shards is in plan.py, writing one shard in tar_writer.py,
merging in parts.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from attributegan.attributes import AttributeSchema
from attributegan.utils import files
from data_shards import worker_pool
from data_shards.format import checksums, index
from data_shards.packing import parts
from data_shards.packing.labels import Labels
from data_shards.packing.parts import WHOLE, Part, PlanFile
from data_shards.packing.plan import Options, make_plan
from data_shards.packing.sources import EncodedImage, Source
from data_shards.packing.tar_writer import write_tar


def pack(
    labels: Labels,
    source: Source,
    out: Path,
    options: Options,
    *,
    part: Part = WHOLE,
    processes: int = 1,
    skip_bad: bool = False,
    overwrite: bool = False,
    progress: worker_pool.Progress = lambda done: None,
) -> index.Header | None:
    """Write the set ``out``, or one part of its shards; does nothing if the set exists already, packed from the same tiles and options.

    Args:
        part: which shards to write; `parts.merge` publishes the set when all parts are packed.
        processes: number of workers; does not affect the bytes written.
        skip_bad: leave out invalid tiles instead of raising.
        overwrite: replace another shard set in ``out``.

    Returns:
        The header of the set; None if it has not been merged.

    Raises:
        ValueError: invalid rows or images (all those of the part are listed), or ``out`` is in use; no set is written.
    """
    plan = make_plan(labels, source, options)
    if found := parts.check_output(out, plan.fingerprint, overwrite):
        return found
    work, jobs = _Work(labels.schema, source, plan.fingerprint, parts.folder_of(out, part)), part.of(plan.jobs)
    names = [job.name for job in plan.jobs]

    def run_on_shards(do: Callable[[_Shard], list[str]]) -> list[str]:
        shards = (_Shard(job.name, job.split, plan.rows(job)) for job in jobs)
        return plan.bad + [line for bad in worker_pool.run(do, shards, processes, progress) for line in bad]

    def prepare() -> None:
        parts.prepare(work.folder, PlanFile(plan.fingerprint, part.count, names, plan.bad))

    def write() -> list[str]:
        left_out = run_on_shards(work.write)
        if left_out and not skip_bad:
            parts.discard(work.folder, part, names)
            _raise_bad(left_out)
        return left_out

    if plan.bad and not skip_bad:
        _raise_bad(run_on_shards(work.check))
    if not plan.jobs:
        raise ValueError("no usable tiles" + "".join(f"\n  {line}" for line in plan.bad))
    out.parent.mkdir(parents=True, exist_ok=True)
    if part == WHOLE:
        with parts.set_lock(out):
            prepare()
            return parts.publish(work.folder, out, parts.finish(work.folder, names, plan.fingerprint, write()))
    with parts.part_lock(out, part):
        with parts.set_lock(out):
            if found := parts.check_output(out, plan.fingerprint, overwrite):  # merged while this part waited
                return found
            prepare()
        if not (work.folder / checksums.FILE).is_file():
            write()
    return None


def _raise_bad(bad: list[str]) -> None:
    lines = "".join(f"\n  {line}" for line in bad)
    raise ValueError(f"{len(bad):,} invalid tiles; nothing was written. Correct them, or use --skip-bad to leave them out:{lines}")


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

    def check(self, shard: _Shard) -> list[str]:
        """Read the images without writing."""
        bad: list[str] = []
        for _ in self._tiles(shard.rows, bad):
            pass
        return bad

    def write(self, shard: _Shard) -> list[str]:
        """Write the tar and then its index, unless an interrupted pack did already."""
        path = parts.index_of(self.folder, shard.name)
        if path.exists():
            worker_pool.count_tiles(len(shard.rows))
            return list(index.read_header(path).left_out)
        bad: list[str] = []
        with files.atomic_write(self.folder / shard.name) as stream:
            entry, table, size = write_tar(stream, shard.name, shard.split, self.schema, self._tiles(shard.rows, bad))
        index.write(path, index.Header(self.schema, (entry,), size, self.fingerprint, tuple(bad)), [table])
        return bad

    def _tiles(self, rows: list[dict[str, Any]], bad: list[str]) -> Iterator[tuple[dict[str, Any], EncodedImage]]:
        for row in rows:
            worker_pool.count_tiles(1)
            try:
                yield row, self.source.read(row)
            except ValueError as error:
                bad.append(f"{row['where']}: {error}")
