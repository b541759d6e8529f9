"""Tiles out of a shard set, batch by batch, from any position of the order on.

Owns opening a set, the worker processes and what happens to damaged tiles. Which tile comes when is in global_order.py, what a shard is
made of in tile.py and index.py.
"""

from __future__ import annotations

import errno
import logging
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
from data_shards import worker_pool as processes
from data_shards.format import tile as tile_format
from data_shards.loader.shard_set import ShardSet
from data_shards.loader.tile_reader import TileCorrupted, TileReader, TileRequest
from data_shards.sampler import permutation
from data_shards.sampler.windowed_order import WindowedShuffle
from data_shards.storage.cache import StoreError
from data_shards.storage.prefetch import Prefetcher
from data_shards.storage.shard_files import RemoteShardFiles

log = logging.getLogger("attributegan.data")

AHEAD = 4  # micro-batches that each worker has ready or in work


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
    """The micro-batches of process ``rank`` from global position ``start`` on, without end.

    With b = batch / (micro_batches * world), micro-batch m of a step that starts at position c is the global positions
    c + m * (batch / micro_batches) + rank * b + [0, b). Starting costs the same at any position. The batches depend neither on
    ``workers`` nor on how often reading was started.

    Args:
        start: images seen before.
        batch: global batch, a multiple of ``micro_batches * world``.
        workers: processes that read and decode; 0 does it here.
        flips: turn and mirror each tile in one of the 8 ways, drawn for (seed, position).
        image_size: pixels; tiles of another size are cropped to a centred square and resized.
        crop: share of a tile's shorter side; below 1, a square of that size is taken, at a place drawn for (seed, position).

    Raises:
        ValueError: too many tiles are damaged, or a store does not give a shard; names the shard. Or a cache that is too small.
    """
    assert batch % (micro_batches * world) == 0 and 0 <= rank < world
    _check_room(shards, order)
    share = batch // (micro_batches * world)
    requests = _Requests(shards, order, start + rank * share, batch // micro_batches, share, flips, crop)
    tiles = TileReader(shards.tars, image_size)
    replacements = _Replacements(requests, tiles)
    answers = _started(tiles, requests, workers, pin_memory)
    prefetcher = _prefetcher(shards, order, start)  # after the workers, which are forks: a thread has no place in them
    try:
        for request, images_BHWC, damage, failure in _heard(answers) if workers else answers:
            if failure:
                raise failure
            tile_B = replacements._replace_damaged(request, images_BHWC, damage)
            levels_BA = torch.from_numpy(shards.levels_NA[tile_B].astype(np.int64))
            if prefetcher:
                prefetcher.position = request.first
            yield Batch(images_BHWC.permute(0, 3, 1, 2), levels_BA, request.first - rank * share)
    finally:  # workers don't hear the signal with which Python ends children at its exit, so an error would hang there
        if prefetcher:
            prefetcher.close()
        if workers:
            answers._shutdown_workers()  # type: ignore[attr-defined]
            _remove_segments([worker.pid for worker in answers._workers])  # type: ignore[attr-defined]


def _heard(answers: Iterator[_Answer]) -> Iterator[_Answer]:
    """What the workers answer.

    Raises:
        RuntimeError: one was killed while it handed over a batch, which torch does not notice.
    """
    try:
        yield from answers
    except (EOFError, ConnectionError, FileNotFoundError) as error:
        if "in DataLoader worker" in str(error):  # where it was raised, and no pipe is broken
            raise
        raise RuntimeError("a DataLoader worker ended while it handed over a batch; was it killed, for want of memory?") from error


def _check_room(shards: ShardSet, order: TileOrder) -> None:
    """Refuse to fetch shards again and again, because they make room for one another while all are being read."""
    if not isinstance(shards.tars, RemoteShardFiles):
        return
    number_S = np.unique(shards.rows.shard_N)
    size_S = np.sort([shards.header.shards[number].size for number in number_S])
    open_at_once = order.window if isinstance(order, WindowedShuffle) else len(size_S)
    needed, limit = size_S[-open_at_once:].sum() / 1e9, shards.tars.cache.limit / 1e9
    if needed > limit:
        raise ValueError(
            f"data.cache_gb: {limit:g} GB can't hold the {min(open_at_once, len(size_S))} shards of {shards.location} "
            f"that are read at the same time, {needed:.3g} GB; give twice that, or a smaller data.shuffle_window"
        )


def _prefetcher(shards: ShardSet, order: TileOrder, start: int) -> Prefetcher | None:
    """What fetches a remote set's shards before they are read; an order without windows doesn't tell which come next."""
    if isinstance(shards.tars, RemoteShardFiles) and isinstance(order, WindowedShuffle):
        return Prefetcher(shards.tars, order.shards_from, start)
    return None


@dataclass(frozen=True)
class _Request:
    """What a worker needs for one micro-batch; small, so that workers know nothing of the index."""

    first: int  # position of the first tile
    tile_B: np.ndarray
    wanted: list[TileRequest]


class TileOrder(Protocol):
    """`order.GlobalShuffle` or `shard_order.WindowedShuffle`."""

    seed: int

    def __getitem__(self, positions_B: np.ndarray) -> np.ndarray:
        """The tile at each position."""


class _Requests:
    """The requests of one process, from a position on, without end."""

    def __init__(self, shards: ShardSet, order: TileOrder, first: int, step: int, share: int, flips: bool, crop: float) -> None:
        self.shards, self.order, self.flips, self.crop = shards, order, flips, crop
        self.first, self.step, self.share = first, step, share
        self._turns = permutation.stream(order.seed, permutation.Purpose.TURNS)
        self._crops = permutation.stream(order.seed, permutation.Purpose.CROPS)

    def __iter__(self) -> Iterator[_Request]:
        first = self.first
        while True:
            position_B = np.arange(first, first + self.share)
            tile_B = self.order[position_B]
            yield _Request(first, tile_B, self.wanted(tile_B, position_B))
            first += self.step

    def wanted(self, tile_B: np.ndarray, position_B: np.ndarray) -> list[TileRequest]:
        """How to get ``tile_B`` when they stand at ``position_B``."""
        rows = self.shards.rows
        turn_B = permutation.hashes(self._turns, position_B) >> np.uint64(61) if self.flips else np.zeros(len(tile_B), np.uint64)
        columns = (rows.shard_N[tile_B], rows.offset_N[tile_B], rows.length_N[tile_B], rows.checksum_N[tile_B], turn_B)
        crops = self._crops_at(position_B)
        return [TileRequest(*row) for row in zip(*(column.tolist() for column in columns), crops, strict=True)]

    def _crops_at(self, position_B: np.ndarray) -> list[tile_format.Crop | None]:
        if self.crop == 1:
            return [None] * len(position_B)
        hash_B = permutation.hashes(self._crops, position_B)
        across_B, down_B = (hash_B >> np.uint64(32)) / 2.0**32, (hash_B & np.uint64(0xFFFFFFFF)) / 2.0**32
        return [tile_format.Crop(self.crop, *at) for at in zip(across_B.tolist(), down_B.tolist(), strict=True)]


_Answer = tuple[_Request, Tensor, dict[int, str], StoreError | None]


class _Reader:
    """The data set that the DataLoader's workers hold: requests in, pixels out."""

    def __init__(self, tiles: TileReader) -> None:
        self.tiles = tiles

    def __getitem__(self, request: _Request) -> _Answer:
        """The request, images_BHWC, what is wrong with tiles that could not be read, by place in the batch, and what stops all."""
        try:
            return self._answer(request)
        except MemoryError:
            if get_worker_info() is not None:  # to hand the error on takes memory too; without it the training would wait for ever
                os.write(2, b"error: a process that reads tiles gets no memory; use fewer data.workers, or give the job more memory\n")
                os._exit(1)
            raise

    def _answer(self, request: _Request) -> _Answer:
        images_BHWC = np.zeros((len(request.wanted), self.tiles.image_size, self.tiles.image_size, 3), np.uint8)
        damage: dict[int, str] = {}
        for location, wanted in enumerate(request.wanted):
            try:
                images_BHWC[location] = self.tiles.read(wanted)
            except TileCorrupted as error:
                damage[location] = str(error)
            except StoreError as error:
                return request, torch.from_numpy(images_BHWC), damage, error
        return request, torch.from_numpy(images_BHWC), damage, None


def _as_it_is(answer: _Answer) -> _Answer:
    return answer


def _end_with_parent(worker: int) -> None:
    processes.end_with_parent()


def _started(tiles: TileReader, requests: _Requests, workers: int, pin_memory: bool) -> Iterator[_Answer]:
    try:
        return _start(tiles, requests, workers, pin_memory)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise ValueError(
            "data.workers: the reading processes find no room in /dev/shm; give it more (containers: --shm-size), or read "
            "without them, with data.workers=0"
        ) from error


def _remove_segments(workers: Sequence[int]) -> None:
    """Remove the shared memory that torch leaves under its name when a worker dies while it makes it."""
    for worker in workers:
        for path in Path("/dev/shm").glob(f"torch_{worker}_*"):  # noqa: S108  # by the names of our own processes
            path.unlink(missing_ok=True)


def _start(tiles: TileReader, requests: _Requests, workers: int, pin_memory: bool) -> Iterator[_Answer]:
    loader: DataLoader[_Answer] = DataLoader(
        _Reader(tiles),  # type: ignore[arg-type]
        batch_size=None,
        sampler=requests,
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        collate_fn=_as_it_is,  # type: ignore[arg-type]
        pin_memory=pin_memory,
        worker_init_fn=_end_with_parent,
        multiprocessing_context=processes.START_METHOD if workers else None,
        generator=torch.Generator(),  # the loader draws a seed; not from the generator of the training
    )
    # Ctrl-C, a launcher's SIGTERM and Slurm's signals go to the workers as well. Born with all blocked, they stay for the last
    # step and the checkpoint; they end with the loader or with their parent.
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


class _Replacements:
    """Puts the next tile of the order in the place of a damaged one, and stops a run whose shards are not worth training on.

    The replacement depends on the position alone, so processes of any number agree on it.
    """

    def __init__(self, requests: _Requests, tiles: TileReader) -> None:
        self.requests, self.tiles = requests, tiles
        self.damaged: set[int] = set()
        self.most = max(10, len(requests.shards) // 1000)

    def _replace_damaged(self, request: _Request, images_BHWC: Tensor, damage: dict[int, str]) -> np.ndarray:
        """Fill the damaged places of ``images_BHWC``; the tiles that the batch then has, tile_B."""
        tile_B = request.tile_B.copy()
        for location, what in damage.items():
            self._note(int(tile_B[location]), what)
            tile_B[location], pixels_HWC = self._next(request.first + location)
            images_BHWC[location].numpy()[...] = pixels_HWC
        return tile_B

    def _next(self, position: int) -> tuple[int, np.ndarray]:
        for later in range(position + 1, position + 1000):
            tile_B = self.requests.order[np.array([later])]
            try:
                return int(tile_B[0]), self.tiles.read(self.requests.wanted(tile_B, np.array([position]))[0])
            except TileCorrupted as error:
                self._note(int(tile_B[0]), str(error))
        raise self._too_many(int(tile_B[0]))

    def _note(self, tile: int, what: str) -> None:
        if tile in self.damaged:
            return
        self.damaged.add(tile)
        log.warning("%s: damaged (%s); the next tile takes its place (%d so far)", self.requests.shards.name(tile), what, len(self.damaged))
        if len(self.damaged) > self.most:
            raise self._too_many(tile)

    def _too_many(self, tile: int) -> ValueError:
        shards = self.requests.shards
        return ValueError(
            f"{shards.location}/{shards.shard_of(tile)}: {len(self.damaged)} damaged tiles met in "
            f"{shards.location}, the last in this shard; find all with `attributegan-shard verify {shards.location}` and "
            "replace them"
        )
