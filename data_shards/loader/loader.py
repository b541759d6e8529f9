"""Loads batches of tiles from a shard set, starting at any position of the order.

Owns the worker processes and the replacement of damaged tiles. The order of tiles is in global_order.py, the format of shards in tile.py
and index.py.
"""

from __future__ import annotations

import errno
import logging
import multiprocessing.util
import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from attributegan.cli import STOP_SIGNALS
from data_shards import worker_pool
from data_shards.format import tile as tile_format
from data_shards.loader.shard_set import ShardSet
from data_shards.loader.tile_reader import TileCorrupted, TileReader, TileRequest
from data_shards.sampler import permutation
from data_shards.sampler.windowed_order import WindowedShuffle
from data_shards.storage.cache import StoreError
from data_shards.storage.prefetch import Prefetcher
from data_shards.storage.shard_files import RemoteShardFiles

log = logging.getLogger("attributegan.data")

PREFETCH_FACTOR = 4  # micro-batches that each worker prefetches


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one process."""

    images_BCHW: Tensor  # uint8 RGB, channels last in memory
    levels_BA: Tensor  # int64
    cursor: int  # global position of the micro-batch's first image


def batches(
    shards: ShardSet,
    order: TileOrder,
    *,
    start: int,
    batch: int,
    micro_batches: int,
    rank: int,
    world: int,
    workers: int,
    flips: bool,
    image_size: int,
    crop: float = 1.0,
    pin_memory: bool = False,
) -> Generator[Batch, None, None]:
    """Yields the micro-batches of process ``rank`` from global position ``start`` on, endlessly.

    With b = batch / (micro_batches * world), micro-batch m of a step that starts at position c covers the global positions
    c + m * (batch / micro_batches) + rank * b + [0, b). Starting costs the same at any position. The batches are independent of
    ``workers`` and of the number of restarts.

    Args:
        start: number of images seen before.
        batch: global batch size, a multiple of ``micro_batches * world``.
        workers: number of processes that read and decode; 0 uses the current process.
        flips: apply one of the 8 symmetries of the square to each tile, drawn for (seed, position).
        image_size: in pixels; tiles of other sizes are cropped to a centred square and resized.
        crop: share of a tile's shorter side; below 1, a square of that size is cropped at a position drawn for (seed, position).

    Raises:
        ValueError: too many damaged tiles or an unavailable remote shard (the message names the shard), or a cache that is too small.
    """
    assert batch % (micro_batches * world) == 0 and 0 <= rank < world
    _check_cache_size(shards, order)
    local_batch = batch // (micro_batches * world)
    requests = _Requests(shards, order, start + rank * local_batch, batch // micro_batches, local_batch, flips, crop)
    tiles = TileReader(shards.tars, image_size)
    replacements = _Replacements(requests, tiles)
    results = _start_loader(tiles, requests, workers, pin_memory)
    prefetcher = _prefetcher(shards, order, start)  # after the workers, since forking with threads is unsafe
    try:
        for request, images_BHWC, damage, failure in _checked(results) if workers else results:
            if failure:
                raise failure
            tile_B = replacements.replace_damaged(request, images_BHWC, damage)
            levels_BA = torch.from_numpy(shards.levels_NA[tile_B].astype(np.int64))
            if prefetcher:
                prefetcher.position = request.first
            yield Batch(images_BHWC.permute(0, 3, 1, 2), levels_BA, request.first - rank * local_batch)
    finally:  # workers block SIGTERM, with which Python ends children at exit, so an error would hang there
        if prefetcher:
            prefetcher.close()
        if workers:
            results._shutdown_workers()  # type: ignore[attr-defined]
            _remove_segments([worker.pid for worker in results._workers])  # type: ignore[attr-defined]


def _checked(results: Iterator[_Result]) -> Iterator[_Result]:
    """Yields the results of the workers.

    Raises:
        RuntimeError: a worker was killed while sending a batch, which torch does not detect.
    """
    try:
        yield from results
    except (EOFError, ConnectionError, FileNotFoundError) as error:
        if "in DataLoader worker" in str(error):  # raised by code in the worker, not by a broken pipe
            raise
        raise RuntimeError("a DataLoader worker died while sending a batch; it may have been killed for lack of memory") from error


def _check_cache_size(shards: ShardSet, order: TileOrder) -> None:
    """Reject a cache smaller than the shards read concurrently, which would be evicted and downloaded over and over."""
    if not isinstance(shards.tars, RemoteShardFiles):
        return
    number_S = np.unique(shards.rows.shard_N)
    size_S = np.sort([shards.header.shards[number].size for number in number_S])
    concurrent = order.window if isinstance(order, WindowedShuffle) else len(size_S)
    needed, limit = size_S[-concurrent:].sum() / 1e9, shards.tars.cache.limit / 1e9
    if needed > limit:
        raise ValueError(
            f"data.cache_gb: {limit:g} GB is smaller than the {min(concurrent, len(size_S))} shards of {shards.location} that are "
            f"read concurrently ({needed:.3g} GB); set it to twice that, or reduce data.shuffle_window"
        )


def _prefetcher(shards: ShardSet, order: TileOrder, start: int) -> Prefetcher | None:
    """Start the prefetcher of a remote set; None for an order without windows, which needs all shards at once."""
    if isinstance(shards.tars, RemoteShardFiles) and isinstance(order, WindowedShuffle):
        return Prefetcher(shards.tars, order.shards_from, start)
    return None


@dataclass(frozen=True)
class _Request:
    """Input of a worker for one micro-batch; small, because workers do not have the index."""

    first: int  # position of the first tile
    tile_B: np.ndarray
    tiles: list[TileRequest]


class TileOrder(Protocol):
    """`global_order.GlobalShuffle` or `windowed_order.WindowedShuffle`."""

    seed: int

    def __getitem__(self, positions_B: np.ndarray) -> np.ndarray:
        """Returns the tile at each position."""


class _Requests:
    """The requests of one process from a position on, endless."""

    def __init__(self, shards: ShardSet, order: TileOrder, first: int, step: int, local_batch: int, flips: bool, crop: float) -> None:
        self.shards, self.order, self.flips, self.crop = shards, order, flips, crop
        self.first, self.step, self.local_batch = first, step, local_batch
        self._symmetries = permutation.stream(order.seed, permutation.Purpose.SYMMETRIES)
        self._crops = permutation.stream(order.seed, permutation.Purpose.CROPS)

    def __iter__(self) -> Iterator[_Request]:
        first = self.first
        while True:
            position_B = np.arange(first, first + self.local_batch)
            tile_B = self.order[position_B]
            yield _Request(first, tile_B, self.tile_requests(tile_B, position_B))
            first += self.step

    def tile_requests(self, tile_B: np.ndarray, position_B: np.ndarray) -> list[TileRequest]:
        """Returns the requests for ``tile_B`` at ``position_B``."""
        rows = self.shards.rows
        symmetry_B = permutation.hashes(self._symmetries, position_B) >> np.uint64(61) if self.flips else np.zeros(len(tile_B), np.uint64)
        columns = (rows.shard_N[tile_B], rows.offset_N[tile_B], rows.length_N[tile_B], rows.checksum_N[tile_B], symmetry_B)
        crops = self._crops_at(position_B)
        return [TileRequest(*row) for row in zip(*(column.tolist() for column in columns), crops, strict=True)]

    def _crops_at(self, position_B: np.ndarray) -> list[tile_format.Crop | None]:
        if self.crop == 1:
            return [None] * len(position_B)
        hash_B = permutation.hashes(self._crops, position_B)
        across_B, down_B = (hash_B >> np.uint64(32)) / 2.0**32, (hash_B & np.uint64(0xFFFFFFFF)) / 2.0**32
        return [tile_format.Crop(self.crop, *at) for at in zip(across_B.tolist(), down_B.tolist(), strict=True)]


_Result = tuple[_Request, Tensor, dict[int, str], StoreError | None]


class _Dataset:
    """The dataset of the DataLoader: maps a request to pixels."""

    def __init__(self, tiles: TileReader) -> None:
        self.tiles = tiles

    def __getitem__(self, request: _Request) -> _Result:
        """Returns the request, images_BHWC, the error of each damaged tile by its index in the batch, and a fatal error or None."""
        try:
            return self._read(request)
        except MemoryError:
            if get_worker_info() is not None:  # sending the error needs memory too, and without it the training would wait forever
                os.write(2, b"error: a data loading worker ran out of memory; reduce data.workers, or give the job more memory\n")
                os._exit(1)
            raise

    def _read(self, request: _Request) -> _Result:
        images_BHWC = np.zeros((len(request.tiles), self.tiles.image_size, self.tiles.image_size, 3), np.uint8)
        damage: dict[int, str] = {}
        for index, tile in enumerate(request.tiles):
            try:
                images_BHWC[index] = self.tiles.read(tile)
            except TileCorrupted as error:
                damage[index] = str(error)
            except StoreError as error:
                return request, torch.from_numpy(images_BHWC), damage, error
        return request, torch.from_numpy(images_BHWC), damage, None


def _identity(result: _Result) -> _Result:
    return result


def _end_with_parent(worker: int) -> None:
    multiprocessing.util.get_temp_dir()  # created now, not by the first batch, which may be sent while the worker exits
    worker_pool.end_with_parent()


def _start_loader(tiles: TileReader, requests: _Requests, workers: int, pin_memory: bool) -> Iterator[_Result]:
    try:
        return _data_loader(tiles, requests, workers, pin_memory)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise ValueError(
            "data.workers: no space left in /dev/shm for the workers; enlarge it (containers: --shm-size), or use data.workers=0"
        ) from error


def _remove_segments(workers: Sequence[int]) -> None:
    """Remove shared memory that torch leaves behind when a worker dies while creating it."""
    for worker in workers:
        for path in Path("/dev/shm").glob(f"torch_{worker}_*"):  # noqa: S108  # named after our own processes
            path.unlink(missing_ok=True)


def _data_loader(tiles: TileReader, requests: _Requests, workers: int, pin_memory: bool) -> Iterator[_Result]:
    loader: DataLoader[_Result] = DataLoader(
        _Dataset(tiles),  # type: ignore[arg-type]
        batch_size=None,
        sampler=requests,
        num_workers=workers,
        prefetch_factor=PREFETCH_FACTOR if workers else None,
        collate_fn=_identity,  # type: ignore[arg-type]
        pin_memory=pin_memory,
        worker_init_fn=_end_with_parent,
        multiprocessing_context=worker_pool.START_METHOD if workers else None,
        generator=torch.Generator(),  # the loader draws a seed, which must not come from the global generator
    )
    # Ctrl-C, a launcher's SIGTERM and Slurm's signals reach the workers too. Started with these signals blocked, workers stay alive for
    # the last step and the checkpoint; they exit with the loader or with their parent.
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


class _Replacements:
    """Replaces damaged tiles by the next ones of the order, and stops the run if too many are damaged.

    The replacement depends only on the position, so it is the same for any number of processes.
    """

    def __init__(self, requests: _Requests, tiles: TileReader) -> None:
        self.requests, self.tiles = requests, tiles
        self.damaged: set[int] = set()
        self.limit = max(10, len(requests.shards) // 1000)

    def replace_damaged(self, request: _Request, images_BHWC: Tensor, damage: dict[int, str]) -> np.ndarray:
        """Replace the damaged tiles in ``images_BHWC``; returns the tiles of the batch, tile_B."""
        tile_B = request.tile_B.copy()
        for index, problem in damage.items():
            self._record(int(tile_B[index]), problem)
            tile_B[index], pixels_HWC = self._next_readable(request.first + index)
            images_BHWC[index].numpy()[...] = pixels_HWC
        return tile_B

    def _next_readable(self, position: int) -> tuple[int, np.ndarray]:
        for later in range(position + 1, position + 1000):
            tile_B = self.requests.order[np.array([later])]
            try:
                return int(tile_B[0]), self.tiles.read(self.requests.tile_requests(tile_B, np.array([position]))[0])
            except TileCorrupted as error:
                self._record(int(tile_B[0]), str(error))
        raise self._too_many(int(tile_B[0]))

    def _record(self, tile: int, problem: str) -> None:
        if tile in self.damaged:
            return
        self.damaged.add(tile)
        log.warning("%s: damaged (%s); replaced by the next tile (%d so far)", self.requests.shards.name(tile), problem, len(self.damaged))
        if len(self.damaged) > self.limit:
            raise self._too_many(tile)

    def _too_many(self, tile: int) -> ValueError:
        shards = self.requests.shards
        return ValueError(
            f"{shards.location}/{shards.shard_of(tile)}: too many damaged tiles ({len(self.damaged)} in {shards.location}, the "
            f"last in this shard); find them with `attributegan-shard verify {shards.location}` and replace them"
        )
