"""Loads the real tiles of an evaluation from a shard set."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from attributegan.attributes import PUBLISHED, AttributeSchema
from attributegan.checkpoint.loading import Loaded
from attributegan.evaluation.reference import Split
from data_shards.format import checksums, index
from data_shards.loader.shard_set import ShardSet, assessable
from data_shards.loader.tile_reader import TileCorrupted, TileReader, TileRequest
from data_shards.sampler import permutation
from data_shards.storage.cache import Cache
from data_shards.storage.shard_files import open_location
from tools.evaluation.options import EvaluationSettings

MIN_SAME_SLIDES = 50  # tiles of training slides that --same-slides needs


@dataclass(frozen=True)
class Data:
    """Real tiles.

    Args:
        location: folder or URL of the shard set, without secrets.
        groups_apart: whether no slide is in both splits; None if tiles have no groups.
        measure: image measurement of each attribute, for phantoms or as requested by ``--measure``; None otherwise.
        measured_by: name of the measurement of each attribute; {} for phantoms.
        same_slides: tiles of training slides that were kept out of training, for the membership test; None if not given.
    """

    location: str
    schema: AttributeSchema
    train: Split
    held_out: Split
    groups_apart: bool | None
    measure: Callable[[np.ndarray], np.ndarray] | None
    measured_by: Mapping[str, str] = field(default_factory=dict)
    same_slides: Split | None = None

    @property
    def measure_held_out(self) -> Callable[[np.ndarray], np.ndarray] | None:
        """Measurement of the held-out tiles. Callers pass thumbnails; nuclei are measured on the full-size tiles instead."""
        return self._measure_full if self.measured_by else self.measure

    def _measure_full(self, small_NHWC: np.ndarray) -> np.ndarray:
        assert self.measure is not None and len(small_NHWC) == len(self.held_out)
        rows_N = np.arange(len(self.held_out))
        return np.concatenate([self.measure(self.held_out.read(rows_N[first : first + 64])) for first in range(0, len(rows_N), 64)])


def open_data(settings: EvaluationSettings, size: int) -> Data:
    """Open both splits, with tiles resized to ``size`` pixels, the image size of the generated ones.

    Raises:
        ValueError: not a shard set, or a split that it does not have.
    """
    if settings.train == settings.held_out:
        raise ValueError(f"--held-out: {settings.held_out} is also the training split; give a split that the model was not trained on")
    cache = Cache.of(settings.shards_cache, settings.shards_cache_gb)
    opened = [
        open_split(settings.shards, split, size, settings.max_real, settings.assessable_only, cache, option)
        for option, split in (("--train", settings.train), ("--held-out", settings.held_out))
    ]
    (shards, _), names, (train, held_out) = zip(*opened, strict=True)
    groups = [set(filter(None, of_split)) for of_split in names]
    is_phantom = shards.schema == PUBLISHED and all(group.startswith("phantoms-") for group in names[0])
    apart = not groups[0] & groups[1] if all(groups) else None
    measured_by = _measured_by(settings, shards.schema)
    measure = _measurer(measured_by, shards.schema) if measured_by else _measure() if is_phantom else None
    same = same_slides(settings.same_slides, shards, train, size, settings.max_real, cache)
    return Data(shards.location, shards.schema, train, held_out, apart, measure, measured_by, same)


def open_split(
    location: str, split: str, size: int, most: int, assessable_only: bool, cache: Cache, option: str
) -> tuple[ShardSet, list[str], Split]:
    """Open a split of a shard set.

    Args:
        size: pixels to resize the tiles to.
        most: maximum number of tiles, drawn at random.
        assessable_only: skip tiles with an attribute that is "not assessable".
        cache: cache for the shards of a remote set.
        option: option that names the split, for error messages.

    Returns:
        The shard set, the slide of each tile of the split, and the drawn tiles.

    Raises:
        ValueError: not a shard set, or a split that it does not have.
    """
    shards = ShardSet.open(location, split, cache=cache, split_option=option)
    names = _groups(shards, split)
    use_N = assessable(shards.levels_NA, shards.schema, shards.location) if assessable_only else np.ones(len(shards), bool)
    return shards, names, _split(shards, names, size, most, use_N, "/assessable" * assessable_only)


def _groups(shards: ShardSet, split: str) -> list[str]:
    """Returns the slide of each tile of a split, "" if unknown."""
    table = index.read_table(shards.folder / index.FILE, ["group", "split"])
    names: list[str] = table.filter(np.array(table["split"].to_pylist()) == split)["group"].to_pylist()
    return names


def same_slides(location: str | None, shards: ShardSet, train: Split, size: int, most: int, cache: Cache) -> Split | None:
    """Open the set of --same-slides: tiles of the training slides that were kept out of training.

    Args:
        location: that set; None without the option. Of its splits, the one with most tiles of training slides is used.
        shards: the training split.
        train: tiles of the training split.
        size: pixels to resize the tiles to.
        most: maximum number of tiles.
        cache: cache for the shards of a remote set.

    Returns:
        the tiles of training slides, with groups numbered as those of ``train``; None without the option.

    Raises:
        ValueError: the tiles of a set have no slides, fewer than `MIN_SAME_SLIDES` tiles are of training slides, or tiles are in both sets.
    """
    if location is None:
        return None
    number_of = {name: number for number, name in enumerate(train.slides) if name}
    if not number_of:
        raise ValueError(f"--same-slides: the tiles of {shards.location} have no slides; pack them with --group")
    opened = [ShardSet.open(location, split, cache=cache) for split in open_location(location, cache)[2].splits]
    names = [_groups(other, other.header.shards[int(other.rows.shard_N[0])].split) for other in opened]
    masks = [np.array([name in number_of for name in of_split]) for of_split in names]
    other, of_tile, use_N = max(zip(opened, names, masks, strict=True), key=lambda entry: int(entry[2].sum()))
    if use_N.sum() < MIN_SAME_SLIDES:
        raise ValueError(
            f"--same-slides: {other.location} has {use_N.sum()} tiles of the slides of the training split; {MIN_SAME_SLIDES} are needed"
        )
    trained_on = set(zip(shards.rows.checksum_N.tolist(), shards.rows.length_N.tolist(), strict=True))
    found = zip(other.rows.checksum_N.tolist(), other.rows.length_N.tolist(), strict=True)
    if shared := [tile for tile, image in enumerate(found) if image in trained_on]:
        raise ValueError(
            f"--same-slides: {len(shared)} of its tiles are in the training split, such as {other.name(shared[0])}; remove them"
        )
    result = _split(other, of_tile, size, most, use_N, f"/of {train.identity}")
    return replace(result, group_N=np.array([number_of[name] for name in result.slides])[result.group_N])


def check_model(name: str, loaded: Loaded, data: Data) -> None:
    """Check that a model fits the tiles.

    Raises:
        ValueError: names the model and the difference.
    """
    if differences := loaded.schema.difference(data.schema):
        raise ValueError(f"{name}: does not fit the shards: {'; '.join(differences)}")


def common_size(sizes: Mapping[str, int]) -> int:
    """Returns the image size of all models and tile sets.

    Raises:
        ValueError: names the first that differs.
    """
    first = next(iter(sizes.values()))
    for name, size in sizes.items():
        if size != first:
            raise ValueError(f"{name}: has tiles of {size} pixels, the first of {first}; evaluate them separately")
    return first


def _split(shards: ShardSet, names: list[str], size: int, most: int, use_mask_N: np.ndarray, suffix: str) -> Split:
    """Draw tiles at random from the whole split: indexed tars may be sorted by level.

    Args:
        use_mask_N: tiles to draw from.
        suffix: names these tiles in the identity of the split.
    """
    rows, read_tiles = shards.rows, set_reader(shards, size)
    use_N = np.flatnonzero(use_mask_N)
    drawn_N = use_N[permutation.shuffle(len(use_N), permutation.stream(0, permutation.Purpose.EVALUATION_TILES))][:most]

    def read(number_N: np.ndarray) -> np.ndarray:
        return read_tiles(drawn_N[number_N])

    digest = hashlib.sha256((shards.folder / checksums.FILE).read_bytes())
    digest.update(f"{shards.header.shards[rows.shard_N[0]].split}/{size}/{most}/drawn{suffix}".encode())
    group_of_tile = [names[number] or f"\0{number}" for number in drawn_N.tolist()]
    slides, group_N = np.unique(group_of_tile, return_inverse=True)
    known = tuple("" if name.startswith("\0") else name for name in slides.tolist())
    return Split(shards.levels_NA[drawn_N].astype(np.int64), group_N, read, digest.hexdigest(), known)


def set_reader(shards: ShardSet, size: int) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function that reads tiles of a split by number, resized to ``size`` pixels: (N, size, size, 3) uint8."""
    files, rows = TileReader(shards.tars, size), shards.rows

    def read(tiles_N: np.ndarray) -> np.ndarray:
        columns = [column[tiles_N].tolist() for column in (rows.shard_N, rows.offset_N, rows.length_N, rows.checksum_N)]
        requests = [TileRequest(*location, 0) for location in zip(*columns, strict=True)]  # type: ignore[call-arg]
        return np.stack([_read(shards, files, tile, request) for tile, request in zip(tiles_N.tolist(), requests, strict=True)])

    return read


def _read(shards: ShardSet, files: TileReader, tile: int, request: TileRequest) -> np.ndarray:
    try:
        return files.read(request)
    except TileCorrupted as error:
        raise ValueError(
            f"{shards.name(tile)}: corrupted ({error}); list all corrupted tiles with `attributegan-shard verify {shards.location}`"
        ) from error


def _measure() -> Callable[[np.ndarray], np.ndarray]:
    from data_shards.phantoms.measure import measure

    return measure


def _measured_by(settings: EvaluationSettings, schema: AttributeSchema) -> dict[str, str]:
    from data_shards.measure import evaluation

    return evaluation.by_attribute(settings.measure, schema) if settings.measure else {}


def _measurer(measured_by: dict[str, str], schema: AttributeSchema) -> Callable[[np.ndarray], np.ndarray]:
    from data_shards.measure import evaluation

    return evaluation.measurer(measured_by, schema)
