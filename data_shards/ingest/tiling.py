"""Cuts tissue tiles from whole-slide images: reading at a given resolution, tissue detection, sharpness filter, atomic output.

A slide becomes a folder ``{slide}`` of images with a ``tiles.csv`` and a ``slide.json`` (how it was cut), which is written under a
temporary name and renamed when complete. Users add columns with levels to the table; labels.py and packer.py process it further.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from attributegan.utils import files
from attributegan.utils.file_lock import exclusive_lock
from data_shards import worker_pool
from data_shards.format import tables
from data_shards.format import tile as tile_format
from data_shards.ingest import plain_slides

VERSION = 1  # of the method; tiles of different versions are not mixed
COLUMNS = ("file", "slide", "x", "y", "mpp", "size", "tissue", "sharpness")
TABLE, RECORD, TMP_FOLDER = "tiles.csv", "slide.json", ".tiling"

MASK_MPP = 8.0  # pixel size of the tissue mask in um, about the width of a nucleus
TISSUE_CHROMA = (8, 24)  # bounds of Otsu's threshold, see `tissue_mask`
SHARPNESS = 30.0  # see `sharpness`
SCANNER_MPP = (0.05, 20.0)  # um per pixel; values outside are resolutions of screens or printers
MAX_UPSAMPLING = 1.1  # nominal 0.5 um/pixel is 0.45 to 0.55 in practice
BLOCK = 2048  # side of the blocks read, in pixels
JOB_TILES = 64

Row = tuple[str, str, int, int, float, int, str, str]  # of the table, ordered as `COLUMNS`


@dataclass(frozen=True)
class Options:
    """How to cut tiles.

    Args:
        mpp: micrometres per pixel of the tiles.
        size, overlap: pixels of the tiles.
        tissue: minimum share of tissue, in [0, 1].
        sharpness: minimum variance of the Laplacian; 0 keeps blurred tiles.
        jpeg: JPEG quality; None for PNG (lossless).
    """

    mpp: float
    size: int
    overlap: int = 0
    tissue: float = 0.5
    sharpness: float = SHARPNESS
    jpeg: int | None = None

    def __post_init__(self) -> None:
        limits = {"mpp": (SCANNER_MPP[0], 100), "size": (16, 8192), "overlap": (0, self.size - 1), "tissue": (0, 1)}
        for name, (least, most) in (limits | {"sharpness": (0, 1e6), "jpeg": (1, 100)}).items():
            if (value := getattr(self, name)) is not None and not least <= value <= most:
                raise ValueError(f"--{name}: {value} is not between {least} and {most}")


class Slide:
    """A whole-slide image, open for reading.

    Args:
        mpp: micrometres per pixel, for slides without resolution metadata.

    Attributes:
        mpp_XY: micrometres per level-0 pixel.
        bounds: left, top, width, height of the scanned area, in level-0 pixels.

    Raises:
        ValueError: not a slide, unknown resolution, or openslide is not installed.
    """

    def __init__(self, path: Path, mpp: float | None = None) -> None:
        try:
            import openslide
        except ImportError as error:
            raise ValueError(f"cutting slides requires openslide: pip install 'attributegan[slides]' ({error})") from error
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
        try:
            self._slide = openslide.OpenSlide(path)
        except openslide.OpenSlideUnsupportedFormatError as error:
            self._slide = _open_plain(path, error)
        except openslide.OpenSlideError as error:
            raise ValueError(f"{path}: not a slide supported by openslide: {error}") from error
        self.path, self._error = path, openslide.OpenSlideError
        properties = self._slide.properties
        self._background = f"#{properties.get('openslide.background-color', 'ffffff')}"
        width, height = self._slide.dimensions
        bounds = (("x", 0), ("y", 0), ("width", width), ("height", height))
        self.bounds = tuple(int(properties.get(f"openslide.bounds-{name}", default)) for name, default in bounds)
        self.has_mpp = all(_is_scanner_mpp(properties.get(f"openslide.mpp-{axis}")) for axis in "xy")
        if self.has_mpp:
            self.mpp_XY = (float(properties["openslide.mpp-x"]), float(properties["openslide.mpp-y"]))
        elif mpp is not None:
            self.mpp_XY = (mpp, mpp)
        else:
            given = properties.get("openslide.mpp-x")
            problem = f"implausible {given} um per pixel in its metadata" if given else "no um per pixel in its metadata"
            self.close()
            raise ValueError(f"{path}: {problem}; set it with --slide-mpp (most 40x scans have 0.25)")

    def close(self) -> None:
        self._slide.close()

    def read(self, x: float, y: float, width: float, height: float, size: tuple[int, int]) -> Image.Image:
        """Read the box at ``x``, ``y`` (level-0 pixels) as an RGB image of ``size`` pixels.

        Reads the smallest level with enough resolution, and resamples with Lanczos windows as wide as the reduction requires (no aliasing).

        Raises:
            ValueError: the slide is damaged in this region.
        """
        scale = min(width / size[0], height / size[1])
        level = max(number for number, down in enumerate(self._slide.level_downsamples) if number == 0 or down <= scale * 1.01)
        down = self._slide.level_downsamples[level]
        shrink = max(1, int(scale / down / 3))  # averaging before Lanczos bounds memory; a factor of 3 is accurate enough
        margin = 3 * max(width / size[0], height / size[1]) / down + shrink
        spans = [(x / down, (x + width) / down), (y / down, (y + height) / down)]
        starts = [max(0, math.floor(first - margin)) for first, _ in spans]
        ends = [min(limit, math.ceil(last + margin)) for (_, last), limit in zip(spans, self._slide.level_dimensions[level], strict=True)]
        image = self._shrunk(level, starts, ends, shrink)
        box = [(spans[axis][side] - starts[axis]) / shrink for side in (0, 1) for axis in (0, 1)]
        box[2:] = [
            min(edge, limit) for edge, limit in zip(box[2:], image.size, strict=True)
        ]  # clips less than a pixel, at the slide's edge
        return image.resize(size, Image.Resampling.LANCZOS, box=(box[0], box[1], box[2], box[3]))

    def _shrunk(self, level: int, starts: Sequence[int], ends: Sequence[int], shrink: int) -> Image.Image:
        """Read pixels of a level in blocks, averaged over ``shrink`` x ``shrink``."""
        image = Image.new("RGB", (-(-(ends[0] - starts[0]) // shrink), -(-(ends[1] - starts[1]) // shrink)))
        step = shrink * max(1, BLOCK // shrink)
        down = self._slide.level_downsamples[level]
        for top, left in itertools.product(range(starts[1], ends[1], step), range(starts[0], ends[0], step)):
            size = (min(step, ends[0] - left), min(step, ends[1] - top))
            try:
                block = self._slide.read_region((round(left * down), round(top * down)), level, size)
            except self._error as error:
                raise ValueError(f"{self.path}: damaged at x {round(left * down)}, y {round(top * down)}: {error}") from error
            opaque = Image.new("RGB", size, self._background)  # unscanned areas are transparent
            opaque.paste(block, mask=block.getchannel("A"))
            image.paste(opaque.reduce(shrink), ((left - starts[0]) // shrink, (top - starts[1]) // shrink))
        return image


def _open_plain(path: Path, error: Exception) -> Any:
    """Open an image in an ordinary format; ValueError if it is not an image either."""
    try:
        return plain_slides.open_plain(path)
    except ValueError as plain_error:
        unknown = "Unsupported or missing image file" in str(error)
        raise ValueError(f"{path}: not a slide supported by openslide: {'unknown format' if unknown else error}; {plain_error}") from error


def _is_scanner_mpp(text: str | float | None) -> bool:
    return text is not None and SCANNER_MPP[0] <= float(text) <= SCANNER_MPP[1]


def tissue_mask(slide: Slide) -> np.ndarray:
    """Returns the tissue mask, bool (H, W), over the bounds of the slide in pixels of about `MASK_MPP`.

    Chroma (the maximum minus the minimum of red, green and blue) is near 0 on glass, black edges and unscanned areas, and high on stained
    tissue; Otsu's threshold separates the two (Otsu 1979, IEEE Trans. SMC 9(1)). On a slide that is all glass or all tissue it would split
    one class, so it is clipped to `TISSUE_CHROMA`. Pen ink is coloured too and is not distinguished from tissue.
    """
    left, top, width, height = slide.bounds
    size = [max(1, round(length * mpp / MASK_MPP)) for length, mpp in zip((width, height), slide.mpp_XY, strict=True)]
    chroma_HW = np.empty((size[1], size[0]), np.uint8)
    step = 256
    for first_y, first_x in itertools.product(range(0, size[1], step), range(0, size[0], step)):
        columns, rows = min(step, size[0] - first_x), min(step, size[1] - first_y)
        scale_x, scale_y = width / size[0], height / size[1]
        image = slide.read(left + first_x * scale_x, top + first_y * scale_y, columns * scale_x, rows * scale_y, (columns, rows))
        pixels_HWC = np.asarray(image)
        chroma_HW[first_y : first_y + rows, first_x : first_x + columns] = pixels_HWC.max(axis=2) - pixels_HWC.min(axis=2)
    tissue_HW: np.ndarray = chroma_HW > np.clip(otsu(np.bincount(chroma_HW.ravel(), minlength=256)), *TISSUE_CHROMA)
    return tissue_HW


def otsu(counts_V: np.ndarray) -> int:
    """Returns the largest value of the lower class that maximizes the variance between two classes; ``counts_V`` is a histogram."""
    value_V = np.arange(len(counts_V))
    below_V, sum_V = counts_V.cumsum().astype(float), (counts_V * value_V).cumsum().astype(float)
    above_V = below_V[-1] - below_V
    with np.errstate(invalid="ignore", divide="ignore"):
        between_V = (sum_V[-1] * below_V - sum_V * below_V[-1]) ** 2 / (below_V * above_V)
    return int(np.nan_to_num(between_V, posinf=0).argmax())


def sharpness(image: Image.Image) -> float:
    """Returns the variance of the Laplacian of the luma (0 to 255), which is low without edges (Pech-Pacheco et al. 2000, ICPR, LAPV).

    `SHARPNESS` was chosen on 189 of the 239 published tiles (500 px), those with at least half tissue: 99 % are above 107 and one is below
    30; blurred by a Gaussian of 2 px, all are below 26.
    """
    luma_HW = np.asarray(image.convert("L"), np.float32)
    laplacian_HW = luma_HW[:-2, 1:-1] + luma_HW[2:, 1:-1] + luma_HW[1:-1, :-2] + luma_HW[1:-1, 2:] - 4 * luma_HW[1:-1, 1:-1]
    return float(laplacian_HW.var())


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
    if slide_mpp is not None and not _is_scanner_mpp(slide_mpp):
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
        width, height = _extent(slide, self.options, size)
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


def find_positions(slide: Slide, options: Options) -> tuple[np.ndarray, int]:
    """Find the positions of tiles with enough tissue, on a grid from the corner of the scanned area; tiles must fit completely.

    Returns:
        (N, 3) float64 of x, y (level-0 pixels) and share of tissue, row by row; and the number of positions with and without tissue.

    Raises:
        ValueError: the slide is damaged, or its resolution is lower than that of the tiles.
    """
    if max(slide.mpp_XY) > options.mpp * MAX_UPSAMPLING:
        raise ValueError(f"{slide.path}: {max(slide.mpp_XY):g} um per pixel is too coarse for --mpp {options.mpp:g}; increase --mpp")
    left, top, width, height = slide.bounds
    tile_X = _extent(slide, options, options.size)
    stride_X = _extent(slide, options, options.size - options.overlap)
    x_C, y_R = (_starts(*of_axis) for of_axis in zip((width, height), tile_X, stride_X, strict=True))
    if not (len(x_C) and len(y_R)):
        return np.empty((0, 3)), 0
    mask_HW = tissue_mask(slide)
    scale_X = mask_HW.shape[1] / width, mask_HW.shape[0] / height
    by_row_RW = _means(mask_HW, y_R * scale_X[1], tile_X[1] * scale_X[1])
    share_RC = _means(by_row_RW.T, x_C * scale_X[0], tile_X[0] * scale_X[0]).T
    row_N, column_N = np.nonzero(share_RC >= options.tissue - 1e-9)
    return np.stack([left + x_C[column_N], top + y_R[row_N], share_RC[row_N, column_N]], axis=1), share_RC.size


def _extent(slide: Slide, options: Options, pixels: int) -> tuple[float, float]:
    """Convert ``pixels`` of a tile to level-0 pixels in x and y."""
    return pixels * options.mpp / slide.mpp_XY[0], pixels * options.mpp / slide.mpp_XY[1]


def _starts(length: int, tile: float, stride: float) -> np.ndarray:
    """Returns the starts of tiles along an axis, in whole pixels."""
    starts_N = np.round(np.arange(max(0, math.floor((length - tile) / stride) + 2)) * stride)
    return starts_N[starts_N + tile <= length + 1e-6]


def _means(values_HW: np.ndarray, start_N: np.ndarray, length: float) -> np.ndarray:
    """Returns means over rows ``start`` to ``start + length``, with fractional rows weighted, (N, W) float64."""
    sums_HW = np.concatenate([np.zeros((1, values_HW.shape[1])), np.cumsum(values_HW, axis=0, dtype=np.float64)])

    def until(end_N: np.ndarray) -> np.ndarray:
        row_N = np.minimum(end_N.astype(int), len(values_HW) - 1)
        part_N1 = np.minimum(end_N - row_N, 1)[:, None]
        sums_NW: np.ndarray = sums_HW[row_N] * (1 - part_N1) + sums_HW[row_N + 1] * part_N1
        return sums_NW

    means_NW: np.ndarray = (until(start_N + length) - until(start_N)) / length
    return means_NW


def _encoded(image: Image.Image, quality: int | None) -> bytes:
    if quality is None:
        return tile_format.encode_png(image)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality, subsampling=0)  # no subsampling: stains differ in chroma
    return buffer.getvalue()


def _folders(out: Path) -> list[Path]:
    """Returns the folders of complete slides, sorted by name."""
    return sorted(record.parent for record in out.glob(f"*/{RECORD}"))
