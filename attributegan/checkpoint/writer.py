"""Writing a checkpoint: every process its own pieces, at their places in shared files, while training goes on.

Owns the safetensors layout and the protocol among the processes, which is in files alone: no collective is waited for in the background.
What a checkpoint is, and finding and reading one, is in store.py.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import struct
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attributegan.checkpoint import store
from attributegan.distributed.sharding import EvenShard, ShardedStateDict, TensorSlice
from attributegan.run_dir.checkpoint_dirs import name_of

log = logging.getLogger(__name__)

WAIT_S = 1800.0  # for the pieces of the other processes
_POLL_S = 0.02
_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Layout:
    """Where the bytes of each tensor are in a safetensors file."""

    def __init__(self, table: ShardedStateDict) -> None:
        header: dict[str, Any] = {}
        end = 0
        for name in sorted(table.shapes):
            dtype, shape = table.shapes[name]
            first, end = end, end + torch.Size(shape).numel() * dtype.itemsize
            header[name] = {"dtype": _TYPES[dtype], "shape": list(shape), "data_offsets": [first, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self.head = struct.pack("<Q", len(text)) + text
        self.size = len(self.head) + end
        self._first = {name: entry["data_offsets"][0] for name, entry in header.items()}
        self._shapes = table.shapes

    def offset(self, part: TensorSlice) -> int:
        """Offset in the file of a piece's first byte."""
        return len(self.head) + self._first[part.name] + part.start * self._shapes[part.name][0].itemsize


class Writer:
    """Writes the checkpoints of a run, one at a time, in a thread of each process.

    Args:
        folder: the run's checkpoint folder, on a disk that all processes share.
        rank, world: of this process.
        token: a word that the processes of this start share and no other start has.
        keep: newest checkpoints that stay (0: all).
        scratch: a folder on a local disk that takes this process's pieces first and lets its memory go; "" for none.
    """

    def __init__(self, folder: Path, *, rank: int, world: int, launch_id: str, keep: int = 0, scratch: str = "") -> None:
        self.folder, self.rank, self.world, self.launch_id, self.keep, self.scratch = folder, rank, world, launch_id, keep, scratch
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, images: int, state: Mapping[str, Any], **tables: ShardedStateDict) -> None:
        """Take a copy of the pieces and start to write it; every process calls, at the same number of images.

        Each keyword becomes ``{keyword}.safetensors``, ``state`` (the main process's) ``state.json``. Waits for the checkpoint before.

        Raises:
            OSError: the checkpoint before could not be written; those before that still stand.
        """
        self.wait()
        copies = {
            name: ShardedStateDict(table.shapes, [TensorSlice(p.name, p.start, _copy(p.values_N)) for p in table.slices])
            for name, table in tables.items()
        }
        self._thread = threading.Thread(target=self._run, args=(images, dict(state), copies), name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether this process is still writing."""
        return self._thread is not None and self._thread.is_alive()

    def finish(self, seconds: float) -> None:
        """Give a checkpoint that is being written so long; for ends in an error, when other processes may be gone."""
        if self._thread is not None:
            self._thread.join(seconds)

    def wait(self) -> None:
        """Until this process's part of the last checkpoint is on the disk, and on the main process until it is whole.

        Raises:
            OSError: it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self, images: int, state: dict[str, Any], tables: dict[str, ShardedStateDict]) -> None:
        tmp_path = self.folder / f".writing-{name_of(images)}-{self.launch_id}"
        try:
            tmp_path.mkdir(
                exist_ok=True
            )  # not its parents: a run folder that is gone, a disk unmounted, is not to be made anew in its place
            self._write_pieces(tmp_path, tables)
            _mark(tmp_path / f".done-{self.rank}")
            if self.rank == 0:
                self._wait_for_others(tmp_path)
                store.commit(tmp_path, self.folder, images, state, self.keep)
                log.info("saved %s", self.folder / name_of(images))
        except BaseException as error:
            self._error = error
            log.error("the checkpoint at %s images could not be written: %s", f"{images:,}", error)
            if self.rank == 0:
                shutil.rmtree(tmp_path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    (tmp_path / f".failed-{self.rank}").write_text(f"{type(error).__name__}: {error}")

    def _write_pieces(self, tmp_path: Path, tables: dict[str, ShardedStateDict]) -> None:
        for name, table in tables.items():
            layout = Layout(table)
            descriptor = os.open(tmp_path / f"{name}.safetensors", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                if self.rank == 0:
                    os.ftruncate(descriptor, layout.size)
                    _write(descriptor, layout.head, 0)
                if self.scratch:
                    self._write_through_scratch(descriptor, layout, table.slices)
                else:
                    while table.slices:
                        part = table.slices.pop()
                        _write(descriptor, _bytes(part.values_N), layout.offset(part))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _write_through_scratch(self, descriptor: int, layout: Layout, slices: list[TensorSlice]) -> None:
        """Spool the pieces to the local disk, so that their memory is free, and move them from there."""
        Path(self.scratch).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.scratch) as spool:
            places = []
            while slices:
                part = slices.pop()
                places.append((layout.offset(part), spool.write(_bytes(part.values_N))))
            spool.seek(0)
            for offset, length in places:
                for first in range(0, length, 1 << 24):
                    block = spool.read(min(1 << 24, length - first))
                    _write(descriptor, block, offset + first)

    def _wait_for_others(self, tmp_path: Path) -> None:
        until = time.monotonic() + WAIT_S
        while True:
            names = {path.name for path in tmp_path.iterdir()}
            if failed := sorted(name for name in names if name.startswith(".failed-")):
                raise OSError(
                    f"{tmp_path}: process {failed[0].rpartition('-')[2]} could not write its part: {(tmp_path / failed[0]).read_text()}"
                )
            if missing := [rank for rank in range(self.world) if f".done-{rank}" not in names]:
                if time.monotonic() > until:
                    raise OSError(
                        f"{tmp_path}: no word from process {missing[0]} in {WAIT_S:.0f} s; is this folder on a disk that all nodes share?"
                    )
                time.sleep(_POLL_S)
                continue
            for name in names:
                if name.startswith(".done-"):
                    (tmp_path / name).unlink()
            return


def save(folder: Path, images: int, *, keep: int = 0, state: Mapping[str, Any], **tensors: Mapping[str, Tensor]) -> Path:
    """Write the checkpoint of one process, whole when this returns; arguments as those of `Writer` and its `save`."""
    writer = Writer(folder, rank=0, world=1, launch_id=secrets.token_hex(4), keep=keep)
    writer.save(images, state, **{name: ShardedStateDict.replicated(named, EvenShard(0, 1)) for name, named in tensors.items()})
    writer.wait()
    return folder / name_of(images)


def remove_remains(folder: Path) -> None:
    """Delete what earlier starts left half-written in a checkpoint folder; the main process calls, before any `Writer` writes."""
    for path in [*folder.glob(".writing-*"), *folder.glob(".deleting-*")]:
        shutil.rmtree(path, ignore_errors=True)


def _copy(tensor: Tensor) -> Tensor:
    """Of a part of a network: on the CPU, and not touched by the next step."""
    copied = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    copied.copy_(tensor.detach())
    return copied


def _bytes(values_N: Tensor) -> memoryview:
    return memoryview(values_N.contiguous().view(torch.uint8).numpy())  # type: ignore[arg-type]


def _write(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _mark(path: Path) -> None:
    with path.open("w") as file:
        os.fsync(file.fileno())
