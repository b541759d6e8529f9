"""Plans a pack before anything is written: the order of the tiles, their splits, the shards.

A pure function of labels, image sizes and options, so that an interrupted pack can resume and any number of workers writes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from data_shards.format import groups, index
from data_shards.packing.labels import Labels
from data_shards.packing.sources import Source
from data_shards.packing.splits import hold_out
from data_shards.sampler import permutation

log = logging.getLogger("attributegan.data")
TAR_OVERHEAD = 2048  # bytes of a tile in addition to its image: two headers, the levels, padding


@dataclass(frozen=True)
class Options:
    """How tiles are assigned to splits and shards.

    Args:
        val_fraction: share of held-out tiles, in [0, 1).
        seed: of the split and of the order of the tiles.
        shard_bytes, shard_count: maximum size of a shard in bytes (approximate) and tiles.
    """

    val_fraction: float = 0.2
    seed: int = 0
    shard_bytes: int = 256 << 20
    shard_count: int = 1_000

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"--val-fraction: {self.val_fraction} is not in [0, 1)")
        if self.shard_bytes < 1 or self.shard_count < 1:
            raise ValueError("--shard-size and --shard-count: must be positive")


@dataclass(frozen=True)
class Job:
    """One shard to write."""

    name: str
    split: str
    row_T: np.ndarray  # rows of `Plan.table`


@dataclass(frozen=True)
class Plan:
    """All shards to write, and the tiles that were rejected."""

    table: pa.Table
    jobs: list[Job]
    bad: list[str]
    fingerprint: str

    def rows(self, job: Job) -> list[dict[str, Any]]:
        """Returns the rows of one shard."""
        rows: list[dict[str, Any]] = self.table.take(pa.array(job.row_T)).to_pylist()
        return rows


def make_plan(labels: Labels, source: Source, options: Options) -> Plan:
    """Drop missing images, split by group, shuffle, and divide into shards.

    Raises:
        ValueError: the tiles can't be split.
    """
    index.arrow_schema(labels.schema)
    size_N = source.sizes(labels.table)
    missing = labels.table.filter(pa.array(size_N < 0))
    near = source.near_names(missing["file"].to_pylist())
    bad = list(labels.bad)
    for row in missing.select(["where", "file"]).to_pylist():
        hint = f"; did you mean {near[row['file']]!r}?" if row["file"] in near else ""
        bad.append(f"{row['where']}: {row['file']}: no such image{hint}")
    table, size_N = labels.table.filter(pa.array(size_N >= 0)), size_N[size_N >= 0]
    held_out_N = _held_out(table, labels, options) if len(table) else np.zeros(0, bool)
    shuffled_N = permutation.shuffle(len(table), permutation.stream(options.seed, permutation.Purpose.PACKED_TILES))
    jobs = []
    for split, members_N in (("train", shuffled_N[~held_out_N[shuffled_N]]), ("val", shuffled_N[held_out_N[shuffled_N]])):
        jobs += [Job(f"{split}-{number:06d}.tar", split, rows) for number, rows in enumerate(_cut(members_N, size_N, options))]
    return Plan(table, jobs, bad, _fingerprint(labels, source, options, table, size_N))


def _held_out(table: pa.Table, labels: Labels, options: Options) -> np.ndarray:
    levels_NA = np.stack([table[name].to_numpy() for name in labels.schema.names], axis=1)
    if not labels.grouped:
        return hold_out(levels_NA, None, options.val_fraction, options.seed)
    encoded = table["group"].combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
    if warning := groups.warning(names):
        log.warning(warning)
    group_N = groups.inseparable(names)[encoded.indices.to_numpy()]
    return hold_out(levels_NA, group_N, options.val_fraction, options.seed)


def _cut(members_N: np.ndarray, size_N: np.ndarray, options: Options) -> list[np.ndarray]:
    """Divide tiles into shards within the limits of size; every shard has at least one tile."""
    end_N = np.cumsum(size_N[members_N] + TAR_OVERHEAD)
    shards, first = [], 0
    while first < len(members_N):
        limit = (end_N[first - 1] if first else 0) + options.shard_bytes
        after = min(int(np.searchsorted(end_N, limit, side="right")), first + options.shard_count)
        after = max(after, first + 1)
        shards.append(members_N[first:after])
        first = after
    return shards


def _fingerprint(labels: Labels, source: Source, options: Options, table: pa.Table, size_N: np.ndarray) -> str:
    tree = [index.VERSION, labels.schema.to_dict(), source.recipe, asdict(options), labels.grouped]
    digest = hashlib.sha256(json.dumps(tree).encode())
    digest.update(size_N.tobytes())
    for batch in table.combine_chunks().to_batches(max_chunksize=1 << 16):
        digest.update(json.dumps(batch.to_pydict(), ensure_ascii=False).encode())
    return digest.hexdigest()
