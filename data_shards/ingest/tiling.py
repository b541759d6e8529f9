"""Tissue tiles from whole-slide images: reading at a wanted resolution, where tissue is, which tiles are sharp, files that are whole.

A slide becomes a folder ``{slide}`` of images with a ``tiles.csv`` and a ``slide.json`` (how it was cut); it is written aside and takes its
name when it is complete. Levels and packing are not known here: people add columns to the table, and labels.py and packer.py go on.
"""

from __future__ import annotations

import csv
import fcntl
import io
import itertools
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from attributegan.utils import files
from data_shards import worker_pool
from data_shards.format import tables
from data_shards.format import tile as tile_format
from data_shards.ingest import plain_slides

VERSION = 1  # of the method; tiles of another one are not mixed with these
COLUMNS = ("file", "slide", "x", "y", "mpp", "size", "tissue", "sharpness")
TABLE, RECORD, ASIDE = "tiles.csv", "slide.json", ".tiling"

MASK_MPP = 8.0  # a pixel of the tissue mask is about a nucleus wide
TISSUE_CHROMA = (8, 24)  # Otsu's threshold is kept between these, see `tissue_mask`
SHARPNESS = 30.0  # see `sharpness`
SCANNER_MPP = (0.05, 20.0)  # outside, the slide's resolution is that of a screen or a printer
LARGEST_ENLARGEMENT = 1.1  # scanners said to be 0.5 um/pixel have 0.45 to 0.55
BLOCK = 2048  # pixels read at once, each way
JOB_TILES = 64

Row = tuple[str, str, int, int, float, int, str, str]  # of the table, by `COLUMNS`


@dataclass(frozen=True)
class Options:
    """What to cut.

    Args:
        mpp: micrometres per pixel of the tiles.
        size, overlap: pixels of the tiles.
        tissue: least share of tissue, in [0, 1].
        sharpness: least variance of the Laplacian; 0 keeps blurred tiles.
        jpeg: quality; None for PNG, which loses nothing.
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
                raise ValueError(f"--{name}: {value} is not from {least} to {most}")


class Slide:
    """A whole-slide image, open for reading.

    Args:
        mpp: micrometres per pixel, for a slide that doesn't say it.

    Attributes:
        mpp_XY: micrometres per level-0 pixel.
        bounds: left, top, width, height of what was scanned, in level-0 pixels.

    Raises:
        ValueError: not a slide, no resolution, or openslide is not installed.
    """

    def __init__(self, path: Path, mpp: float | None = None) -> None:
        try:
            import openslide
        except ImportError as error:
            raise ValueError(f"cutting slides needs openslide: pip install 'attributegan[slides]' ({error})") from error
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
        try:
            self._slide = openslide.OpenSlide(path)
        except openslide.OpenSlideUnsupportedFormatError as error:
            self._slide = _plain(path, error)
        except openslide.OpenSlideError as error:
            raise ValueError(f"{path}: not a slide that openslide reads: {error}") from error
        self.path, self._error = path, openslide.OpenSlideError
        properties = self._slide.properties
        self._background = f"#{properties.get('openslide.background-color', 'ffffff')}"
        width, height = self._slide.dimensions
        bounds = (("x", 0), ("y", 0), ("width", width), ("height", height))
        self.bounds = tuple(int(properties.get(f"openslide.bounds-{name}", default)) for name, default in bounds)
        self.says_mpp = all(_is_scanner_mpp(properties.get(f"openslide.mpp-{axis}")) for axis in "xy")
        if self.says_mpp:
            self.mpp_XY = (float(properties["openslide.mpp-x"]), float(properties["openslide.mpp-y"]))
        elif mpp is not None:
            self.mpp_XY = (mpp, mpp)
        else:
            said = properties.get("openslide.mpp-x")
            wrong = f"says {said} um per pixel, as no scanner has" if said else "doesn't say its um per pixel"
            self.close()
            raise ValueError(f"{path}: {wrong}; give it with --slide-mpp (most 40x scans have 0.25)")

    def close(self) -> None:
        self._slide.close()

    def read(self, x: float, y: float, width: float, height: float, size: tuple[int, int]) -> Image.Image:
        """The box at ``x``, ``y`` (level-0 pixels) as an RGB image of ``size`` pixels.

        Read from the smallest level that has the detail, and resampled with Lanczos windows as wide as the reduction needs (no aliasing).

        Raises:
            ValueError: the slide is damaged there.
        """
        scale = min(width / size[0], height / size[1])
        level = max(number for number, down in enumerate(self._slide.level_downsamples) if number == 0 or down <= scale * 1.01)
        down = self._slide.level_downsamples[level]
        shrink = max(1, int(scale / down / 3))  # averaging before the Lanczos window bounds memory, and three times is near enough to it
        margin = 3 * max(width / size[0], height / size[1]) / down + shrink
        spans = [(x / down, (x + width) / down), (y / down, (y + height) / down)]
        starts = [max(0, math.floor(first - margin)) for first, _ in spans]
        ends = [min(limit, math.ceil(last + margin)) for (_, last), limit in zip(spans, self._slide.level_dimensions[level], strict=True)]
        image = self._shrunk(level, starts, ends, shrink)
        box = [(spans[axis][side] - starts[axis]) / shrink for side in (0, 1) for axis in (0, 1)]
        box[2:] = [min(edge, limit) for edge, limit in zip(box[2:], image.size, strict=True)]  # by less than a pixel, at the slide's edge
        return image.resize(size, Image.Resampling.LANCZOS, box=(box[0], box[1], box[2], box[3]))

    def _shrunk(self, level: int, starts: Sequence[int], ends: Sequence[int], shrink: int) -> Image.Image:
        """Pixels of a level, averaged over ``shrink`` each way; read in blocks."""
        image = Image.new("RGB", (-(-(ends[0] - starts[0]) // shrink), -(-(ends[1] - starts[1]) // shrink)))
        step = shrink * max(1, BLOCK // shrink)
        down = self._slide.level_downsamples[level]
        for top, left in itertools.product(range(starts[1], ends[1], step), range(starts[0], ends[0], step)):
            size = (min(step, ends[0] - left), min(step, ends[1] - top))
            try:
                block = self._slide.read_region((round(left * down), round(top * down)), level, size)
            except self._error as error:
                raise ValueError(f"{self.path}: damaged at x {round(left * down)}, y {round(top * down)}: {error}") from error
            opaque = Image.new("RGB", size, self._background)  # what was never scanned is transparent
            opaque.paste(block, mask=block.getchannel("A"))
            image.paste(opaque.reduce(shrink), ((left - starts[0]) // shrink, (top - starts[1]) // shrink))
        return image


def _plain(path: Path, error: Exception) -> Any:
    """An image that is no whole-slide format; ValueError when it is no image either."""
    try:
        return plain_slides.open_plain(path)
    except ValueError as why:
        unknown = "Unsupported or missing image file" in str(error)
        raise ValueError(f"{path}: not a slide that openslide reads: {'no format that it knows' if unknown else error}; {why}") from error


def _is_scanner_mpp(text: str | float | None) -> bool:
    return text is not None and SCANNER_MPP[0] <= float(text) <= SCANNER_MPP[1]


def tissue_mask(slide: Slide) -> np.ndarray:
    """Where tissue is, bool (H, W) over the bounds of the slide in pixels of about `MASK_MPP`.

    Chroma (the largest minus the smallest of red, green and blue) is near 0 on glass, on black edges and on what was never scanned, and
    high on anything stained; Otsu's threshold divides the two (Otsu 1979, IEEE Trans. SMC 9(1)). On a slide that is all glass or all tissue
    it would divide one class, and so it is kept within `TISSUE_CHROMA`. Ink of a pen is coloured too and not told from tissue.
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
    return chroma_HW > np.clip(otsu(np.bincount(chroma_HW.ravel(), minlength=256)), *TISSUE_CHROMA)


def otsu(counts_V: np.ndarray) -> int:
    """The value up to which one class goes, when the variance between two classes is largest; ``counts_V`` is a histogram."""
    value_V = np.arange(len(counts_V))
    below_V, sum_V = counts_V.cumsum().astype(float), (counts_V * value_V).cumsum().astype(float)
    above_V = below_V[-1] - below_V
    with np.errstate(invalid="ignore", divide="ignore"):
        between_V = (sum_V[-1] * below_V - sum_V * below_V[-1]) ** 2 / (below_V * above_V)
    return int(np.nan_to_num(between_V, posinf=0).argmax())


def sharpness(image: Image.Image) -> float:
    """Variance of the Laplacian of the luma (0 to 255): low where nothing has an edge (Pech-Pacheco et al. 2000, ICPR, LAPV).

    `SHARPNESS` is between what was measured on the 189 of the 239 published tiles (500 px) that are at least half tissue: 99 % have more
    than 107 and one has less than 30; blurred by a Gaussian of 2 px, all have less than 26.
    """
    luma_HW = np.asarray(image.convert("L"), np.float32)
    laplacian_HW = luma_HW[:-2, 1:-1] + luma_HW[2:, 1:-1] + luma_HW[1:-1, :-2] + luma_HW[1:-1, 2:] - 4 * luma_HW[1:-1, 1:-1]
    return float(laplacian_HW.var())


class _Job(NamedTuple):
    """Some of the places of one slide, to cut in one process."""

    slide: Path
    first: int
    last: int


class _Surveyed(NamedTuple):
    """A slide to cut: whether it says its resolution, how many places it has, and how many of them with tissue; what `Slide` says of it."""

    slide: Path
    says_mpp: bool
    mpp_XY: tuple[float, float]
    origin_XY: tuple[int, int]
    places: int
    with_tissue: int


@contextmanager
def tiling(slides: Sequence[Path], out: Path, options: Options, slide_mpp: float | None = None) -> Iterator[Tiling]:
    """Hold the folder ``out`` to cut tiles into it (see `Tiling`).

    Args:
        slide_mpp: micrometres per pixel of slides that don't say it.

    Raises:
        ValueError: two slides of one name, or ``out`` is in use or has something else in it.
    """
    if slide_mpp is not None and not _is_scanner_mpp(slide_mpp):
        raise ValueError(f"--slide-mpp: {slide_mpp} is not from {SCANNER_MPP[0]} to {SCANNER_MPP[1]} um per pixel")
    for before, slide in itertools.pairwise(sorted(slides, key=lambda slide: slide.stem)):
        if before.stem == slide.stem:
            raise ValueError(f"{slide}: its tiles would go into the same folder {slide.stem} as those of {before}; rename one")
    out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"--out: another process is cutting tiles into {out}; wait for it or stop it") from None
        work = Tiling(slides, out, options, slide_mpp)
        shutil.rmtree(work.aside, ignore_errors=True)  # of a run that was killed
        work.aside.mkdir()
        try:
            yield work
        finally:
            shutil.rmtree(work.aside, ignore_errors=True)
    finally:
        os.close(descriptor)


class Tiling:
    """Tiles of slides in a folder: first `survey` finds places with tissue, then `cut` writes the tiles, and `write_table` their table.

    Slides that the folder has already, cut with the same options, are left as they are. Made by `tiling`.
    """

    def __init__(self, slides: Sequence[Path], out: Path, options: Options, slide_mpp: float | None) -> None:
        self.out, self.options, self.slide_mpp, self.aside = out, options, slide_mpp, out / ASIDE
        self._recipe = {"version": VERSION, **asdict(options)}
        self._check_out()
        self.done = [slide for slide in slides if self._is_done(slide)]
        self._todo = [slide for slide in slides if slide not in self.done]
        self._surveyed: list[_Surveyed] = []

    def survey(self, processes: int = 1) -> list[str]:
        """Find the places of the tiles; returns what is wrong with slides, a line each. Those are left out from here on."""
        bad = []
        for found in worker_pool.run(self._survey, self._todo, processes, lambda done: None):
            if isinstance(found, str):
                bad.append(found)
            else:
                self._surveyed.append(found)
        return bad

    @property
    def places(self) -> int:
        """Places with tissue, of all slides surveyed."""
        return sum(found.with_tissue for found in self._surveyed)

    def cut(self, processes: int = 1, progress: worker_pool.Progress = lambda done: None) -> tuple[list[dict[str, Any]], list[str]]:
        """Write the tiles; any number of processes writes the same bytes.

        Returns:
            the record of every slide that was cut, and what is wrong with others, a line each.
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

    def write_table(self) -> int:
        """Write ``tiles.csv`` of all slides in ``out``; returns how many tiles it has."""
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

    def _check_out(self) -> None:
        """Refuse a folder with tiles cut otherwise, or whose table people have worked in."""
        table = self.out / TABLE
        if table.exists():
            mine = [name for name in tables.header_of(table) if name not in COLUMNS]
            if mine:
                raise ValueError(f"{table}: has columns of yours ({', '.join(mine)}) and would be replaced; give it another name first")
        for folder in _folders(self.out):
            was = json.loads((folder / RECORD).read_text())["options"]
            if was != self._recipe:
                told = ", ".join(f"{name} {value}" for name, value in was.items())
                raise ValueError(f"--out: {folder} was cut with other options ({told}); choose another folder, or remove that one")

    def _is_done(self, slide: Path) -> bool:
        folder = self.out / slide.stem
        if not folder.exists():
            return False
        if not (folder / RECORD).is_file():
            raise ValueError(f"--out: {folder} is there and has no {RECORD}, so it isn't this command's; choose another folder")
        record = json.loads((folder / RECORD).read_text())
        if slide.is_file() and record["bytes"] != slide.stat().st_size:
            raise ValueError(f"{slide}: {folder} has tiles of another slide of that name; remove it, or choose another --out")
        if record["slide_mpp"] is not None and self.slide_mpp not in (None, record["slide_mpp"]):
            raise ValueError(f"--slide-mpp: {folder} was cut with {record['slide_mpp']}; remove it, or choose another --out")
        return True

    def _survey(self, path: Path) -> _Surveyed | str:
        """Keep the places with tissue aside; what is wrong instead, when something is."""
        try:
            with closing(Slide(path, self.slide_mpp)) as slide:
                tiles_N3, places = find_places(slide, self.options)
        except ValueError as error:
            return str(error)
        np.save(self.aside / f"{path.stem}.npy", tiles_N3)
        (self.aside / path.stem).mkdir()
        return _Surveyed(path, slide.says_mpp, slide.mpp_XY, (slide.bounds[0], slide.bounds[1]), places, len(tiles_N3))

    def _cut(self, job: _Job) -> list[Row] | str:
        tiles_N3 = np.load(self.aside / f"{job.slide.stem}.npy", mmap_mode="r")[job.first : job.last]
        try:
            with closing(Slide(job.slide, self.slide_mpp)) as slide:
                return [row for x, y, tissue in tiles_N3.tolist() if (row := self._tile(slide, int(x), int(y), tissue))]
        except ValueError as error:
            return str(error)

    def _tile(self, slide: Slide, x: int, y: int, tissue: float) -> Row | None:
        """Write the tile at ``x``, ``y``, unless it is blurred; its row of the table."""
        size = self.options.size
        width, height = _extent(slide, self.options, size)
        image = slide.read(x, y, width, height, (size, size))
        worker_pool.count_tiles(1)
        if (sharp := sharpness(image)) < self.options.sharpness:
            return None
        file = f"{slide.path.stem}/{x}_{y}.{'png' if self.options.jpeg is None else 'jpg'}"
        (self.aside / file).write_bytes(_encoded(image, self.options.jpeg))
        return file, slide.path.stem, x, y, self.options.mpp, size, f"{tissue:.3f}", f"{sharp:.1f}"

    def _finish(self, found: _Surveyed, results: Iterable[list[Row] | str]) -> dict[str, Any]:
        """Write table and record, and give the folder its name; ValueError when a job found the slide damaged."""
        folder, text, count = self.aside / found.slide.stem, io.StringIO(), 0
        table = csv.writer(text, lineterminator="\n")
        table.writerow(COLUMNS)
        for rows in results:
            if isinstance(rows, str):
                raise ValueError(rows)
            table.writerows(rows)
            count += len(rows)
        record = {"file": found.slide.name, "bytes": found.slide.stat().st_size, "slide_mpp": None if found.says_mpp else self.slide_mpp}
        record |= {"mpp": found.mpp_XY, "origin": found.origin_XY}  # for programs that count pixels from what was scanned, as QuPath
        record |= {"options": self._recipe, "places": found.places, "with_tissue": found.with_tissue, "tiles": count}
        (folder / TABLE).write_text(text.getvalue(), encoding="utf-8")
        (folder / RECORD).write_text(json.dumps(record, indent=1))
        os.sync()  # once a slide: an fsync for every tile can take longer than cutting it
        os.replace(folder, self.out / folder.name)
        files.fsync_path(self.out)
        return record


def find_places(slide: Slide, options: Options) -> tuple[np.ndarray, int]:
    """Places of tiles with enough tissue, row by row: (N, 3) float64 of x, y (level-0 pixels) and tissue share; and how many there were.

    Tiles lie in a grid from the corner of what was scanned; those that don't fit in whole are left out.

    Raises:
        ValueError: the slide is damaged, or coarser than the tiles wanted.
    """
    if max(slide.mpp_XY) > options.mpp * LARGEST_ENLARGEMENT:
        raise ValueError(f"{slide.path}: has {max(slide.mpp_XY):g} um per pixel, so tiles of --mpp {options.mpp:g} would only be blown up")
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
    """``pixels`` of a tile in level-0 pixels, across and down."""
    return pixels * options.mpp / slide.mpp_XY[0], pixels * options.mpp / slide.mpp_XY[1]


def _starts(length: int, tile: float, stride: float) -> np.ndarray:
    """Where tiles start along an axis, whole pixels."""
    starts_N = np.round(np.arange(max(0, math.floor((length - tile) / stride) + 2)) * stride)
    return starts_N[starts_N + tile <= length + 1e-6]


def _means(values_HW: np.ndarray, start_N: np.ndarray, length: float) -> np.ndarray:
    """Means over rows ``start`` to ``start + length``, parts of rows by their part; (N, W) float64."""
    sums_HW = np.concatenate([np.zeros((1, values_HW.shape[1])), np.cumsum(values_HW, axis=0, dtype=np.float64)])

    def until(end_N: np.ndarray) -> np.ndarray:
        row_N = np.minimum(end_N.astype(int), len(values_HW) - 1)
        part_N1 = np.minimum(end_N - row_N, 1)[:, None]
        return sums_HW[row_N] * (1 - part_N1) + sums_HW[row_N + 1] * part_N1

    return (until(start_N + length) - until(start_N)) / length


def _encoded(image: Image.Image, quality: int | None) -> bytes:
    if quality is None:
        return tile_format.encode_png(image)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality, subsampling=0)  # no subsampling: stains differ in chroma
    return buffer.getvalue()


def _folders(out: Path) -> list[Path]:
    """Folders of slides that are whole, by name."""
    return sorted(record.parent for record in out.glob(f"*/{RECORD}"))
