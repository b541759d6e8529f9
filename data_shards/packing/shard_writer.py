"""A shard set of tiles that a program makes, by several processes: each writes whole shards, and the set takes its name at the end.

Like `pack`, a stopped one goes on behind the shards that are whole. What the tiles are is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from attributegan.attributes import AttributeSchema
from attributegan.utils import files
from data_shards.format import index
from data_shards.packing.packer import check_output, finish, publish
from data_shards.packing.sources import Member
from data_shards.packing.tar_writer import write_tar

Tiles = Callable[[range], Iterator[tuple[Mapping[str, Any], Member]]]
SPLIT = "train"


def begin(out: Path, fingerprint: str, overwrite: bool) -> bool:
    """Make room; for the main process alone, before the others start. False when the set is there already.

    Raises:
        ValueError: something else is in the way.
    """
    if check_output(out, fingerprint, overwrite):
        return False
    folder = tmp_path(out)
    folder.mkdir(parents=True, exist_ok=True)
    if any(index.read_header(part).source != fingerprint for part in folder.glob(f"*.{index.FILE}")):
        for path in folder.iterdir():
            path.unlink()
    return True


def tmp_path(out: Path) -> Path:
    """Where shards are written until all are there."""
    return out.with_name(f".{out.name}.making")


def names(count: int, shard_count: int) -> list[str]:
    return [f"{SPLIT}-{number:06d}.tar" for number in range(-(-count // shard_count))]


def write(out: Path, schema: AttributeSchema, fingerprint: str, count: int, shard_count: int, tiles: Tiles, number: int) -> None:
    """Write shard ``number``, of ``shard_count`` tiles or, the last, of fewer; unless it is there."""
    name = names(count, shard_count)[number]
    part = tmp_path(out) / f"{name}.{index.FILE}"
    if part.exists():
        return
    wanted = range(number * shard_count, min(count, (number + 1) * shard_count))
    with files.atomic_write(tmp_path(out) / name) as stream:
        entry, table, size = write_tar(stream, name, SPLIT, schema, tiles(wanted))
    index.write(part, index.Header(schema, (entry,), size, fingerprint), [table])


def end(out: Path, fingerprint: str, count: int, shard_count: int) -> index.Header:
    """Join the shards of all processes to a set; for the main process, after all are done."""
    header = finish(tmp_path(out), names(count, shard_count), fingerprint, [])
    publish(tmp_path(out), out)
    return header
