"""Measures many tiles, of a folder or a shard set: in processes, resumable, every damaged tile named.

Rows go to ``{out}.partial`` as they come, a line each, and to the CSV when all are there.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from attributegan.utils.files import atomic_write
from data_shards import worker_pool
from data_shards.format import index, tile
from data_shards.measure import features, levels, segment, stain
from data_shards.packing import sources
from data_shards.storage.shard_files import ShardFiles, open_location

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
JOB_TILES = 8
SIZE_MATTERS = ("nuclei_count", "mitosis_like")  # counts of a tile: comparable between tiles of one size only


@dataclass(frozen=True)
class Tile:
    """``identity`` changes when the file does."""

    file: str
    slide: str
    identity: str


class Source(Protocol):
    """Travels to worker processes."""

    @property
    def tiles(self) -> Sequence[Tile]:
        """In the order of the table."""

    def read(self, number: int) -> np.ndarray:
        """Pixels of a tile, (H, W, 3) uint8; ValueError names the tile and says what is wrong."""


class FolderTiles:
    """All images in a folder and below; the folder that a tile lies in is its slide."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise ValueError(f"--images: {root} is not a folder")
        paths = sorted(Path(at, name) for at, _, found in os.walk(root) for name in found if name.lower().endswith(IMAGES))
        if not paths:
            raise ValueError(f"--images: {root} has no images ({', '.join(IMAGES)})")
        self.root = root
        self.tiles = [self._tile(path) for path in paths]

    def _tile(self, path: Path) -> Tile:
        status, file = path.stat(), path.relative_to(self.root)
        return Tile(file.as_posix(), file.parent.as_posix() if file.parent.name else "", f"{status.st_size} {status.st_mtime_ns}")

    def read(self, number: int) -> np.ndarray:
        file = self.tiles[number].file
        member = sources.Folder(str(self.root)).read({"file": file})
        try:
            return tile.decode(member.data)
        except tile.DECODING_ERRORS as error:
            raise ValueError(f"{file}: not a readable image: {error}") from error


class ShardTiles:
    """All tiles of a shard set, by key; the group is the slide."""

    def __init__(self, place: str, cache: Any = None) -> None:
        self.place, folder, header, self.tars = open_location(place, cache)
        table = index.read_table(folder / index.FILE, ["shard", "offset", "length", "key", "group", "checksum"])
        number = {shard.name: place for place, shard in enumerate(header.shards)}
        columns = (table[name].to_pylist() for name in ("shard", "offset", "length", "key", "group", "checksum"))
        rows = list(zip(*columns, strict=True))
        self.at = [(number[shard], offset, length, checksum) for shard, offset, length, _, _, checksum in rows]
        self.tiles = [Tile(key, group or "", f"{checksum} {length}") for _, _, length, key, group, checksum in rows]

    tars: ShardFiles

    def read(self, number: int) -> np.ndarray:
        shard, offset, length, checksum = self.at[number]
        try:
            data = self.tars.read(shard, length, offset)
            if len(data) != length or tile.checksum(data) != checksum:
                raise ValueError("its bytes are not those that were packed")
            return tile.decode(data)
        except tile.DECODING_ERRORS as error:
            raise ValueError(f"{self.place}: {self.tiles[number].file}: damaged: {error}") from error


@dataclass(frozen=True)
class Settings:
    """How tiles are measured.

    Args:
        mpp: micrometres per pixel.
        stains: vectors; None takes each tile's own (Macenko).
        segment: ``MODULE:FUNCTION`` in the place of `segment.segment`.
    """

    mpp: float | None = None
    stains: stain.Stains | None = stain.RUIFROK
    segment: str | None = None

    def __post_init__(self) -> None:
        if self.mpp is not None and not 0 < self.mpp < 100:
            raise ValueError(f"--mpp: {self.mpp} is not above 0, in micrometres per pixel")

    @property
    def how(self) -> dict[str, Any]:
        vectors = "macenko" if self.stains is None else ",".join(f"{x:g}" for x in (*self.stains.hematoxylin, *self.stains.eosin))
        return {"mpp": self.mpp, "stains": vectors, "segmentation": self.segment or f"built in, version {segment.VERSION}"}


@dataclass
class Measured:
    """``rows``: of every readable tile, in the order of the source: ``file``, ``slide``, ``width``, ``height`` and the measurements."""

    names: tuple[str, ...]
    rows: list[dict[str, Any]]
    bad: list[str] = field(default_factory=list)

    def column(self, name: str) -> np.ndarray:
        """Values of a measurement, NaN where a tile does not allow it."""
        return np.array([row[name] for row in self.rows], np.float64)

    def how(self, by: str, settings: Settings) -> dict[str, Any]:
        """What decides the values of a measurement, the size of the tiles where that matters.

        Raises:
            ValueError: tiles of several sizes, whose counts can't be compared.
        """
        if by not in SIZE_MATTERS:
            return settings.how
        sizes = sorted({(row["width"], row["height"]) for row in self.rows})
        if len(sizes) > 1:
            raise ValueError(
                f"--attributes: {by} can't be compared between tiles of {len(sizes)} sizes; use area_fraction, or nuclei_per_mm2 with --mpp"
            )
        return settings.how | {"size": f"{sizes[0][0]} x {sizes[0][1]}"}


@dataclass(frozen=True)
class _Work:
    source: Source
    settings: Settings

    def __call__(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        outlines = segment.load(self.settings.segment) if self.settings.segment else segment.segment
        rows = []
        for number in numbers:
            rows.append(self._row(number, outlines))
            worker_pool.count_tiles(1)
        return rows

    def _row(self, number: int, outlines: segment.Segment) -> dict[str, Any]:
        tile = self.source.tiles[number]
        row: dict[str, Any] = {"file": tile.file, "identity": tile.identity}
        try:
            image_HWC = self.source.read(number)
        except ValueError as error:
            return row | {"error": str(error)}
        values = features.measure(image_HWC, outlines(image_HWC), self.settings.mpp, self.settings.stains)
        plain = {name: None if math.isnan(value) else value for name, value in values.items()}
        return row | {"width": image_HWC.shape[1], "height": image_HWC.shape[0], "values": plain}


def measure(
    source: Source, settings: Settings, partial: Path, processes: int = 1, progress: worker_pool.Progress = lambda done: None
) -> Measured:
    """Measure every tile of ``source``; rows that ``partial`` has already are taken from there, if they were measured the same way.

    Raises:
        ValueError: ``partial`` is of other settings, or another process writes it.
    """
    with _appending(partial, settings) as (stream, done):
        known = {number for number, tile in enumerate(source.tiles) if (tile.file, tile.identity) in done}
        left = [number for number in range(len(source.tiles)) if number not in known]
        jobs = [left[first : first + JOB_TILES] for first in range(0, len(left), JOB_TILES)]
        for rows in worker_pool.run(_Work(source, settings), jobs, processes, lambda count: progress(count + len(known))):
            for row in rows:
                stream.write(json.dumps(row).encode() + b"\n")
                done[row["file"], row["identity"]] = row
            stream.flush()
    names, result = features.names(settings.mpp), []
    found = [(one, done[one.file, one.identity]) for one in source.tiles]
    for one, row in found:
        if "error" not in row:
            values = {name: float("nan") if row["values"][name] is None else row["values"][name] for name in names}
            result.append({"file": one.file, "slide": one.slide, "width": row["width"], "height": row["height"], **values})
    return Measured(names, result, [row["error"] for _, row in found if "error" in row])


@contextlib.contextmanager
def _appending(path: Path, settings: Settings) -> Iterator[tuple[BinaryIO, dict[tuple[str, str], dict[str, Any]]]]:
    """The file of rows, to append to, and the whole rows without errors that it has."""
    with path.open("a+b") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"--out: another command is writing {path}") from error
        stream.seek(0)
        text = stream.read()
        whole = text[: text.rfind(b"\n") + 1]
        stream.truncate(len(whole))  # a row that a stopped command did not finish
        head, *lines = whole.splitlines() or [b""]
        mine = json.dumps(settings.how).encode()
        if not head:
            stream.write(mine + b"\n")
        elif head != mine:
            raise ValueError(
                f"--out: {path} was measured with {head.decode(errors='replace')}, now {mine.decode()}; remove it to start again"
            )
        rows = [json.loads(line) for line in lines]
        yield stream, {(row["file"], row["identity"]): row for row in rows if "error" not in row}


def write(measured: Measured, rules: Sequence[levels.Rule], path: Path) -> None:
    """Write the CSV, whole or not at all: ``file``, ``slide`` if tiles have one, size, measurements, a level for each rule."""
    columns = ["file", *(["slide"] if any(row["slide"] for row in measured.rows) else []), "width", "height", *measured.names]
    level_of = {rule.attribute: rule.levels(measured.column(rule.by)).tolist() for rule in rules}
    if taken := set(level_of) & {*columns, "slide"}:
        raise ValueError(f"--attributes {sorted(taken)[0]}=…: the table has a column of that name; choose another")
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*columns, *level_of])
    for number, row in enumerate(measured.rows):
        table.writerow([_entry(row[name]) for name in columns] + [level_N[number] for level_N in level_of.values()])
    with atomic_write(path) as stream:
        stream.write(text.getvalue().encode())


def _entry(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return str(value)
