"""Creates an index for existing tars: reads every member once and finds the images and their levels.

A sample is defined as in WebDataset: consecutive members whose names are equal up to the first dot. The requirements on samples are in
samples.py, on tars in tar_members.py, and on other files in the folder in tar_folder.py.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa

from attributegan.attributes import AttributeSchema
from data_shards import worker_pool
from data_shards.format import checksums, groups, index, litter, samples, tile
from data_shards.format.tar_members import Member, members
from data_shards.packing import set_rows, tar_folder

log = logging.getLogger("attributegan.data")
MAX_PROBLEMS = 200  # listed in one message


def index_tars(
    folder: Path,
    schema: AttributeSchema,
    *,
    val: str,
    group: str = "group",
    out: Path | None = None,
    processes: int = 1,
    skip_bad: bool = False,
    overwrite: bool = False,
    progress: worker_pool.Progress = lambda done: None,
) -> index.Header:
    """Write the index of the tars in ``folder``; the tars are not changed.

    Args:
        val: glob pattern of the names of held-out tars.
        group: key of the group's name in ``.json``.
        out: folder for the index and links to the tars; the default is beside the tars.
        skip_bad: leave out invalid samples instead of raising.

    Raises:
        ValueError: no tars, unreadable or ignored ones, or invalid samples (all are listed).
    """
    out = folder if out is None else out
    if (out / index.FILE).exists() and not overwrite:
        raise ValueError(f"{out}: has an index already; use --overwrite to replace it")
    found = tar_folder.look(folder)
    if invalid := [problem for tar in found.tars if (problem := index.invalid_name(tar.name))]:
        raise ValueError(f"{folder}: {invalid[0]}")
    with _writable(out) as tmp_path:
        scan = _Scan(schema, val, group, tmp_path)
        scanned = list(worker_pool.run(scan, found.tars, processes, progress))
        bad = [line for one in scanned for line in one.bad]
        if bad and not skip_bad:
            raise ValueError(f"{len(bad):,} invalid samples; nothing was written. Use --skip-bad to leave them out:{_lines(bad)}")
        _check_groups(group, scanned)
        left_out = [*bad, *(f"{name}: skipped: not a tar" for name in found.others)]
        try:
            header = index.merge(tmp_path / index.FILE, [scan.part(tar) for tar in found.tars], "tars as they were", left_out)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error
        if problems := list(set_rows.problems(tmp_path / index.FILE, header, found.tars[0].parent)):
            raise ValueError(f"{folder}: the tars do not form a valid set; nothing was written:{_lines(problems)}")
        if out != folder:
            _link(out, found.tars)
        (tmp_path / index.FILE).replace(out / index.FILE)
    checksums.write(out, header)
    _log_warnings(found, scanned, out)
    return header


@contextmanager
def _writable(out: Path) -> Iterator[Path]:
    """Yields a temporary folder inside ``out``; ValueError if ``out`` is not writable."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        tmp_path = tempfile.TemporaryDirectory(prefix=".index-", dir=out)
    except OSError as error:
        raise ValueError(f"{out}: not writable ({error.strerror}); use --out to write the index to another folder") from error
    with tmp_path:
        yield Path(tmp_path.name)


def _link(out: Path, tars: Sequence[Path]) -> None:
    for tar in tars:
        link = out / tar.name
        if link.is_symlink():
            link.unlink()
        elif link.exists():
            raise ValueError(f"--out: {link} exists and is not a link to a tar; choose another folder")
        link.symlink_to(os.path.relpath(tar.resolve(), out.resolve()))


def _lines(lines: Sequence[str]) -> str:
    more = f"\n  and {len(lines) - MAX_PROBLEMS:,} more" if len(lines) > MAX_PROBLEMS else ""
    return "".join(f"\n  {line}" for line in lines[:MAX_PROBLEMS]) + more


def _check_groups(group: str, scanned: Sequence[_Scanned]) -> None:
    """Reject a --group that no sample has."""
    if group != "group" and any(one.tiles for one in scanned) and not any(one.grouped for one in scanned):
        raise ValueError(f"--group: no sample has the key {group!r} in its .json")


def _log_warnings(found: tar_folder.Found, scanned: Sequence[_Scanned], out: Path) -> None:
    """Log skipped files, tiles without a group, and groups that look alike."""
    if skipped := litter.counted([*found.litter, *(name for one in scanned for name in one.litter)]):
        log.warning("skipped %s", skipped)
    grouped, tiles = sum(one.grouped for one in scanned), sum(one.tiles for one in scanned)
    if 0 < grouped < tiles:
        log.warning("%s of %s tiles have no group", f"{tiles - grouped:,}", f"{tiles:,}")
    names = set(index.read_table(out / index.FILE, ["group"])["group"].to_pylist()) - {""}
    if alike := groups.warning(names):
        log.warning(alike)


class _Scanned(NamedTuple):
    """Result of scanning a tar."""

    bad: list[str]  # invalid samples, one line each
    litter: list[str]  # members that are not data
    tiles: int
    grouped: int  # tiles with a group


@dataclass(frozen=True)
class _Scan:
    """Scans a tar in a worker process."""

    schema: AttributeSchema
    val: str
    group: str
    folder: Path  # for the indexes of single tars

    def part(self, path: Path) -> Path:
        """Returns the path of the index of one tar."""
        return self.folder / f"{path.name}.{index.FILE}"

    def __call__(self, path: Path) -> _Scanned:
        """Write the index of one tar."""
        split = "val" if fnmatch.fnmatch(path.name, self.val) else "train"
        problem_of: dict[str, str] = {}  # by key
        skipped: list[str] = []
        columns: dict[str, list[Any]] = {name: [] for name in index.arrow_schema(self.schema).names}
        sizes: set[tuple[int, int]] = set()
        kinds_of: dict[str, set[str]] = {}
        try:
            with tarfile.open(path, "r:") as tar:
                for key, sample in groupby(members(tar, skipped), lambda member: member.key):
                    worker_pool.count_tiles(1)
                    found = list(sample)
                    _check_contiguous(key, found, kinds_of)
                    try:
                        entry, size = self._row(key, found)
                    except ValueError as error:
                        problem_of[key] = str(error)
                        continue
                    sizes.add(size)
                    for name, value in ({"shard": path.name, "split": split} | entry).items():
                        columns[name].append(value)
            _check_layout(problem_of, kinds_of)
            if not kinds_of:
                raise tarfile.ReadError("no samples; remove it, or write it again")
        except (tarfile.TarError, OSError) as error:
            raise ValueError(f"{path}: not a readable tar: {error}") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        bad = [f"{path.name}: {key}: {problem}" for key, problem in problem_of.items()]
        table = pa.table(columns, schema=index.arrow_schema(self.schema))
        shard = index.Shard(path.name, split, path.stat().st_size, len(table), checksums.sha256_of(path))
        index.write(self.part(path), index.Header(self.schema, (shard,), tile.common_size(sizes), "", tuple(bad)), [table])
        return _Scanned(bad, skipped, len(table), sum(map(bool, columns["group"])))

    def _row(self, key: str, sample: Sequence[Member]) -> tuple[dict[str, Any], tuple[int, int]]:
        """Returns the row of the index and the size in pixels; ValueError if the sample is invalid."""
        kinds = samples.by_kind(sample)
        image = samples.image_of(kinds)
        levels, group = samples.read_levels(kinds, self.schema, self.group)
        size = samples.check_image(image.data)
        location = {"offset": image.offset, "length": len(image.data), "checksum": tile.checksum(image.data)}
        return location | {"key": key, "group": group} | dict(zip(self.schema.names, levels, strict=True)), size


def _check_contiguous(key: str, sample: Sequence[Member], kinds_of: dict[str, set[str]]) -> None:
    """Reject a tar in which the members of a sample are not consecutive."""
    kinds = {member.kind for member in sample}
    if key in kinds_of:
        repeated = ", ".join(sorted(kinds & kinds_of[key]))
        if repeated:
            raise ValueError(f"{key}.{repeated} is in the tar twice; write the tar again with each sample once")
        raise ValueError(
            f"the members of {key} are not consecutive, which WebDataset requires; unpack the tar and write it again "
            "with `tar --sort=name -C FOLDER -cf NEW.tar .`"
        )
    kinds_of[key] = kinds


def _check_layout(problem_of: dict[str, str], kinds_of: dict[str, set[str]]) -> None:
    """Reject a tar with images and levels in different folders, which makes every sample invalid."""
    by_name: dict[str, list[str]] = {}
    for key in problem_of:
        by_name.setdefault(PurePosixPath(key).name, []).append(key)
    for keys in by_name.values():
        kinds = set().union(*(kinds_of[key] for key in keys))
        if (
            len(keys) > 1
            and kinds & set(samples.IMAGES)
            and kinds & {"json", "cls"}
            and not set.intersection(*(kinds_of[key] for key in keys))
        ):
            raise ValueError(
                f"{' and '.join(keys[:2])} are one sample in two folders; WebDataset groups members whose paths are equal up to "
                "the first dot, so put images and levels in the same folder"
            )
