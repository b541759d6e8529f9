"""One split of a shard set, opened for reading: its rows, its schema, its shards."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from attributegan.attributes import UNKNOWN, AttributeSchema
from data_shards.format import index
from data_shards.storage.cache import Cache
from data_shards.storage.shard_files import LocalShardFiles, RemoteShardFiles, ShardFiles, open_location


@dataclass(frozen=True)
class ShardSet:
    """One split of a shard set, opened for reading.

    Args:
        location: folder or URL of the set, for messages.
        folder: local folder of its index.
    """

    location: str
    folder: Path
    header: index.Header
    rows: index.Rows
    tars: ShardFiles

    @classmethod
    def open(
        cls,
        path: str | Path,
        split: str = "train",
        assessable_only: bool = False,
        cache: Cache | None = None,
        known: Sequence[str] = (),
        split_option: str = "data.split",
    ) -> ShardSet:
        """Read the index of the set at ``path``, a folder or a URL; its tars are looked at, not read.

        Args:
            assessable_only: leave out tiles on which any attribute is "not assessable".
            cache: for the files of a remote set; the default is that of `Cache.of`.
            known: names of attributes; the levels of all others count as not known. Without any, all levels are as they are.
            split_option: where the split was chosen, for messages.

        Raises:
            ValueError: no such set, split or attribute, or a shard that is missing or has another size than the index says.
        """
        if not str(path):
            raise ValueError("data.shards: is empty; name the folder of a shard set, such as one that `attributegan-shard pack` made")
        location, folder, header, tars = open_location(path, cache)
        if split not in header.splits:
            raise ValueError(f"{split_option}: {location} has no tiles in split {split!r}; it has {', '.join(header.splits)}")
        if isinstance(tars, LocalShardFiles):
            _check_shards(folder, [shard for shard in header.shards if shard.split == split])
        rows = index.read_rows(folder / index.FILE, header, split)
        if assessable_only:
            rows = rows.where(assessable(rows.levels_NA, header.schema, location))
        return cls(location, folder, header, _knowing(rows, header.schema, known) if known else rows, tars)

    def __len__(self) -> int:
        return len(self.levels_NA)

    @property
    def schema(self) -> AttributeSchema:
        return self.header.schema

    @property
    def levels_NA(self) -> np.ndarray:
        """int8, one row a tile."""
        return self.rows.levels_NA

    @property
    def image_size(self) -> int | None:
        """Pixels of the stored tiles, when all are squares of one size."""
        return self.header.image_size

    @property
    def fingerprint(self) -> str:
        """A short hash of all that the set holds."""
        listed = "".join(f"{shard.name} {shard.sha256}\n" for shard in self.header.shards)
        return hashlib.sha256(listed.encode()).hexdigest()[:16]

    @property
    def is_remote(self) -> bool:
        return isinstance(self.tars, RemoteShardFiles)

    def name(self, tile: int) -> str:
        """``shard: key`` of a tile."""
        shard, offset = self.shard_of(tile), int(self.rows.offset_N[tile])
        rows = index.read_shard(self.folder / index.FILE, shard)
        return f"{self.location}/{shard}: {rows['key'][rows['offset'].index(offset).as_py()]}"

    def shard_of(self, tile: int) -> str:
        return self.header.shards[self.rows.shard_N[tile]].name


def assessable(levels_NA: np.ndarray, schema: AttributeSchema, location: str) -> np.ndarray:
    """Which tiles have no attribute that is "not assessable", bool [N]; ValueError when none has."""
    keep_N = np.ones(len(levels_NA), bool)
    for attribute, levels_N in zip(schema.attributes, levels_NA.T, strict=True):
        if attribute.not_assessable is not None:
            keep_N &= levels_N != attribute.not_assessable
    if not keep_N.any():
        raise ValueError(f"data.assessable_only: no tile of {location} has all its attributes assessable; use false")
    return keep_N


def _knowing(rows: index.Rows, schema: AttributeSchema, known: Sequence[str]) -> index.Rows:
    if unknown := set(known) - set(schema.names):
        raise ValueError(f"data.attributes: {', '.join(sorted(unknown))}: the shards have the attributes {', '.join(schema.names)}")
    levels_NA = rows.levels_NA.copy()
    levels_NA[:, [name not in known for name in schema.names]] = UNKNOWN
    return replace(rows, levels_NA=levels_NA)


def _check_shards(folder: Path, shards: list[index.Shard]) -> None:
    for shard in shards:
        try:
            size = (folder / shard.name).stat().st_size
        except OSError as error:
            raise ValueError(f"{folder / shard.name}: a shard of the set can't be read ({error.strerror}); copy the set again") from error
        if size != shard.size:
            raise ValueError(f"{folder / shard.name}: has {size:,} bytes and should have {shard.size:,}; copy the set again")
