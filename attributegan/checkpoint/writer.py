"""Writes checkpoints in the background: every process writes its own slices at their offsets in shared files.

Owns the safetensors layout and the synchronisation of the processes, which uses marker files, since background threads must not call
collectives. The checkpoint format, and finding and reading checkpoints, is in store.py.
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

WAIT_S = 1800.0  # for the slices of the other processes
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
    """The byte layout of a safetensors file with the tensors of a state dict.

    Attributes:
        head: length prefix and JSON header.
        size: bytes of the whole file.
    """

    def __init__(self, state_dict: ShardedStateDict) -> None:
        header: dict[str, Any] = {}
        end = 0
        for name in sorted(state_dict.shapes):
            dtype, shape = state_dict.shapes[name]
            first, end = end, end + torch.Size(shape).numel() * dtype.itemsize
            header[name] = {"dtype": _TYPES[dtype], "shape": list(shape), "data_offsets": [first, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self.head = struct.pack("<Q", len(text)) + text
        self.size = len(self.head) + end
        self._first: dict[str, int] = {name: entry["data_offsets"][0] for name, entry in header.items()}
        self._shapes = state_dict.shapes

    def offset(self, part: TensorSlice) -> int:
        """Returns the offset of a slice's first byte in the file."""
        return len(self.head) + self._first[part.name] + part.start * self._shapes[part.name][0].itemsize


class Writer:
    """Writes the checkpoints of a run, one at a time, in a background thread of each process.

    Args:
        folder: the run's checkpoint folder, on a disk shared by all processes.
        rank: of this process.
        world: number of processes.
        launch_id: an id shared by the processes of this launch and unique to it.
        keep: number of latest checkpoints to keep (0: all).
        scratch: a folder on a local disk to which slices are copied first, which frees their memory sooner; "" for none.
    """

    def __init__(self, folder: Path, *, rank: int, world: int, launch_id: str, keep: int = 0, scratch: str = "") -> None:
        self.folder, self.rank, self.world, self.launch_id, self.keep, self.scratch = folder, rank, world, launch_id, keep, scratch
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, images: int, state: Mapping[str, Any], **state_dicts: ShardedStateDict) -> None:
        """Copies the slices and starts writing them; every process must call it at the same number of images.

        Each keyword becomes ``{keyword}.safetensors``; ``state`` of rank 0 becomes ``state.json``. Waits for the previous checkpoint.

        Raises:
            OSError: the previous checkpoint could not be written; earlier ones are unchanged.
        """
        self.wait()
        copies = {
            name: ShardedStateDict(given.shapes, [TensorSlice(part.name, part.start, _copy(part.values_N)) for part in given.slices])
            for name, given in state_dicts.items()
        }
        self._thread = threading.Thread(target=self._run, args=(images, dict(state), copies), name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether this process is still writing."""
        return self._thread is not None and self._thread.is_alive()

    def finish(self, seconds: float) -> None:
        """Waits at most ``seconds`` for the checkpoint being written; for exits by error, when other processes may have ended."""
        if self._thread is not None:
            self._thread.join(seconds)

    def wait(self) -> None:
        """Waits until this process's slices are on disk; on rank 0, until the checkpoint is complete.

        Raises:
            OSError: the checkpoint could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self, images: int, state: dict[str, Any], state_dicts: dict[str, ShardedStateDict]) -> None:
        tmp_path = self.folder / f".writing-{name_of(images)}-{self.launch_id}"
        try:
            # Without parents: the run folder must not be recreated under the mount point of a disk that was unmounted.
            tmp_path.mkdir(exist_ok=True)
            self._write_slices(tmp_path, state_dicts)
            _mark(tmp_path / f".done-{self.rank}")
            if self.rank == 0:
                self._wait_for_others(tmp_path)
                store.commit(tmp_path, self.folder, images, state, self.keep)
                log.info("saved %s", self.folder / name_of(images))
        except BaseException as error:
            self._error = error
            log.error("failed to write the checkpoint at %s images: %s", f"{images:,}", error)
            if self.rank == 0:
                shutil.rmtree(tmp_path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    (tmp_path / f".failed-{self.rank}").write_text(f"{type(error).__name__}: {error}")

    def _write_slices(self, tmp_path: Path, state_dicts: dict[str, ShardedStateDict]) -> None:
        for name, state_dict in state_dicts.items():
            layout = Layout(state_dict)
            descriptor = os.open(tmp_path / f"{name}.safetensors", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                if self.rank == 0:
                    os.ftruncate(descriptor, layout.size)
                    _write(descriptor, layout.head, 0)
                if self.scratch:
                    self._write_through_scratch(descriptor, layout, state_dict.slices)
                else:
                    while state_dict.slices:
                        part = state_dict.slices.pop()
                        _write(descriptor, _bytes(part.values_N), layout.offset(part))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _write_through_scratch(self, descriptor: int, layout: Layout, slices: list[TensorSlice]) -> None:
        """Spools the slices to the local disk, which frees their memory, and copies them from there."""
        Path(self.scratch).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.scratch) as spool:
            extents = []
            while slices:
                part = slices.pop()
                extents.append((layout.offset(part), spool.write(_bytes(part.values_N))))
            spool.seek(0)
            for offset, length in extents:
                for first in range(0, length, 1 << 24):
                    block = spool.read(min(1 << 24, length - first))
                    _write(descriptor, block, offset + first)

    def _wait_for_others(self, tmp_path: Path) -> None:
        until = time.monotonic() + WAIT_S
        while True:
            names = {path.name for path in tmp_path.iterdir()}
            if failed := sorted(name for name in names if name.startswith(".failed-")):
                reason = (tmp_path / failed[0]).read_text()
                raise OSError(f"{tmp_path}: rank {failed[0].rpartition('-')[2]} failed to write its slices: {reason}")
            if missing := [rank for rank in range(self.world) if f".done-{rank}" not in names]:
                if time.monotonic() > until:
                    raise OSError(
                        f"{tmp_path}: timed out after {WAIT_S:.0f} s waiting for rank {missing[0]}; check that this folder is on a disk "
                        "shared by all nodes"
                    )
                time.sleep(_POLL_S)
                continue
            for name in names:
                if name.startswith(".done-"):
                    (tmp_path / name).unlink()
            return


def save(folder: Path, images: int, *, keep: int = 0, state: Mapping[str, Any], **tensors: Mapping[str, Tensor]) -> Path:
    """Writes a checkpoint from a single process and waits until it is complete.

    Args: as for `Writer` and `Writer.save`; ``tensors`` are whole.

    Returns:
        the path of the checkpoint.
    """
    writer = Writer(folder, rank=0, world=1, launch_id=secrets.token_hex(4), keep=keep)
    writer.save(images, state, **{name: ShardedStateDict.replicated(named, EvenShard(0, 1)) for name, named in tensors.items()})
    writer.wait()
    return folder / name_of(images)


def remove_leftovers(folder: Path) -> None:
    """Deletes incomplete files of earlier starts in a checkpoint folder; call it on rank 0 before any `Writer` writes."""
    for path in [*folder.glob(".writing-*"), *folder.glob(".deleting-*")]:
        shutil.rmtree(path, ignore_errors=True)


def _copy(tensor: Tensor) -> Tensor:
    """Copies a tensor to the CPU, so that the next training step can't change it."""
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
