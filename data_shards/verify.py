"""Verifies every byte of a shard set and reports all problems."""

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
    """Yields the problems of the set in a folder or at a URL, one line each, as they are found.

    Checks the bytes of the index and of every shard (SHA-256); the offset, checksum, decoding, size, levels and group of every tile against
    the index and the schema; tiles in a tar that are missing from the index; duplicate keys; groups and images in more than one split; and
    files that do not belong to the set (local folders only).

    Args:
        cache: for the shards of a remote set.
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
    expected = {index.FILE, index.CARD, checksums.FILE} | {shard.name for shard in header.shards}
    named = {line.partition(": ")[0].rstrip("/") for line in header.left_out}  # skipped files and tars without usable tiles
    for path in sorted(folder.iterdir()):
        if path.name not in expected | named and not litter.is_litter(path.name):
            yield f"{path}: does not belong to the set"


def _check_rows(folder: Path, header: index.Header, tars: ShardFiles) -> Iterator[str]:
    """Check the rows of the index against each other."""
    path = folder / index.FILE
    table = index.read_table(path, columns=["shard", "split", "key", "group", "offset", "length", "checksum"])
    counts = Counter({entry["values"]: entry["counts"] for entry in table["shard"].value_counts().to_pylist()})
    for shard in header.shards:
        if counts[shard.name] != shard.tiles:
            yield f"{path}: {counts[shard.name]:,} rows for {shard.name}, but {shard.tiles:,} in the metadata"
    for row in set_rows.repeated(table, ["key"], "shard", "count").to_pylist():
        yield f"{path}: key {row['key']} occurs {row['shard_count']} times"
    for row in set_rows.split_groups(table):
        yield f"{path}: group {row['group']} is in {row['split_count_distinct']} splits"
    yield from (f"{path}: {line}" for line in set_rows.same_images(table, header, tars.read))


class _Job(NamedTuple):
    number: int
    shard: index.Shard
    left_out: tuple[str, ...]  # samples left out of the index on purpose


@dataclass(frozen=True)
class _ShardCheck:
    """Checks one shard in a worker process."""

    location: str
    index: Path
    tars: ShardFiles
    schema: AttributeSchema
    image_size: int | None

    def __call__(self, job: _Job) -> list[str]:
        """Returns the problems of one tar, one line each."""
        rows = index.read_shard(self.index, job.shard.name).to_pylist()
        problems: list[str] = []
        try:
            with self.tars.open(job.number) as stream:
                problems += self._walk(stream, {row["offset"]: row for row in rows}, job)
                if (size := os.fstat(stream.fileno()).st_size) != job.shard.size:
                    problems.append(f"has {size:,} bytes, expected {job.shard.size:,}")
                elif checksums.sha256_of(stream) != job.shard.sha256:
                    problems.append("wrong checksum (SHA-256)")
        except OSError as error:
            problems.append(f"can't be read: {error.strerror or error}")
        except StoreError as error:
            return [str(error)]
        return [f"{self.location}/{job.shard.name}: {problem}" for problem in problems]

    def _walk(self, stream: BinaryIO, row_at: dict[int, dict[str, Any]], job: _Job) -> Iterator[str]:
        """Check every sample of the tar, then report the tiles of the index that were not found."""
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
            yield f"the index has key {row['key']} at this offset"
        image = next(member for member in sample if member.offset == row["offset"])
        yield from self._check_image(image, row)
        try:
            levels, group = read_levels(by_kind(sample), self.schema, "group")
        except ValueError as error:
            yield str(error)
            return
        for name, level in zip(self.schema.names, levels, strict=True):
            if level != row[name]:
                yield f"{name} is {level} in the tar but {row[name]} in the index"
        if group and group != row["group"]:
            yield f"group is {group} in the tar but {row['group']} in the index"

    def _check_image(self, image: Member, row: dict[str, Any]) -> Iterator[str]:
        if len(image.data) != row["length"]:
            yield f"the image has {len(image.data):,} bytes in the tar but {row['length']:,} in the index"
        elif tile.checksum(image.data) != row["checksum"]:
            yield "the image is damaged (wrong checksum)"
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
            yield f"the image has {pixels_HWC.shape[1]} x {pixels_HWC.shape[0]} pixels, expected {self.image_size} x {self.image_size}"
