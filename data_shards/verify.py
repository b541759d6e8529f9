"""Check every byte of a shard set, and tell all that is wrong in one report."""

from __future__ import annotations

import os
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from attributegan.attributes import AttributeSchema
from data_shards import worker_pool
from data_shards.format import checksums, index, litter, tile
from data_shards.format.samples import IMAGES, by_kind, check_image, read_levels
from data_shards.format.tar_members import Member, members
from data_shards.packing import set_rows
from data_shards.storage.cache import Cache, StoreError
from data_shards.storage.shard_files import LocalShardFiles, ShardFiles, open_location


def verify(
    location: str | Path, processes: int = 1, progress: worker_pool.Progress = lambda done: None, cache: Cache | None = None
) -> Iterator[str]:
    """All problems of the set in a folder or at a URL, a line each, as they are found; none for a set that is clean.

    Checked are the bytes of the index and of every shard (SHA-256); of every tile, its place, checksum, decoding, size, levels and group
    against the index and the schema; tiles that are in a tar and not in the index; keys that come twice; groups and images that are in
    more than one split; and files that don't belong to the set (in a folder; other places can't be listed).

    Args:
        cache: through which the shards of a remote set are read.
    """
    try:
        location, folder, header, tars = open_location(location, cache)
        for split in header.splits:
            index.read_rows(folder / index.FILE, header, split)
    except ValueError as error:
        yield str(error)
        return
    if isinstance(tars, LocalShardFiles):
        yield from _check_files(folder, header)
    yield from _check_rows(folder, header, tars)
    left_out = defaultdict(list)
    for line in header.left_out:
        left_out[line.partition(": ")[0]].append(line)
    check = _ShardCheck(location, folder / index.FILE, tars, header.schema, header.image_size)
    jobs = [_Job(number, shard, tuple(left_out[shard.name])) for number, shard in enumerate(header.shards)]
    for problems in worker_pool.run(check, jobs, processes, progress):
        yield from problems


def _check_files(folder: Path, header: index.Header) -> Iterator[str]:
    known = {index.FILE, index.CARD, checksums.FILE} | {shard.name for shard in header.shards}
    named = {line.partition(": ")[0].rstrip("/") for line in header.left_out}  # tars without a tile that could be used, and passed over
    for path in sorted(folder.iterdir()):
        if path.name not in known | named and not litter.is_litter(path.name):
            yield f"{path}: does not belong to the set"


def _check_rows(folder: Path, header: index.Header, tars: ShardFiles) -> Iterator[str]:
    """What the index says of all tiles together."""
    path = folder / index.FILE
    table = index.read_table(path, columns=["shard", "split", "key", "group", "offset", "length", "checksum"])
    counts = Counter({entry["values"]: entry["counts"] for entry in table["shard"].value_counts().to_pylist()})
    for shard in header.shards:
        if counts[shard.name] != shard.tiles:
            yield f"{path}: has {counts[shard.name]:,} tiles for {shard.name}, its metadata say {shard.tiles:,}"
    for row in set_rows.repeated(table, ["key"], "shard", "count").to_pylist():
        yield f"{path}: key {row['key']} comes {row['shard_count']} times"
    for row in set_rows.split_groups(table):
        yield f"{path}: group {row['group']} is in {row['split_count_distinct']} splits"
    yield from (f"{path}: {line}" for line in set_rows.same_images(table, header, tars.read))


class _Job(NamedTuple):
    number: int
    shard: index.Shard
    left_out: tuple[str, ...]  # samples that the index leaves out on purpose


@dataclass(frozen=True)
class _ShardCheck:
    """What worker processes do with a shard."""

    location: str
    index: Path
    tars: ShardFiles
    schema: AttributeSchema
    image_size: int | None

    def __call__(self, job: _Job) -> list[str]:
        """All that is wrong with one tar, a line each."""
        rows = index.read_shard(self.index, job.shard.name).to_pylist()
        problems: list[str] = []
        try:
            with self.tars.open(job.number) as stream:
                problems += self._walk(stream, {row["offset"]: row for row in rows}, job)
                if (size := os.fstat(stream.fileno()).st_size) != job.shard.size:
                    problems.append(f"has {size:,} bytes and should have {job.shard.size:,}")
                elif checksums.sha256_of(stream) != job.shard.sha256:
                    problems.append("its bytes are not those that were packed (SHA-256)")
        except OSError as error:
            problems.append(f"can't be read: {error.strerror or error}")
        except StoreError as error:
            return [str(error)]
        return [f"{self.location}/{job.shard.name}: {problem}" for problem in problems]

    def _walk(self, stream: BinaryIO, row_at: dict[int, dict[str, Any]], job: _Job) -> Iterator[str]:
        """Meet every sample of the tar, then name the tiles of the index that were not met."""
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for key, sample in groupby(members(tar), lambda member: member.key):
                    worker_pool.count_tiles(1)
                    yield from (f"{key}: {problem}" for problem in self._check_sample(key, list(sample), row_at, job))
        except tarfile.TarError as error:
            yield f"not a readable tar: {error}"
        for row in row_at.values():
            yield f"{row['key']}: not found in the tar"

    def _check_sample(self, key: str, sample: list[Member], row_at: dict[int, dict[str, Any]], job: _Job) -> Iterator[str]:
        row = next((row_at.pop(member.offset) for member in sample if member.kind in IMAGES and member.offset in row_at), None)
        if row is None:
            if not any(line.startswith(f"{job.shard.name}: {key}: ") for line in job.left_out):
                yield "not in the index"
            return
        if row["key"] != key:
            yield f"the index has {row['key']} here"
        image = next(member for member in sample if member.offset == row["offset"])
        yield from self._check_image(image, row)
        try:
            levels, group = read_levels(by_kind(sample), self.schema, "group")
        except ValueError as error:
            yield str(error)
            return
        for name, level in zip(self.schema.names, levels, strict=True):
            if level != row[name]:
                yield f"{name} is {level} in the tar and {row[name]} in the index"
        if group and group != row["group"]:
            yield f"group is {group} in the tar and {row['group']} in the index"

    def _check_image(self, image: Member, row: dict[str, Any]) -> Iterator[str]:
        if len(image.data) != row["length"]:
            yield f"the image has {len(image.data):,} bytes in the tar and {row['length']:,} in the index"
        elif tile.checksum(image.data) != row["checksum"]:
            yield "the image is damaged (checksum)"
        try:
            check_image(image.data)
            pixels_HWC = tile.decode(image.data)
        except ValueError as error:
            yield str(error)
            return
        except tile.DECODING_ERRORS as error:
            yield f"not a readable image: {error}"
            return
        if self.image_size and pixels_HWC.shape != (self.image_size, self.image_size, 3):
            yield f"the image is {pixels_HWC.shape[1]} x {pixels_HWC.shape[0]} pixels, those of the set {self.image_size}"
