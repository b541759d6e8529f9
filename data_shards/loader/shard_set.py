"""One split of a shard set, open for reading: its rows, schema and shards."""

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
    """One split of a shard set, open for reading.

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
        attributes: Sequence[str] = (),
        split_option: str = "data.split",
    ) -> ShardSet:
        """Read the index of the set at ``path``, a folder or a URL, and check the sizes of its tars.

        Args:
            assessable_only: leave out tiles with an attribute that is "not assessable".
            cache: for the files of a remote set; defaults to `Cache.of`.
            attributes: names of the attributes to use; the levels of all others become unknown. Empty uses all.
            split_option: name of the option of the split, for messages.

        Raises:
            ValueError: no such set, split or attribute, or a shard is missing or has the wrong size.
        """
        if not str(path):
            raise ValueError("data.shards: empty; set it to the folder of a shard set, such as one created by `attributegan-shard pack`")
        location, folder, header, tars = open_location(path, cache)
        if split not in header.splits:
            raise ValueError(f"{split_option}: {location} has no split {split!r}; found {', '.join(header.splits)}")
        if isinstance(tars, LocalShardFiles):
            _check_shards(folder, [shard for shard in header.shards if shard.split == split])
        rows = index.read_rows(folder / index.FILE, header, split)
        if assessable_only:
            rows = rows.where(assessable(rows.levels_NA, header.schema, location))
        return cls(location, folder, header, _restrict(rows, header.schema, attributes) if attributes else rows, tars)

    def __len__(self) -> int:
        return len(self.levels_NA)

    @property
    def schema(self) -> AttributeSchema:
        return self.header.schema

    @property
    def levels_NA(self) -> np.ndarray:
        """Levels of every tile, int8."""
        return self.rows.levels_NA

    @property
    def image_size(self) -> int | None:
        """Size of the stored tiles in pixels if all are squares of one size, else None."""
        return self.header.image_size

    @property
    def fingerprint(self) -> str:
        """Short hash of the set's contents."""
        listed = "".join(f"{shard.name} {shard.sha256}\n" for shard in self.header.shards)
        return hashlib.sha256(listed.encode()).hexdigest()[:16]

    @property
    def is_remote(self) -> bool:
        return isinstance(self.tars, RemoteShardFiles)

    def name(self, tile: int) -> str:
        """Returns ``location/shard: key`` of a tile."""
        shard, offset = self.shard_of(tile), int(self.rows.offset_N[tile])
        rows = index.read_shard(self.folder / index.FILE, shard)
        return f"{self.location}/{shard}: {rows['key'][rows['offset'].index(offset).as_py()]}"

    def shard_of(self, tile: int) -> str:
        """Returns the name of the shard that contains a tile."""
        return self.header.shards[int(self.rows.shard_N[tile])].name


def assessable(levels_NA: np.ndarray, schema: AttributeSchema, location: str) -> np.ndarray:
    """Returns the mask of tiles without an attribute that is "not assessable", bool [N]; ValueError if there are none."""
    keep_N = np.ones(len(levels_NA), bool)
    for attribute, levels_N in zip(schema.attributes, levels_NA.T, strict=True):
        if attribute.not_assessable is not None:
            keep_N &= levels_N != attribute.not_assessable
    if not keep_N.any():
        raise ValueError(f"data.assessable_only: no tile of {location} has all attributes assessable; set it to false")
    return keep_N


def _restrict(rows: index.Rows, schema: AttributeSchema, attributes: Sequence[str]) -> index.Rows:
    """Set the levels of all other attributes to unknown."""
    if unknown := set(attributes) - set(schema.names):
        raise ValueError(f"data.attributes: {', '.join(sorted(unknown))}: not in the shards, which have {', '.join(schema.names)}")
    levels_NA = rows.levels_NA.copy()
    levels_NA[:, [name not in attributes for name in schema.names]] = UNKNOWN
    return replace(rows, levels_NA=levels_NA)


def _check_shards(folder: Path, shards: list[index.Shard]) -> None:
    for shard in shards:
        try:
            size = (folder / shard.name).stat().st_size
        except OSError as error:
            raise ValueError(f"{folder / shard.name}: can't be read ({error.strerror}); copy the set again") from error
        if size != shard.size:
            raise ValueError(f"{folder / shard.name}: has {size:,} bytes, expected {shard.size:,}; copy the set again")
