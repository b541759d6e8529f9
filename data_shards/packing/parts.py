"""Packing in parts: which shards a part has, the folder and the locks that the parts share, and merging them into a set.

The parts of one pack may run at the same time on several machines. All of them write to one folder beside the set, or to copies of it that
are brought together. An undivided pack is part 1/1. Writing the shards is in packer.py.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from attributegan.utils import files
from attributegan.utils.file_lock import exclusive_lock
from data_shards.format import checksums, index

T = TypeVar("T")

LOCK_WAIT_S = 10.0
PLAN = "plan.json"  # in the folder of the parts


@dataclass(frozen=True)
class Part:
    """Part ``number`` of ``count`` of the shards of a pack, counted from 1.

    Raises:
        ValueError: no such part.
    """

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ValueError(f"--part: there is no part {self}; write K/N with K from 1 to N, such as 2/8")

    @classmethod
    def parse(cls, text: str) -> Part:
        """Returns the part ``K/N``."""
        if not re.fullmatch(r"[0-9]{1,6}/[0-9]{1,6}", text):
            raise ValueError(f"--part: {text!r} is not a part; write K/N with K from 1 to N, such as 2/8")
        number, count = map(int, text.split("/"))
        return cls(number, count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, shards: Sequence[T]) -> Sequence[T]:
        """Returns every ``count``-th shard, so that parts have similar sizes; none if there are more parts than shards."""
        return shards[self.number - 1 :: self.count]


WHOLE = Part()


@dataclass(frozen=True)
class PlanFile:
    """What all parts of a pack must agree on: the content of ``plan.json``.

    Args:
        fingerprint: tiles, labels and options; see plan.py.
        parts: number of parts.
        shards: names of all shards of the set, in the order of the index.
        left_out: invalid rows of the table, one line each.
    """

    fingerprint: str
    parts: int
    shards: list[str]
    left_out: list[str]

    @classmethod
    def read(cls, folder: Path) -> PlanFile | None:
        """Returns the plan of the parts in ``folder``, None without one; ValueError if it is damaged."""
        path = folder / PLAN
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            plan = cls(**tree)
            if not (plan.parts >= 1 and all(not index.invalid_name(name) for name in plan.shards)):
                raise ValueError("no such parts or shards")
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}: damaged ({error}); copy it again from another part, or delete {folder} and pack again") from error
        return plan

    def write(self, folder: Path) -> None:
        with files.atomic_write(folder / PLAN) as stream:
            stream.write((json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n").encode())


def folder_of(out: Path, part: Part) -> Path:
    """Returns the folder of unfinished shards: ``.NAME.packing`` for an undivided pack, that of all parts for a part."""
    return out.with_name(f".{out.name}.packing") if part == WHOLE else parts_folder(out)


def parts_folder(out: Path) -> Path:
    """Returns the folder that the parts of the set ``out`` share until they are merged."""
    return out.with_name(f"{out.name}.parts")


def index_of(folder: Path, shard: str) -> Path:
    """Returns the path of the index of one shard, which exists if the shard is complete."""
    return folder / f"{shard}.{index.FILE}"


def set_lock(out: Path) -> AbstractContextManager[None]:
    """Lock the set: for an undivided pack, for a merge, and for a moment at the start of a part."""
    folder = folder_of(out, WHOLE)
    in_use = f"{folder}: another process is packing this set; wait for it or stop it"
    return exclusive_lock(folder.with_name(f"{folder.name}.lock"), in_use, LOCK_WAIT_S)


def part_lock(out: Path, part: Part) -> AbstractContextManager[None]:
    """Lock one part of the set; other parts can run at the same time."""
    folder = folder_of(out, part)
    in_use = f"{folder}: another process is packing part {part}; wait for it or stop it"
    return exclusive_lock(folder.with_name(f".{folder.name}-{part.number}-of-{part.count}.lock"), in_use, LOCK_WAIT_S)


def prepare(folder: Path, plan: PlanFile) -> None:
    """Create the folder of unfinished shards, or check that it belongs to the same pack; hold the lock of the set.

    An undivided pack deletes shards that an interrupted pack of other tiles or options left. Parts do not: other parts may be running.

    Raises:
        ValueError: the folder has parts of another pack.
    """
    folder.mkdir(exist_ok=True)
    if (folder / checksums.FILE).is_file():  # killed before the folder was renamed
        same = checksums.check_index(folder).source == plan.fingerprint
    else:
        found = PlanFile.read(folder)
        same = found == plan
        if found and found.parts != plan.parts and plan.parts > 1 and found.fingerprint == plan.fingerprint:
            raise ValueError(f"--part: {folder} has parts of a pack in {found.parts} parts; use the same number, or delete that folder")
    if same:
        return
    if plan.parts > 1 and any(path.name != PLAN for path in folder.iterdir()):
        raise ValueError(
            f"--part: {folder} has parts of other tiles, labels or options; give all parts the same, or delete that folder to restart"
        )
    remove_files(folder)
    plan.write(folder)


def merge(out: Path, overwrite: bool = False) -> index.Header:
    """Publish the parts of a pack as the set ``out``; does nothing if they were merged before.

    Args:
        overwrite: replace another shard set in ``out``.

    Raises:
        ValueError: a part is missing, incomplete, running or of another pack.
    """
    folder = parts_folder(out)
    if not folder.is_dir() and not (out / index.FILE).is_file():
        raise ValueError(f"{folder}: not found; pack all parts first with `attributegan-shard pack --part`, or check the name of the set")
    with set_lock(out):
        if not folder.is_dir():
            return checksums.check_index(out)
        if (folder / checksums.FILE).is_file():  # a merge was killed after this
            header = checksums.check_index(folder)
            return check_output(out, header.source, overwrite) or publish(folder, out, header)
        plan = PlanFile.read(folder)
        if not plan:
            raise ValueError(f"{folder / PLAN}: not found; copy it from another part, or pack again")
        if found := check_output(out, plan.fingerprint, overwrite):
            return found
        for number in range(1, min(plan.parts, len(plan.shards)) + 1):
            with part_lock(out, Part(number, plan.parts)):
                pass  # a part that starts now waits for the lock of the set
        left_out = plan.left_out + _checked(folder, plan)
        return publish(folder, out, finish(folder, plan.shards, plan.fingerprint, left_out))


def _checked(folder: Path, plan: PlanFile) -> list[str]:
    """Check that all shards are complete and of one pack; returns the invalid images, one line each."""
    left_out: list[str] = []
    missing: dict[str, list[str]] = {}
    for number, name in enumerate(plan.shards):
        part, path = Part(number % plan.parts + 1, plan.parts), index_of(folder, name)
        if not path.is_file():
            missing.setdefault(str(part), []).append(name)
            continue
        header = index.read_header(path)
        if header.source != plan.fingerprint or [shard.name for shard in header.shards] != [name]:
            raise ValueError(f"{path}: is of other tiles, labels or options; delete it and run part {part} again")
        tar = folder / name
        if not tar.is_file() or tar.stat().st_size != header.shards[0].size:
            raise ValueError(f"{tar}: missing or truncated; copy it again, or delete {path.name} and run part {part} again")
        left_out += header.left_out
    if missing:
        lines = "".join(
            f"\n  part {part}: {len(names):,} of {len(Part.parse(part).of(plan.shards)):,} shards are missing, such as {names[0]}"
            for part, names in missing.items()
        )
        raise ValueError(f"{folder}: {len(missing):,} of {plan.parts:,} parts are not complete; run them (again), then merge:{lines}")
    return left_out


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


def finish(folder: Path, names: Sequence[str], fingerprint: str, left_out: Sequence[str]) -> index.Header:
    """Write the index and the checksums of the whole set."""
    header = index.merge(folder / index.FILE, [index_of(folder, name) for name in names], fingerprint, left_out)
    checksums.write(folder, header)
    return header


def publish(folder: Path, out: Path, header: index.Header) -> index.Header:
    """Remove what is not part of the set from its finished folder and rename it to ``out``."""
    remove_files(folder, keep=[index.FILE, checksums.FILE, *(shard.name for shard in header.shards)])
    files.replace_folder(folder, out)
    return header


def discard(folder: Path, part: Part, shards: Sequence[str]) -> None:
    """Delete the shards of a part that has invalid tiles; other parts may be running in the same folder."""
    if part == WHOLE:
        shutil.rmtree(folder)
        return
    for name in part.of(shards):
        index_of(folder, name).unlink(missing_ok=True)
        (folder / name).unlink(missing_ok=True)


def remove_files(folder: Path, keep: Iterable[str] = ()) -> None:
    kept = set(keep)
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()
