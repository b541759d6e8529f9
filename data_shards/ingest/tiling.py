"""Cuts tissue tiles from whole-slide images: which slides, worker processes, atomic output. Reading is in slide.py, tissue in tissue.py.

A slide becomes a folder ``{slide}`` of images with a ``tiles.csv`` and a ``slide.json`` (how it was cut), which is written under a
temporary name and renamed when complete. Users add columns with levels to the table; labels.py and packer.py process it further.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from attributegan.utils import files
from attributegan.utils.file_lock import exclusive_lock
from data_shards import worker_pool
from data_shards.format import tables
from data_shards.format import tile as tile_format
from data_shards.ingest.positions import Options, extent, find_positions
from data_shards.ingest.slide import SCANNER_MPP, Slide, is_scanner_mpp
from data_shards.ingest.tissue import SHARPNESS, otsu, sharpness, tissue_mask

__all__ = ["SHARPNESS", "Options", "Slide", "Tiling", "find_positions", "otsu", "sharpness", "tiling", "tissue_mask"]

VERSION = 1  # of the method; tiles of different versions are not mixed
COLUMNS = ("file", "slide", "x", "y", "mpp", "size", "tissue", "sharpness")
TABLE, RECORD, TMP_FOLDER = "tiles.csv", "slide.json", ".tiling"
JOB_TILES = 64  # tile positions cut by one process at a time

Row = tuple[str, str, int, int, float, int, str, str]  # of the table, ordered as `COLUMNS`


class _Job(NamedTuple):
    """A range of the tile positions of one slide, cut by one process."""

    slide: Path
    first: int
    last: int


class _Surveyed(NamedTuple):
    """A surveyed slide: its resolution and origin, and its numbers of tile positions, all and with tissue."""

    slide: Path
    has_mpp: bool
    mpp_XY: tuple[float, float]
    origin_XY: tuple[int, int]
    positions: int
    with_tissue: int


@contextmanager
def tiling(slides: Sequence[Path], out: Path, options: Options, slide_mpp: float | None = None) -> Iterator[Tiling]:
    """Lock the folder ``out`` to write tiles into it (see `Tiling`).

    Args:
        slide_mpp: micrometres per pixel of slides without resolution metadata.

    Raises:
        ValueError: two slides with the same name, or ``out`` is in use or has other contents.
    """
    check_slides(slides, slide_mpp)
    with _opened(lambda: Tiling(slides, out, options, slide_mpp), out, TMP_FOLDER) as work:
        yield work


@contextmanager
def tiling_of_one(slide: Path, out: Path, options: Options, slide_mpp: float | None = None) -> Iterator[Tiling]:
    """As `tiling`, for one slide of many that other processes cut into ``out`` at the same time; checks and locks only its folder."""
    tmp_name = f"{TMP_FOLDER}-{hashlib.sha256(slide.stem.encode()).hexdigest()[:16]}"
    with _opened(lambda: Tiling([slide], out, options, slide_mpp, tmp_name), out, tmp_name) as work:
        yield work


def check_slides(slides: Sequence[Path], slide_mpp: float | None) -> None:
    """Raises ValueError for two slides with the same name, or an implausible ``slide_mpp``."""
    if slide_mpp is not None and not is_scanner_mpp(slide_mpp):
        raise ValueError(f"--slide-mpp: {slide_mpp} is not between {SCANNER_MPP[0]} and {SCANNER_MPP[1]} um per pixel")
    for before, slide in itertools.pairwise(sorted(slides, key=lambda slide: slide.stem)):
        if before.stem == slide.stem:
            raise ValueError(f"{slide}: would use the same folder {slide.stem} as {before}; rename one of them")


@contextmanager
def _opened(make: Callable[[], Tiling], out: Path, tmp_name: str) -> Iterator[Tiling]:
    """Lock the temporary folder and empty it while the block runs."""
    out.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(out / f"{tmp_name}.lock", f"--out: another process is writing tiles to {out}; wait for it or stop it"):
        work = make()
        shutil.rmtree(work.tmp_folder, ignore_errors=True)  # left by a killed run
        work.tmp_folder.mkdir()
        try:
            yield work
        finally:
            shutil.rmtree(work.tmp_folder, ignore_errors=True)


class Tiling:
    """Cuts slides into a folder: `survey` finds positions with tissue, `cut` writes the tiles, and `write_table` their table.

    Slides that were already cut with the same options are skipped. Created by `tiling`.

    Args:
        tmp_name: temporary folder in ``out``; with another than the default, only the folders of ``slides`` are checked.
    """

    def __init__(self, slides: Sequence[Path], out: Path, options: Options, slide_mpp: float | None, tmp_name: str = TMP_FOLDER) -> None:
        self.out, self.options, self.slide_mpp, self.tmp_folder = out, options, slide_mpp, out / tmp_name
        self._recipe = {"version": VERSION, **asdict(options)}
        cut = (folder for slide in slides if ((folder := out / slide.stem) / RECORD).is_file())
        self._check_out(_folders(out) if tmp_name == TMP_FOLDER else cut)
        self.done = [slide for slide in slides if self._is_done(slide)]
        self._todo = [slide for slide in slides if slide not in self.done]
        self._surveyed: list[_Surveyed] = []

    def survey(self, processes: int = 1) -> list[str]:
        """Find the positions of the tiles; returns the problems of slides that can't be cut, one line each. Those are skipped."""
        bad = []
        for found in worker_pool.run(self._survey, self._todo, processes, lambda done: None):
            if isinstance(found, str):
                bad.append(found)
            else:
                self._surveyed.append(found)
        return bad

    @property
    def positions(self) -> int:
        """Number of tile positions with tissue in all surveyed slides."""
        return sum(found.with_tissue for found in self._surveyed)

    def cut(self, processes: int = 1, progress: worker_pool.Progress = lambda done: None) -> tuple[list[dict[str, Any]], list[str]]:
        """Write the tiles; the bytes are the same for any number of processes.

        Returns:
            The record of every slide that was cut, and the problems of the others, one line each.
        """
        ends = ((found.slide, found.with_tissue) for found in self._surveyed)
        jobs = [_Job(slide, first, min(first + JOB_TILES, end)) for slide, end in ends for first in range(0, max(end, 1), JOB_TILES)]
        results = zip(jobs, worker_pool.run(self._cut, jobs, processes, progress), strict=True)
        records, bad = [], []
        of_slides = itertools.groupby(results, lambda result: result[0].slide)
        for found, (_, of_slide) in zip(self._surveyed, of_slides, strict=True):
            try:
                records.append(self._finish(found, (tiles for _, tiles in of_slide)))
            except ValueError as error:
                bad.append(str(error))
        return records, bad

    def record(self, slide: Path) -> dict[str, Any]:
        """Returns the record of a slide that has been cut."""
        record: dict[str, Any] = json.loads((self.out / slide.stem / RECORD).read_text())
        return record

    def write_table(self) -> int:
        """Write ``tiles.csv`` of all slides in ``out``; returns its number of tiles."""
        count = 0
        with files.atomic_write(self.out / TABLE) as stream:
            stream.write(",".join(COLUMNS).encode() + b"\n")
            for folder in _folders(self.out):
                with (folder / TABLE).open("rb") as part:
                    next(part)
                    for line in part:
                        stream.write(line)
                        count += 1
        return count

    def _check_out(self, folders: Iterable[Path]) -> None:
        """Reject ``folders`` of slides cut with other options, or columns added to the table."""
        table = self.out / TABLE
        if table.exists():
            added = [name for name in tables.header_of(table) if name not in COLUMNS]
            if added:
                raise ValueError(f"{table}: has added columns ({', '.join(added)}) that would be lost; rename it first")
        for folder in folders:
            was = json.loads((folder / RECORD).read_text())["options"]
            if was != self._recipe:
                listed = ", ".join(f"{name} {value}" for name, value in was.items())
                raise ValueError(f"--out: {folder} was cut with other options ({listed}); choose another folder, or remove it")

    def _is_done(self, slide: Path) -> bool:
        folder = self.out / slide.stem
        if not folder.exists():
            return False
        if not (folder / RECORD).is_file():
            raise ValueError(f"--out: {folder} exists but was not written by this command (no {RECORD}); choose another folder")
        record = json.loads((folder / RECORD).read_text())
        if slide.is_file() and record["bytes"] != slide.stat().st_size:
            raise ValueError(f"{slide}: {folder} contains tiles of another slide with this name; remove it, or choose another --out")
        if record["slide_mpp"] is not None and self.slide_mpp not in (None, record["slide_mpp"]):
            raise ValueError(f"--slide-mpp: {folder} was cut with {record['slide_mpp']}; remove it, or choose another --out")
        return True

    def _survey(self, path: Path) -> _Surveyed | str:
        """Save the tile positions with tissue to the temporary folder; returns the problem if the slide can't be read."""
        try:
            with closing(Slide(path, self.slide_mpp)) as slide:
                tiles_N3, positions = find_positions(slide, self.options)
        except ValueError as error:
            return str(error)
        np.save(self.tmp_folder / f"{path.stem}.npy", tiles_N3)
        (self.tmp_folder / path.stem).mkdir()
        return _Surveyed(path, slide.has_mpp, slide.mpp_XY, (slide.bounds[0], slide.bounds[1]), positions, len(tiles_N3))

    def _cut(self, job: _Job) -> list[Row] | str:
        tiles_N3 = np.load(self.tmp_folder / f"{job.slide.stem}.npy", mmap_mode="r")[job.first : job.last]
        try:
            with closing(Slide(job.slide, self.slide_mpp)) as slide:
                return [row for x, y, tissue in tiles_N3.tolist() if (row := self._tile(slide, int(x), int(y), tissue))]
        except ValueError as error:
            return str(error)

    def _tile(self, slide: Slide, x: int, y: int, tissue: float) -> Row | None:
        """Write the tile at ``x``, ``y`` and return its row of the table; None if it is blurred."""
        size = self.options.size
        width, height = extent(slide, self.options, size)
        image = slide.read(x, y, width, height, (size, size))
        worker_pool.count_tiles(1)
        if (sharp := sharpness(image)) < self.options.sharpness:
            return None
        file = f"{slide.path.stem}/{x}_{y}.{'png' if self.options.jpeg is None else 'jpg'}"
        (self.tmp_folder / file).write_bytes(_encoded(image, self.options.jpeg))
        return file, slide.path.stem, x, y, self.options.mpp, size, f"{tissue:.3f}", f"{sharp:.1f}"

    def _finish(self, found: _Surveyed, results: Iterable[list[Row] | str]) -> dict[str, Any]:
        """Write table and record, and rename the folder; ValueError if a job found the slide damaged."""
        folder, text, count = self.tmp_folder / found.slide.stem, io.StringIO(), 0
        table = csv.writer(text, lineterminator="\n")
        table.writerow(COLUMNS)
        for rows in results:
            if isinstance(rows, str):
                raise ValueError(rows)
            table.writerows(rows)
            count += len(rows)
        record = {"file": found.slide.name, "bytes": found.slide.stat().st_size, "slide_mpp": None if found.has_mpp else self.slide_mpp}
        record |= {"mpp": found.mpp_XY, "origin": found.origin_XY}  # for programs with their origin at the scanned area, such as QuPath
        record |= {"options": self._recipe, "places": found.positions, "with_tissue": found.with_tissue, "tiles": count}
        (folder / TABLE).write_text(text.getvalue(), encoding="utf-8")
        (folder / RECORD).write_text(json.dumps(record, indent=1))
        os.sync()  # once per slide: an fsync of every tile can take longer than cutting it
        files.replace_folder(folder, self.out / folder.name)
        return record


def _encoded(image: Image.Image, quality: int | None) -> bytes:
    if quality is None:
        return tile_format.encode_png(image)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality, subsampling=0)  # no subsampling: stains differ in chroma
    return buffer.getvalue()


def _folders(out: Path) -> list[Path]:
    """Returns the folders of complete slides, sorted by name."""
    return sorted(record.parent for record in out.glob(f"*/{RECORD}"))
