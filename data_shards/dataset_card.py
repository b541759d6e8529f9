"""Writes the dataset card of a shard set: counts, measurements and example tiles.

Owns the numbers and the choice of tiles. Rendering is in html_page.py.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from attributegan.attributes import UNKNOWN, Attribute, AttributeSchema
from attributegan.utils.files import atomic_write
from attributegan.utils.html_page import Cell, Code, Picture, Section, Table, Tinted, require_jinja2, to_html, to_markdown
from data_shards.format import checksums, index
from data_shards.loader.shard_set import ShardSet
from data_shards.loader.tile_reader import TileCorrupted, TileReader, TileRequest
from data_shards.packing import level_counts
from data_shards.storage import stores
from data_shards.storage.cache import Cache
from data_shards.storage.shard_files import open_location

THUMBNAIL = 112  # pixels
MAX_PICTURES = 100
UNKNOWN_LABEL = "unknown"
MAX_ROWS = 50  # maximum for tables that grow with the set
COMBINATIONS = 10  # number of most and least frequent ones shown
MIXED_SIZE = 256  # pixels; tiles of different sizes are resized to this for measurements
PAGES = {".html": to_html, ".htm": to_html, ".md": to_markdown}


def write(location: str | Path, out: Path, sample: int = 200, seed: int = 0, cache: Cache | None = None) -> None:
    """Write the card of the set in a folder or at a URL to ``out``, as HTML or Markdown depending on its suffix.

    Args:
        sample: number of tiles of each split for measuring the stain.
        cache: for the shards of a remote set.

    Raises:
        ValueError: no such set, unsupported suffix, folder not writable, or jinja2 is not installed (HTML).
    """
    if out.suffix.lower() not in PAGES:
        raise ValueError(f"--out: {out} must end in .html or .md")
    if PAGES[out.suffix.lower()] is to_html:
        require_jinja2()
    name, folder, header, _ = open_location(location, cache)
    splits = {split: ShardSet.open(location, split, cache=cache) for split in header.splits}
    rng = np.random.default_rng(seed)
    sections = [
        _overview(folder, splits, header),
        _contact_sheet(splits, rng),
        _levels(splits, header.schema),
        _combinations(splits, header.schema),
        _co_occurrence(splits, header.schema),
        _groups(folder, header),
        _stain(splits, sample, rng),
        _files(folder, header),
    ]
    lead = f"{sum(map(len, splits.values())):,} tiles with the attributes {', '.join(header.schema.names)}."
    page = PAGES[out.suffix.lower()](f"Shard set: {name if stores.is_remote(str(location)) else folder.resolve().name}", lead, sections)
    try:
        with atomic_write(out) as stream:
            stream.write(page.encode())
    except OSError as error:
        raise ValueError(f"--out: {out} can't be written ({error.strerror})") from error


Splits = Mapping[str, ShardSet]


def _overview(folder: Path, splits: Splits, header: index.Header) -> Section:
    rows: list[Sequence[Cell]] = []
    for split, shards in splits.items():
        tars = [shard for shard in header.shards if shard.split == split]
        rows.append([split, len(shards), len(tars), sum(tar.size for tar in tars) / 2**20, int(shards.rows.length_N.mean())])
    size = f"Tiles of {header.image_size} x {header.image_size} pixels" if header.image_size else "Tiles of different sizes or not square"
    left_out = f" {len(header.left_out):,} tiles could not be packed; they are listed at the end." if header.left_out else ""
    text = f"{size}, in WebDataset tars with an index.{left_out}"
    return Section("Overview", text, [Table(["split", "tiles", "shards", "MiB", "mean bytes of an image"], rows)])


def _contact_sheet(splits: Splits, rng: np.random.Generator) -> Section:
    """Show one tile for each level of each attribute, drawn from all splits."""
    schema = next(iter(splits.values())).schema
    columns = max(schema.num_levels)
    cells = list(itertools.product(range(len(schema.names)), range(columns)))
    pictures = {(a, level): _example(splits, a, level, rng) for a, level in cells[:MAX_PICTURES] if level < schema.num_levels[a]}
    rows: list[Sequence[Cell]] = []
    for a, attribute in enumerate(schema.attributes):
        rows.append([attribute.name, *(attribute.levels[level] if level < len(attribute.levels) else "" for level in range(columns))])
        rows.append(["", *(pictures.get((a, level)) or ("no tile" if level < len(attribute.levels) else "") for level in range(columns))])
    return Section(
        "Contact sheet",
        "A tile drawn at random for each level of each attribute.",
        [Table(["", *(f"level {level}" for level in range(columns))], rows)],
    )


def _example(splits: Splits, attribute: int, level: int, rng: np.random.Generator) -> Picture | None:
    """Returns a readable tile of this level; tries up to three."""
    for split, shards in splits.items():
        tile_N = np.flatnonzero(shards.levels_NA[:, attribute] == level)
        for tile, pixels_HWC in _pixels(shards, rng.permutation(tile_N)[:3], THUMBNAIL):
            if isinstance(pixels_HWC, np.ndarray):
                buffer = io.BytesIO()
                Image.fromarray(pixels_HWC).save(buffer, format="JPEG", quality=85)
                about = shards.schema.attributes[attribute]
                return Picture(buffer.getvalue(), f"{about.name}: {about.levels[level]} ({split}, {shards.shard_of(tile)})")
    return None


def _pixels(shards: ShardSet, tiles: np.ndarray, size: int) -> Iterator[tuple[int, np.ndarray | str]]:
    """Yields each tile with its pixels, (size, size, 3) uint8, or with an error message."""
    reader = TileReader(shards.tars, size)
    rows = shards.rows
    for tile in tiles.tolist():
        shard, offset, length, checksum = (int(column[tile]) for column in (rows.shard_N, rows.offset_N, rows.length_N, rows.checksum_N))
        try:
            yield tile, reader.read(TileRequest(shard, offset, length, checksum, symmetry=0))
        except TileCorrupted as error:
            yield tile, str(error)


def _levels(splits: Splits, schema: AttributeSchema) -> Section:
    counts = {split: _counts(shards.levels_NA, schema) for split, shards in splits.items()}
    tables = [_level_table(a, attribute, counts) for a, attribute in enumerate(schema.attributes)]
    absent = level_counts.absent(schema, np.concatenate([shards.levels_NA for shards in splits.values()]))
    text = "Tiles of each level, and their share of the split." + "".join(f" {line[0].upper()}{line[1:]}." for line in absent)
    return Section("Attributes and levels", text, tables)


def _counts(levels_NA: np.ndarray, schema: AttributeSchema) -> list[np.ndarray]:
    """Count the tiles of every level of every attribute; the last entry counts unknown levels."""
    return [
        np.bincount(_last_if_unknown(levels_N, count), minlength=count + 1)
        for levels_N, count in zip(levels_NA.T, schema.num_levels, strict=True)
    ]


def _last_if_unknown(levels_N: np.ndarray, count: int) -> np.ndarray:
    """Replace `UNKNOWN` by ``count``, one above the highest level."""
    return np.where(levels_N == UNKNOWN, count, levels_N).astype(np.int64)


def _level_table(a: int, attribute: Attribute, counts: Mapping[str, list[np.ndarray]]) -> Table:
    rows: list[Sequence[Cell]] = []
    names = attribute.levels + ((UNKNOWN_LABEL,) if any(of_split[a][-1] for of_split in counts.values()) else ())
    for level, name in enumerate(names):
        number = level if level < len(attribute.levels) else UNKNOWN
        row: list[Cell] = [number, name + (" (not assessable)" if level == attribute.not_assessable else "")]
        for of_split in counts.values():
            share = of_split[a][level] / of_split[a].sum()
            row += [Tinted(int(of_split[a][level]), share), f"{share:.1%}"]
        rows.append(row)
    header = ["level", "name", *itertools.chain.from_iterable((split, "share") for split in counts)]
    return Table(header, rows, title=attribute.name)


def _combinations(splits: Splits, schema: AttributeSchema) -> Section:
    sizes = tuple(count + 1 for count in schema.num_levels)  # with "unknown"
    names = [(*attribute.levels, UNKNOWN_LABEL) for attribute in schema.attributes]
    code_S = [
        np.ravel_multi_index(tuple(map(_last_if_unknown, shards.levels_NA.T, schema.num_levels)), sizes) for shards in splits.values()
    ]
    code_C, inverse_N = np.unique(np.concatenate(code_S), return_inverse=True)
    split_N = np.repeat(np.arange(len(code_S)), [len(code) for code in code_S])
    counts_CS = np.bincount(inverse_N * len(code_S) + split_N, minlength=len(code_C) * len(code_S)).reshape(len(code_C), len(code_S))
    by_count_C = np.argsort(-counts_CS.sum(axis=1), kind="stable")
    levels_CA = np.stack(np.unravel_index(code_C, sizes), axis=1)

    def table(title: str, chosen: np.ndarray) -> Table:
        rows: list[Sequence[Cell]] = [
            [*(of_attribute[level] for of_attribute, level in zip(names, levels_CA[c], strict=True)), *counts_CS[c].tolist()]
            for c in chosen
        ]
        return Table([*schema.names, *splits], rows, title=title)

    only_once = int((counts_CS.sum(axis=1) == 1).sum())
    text = f"{len(code_C):,} of {math.prod(schema.num_levels):,} possible combinations of levels occur; {only_once:,} have a single tile."
    tables = [table("most frequent", by_count_C[:COMBINATIONS])]
    if rest := by_count_C[COMBINATIONS:][::-1][:COMBINATIONS].tolist():
        tables.append(table("least frequent", np.array(rest)))
    return Section("Combinations", text, tables)


def _co_occurrence(splits: Splits, schema: AttributeSchema) -> Section:
    """Count pairs of levels for every pair of attributes, over all splits."""
    blocks = _blocks(splits, schema)
    rows: list[Sequence[Cell]] = []
    for a, attribute in enumerate(schema.attributes):
        for level, name in enumerate(attribute.levels):
            row: list[Cell] = [attribute.name if level == 0 else "", f"{level} {name}"]
            for b in range(len(schema.names)):
                counts_K = blocks[a, b][level]
                row += [Tinted(count, count / max(1, counts_K.sum())) for count in counts_K.tolist()]
            rows.append(row)
    header = ["attribute", "level", *(str(level) for count in schema.num_levels for level in range(count))]
    spans = [("", 2), *zip(schema.names, schema.num_levels, strict=True)]
    text = "Tiles with both the row's and the column's level, in all splits. Shading is the share of the row's level."
    return Section("Co-occurrence", text, [Table(header, rows, spans)])


def _blocks(splits: Splits, schema: AttributeSchema) -> dict[tuple[int, int], np.ndarray]:
    blocks = {}
    for (a, rows), (b, columns) in itertools.product(enumerate(schema.num_levels), repeat=2):
        assessed = (shards.levels_NA[(shards.levels_NA[:, [a, b]] != UNKNOWN).all(axis=1)].astype(np.int64) for shards in splits.values())
        pairs = (np.bincount(levels_NA[:, a] * columns + levels_NA[:, b], minlength=rows * columns) for levels_NA in assessed)
        blocks[a, b] = sum(pairs, np.zeros(rows * columns, np.int64)).reshape(rows, columns)
    return blocks


def _groups(folder: Path, header: index.Header) -> Section:
    table = index.read_table(folder / index.FILE, columns=["group", "split"])
    counts: dict[str, dict[str, int]] = {}
    for row in table.group_by(["group", "split"]).aggregate([([], "count_all")]).to_pylist():
        counts.setdefault(row["group"], {})[row["split"]] = row["count_all"]
    ungrouped = sum(counts.pop("", {}).values())
    without = f" {ungrouped:,} tiles have no group." if ungrouped else ""
    if not counts:
        return Section("Groups", f"No groups, such as slides or patients.{without}")
    tiles = sorted(sum(of_split.values()) for of_split in counts.values())
    in_several = [group for group, of_split in counts.items() if len(of_split) > 1]
    split_note = (
        f"{len(in_several):,} groups are in more than one split: {', '.join(sorted(in_several)[:5])}."
        if in_several
        else "No group is in two splits."
    )
    text = f"{len(tiles):,} groups of {tiles[0]:,} to {tiles[-1]:,} tiles, median {int(np.median(tiles)):,}. {split_note}{without}"
    largest = sorted(counts, key=lambda group: (-sum(counts[group].values()), group))
    rows: list[Sequence[Cell]] = [[group, *(counts[group].get(split, 0) for split in header.splits)] for group in largest[:MAX_ROWS]]
    title = f"the {MAX_ROWS} largest" if len(largest) > MAX_ROWS else "all"
    return Section("Groups", text, [Table(["group", *header.splits], rows, title=title)])


def _stain(splits: Splits, sample: int, rng: np.random.Generator) -> Section:
    tables, damaged = [], 0
    for split, shards in splits.items():
        chosen = np.sort(rng.choice(len(shards), min(sample, len(shards)), replace=False))
        statistics = _StainStatistics()
        for _, pixels_HWC in _pixels(shards, chosen, shards.image_size or MIXED_SIZE):
            if isinstance(pixels_HWC, np.ndarray):
                statistics.add(pixels_HWC)
            else:
                damaged += 1
        if statistics.tiles:
            tables.append(statistics.table(f"{split}, {statistics.tiles:,} tiles"))
    text = (
        "Pixels of randomly drawn tiles. Intensity is 0 to 255. Optical density is -log10 of the intensity over 255, "
        "with 0 counted as 1 (Ruifrok and Johnston 2001). The last column is the standard deviation of the tiles' means."
    )
    note = f" {damaged:,} of them are damaged; list all with attributegan-shard verify." if damaged else ""
    return Section("Stain", text + note, tables)


@dataclass
class _StainStatistics:
    """Streaming mean and standard deviation of pixels. Axis C is R, G, B and their optical densities."""

    tiles: int = 0
    pixels: int = 0

    def __post_init__(self) -> None:
        self.sum_C, self.squares_C, self.mean_squares_C, self.means_C = (np.zeros(6) for _ in range(4))

    def add(self, pixels_HWC: np.ndarray) -> None:
        """Add the pixels of one tile."""
        counts_CV = np.stack([np.bincount(channel.ravel(), minlength=256) for channel in np.moveaxis(pixels_HWC, 2, 0)])
        value_V = np.arange(256.0)
        density_V = -np.log10(np.maximum(value_V, 1) / 255)
        sum_C = np.concatenate([counts_CV @ value_V, counts_CV @ density_V])
        mean_C = sum_C / counts_CV[0].sum()
        self.tiles += 1
        self.pixels += int(counts_CV[0].sum())
        self.sum_C += sum_C
        self.squares_C += np.concatenate([counts_CV @ value_V**2, counts_CV @ density_V**2])
        self.means_C += mean_C
        self.mean_squares_C += mean_C**2

    def table(self, title: str) -> Table:
        """Returns the statistics as a table."""
        mean_C = self.sum_C / self.pixels
        sd_C = np.sqrt(np.maximum(0, self.squares_C / self.pixels - mean_C**2))
        between_C = np.sqrt(np.maximum(0, self.mean_squares_C / self.tiles - (self.means_C / self.tiles) ** 2))
        names = [f"{kind}, {channel}" for kind in ("intensity", "optical density") for channel in ("red", "green", "blue")]
        rows: list[Sequence[Cell]] = [[name, *map(float, numbers)] for name, *numbers in zip(names, mean_C, sd_C, between_C, strict=True)]
        return Table(["channel", "mean", "sd of pixels", "sd of tiles' means"], rows, title=title)


def _files(folder: Path, header: index.Header) -> Section:
    rows: list[Sequence[Cell]] = [
        [shard.name, shard.split, shard.tiles, shard.size, Code(shard.sha256)] for shard in header.shards[:MAX_ROWS]
    ]
    path = folder / index.FILE
    rows.append([index.FILE, "", "", path.stat().st_size, Code(checksums.sha256_of(path))])
    more = len(header.shards) - MAX_ROWS
    text = f"Checksums are SHA-256; verify them with sha256sum --check {checksums.FILE}." + (f" {more:,} more shards." if more > 0 else "")
    tables = [Table(["file", "split", "tiles", "bytes", "SHA-256"], rows)]
    if header.left_out:
        tables.append(Table(["tile and reason"], [[line] for line in header.left_out[:MAX_ROWS]], title="left out"))
    return Section("Files", text, tables)
