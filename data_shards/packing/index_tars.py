"""An index for tars that others made: read every member once, find the images and their levels.

A sample is what WebDataset takes for one: members in a row whose names are equal up to the first dot. It needs an image and its levels, in
``.json`` (by attribute name, at the top or under ``levels``) or, for a schema with one attribute, in ``.cls``.
"""

from __future__ import annotations

import fnmatch
import io
import json
import re
import struct
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa
from PIL import Image

from attributegan.attributes import AttributeSchema
from data_shards import worker_pool
from data_shards.format import checksums, index, tile

LONGEST_NAME = 4096
IMAGES = ("jpg", "jpeg", "png", "webp")


class Member(NamedTuple):
    """A file in a tar."""

    key: str
    kind: str
    offset: int
    data: bytes


def members(tar: tarfile.TarFile) -> Iterator[Member]:
    """The files of a tar in order, with the place of their data.

    Raises:
        tarfile.TarError: it is damaged, or has members that no shard has and that do harm to who unpacks it or reads them.
    """
    try:
        for info in tar:
            if harm := _harm(info):
                raise tarfile.ReadError(f"member {info.name[:100]!r} {harm}")
            if info.isfile():
                folder, slash, name = info.name.rpartition("/")
                stem, _, kind = name.partition(".")
                stream = tar.extractfile(info)
                assert stream is not None
                yield Member(folder + slash + stem, kind.lower(), info.offset_data, stream.read())
                tar.members.clear()  # type: ignore[attr-defined]  # it would grow with the tar
    except (ValueError, LookupError, OverflowError, EOFError, struct.error) as error:  # what tarfile lets through
        raise tarfile.ReadError(f"damaged header: {error}") from error


def _harm(info: tarfile.TarInfo) -> str:
    """What is wrong with a member, or ""."""
    path = PurePosixPath(info.name)
    if path.is_absolute() or ".." in path.parts or len(info.name) > LONGEST_NAME:
        return "has a path that leads out of the tar, or is no path"
    if not (info.isfile() or info.isdir()):
        return "is a link or a device"
    if info.size < 0 or info.issparse():
        return "says that it is larger or smaller than what is there"
    return ""


def index_tars(
    folder: Path,
    schema: AttributeSchema,
    *,
    val: str,
    group: str = "group",
    processes: int = 1,
    skip_bad: bool = False,
    overwrite: bool = False,
    progress: worker_pool.Progress = lambda done: None,
) -> index.Header:
    """Write the index of the tars in ``folder``; the tars stay as they are.

    Args:
        val: pattern of the names of tars that are held out.
        group: entry of the ``.json`` that names the group.
        skip_bad: leave out samples that are wrong, instead of refusing all.

    Raises:
        ValueError: no tars, unreadable ones, or bad samples (the message has them all).
    """
    if (folder / index.FILE).exists() and not overwrite:
        raise ValueError(f"{folder}: has an index already; replace it with --overwrite")
    tars = sorted(folder.glob("*.tar"))
    if not tars:
        raise ValueError(f"{folder}: has no .tar files (compressed tars can't be read by offset; unpack them with gunzip)")
    if wrong := [what for tar in tars if (what := index.wrong_name(tar.name))]:
        raise ValueError(f"{folder}: {wrong[0]}")
    with tempfile.TemporaryDirectory(prefix=".index-", dir=folder) as tmp_path:
        scan = _Scan(schema, val, group, Path(tmp_path))
        left_out = [line for bad in worker_pool.run(scan, tars, processes, progress) for line in bad]
        if left_out and not skip_bad:
            lines = "".join(f"\n  {line}" for line in left_out)
            raise ValueError(f"{len(left_out):,} samples can't be used; nothing was written. Leave them out with --skip-bad:{lines}")
        try:
            header = index.merge(Path(tmp_path, index.FILE), [scan.part(tar) for tar in tars], "tars as they were", left_out)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error
        Path(tmp_path, index.FILE).replace(folder / index.FILE)
    checksums.write(folder, header)
    return header


@dataclass(frozen=True)
class _Scan:
    """What worker processes do with a tar."""

    schema: AttributeSchema
    val: str
    group: str
    aside: Path

    def part(self, path: Path) -> Path:
        return self.aside / f"{path.name}.{index.FILE}"

    def __call__(self, path: Path) -> list[str]:
        """Write the index of one tar; the samples that are wrong, a line each."""
        split = "val" if fnmatch.fnmatch(path.name, self.val) else "train"
        bad: list[str] = []
        columns: dict[str, list[Any]] = {name: [] for name in index.arrow_schema(self.schema).names}
        sizes: set[tuple[int, int]] = set()
        try:
            with tarfile.open(path, "r:") as tar:
                for key, sample in groupby(members(tar), lambda member: member.key):
                    worker_pool.count_tiles(1)
                    try:
                        entry, size = self._row(key, list(sample))
                    except ValueError as error:
                        bad.append(f"{path.name}: {key}: {error}")
                        continue
                    sizes.add(size)
                    for name, value in ({"shard": path.name, "split": split} | entry).items():
                        columns[name].append(value)
        except (tarfile.TarError, OSError) as error:
            raise ValueError(f"{path}: not a readable tar: {error}") from error
        table = pa.table(columns, schema=index.arrow_schema(self.schema))
        shard = index.Shard(path.name, split, path.stat().st_size, len(table), checksums.sha256_of(path))
        index.write(self.part(path), index.Header(self.schema, (shard,), tile.common_size(sizes), "", tuple(bad)), [table])
        return bad

    def _row(self, key: str, sample: Sequence[Member]) -> tuple[dict[str, Any], tuple[int, int]]:
        """The row of the index and the size in pixels; ValueError says what the sample lacks."""
        by_kind = {member.kind: member for member in sample}
        image = next((by_kind[kind] for kind in IMAGES if kind in by_kind), None)
        if image is None:
            raise ValueError(f"no image ({', '.join(IMAGES)}); it has {', '.join(by_kind)}")
        try:
            with Image.open(io.BytesIO(image.data), formats=tuple(tile.EXTENSIONS)) as opened:
                size = opened.size
        except tile.DECODING_ERRORS as error:
            raise ValueError(f"not a readable image: {error}") from error
        levels, group = read_levels(by_kind, self.schema, self.group)
        place = {"offset": image.offset, "length": len(image.data), "checksum": tile.checksum(image.data)}
        return place | {"key": key, "group": group} | dict(zip(self.schema.names, levels, strict=True)), size


def read_levels(by_kind: dict[str, Member], schema: AttributeSchema, group: str) -> tuple[list[int], str]:
    """The levels and the group ("" for none) in a sample's ``.json`` or ``.cls``.

    Raises:
        ValueError: there are none, or wrong ones.
    """
    entry = _entry(by_kind, schema)
    tree = entry.get("levels", entry)
    if not isinstance(tree, dict) or (missing := [name for name in schema.names if name not in tree]):
        raise ValueError(f"no level of {', '.join(missing if isinstance(tree, dict) else schema.names)}")
    levels = [tree[name] for name in schema.names]
    if wrong := [name for name, level in zip(schema.names, levels, strict=True) if type(level) is not int]:
        raise ValueError(f"{wrong[0]} is {tree[wrong[0]]!r}, not a whole number")
    if what := schema.check(levels):
        raise ValueError(what)
    return levels, str(entry.get(group, ""))


def _entry(by_kind: dict[str, Member], schema: AttributeSchema) -> dict[str, Any]:
    if "json" in by_kind:
        try:
            entry = json.loads(by_kind["json"].data)
        except (ValueError, RecursionError) as error:
            raise ValueError(f".json: {error}") from error
        if isinstance(entry, dict):
            return entry
        raise ValueError(".json: not a mapping")
    if "cls" in by_kind and len(schema.names) == 1 and re.fullmatch(rb"\s*\d+\s*", by_kind["cls"].data):
        return {schema.names[0]: int(by_kind["cls"].data)}
    raise ValueError("no .json with levels" + (" and no .cls with a number" if len(schema.names) == 1 else ""))
