"""An index for tars that others made: read every member once, find the images and their levels.

A sample is what WebDataset takes for one: members in a row whose names are equal up to the first dot. What it must have is in samples.py,
what a tar must be in tar_members.py, and what else may lie in the folder in tar_folder.py.
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
from data_shards.format.samples import read_levels as read_levels
from data_shards.format.tar_members import Member, members
from data_shards.packing import set_rows, tar_folder

log = logging.getLogger("attributegan.data")
MOST_LINES = 200  # of what is wrong, in one message


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
    """Write the index of the tars in ``folder``; the tars stay as they are.

    Args:
        val: pattern of the names of tars that are held out.
        group: entry of the ``.json`` that names the group.
        out: folder for the index, with links to the tars; by default it goes beside them.
        skip_bad: leave out samples that are wrong, instead of refusing all.

    Raises:
        ValueError: no tars, unreadable ones, some that would be overlooked, or bad samples (the message has them all).
    """
    out = folder if out is None else out
    if (out / index.FILE).exists() and not overwrite:
        raise ValueError(f"{out}: has an index already; replace it with --overwrite")
    found = tar_folder.look(folder)
    if wrong := [what for tar in found.tars if (what := index.wrong_name(tar.name))]:
        raise ValueError(f"{folder}: {wrong[0]}")
    with _writable(out) as tmp_path:
        scan = _Scan(schema, val, group, tmp_path)
        scanned = list(worker_pool.run(scan, found.tars, processes, progress))
        bad = [line for one in scanned for line in one.bad]
        if bad and not skip_bad:
            raise ValueError(f"{len(bad):,} samples can't be used; nothing was written. Leave them out with --skip-bad:{_lines(bad)}")
        _check_groups(group, scanned)
        left_out = [*bad, *(f"{name}: passed over: not a tar" for name in found.others)]
        try:
            header = index.merge(tmp_path / index.FILE, [scan.part(tar) for tar in found.tars], "tars as they were", left_out)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error
        if problems := list(set_rows.problems(tmp_path / index.FILE, header, found.tars[0].parent)):
            raise ValueError(f"{folder}: the tars make no clean set; nothing was written:{_lines(problems)}")
        if out != folder:
            _link(out, found.tars)
        (tmp_path / index.FILE).replace(out / index.FILE)
    checksums.write(out, header)
    _tell(found, scanned, header, out)
    return header


@contextmanager
def _writable(out: Path) -> Iterator[Path]:
    """A folder to write into, within ``out``; ValueError when that can't be written to."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        tmp_path = tempfile.TemporaryDirectory(prefix=".index-", dir=out)
    except OSError as error:
        raise ValueError(f"{out}: can't be written to ({error.strerror}); give a folder for the index with --out") from error
    with tmp_path:
        yield Path(tmp_path.name)


def _link(out: Path, tars: Sequence[Path]) -> None:
    for tar in tars:
        link = out / tar.name
        if link.is_symlink():
            link.unlink()
        elif link.exists():
            raise ValueError(f"--out: {link} is there and no link to a tar; choose another folder")
        link.symlink_to(os.path.relpath(tar.resolve(), out.resolve()))


def _lines(lines: Sequence[str]) -> str:
    more = f"\n  and {len(lines) - MOST_LINES:,} more" if len(lines) > MOST_LINES else ""
    return "".join(f"\n  {line}" for line in lines[:MOST_LINES]) + more


def _check_groups(group: str, scanned: Sequence[_Scanned]) -> None:
    """Refuse a --group that no sample has."""
    if group != "group" and any(one.tiles for one in scanned) and not any(one.grouped for one in scanned):
        raise ValueError(f"--group: no sample has an entry {group!r} in its .json")


def _tell(found: tar_folder.Found, scanned: Sequence[_Scanned], header: index.Header, out: Path) -> None:
    """Say what was passed over, and which groups look alike."""
    if what := litter.counted([*found.litter, *(name for one in scanned for name in one.litter)]):
        log.warning("passed over: %s", what)
    grouped, tiles = sum(one.grouped for one in scanned), sum(one.tiles for one in scanned)
    if 0 < grouped < tiles:
        log.warning("%s of %s tiles have no group", f"{tiles - grouped:,}", f"{tiles:,}")
    names = set(index.read_table(out / index.FILE, ["group"])["group"].to_pylist()) - {""}
    if alike := groups.warning(names):
        log.warning(alike)


class _Scanned(NamedTuple):
    """What was met in a tar."""

    bad: list[str]  # samples that are wrong, a line each
    litter: list[str]  # members that are no data
    tiles: int
    grouped: int  # tiles with a group


@dataclass(frozen=True)
class _Scan:
    """What worker processes do with a tar."""

    schema: AttributeSchema
    val: str
    group: str
    aside: Path

    def part(self, path: Path) -> Path:
        return self.aside / f"{path.name}.{index.FILE}"

    def __call__(self, path: Path) -> _Scanned:
        """Write the index of one tar."""
        split = "val" if fnmatch.fnmatch(path.name, self.val) else "train"
        wrong: dict[str, str] = {}
        nothing: list[str] = []
        columns: dict[str, list[Any]] = {name: [] for name in index.arrow_schema(self.schema).names}
        sizes: set[tuple[int, int]] = set()
        kinds_of: dict[str, set[str]] = {}
        try:
            with tarfile.open(path, "r:") as tar:
                for key, sample in groupby(members(tar, nothing), lambda member: member.key):
                    worker_pool.count_tiles(1)
                    met = list(sample)
                    _check_apart(key, met, kinds_of)
                    try:
                        entry, size = self._row(key, met)
                    except ValueError as error:
                        wrong[key] = str(error)
                        continue
                    sizes.add(size)
                    for name, value in ({"shard": path.name, "split": split} | entry).items():
                        columns[name].append(value)
            _check_layout(wrong, kinds_of)
            if not kinds_of:
                raise tarfile.ReadError("has no samples; remove it, or write it again")
        except (tarfile.TarError, OSError) as error:
            raise ValueError(f"{path}: not a readable tar: {error}") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        bad = [f"{path.name}: {key}: {what}" for key, what in wrong.items()]
        table = pa.table(columns, schema=index.arrow_schema(self.schema))
        shard = index.Shard(path.name, split, path.stat().st_size, len(table), checksums.sha256_of(path))
        index.write(self.part(path), index.Header(self.schema, (shard,), tile.common_size(sizes), "", tuple(bad)), [table])
        return _Scanned(bad, nothing, len(table), sum(map(bool, columns["group"])))

    def _row(self, key: str, sample: Sequence[Member]) -> tuple[dict[str, Any], tuple[int, int]]:
        """The row of the index and the size in pixels; ValueError says what the sample lacks."""
        kinds = samples.by_kind(sample)
        image = samples.image_of(kinds)
        levels, group = samples.read_levels(kinds, self.schema, self.group)
        size = samples.check_image(image.data)
        place = {"offset": image.offset, "length": len(image.data), "checksum": tile.checksum(image.data)}
        return place | {"key": key, "group": group} | dict(zip(self.schema.names, levels, strict=True)), size


def _check_apart(key: str, sample: Sequence[Member], kinds_of: dict[str, set[str]]) -> None:
    """Refuse a tar in which a sample's members don't follow one another."""
    kinds = {member.kind for member in sample}
    if key in kinds_of:
        again = ", ".join(sorted(kinds & kinds_of[key]))
        if again:
            raise ValueError(f"{key}.{again} is in the tar twice; write the tar again with each sample once")
        raise ValueError(
            f"the members of {key} don't follow one another, as WebDataset needs; sort them: unpack the tar, and write it "
            "with `tar --sort=name -C FOLDER -cf NEW.tar .`"
        )
    kinds_of[key] = kinds


def _check_layout(wrong: dict[str, str], kinds_of: dict[str, set[str]]) -> None:
    """Refuse a tar with images and levels in different folders, for then all its samples are wrong."""
    by_name: dict[str, list[str]] = {}
    for key in wrong:
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
                f"{' and '.join(keys[:2])} are one sample in two folders; WebDataset joins only members that are equal up to "
                "the first dot, the folder included, so put images and levels side by side"
            )
