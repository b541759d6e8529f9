"""Opens tiles of any generator as the subject of an evaluation: a folder of images with a table of levels, or a shard set."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attributegan.attributes import AttributeSchema
from attributegan.evaluation.reference import Split
from data_shards.format import checksums, index, tile
from data_shards.loader.shard_set import ShardSet
from data_shards.packing.labels import read_labels
from data_shards.sampler import permutation
from data_shards.storage import stores
from data_shards.storage.cache import Cache
from data_shards.storage.shard_files import open_location
from tools.evaluation.data import set_reader


@dataclass(frozen=True)
class TileSource:
    """Tiles of a generator that is not available itself.

    Args:
        location: folder or URL, without secrets.
        image_size: of the tiles, pixels.
        open: (schema, most, size) -> at most ``most`` tiles, drawn at random, resized to ``size``; ValueError if they don't fit the schema.
    """

    location: str
    image_size: int
    open: Callable[[AttributeSchema, int, int], Split]


def is_tiles(path: str | Path) -> bool:
    """Whether a path given by a user is a set of tiles rather than a run folder or checkpoint."""
    from attributegan.checkpoint.store import MANIFEST
    from attributegan.run_dir.checkpoint_dirs import checkpoints_dir

    if stores.is_remote(str(path)) or (Path(path) / index.FILE).is_file():
        return True
    if (Path(path) / MANIFEST).is_file() or checkpoints_dir(path).is_dir():
        return False
    return Path(path).is_dir() and bool(_tables(Path(path)))


def open_tiles(path: str | Path, cache: Cache) -> TileSource:
    """Open a shard set, or a folder of images with one CSV that `attributegan-shard pack` reads.

    Raises:
        ValueError: not such a set or folder, or tiles that are not squares of one size.
    """
    if stores.is_remote(str(path)) or (Path(path) / index.FILE).is_file():
        return _of_set(path, cache)
    tables = _tables(Path(path))
    if len(tables) != 1:
        found = ", ".join(table.name for table in tables) or "none"
        raise ValueError(f"{path}: needs one CSV with the levels of its images; found {found}")
    return _of_folder(Path(path), tables[0])


def _tables(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.csv"))


def _of_set(path: str | Path, cache: Cache) -> TileSource:
    """Tiles of every split of a set."""
    header = open_location(path, cache)[2]
    opened = [ShardSet.open(path, split, cache=cache) for split in header.splits]
    first = opened[0]
    if first.image_size is None:
        raise ValueError(f"{first.location}: tiles of different sizes can't be evaluated; pack them with --size")

    def open_split(schema: AttributeSchema, most: int, size: int) -> Split:
        if differences := first.schema.difference(schema):
            raise ValueError(f"{first.location}: does not fit the shards: {'; '.join(differences)}")
        levels_NA = np.concatenate([shards.levels_NA for shards in opened]).astype(np.int64)
        read_all = [set_reader(shards, size) for shards in opened]
        starts = np.cumsum([0, *map(len, opened)])
        drawn_N = _draw(len(levels_NA), most)

        def read(number_N: np.ndarray) -> np.ndarray:
            tiles = []
            for tile_number in drawn_N[number_N].tolist():
                part = int(np.searchsorted(starts, tile_number, "right")) - 1
                tiles.append(read_all[part](np.array([tile_number - starts[part]]))[0])
            return np.stack(tiles)

        digest = hashlib.sha256((first.folder / checksums.FILE).read_bytes() + f"/all/{size}/{most}".encode())
        return Split(levels_NA[drawn_N], np.arange(len(drawn_N)), read, digest.hexdigest())

    return TileSource(first.location, first.image_size, open_split)


def _of_folder(folder: Path, table: Path) -> TileSource:
    with table.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
        header = next(csv.reader(stream), [])
        entry = next(csv.DictReader(stream, fieldnames=header), {})
    if "file" not in header or not entry.get("file"):
        raise ValueError(f"{table}: needs the column file, and one row for each image")
    image_size = _decoded(folder, entry["file"]).shape[0]

    def open_split(schema: AttributeSchema, most: int, size: int) -> Split:
        if missing := [name for name in schema.names if name not in header]:
            raise ValueError(f"{table}: lacks the attributes {', '.join(missing)}; add a column for each, -1 where the level is unknown")
        labels = read_labels([table], schema)
        if labels.bad:
            raise ValueError(f"{table}: {len(labels.bad):,} invalid rows:" + "".join(f"\n  {line}" for line in labels.bad[:10]))
        drawn_N = _draw(len(labels.table), most)
        files = [labels.table["file"][number].as_py() for number in drawn_N.tolist()]
        levels_NA = np.stack([labels.table[name].to_numpy() for name in schema.names], axis=1)[drawn_N].astype(np.int64)
        digest = hashlib.sha256(levels_NA.tobytes() + f"/{size}".encode())
        for file in files:
            if _decoded(folder, file).shape != (image_size, image_size, 3):
                raise ValueError(f"{folder / file}: not a square of {image_size} pixels like the first image; resize the images first")
            digest.update((folder / file).read_bytes())

        def read(number_N: np.ndarray) -> np.ndarray:
            return np.stack([_decoded(folder, files[number], size) for number in number_N.tolist()])

        return Split(levels_NA, np.arange(len(files)), read, digest.hexdigest())

    return TileSource(str(folder), image_size, open_split)


def _decoded(folder: Path, file: str, size: int | None = None) -> np.ndarray:
    path = folder / file
    try:
        return tile.decode(path.read_bytes(), size)
    except tile.DECODING_ERRORS as error:
        raise ValueError(f"{path}: not a readable image: {error}") from error


def _draw(count: int, most: int) -> np.ndarray:
    """Returns at most ``most`` tiles, drawn as those of real splits are: tables may be sorted by level."""
    return permutation.shuffle(count, permutation.stream(0, permutation.Purpose.EVALUATION_TILES))[:most]
