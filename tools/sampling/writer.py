"""Writes sampled tiles as image files with a table, or as a shard set; divides the work over the processes of the launch."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from attributegan.checkpoint.loading import Loaded
from attributegan.distributed.process_group import Processes
from attributegan.sampling import generate, replacement
from attributegan.sampling import latents as latents_module
from attributegan.utils.files import WRITING, atomic_write

if TYPE_CHECKING:
    from attributegan.evaluation.copies import CopyFilter
    from data_shards.packing.sources import EncodedImage

FORMATS = {"png": {"compress_level": 4}, "jpeg": {"quality": 95, "subsampling": 0}, "webp": {"quality": 95, "method": 4}}
EXTENSIONS = {"png": "png", "jpeg": "jpg", "webp": "webp"}
TABLE = "samples.csv"
DROPPED, KEY_DROPPED = "dropped", "-dropped"  # column of the table, and part of the key in a shard set
PICTURES = ("sweep.png", "pair.png", "interpolation.png", "interpolation.gif", "interpolation.mp4", "projection.png", "projection.json")


@dataclass(frozen=True)
class Recipe:
    """Everything that tile k depends on; the number of processes is not part of it.

    Args:
        given: fixed levels by attribute name.
        real_NA: levels of real tiles to draw from; None for uniform assessable levels.
        truncation: bound of the latents, or None.
        precision: "fp32", "bf16" or "fp16".
        copies: filter of copies of training tiles, or None.
    """

    loaded: Loaded
    seed: int
    given: Mapping[str, float]
    real_NA: np.ndarray | None
    truncation: float | None
    batch: int
    precision: str
    copies: CopyFilter | None = None

    def levels(self, indices: range) -> torch.Tensor:
        """Return the levels (B, A) of the tiles with these indices."""
        schema = self.loaded.schema
        if self.real_NA is None:
            return latents_module.levels_for(schema, self.seed, indices, self.given)
        return latents_module.levels_like(
            self.real_NA, self.seed, indices, {schema.names.index(name): level for name, level in self.given.items()}
        )

    def latents(self, indices: range) -> torch.Tensor:
        """Return the latents (B, L) of the tiles with these indices."""
        return self._truncated(latents_module.latents_for(self.seed, indices, self.loaded.config.model.latent_dim))

    def tiles(self, indices: range) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return tiles (B, H, W, 3) uint8, their levels (B, A), and how many latents of each tile were dropped (B).

        Args:
            indices: begins at a multiple of the batch size, so that a tile is always computed in the same batch.
        """
        latents_BL, levels_BA = self.latents(indices), self.levels(indices)
        if self.copies is None:
            tiles = generate.generate(self.loaded.generator, latents_BL, levels_BA, self.batch, self.precision)
            return tiles, levels_BA.numpy(), np.zeros(len(tiles), np.int64)

        def replace(rows: list[int], draw: int) -> torch.Tensor:
            drawn = replacement.replacement_latents(self.seed, [indices[row] for row in rows], draw, self.loaded.config.model.latent_dim)
            return self._truncated(drawn)

        tiles, draws_B = replacement.generate_filtered(
            self.loaded.generator, latents_BL, levels_BA, self.copies, replace, self.batch, self.precision
        )
        return tiles, levels_BA.numpy(), draws_B

    def _truncated(self, latents_BL: torch.Tensor) -> torch.Tensor:
        return latents_BL if self.truncation is None else latents_module.truncate_latents(latents_BL, self.truncation)

    def fingerprint(self, count: int, model: str) -> str:
        """Return a SHA-256 that identifies the shard set of ``count`` tiles of a model."""
        drawn = "" if self.real_NA is None else hashlib.sha256(np.ascontiguousarray(self.real_NA).tobytes()).hexdigest()
        parts = [model, self.seed, sorted(self.given.items()), drawn, self.truncation, self.batch, self.precision, count]
        parts += [self.copies.identity] if self.copies else []
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def to_replace(out: Path, overwrite: bool) -> list[Path]:
    """Return the files of earlier samples in ``out`` to delete, from an interrupted command or with ``overwrite``.

    Raises:
        ValueError: the folder has other files, or complete samples without ``overwrite``.
    """
    if not out.is_dir():
        return []
    tiles = [file for table in (TABLE, _tmp_name(TABLE)) for file in _listed(out / table)]
    ours = {out / name for file in [*tiles, *PICTURES, TABLE] for name in (file, _tmp_name(file))}
    existing = set(out.iterdir())
    if others := sorted(existing - ours):
        raise ValueError(f"--out {out}: has other files, such as {others[0].name}; choose another folder")
    if not overwrite and any((out / name).exists() for name in (TABLE, *PICTURES)):
        raise ValueError(f"--out {out}: already has samples; choose another folder, or use --overwrite")
    return sorted(existing, key=lambda path: TABLE in path.name)  # tables last, so that an interrupted removal can be repeated


def _listed(table: Path) -> list[str]:
    """Return the files listed in a table of `write_files`; [] if it is not such a table."""
    if not table.is_file():
        return []
    with table.open(newline="", encoding="utf-8", errors="replace") as file:
        first, *rows = list(csv.reader(file)) or [[]]
    return [row[0] for row in rows if row] if [*first[:1], *first[-1:]] == ["file", "seed"] else []


def write_files(recipe: Recipe, out: Path, count: int, kind: str, processes: Processes) -> None:
    """Write image files and samples.csv. The table is renamed last: its presence means that all tiles are written.

    With a filter of copies, the table has a column ``dropped``: how many latents of the tile gave copies.
    """
    chunks = [range(first, min(first + recipe.batch, count)) for first in range(0, count, recipe.batch)]
    if processes.is_main:  # before the tiles, so that those of an interrupted command are recognised
        _write_table(recipe, out, chunks, kind, None)
    processes.barrier()
    dropped: dict[int, int] = {}
    for chunk in _bar(chunks[processes.rank :: processes.world], processes, "batch"):
        tiles, _, dropped_B = recipe.tiles(chunk)
        dropped |= dict(zip(chunk, dropped_B.tolist(), strict=True))
        for index, tile_HWC in zip(chunk, tiles, strict=True):
            write_atomic(out / file_name(index, kind), encoded(tile_HWC, kind), fsync=False)
    gathered = processes.gather(dropped)  # of all processes; waits for them
    if processes.is_main:
        if recipe.copies:
            _write_table(recipe, out, chunks, kind, gathered)
        os.sync()  # tiles and table in one call
        os.replace(out / _tmp_name(TABLE), out / TABLE)


def _write_table(recipe: Recipe, out: Path, chunks: list[range], kind: str, dropped: Mapping[int, int] | None) -> None:
    extra = [] if dropped is None else [DROPPED]
    with (out / _tmp_name(TABLE)).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", *recipe.loaded.schema.names, *extra, "seed"])
        for chunk in chunks:
            for k, row in zip(chunk, recipe.levels(chunk).tolist(), strict=True):
                counts = [] if dropped is None else [dropped[k]]
                writer.writerow([file_name(k, kind), *recipe.loaded.schema.written(row).values(), *counts, recipe.seed])


def dropped_copies(out: Path) -> int:
    """Return how many tiles were dropped as copies from samples or a shard set that was written with a filter of copies."""
    if (out / TABLE).is_file():
        with (out / TABLE).open(newline="", encoding="utf-8") as file:
            return sum(int(row[DROPPED]) for row in csv.DictReader(file))
    from data_shards.format import index

    keys = index.read_table(out / index.FILE, ["key"])["key"].to_pylist()
    return sum(int(key.rpartition(KEY_DROPPED)[2]) for key in keys if KEY_DROPPED in key)


def file_name(index: int, kind: str) -> str:
    """Return the file name of a tile."""
    return f"{index:06d}.{EXTENSIONS[kind]}"


def write_shards(recipe: Recipe, out: Path, count: int, shard_count: int, overwrite: bool, model: str, processes: Processes) -> None:
    """Write a shard set with one split: tiles as PNG and their levels. Resumes an interrupted one; keeps an identical one."""
    made = ShardSetWriter(recipe, out, count, shard_count, model)
    if not processes.broadcast_object(processes.is_main and made.begin(overwrite)):
        return
    for number in _bar(range(processes.rank, len(made.names), processes.world), processes, "shard"):
        made.write(number)
    processes.barrier()
    if processes.is_main:
        made.end()


class ShardSetWriter:
    """Writes the shards of a set of generated tiles, in any order and by any process.

    Args:
        model: identifies the weights.
    """

    def __init__(self, recipe: Recipe, out: Path, count: int, shard_count: int, model: str) -> None:
        from data_shards.packing import shard_writer

        self.recipe, self.out, self.count, self.shard_count = recipe, out, count, shard_count
        self.names = shard_writer.names(count, shard_count)
        self.fingerprint = recipe.fingerprint(count, f"{model} {shard_count}")

    def begin(self, overwrite: bool) -> bool:
        """As `shard_writer.begin`."""
        from data_shards.packing import shard_writer

        return shard_writer.begin(self.out, self.fingerprint, overwrite)

    def write(self, number: int) -> None:
        """Write a shard unless it exists."""
        from data_shards.packing import shard_writer

        shard_writer.write(self.out, self.recipe.loaded.schema, self.fingerprint, self.count, self.shard_count, self._tiles, number)

    def end(self) -> None:
        """Publish the shards as a set."""
        from data_shards.packing import shard_writer

        shard_writer.end(self.out, self.fingerprint, self.count, self.shard_count)

    def _tiles(self, indices: range) -> Iterator[tuple[Mapping[str, Any], EncodedImage]]:
        for first in range(indices.start, indices.stop, self.recipe.batch):
            chunk = range(first, min(first + self.recipe.batch, indices.stop))
            for index, tile_HWC, level_A, dropped in zip(chunk, *self.recipe.tiles(chunk), strict=True):
                yield _row(self.recipe, index, level_A, int(dropped)), _member(tile_HWC)


def _row(recipe: Recipe, index: int, level_A: np.ndarray, dropped: int) -> dict[str, Any]:
    suffix = f"{KEY_DROPPED}{dropped}" if dropped else ""  # in the index, so that a resumed command counts all shards
    levels = dict(zip(recipe.loaded.schema.names, level_A.tolist(), strict=True))  # columns of the index
    return {"file": f"{recipe.seed}/{index:07d}", "key": f"made-{recipe.seed}-{index:07d}{suffix}", "group": "", "more": "", **levels}


def _member(tile_HWC: np.ndarray) -> EncodedImage:
    from data_shards.format.tile import encode_png
    from data_shards.packing.sources import EncodedImage

    return EncodedImage(encode_png(tile_HWC), "png", tile_HWC.shape[1], tile_HWC.shape[0])


def _bar(items: Any, processes: Processes, unit: str) -> Any:
    from tqdm import tqdm

    return tqdm(items, unit=unit, disable=None if processes.is_main else True, file=sys.stderr)


def encoded(image_HWC: np.ndarray, kind: str = "png") -> bytes:
    """Encode an image (H, W, 3) uint8 as PNG, JPEG or WebP."""
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, format=kind.upper(), **FORMATS[kind])
    return buffer.getvalue()


def _tmp_name(name: str) -> str:
    return f"{WRITING}{name}"


def write_atomic(path: Path, data: bytes, fsync: bool = True) -> None:
    """Write a file atomically."""
    with atomic_write(path, fsync=fsync) as stream:
        stream.write(data)


def movie(frames_FHWC: np.ndarray, kind: str, fps: int = 12) -> bytes:
    """Encode frames (F, H, W, 3) uint8 as "gif" or "mp4".

    Raises:
        ValueError: imageio-ffmpeg, which "mp4" requires, is not installed.
    """
    if kind == "gif":
        buffer = io.BytesIO()
        pictures = [Image.fromarray(frame).quantize(128) for frame in frames_FHWC]
        pictures[0].save(buffer, format="GIF", save_all=True, append_images=pictures[1:], duration=1000 // fps, loop=0)
        return buffer.getvalue()
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise ValueError("--movie mp4: requires imageio-ffmpeg; pip install 'attributegan[movie]', or use --movie gif") from error
    import tempfile

    height, width = (length + length % 2 for length in frames_FHWC.shape[1:3])  # the codec requires even sides
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "movie.mp4"
        writer = imageio_ffmpeg.write_frames(str(path), (width, height), fps=fps, macro_block_size=2, output_params=["-crf", "16"])
        writer.send(None)
        for frame in frames_FHWC:
            padded = np.pad(frame, ((0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0)), mode="edge")
            writer.send(np.ascontiguousarray(padded))
        writer.close()
        return path.read_bytes()
