"""Measures the tiles of a folder or a shard set in parallel; resumable, and every damaged tile is reported.

Rows are appended to ``{out}.partial``, one JSON line each, and written to the CSV when complete.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from attributegan.utils.files import atomic_write
from data_shards import worker_pool
from data_shards.format import index, tile
from data_shards.ingest.outlines import Outlines
from data_shards.measure import features, levels, regions, segment, stain
from data_shards.packing import sources
from data_shards.storage.shard_files import ShardFiles, open_location

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
JOB_TILES = 8
SIZE_DEPENDENT = ("nuclei_count", "mitosis_like")  # counts per tile, comparable only between tiles of one size


@dataclass(frozen=True)
class Tile:
    """A tile to measure; ``identity`` changes with its file."""

    file: str
    slide: str
    identity: str


class Source(Protocol):
    """A source of tiles; pickled to worker processes."""

    @property
    def tiles(self) -> Sequence[Tile]:
        """The tiles, in the order of the table."""

    def read(self, number: int) -> np.ndarray:
        """Read a tile, (H, W, 3) uint8; ValueError names the tile and the problem."""


class FolderTiles:
    """All images in a folder and its subfolders; the subfolder is the slide.

    Args:
        outlines: folder with the instance map of each image, if there is one.

    Raises:
        ValueError: no images, or an image without its instance map.
    """

    def __init__(self, root: Path, outlines: Path | None = None) -> None:
        if not root.is_dir():
            raise ValueError(f"--images: {root} is not a folder")
        paths = sorted(Path(parent, name) for parent, _, found in os.walk(root) for name in found if name.lower().endswith(IMAGES))
        if not paths:
            raise ValueError(f"--images: no images in {root} ({', '.join(IMAGES)})")
        self.root, self._outlines = root, Outlines(outlines) if outlines else None
        self.tiles = [self._tile(path) for path in paths]

    def _tile(self, path: Path) -> Tile:
        status, file = path.stat(), path.relative_to(self.root)
        outlines = f" {self._outlines.identity(file.as_posix())}" if self._outlines else ""
        slide = file.parent.as_posix() if file.parent.name else ""
        return Tile(file.as_posix(), slide, f"{status.st_size} {status.st_mtime_ns}{outlines}")

    def read(self, number: int) -> np.ndarray:
        file = self.tiles[number].file
        member = sources.Folder(str(self.root)).read({"file": file})
        try:
            return tile.decode(member.data)
        except tile.DECODING_ERRORS as error:
            raise ValueError(f"{file}: not a readable image: {error}") from error

    def outlines(self, number: int, image_HWC: np.ndarray) -> np.ndarray:
        """Read the instance map of a tile, (H, W) int32; ValueError names the file and the problem."""
        assert self._outlines is not None
        return regions.relabel(self._outlines.read(self.tiles[number].file, image_HWC.shape))


class ShardTiles:
    """All tiles of a shard set; the group is the slide."""

    def __init__(self, location: str, cache: Any = None) -> None:
        self.location, folder, header, self.tars = open_location(location, cache)
        table = index.read_table(folder / index.FILE, ["shard", "offset", "length", "key", "group", "checksum"])
        number_of = {shard.name: number for number, shard in enumerate(header.shards)}
        columns = (table[name].to_pylist() for name in ("shard", "offset", "length", "key", "group", "checksum"))
        rows = list(zip(*columns, strict=True))
        self.positions = [(number_of[shard], offset, length, checksum) for shard, offset, length, _, _, checksum in rows]
        self.tiles = [Tile(key, group or "", f"{checksum} {length}") for _, _, length, key, group, checksum in rows]

    tars: ShardFiles

    def read(self, number: int) -> np.ndarray:
        shard, offset, length, checksum = self.positions[number]
        try:
            data = self.tars.read(shard, length, offset)
            if len(data) != length or tile.checksum(data) != checksum:
                raise ValueError("wrong checksum")
            return tile.decode(data)
        except tile.DECODING_ERRORS as error:
            raise ValueError(f"{self.location}: {self.tiles[number].file}: damaged: {error}") from error


@dataclass(frozen=True)
class TileRange:
    """The tiles ``first`` to ``last - 1`` of another source."""

    source: Source
    first: int
    last: int

    @property
    def tiles(self) -> Sequence[Tile]:
        return self.source.tiles[self.first : self.last]

    def read(self, number: int) -> np.ndarray:
        return self.source.read(self.first + number)


@dataclass(frozen=True)
class Settings:
    """How tiles are measured.

    Args:
        mpp: micrometres per pixel.
        stains: stain vectors; None estimates them for each tile (Macenko).
        segment: ``MODULE:FUNCTION`` to use instead of `segment.segment`.
        outlined: nuclei are outlined by the source's instance maps instead.
    """

    mpp: float | None = None
    stains: stain.Stains | None = stain.RUIFROK
    segment: str | None = None
    outlined: bool = False

    def __post_init__(self) -> None:
        if self.mpp is not None and not 0 < self.mpp < 100:
            raise ValueError(f"--mpp: {self.mpp} must be between 0 and 100 micrometres per pixel")

    @property
    def how(self) -> dict[str, Any]:
        """The settings as recorded in files."""
        vectors = "macenko" if self.stains is None else ",".join(f"{x:g}" for x in (*self.stains.hematoxylin, *self.stains.eosin))
        segmentation = "instance maps" if self.outlined else self.segment or f"built in, version {segment.VERSION}"
        return {"mpp": self.mpp, "stains": vectors, "segmentation": segmentation}


@dataclass
class Measured:
    """Measured tiles; ``rows`` of the readable ones in the order of the source: ``file``, ``slide``, ``width``, ``height``, values."""

    names: tuple[str, ...]
    rows: list[dict[str, Any]]
    bad: list[str] = field(default_factory=list)

    def column(self, name: str) -> np.ndarray:
        """Returns the values of a measurement, NaN where undefined."""
        return np.array([row[name] for row in self.rows], np.float64)

    def how(self, by: str, settings: Settings) -> dict[str, Any]:
        """Returns the settings that affect a measurement, including the tile size for counts.

        Raises:
            ValueError: tiles of several sizes, whose counts are not comparable.
        """
        if by not in SIZE_DEPENDENT:
            return settings.how
        sizes = sorted({(row["width"], row["height"]) for row in self.rows})
        if len(sizes) > 1:
            raise ValueError(
                f"--attributes: {by} is not comparable between tiles of {len(sizes)} sizes; use area_fraction, or nuclei_per_mm2 with --mpp"
            )
        return settings.how | {"size": f"{sizes[0][0]} x {sizes[0][1]}"}


@dataclass(frozen=True)
class _Work:
    """Measures tiles in a worker process."""

    source: Source
    settings: Settings

    def __call__(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        segmenter = segment.load(self.settings.segment) if self.settings.segment else segment.segment
        rows = []
        for number in numbers:
            rows.append(self._row(number, segmenter))
            worker_pool.count_tiles(1)
        return rows

    def _row(self, number: int, segmenter: segment.Segment) -> dict[str, Any]:
        tile = self.source.tiles[number]
        row: dict[str, Any] = {"file": tile.file, "identity": tile.identity}
        try:
            image_HWC = self.source.read(number)
            outlines = self.source.outlines(number, image_HWC) if isinstance(self.source, FolderTiles) and self.settings.outlined else None
        except ValueError as error:
            return row | {"error": str(error)}
        labels_HW = segmenter(image_HWC) if outlines is None else outlines
        values = features.measure(image_HWC, labels_HW, self.settings.mpp, self.settings.stains)
        plain = {name: None if math.isnan(value) else value for name, value in values.items()}
        return row | {"width": image_HWC.shape[1], "height": image_HWC.shape[0], "values": plain}


def measure(
    source: Source, settings: Settings, partial: Path, processes: int = 1, progress: worker_pool.Progress = lambda done: None
) -> Measured:
    """Measure every tile of ``source``; rows that are in ``partial`` already are reused.

    Raises:
        ValueError: ``partial`` was written with other settings, or another process is writing it.
    """
    with _open_partial(partial, settings) as (stream, done):
        finished = {number for number, tile in enumerate(source.tiles) if (tile.file, tile.identity) in done}
        remaining = [number for number in range(len(source.tiles)) if number not in finished]
        jobs = [remaining[first : first + JOB_TILES] for first in range(0, len(remaining), JOB_TILES)]
        for rows in worker_pool.run(_Work(source, settings), jobs, processes, lambda count: progress(count + len(finished))):
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
def _open_partial(path: Path, settings: Settings) -> Iterator[tuple[BinaryIO, dict[tuple[str, str], dict[str, Any]]]]:
    """Lock the partial file and yield it for appending, with its complete rows without errors."""
    with path.open("a+b") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"--out: another process is writing {path}; wait for it or stop it") from error
        stream.seek(0)
        text = stream.read()
        complete = text[: text.rfind(b"\n") + 1]
        stream.truncate(len(complete))  # drops a partial row of an interrupted run
        head, *lines = complete.splitlines() or [b""]
        current = json.dumps(settings.how).encode()
        if not head:
            stream.write(current + b"\n")
        elif head != current:
            raise ValueError(
                f"--out: {path} was measured with {head.decode(errors='replace')}, now {current.decode()}; remove it to start again"
            )
        rows = [json.loads(line) for line in lines]
        yield stream, {(row["file"], row["identity"]): row for row in rows if "error" not in row}


def join_partials(partials: Sequence[Path], settings: Settings, out: Path) -> None:
    """Write the rows of several partial files to the partial file ``out``."""
    with atomic_write(out) as stream:
        stream.write(json.dumps(settings.how).encode() + b"\n")
        for partial in partials:
            with partial.open("rb") as rows:
                next(rows)
                shutil.copyfileobj(rows, stream)


def write(measured: Measured, rules: Sequence[levels.Rule], path: Path) -> None:
    """Write the CSV atomically: ``file``, ``slide`` if tiles have one, size, measurements, and a level for each rule."""
    columns = ["file", *(["slide"] if any(row["slide"] for row in measured.rows) else []), "width", "height", *measured.names]
    level_of = {rule.attribute: rule.levels(measured.column(rule.by)).tolist() for rule in rules}
    if clashing := set(level_of) & {*columns, "slide"}:
        raise ValueError(f"--attributes {sorted(clashing)[0]}=…: the table has a column with this name; choose another name")
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
