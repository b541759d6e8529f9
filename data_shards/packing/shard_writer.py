"""Writes generated tiles as a shard set from several processes: each writes whole shards, and the folder is renamed at the end.

As with `pack`, an interrupted run resumes after its complete shards. The caller provides the tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from attributegan.attributes import AttributeSchema
from attributegan.utils import files
from data_shards.format import index
from data_shards.packing import parts
from data_shards.packing.sources import EncodedImage
from data_shards.packing.tar_writer import write_tar

Tiles = Callable[[range], Iterator[tuple[Mapping[str, Any], EncodedImage]]]
SPLIT = "train"


def begin(out: Path, fingerprint: str, overwrite: bool) -> bool:
    """Prepare the temporary folder; call on the main process only, before the others start.

    Returns:
        False if the set exists already.

    Raises:
        ValueError: ``out`` has other contents.
    """
    if parts.check_output(out, fingerprint, overwrite):
        return False
    folder = tmp_path(out)
    folder.mkdir(parents=True, exist_ok=True)
    complete = (path for path in folder.glob(f"*.{index.FILE}") if not path.name.startswith(files.WRITING))
    if any(index.read_header(path).source != fingerprint for path in complete):
        parts.remove_files(folder)
    return True


def tmp_path(out: Path) -> Path:
    """Returns the temporary folder for shards until all are written."""
    return out.with_name(f".{out.name}.making")


def names(count: int, shard_count: int) -> list[str]:
    """Returns the names of the shards of ``count`` tiles."""
    return [f"{SPLIT}-{number:06d}.tar" for number in range(-(-count // shard_count))]


def write(out: Path, schema: AttributeSchema, fingerprint: str, count: int, shard_count: int, tiles: Tiles, number: int) -> None:
    """Write shard ``number`` unless it exists; all shards but the last have ``shard_count`` tiles."""
    name = names(count, shard_count)[number]
    path = parts.index_of(tmp_path(out), name)
    if path.exists():
        return
    numbers = range(number * shard_count, min(count, (number + 1) * shard_count))
    with files.atomic_write(tmp_path(out) / name) as stream:
        entry, table, size = write_tar(stream, name, SPLIT, schema, tiles(numbers))
    index.write(path, index.Header(schema, (entry,), size, fingerprint), [table])


def end(out: Path, fingerprint: str, count: int, shard_count: int) -> index.Header:
    """Publish the shards of all processes as a set; call on the main process only, after all have finished."""
    return parts.publish(tmp_path(out), out, parts.finish(tmp_path(out), names(count, shard_count), fingerprint, []))
