"""The tiles of a folder, the table with further columns, and pictures for the browser."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from data_shards.format.tile import DECODING_ERRORS, EXTENSIONS, key_of
from data_shards.ingest.importers import IMAGES

TABLE = "tiles.csv"  # of `attributegan-shard tile`
MEDIA = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
MAX_LISTED = 10  # problems in one message


@dataclass(frozen=True)
class Tiles:
    """The tiles of a folder.

    Args:
        files: paths relative to ``root``, sorted.
        columns: columns of the table, without ``file``.
        more: values of these columns by file.
    """

    root: Path
    files: tuple[str, ...]
    columns: tuple[str, ...] = ()
    more: Mapping[str, Mapping[str, str]] | None = None

    def row(self, file: str) -> Mapping[str, str]:
        """Return the row of the table for a file; {} if there is none."""
        return (self.more or {}).get(file, {})


def find_tiles(root: Path, table: Path | None = None) -> Tiles:
    """Find all images in a folder, at any depth.

    Args:
        table: CSV file with a column ``file`` and further columns to copy, such as the slide; by default ``tiles.csv`` of the folder, if it
            exists.

    Raises:
        ValueError: not a folder, no images in it, file names that can't be packed, or a table that can't be read.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: not a folder; give the folder with the tiles")
    files = sorted(_image_files(root))
    if not files:
        raise ValueError(f"{root}: has no images ({', '.join(sorted(IMAGES))})")
    if problems := _bad_names(files):
        listed = "".join(f"\n  {problem}" for problem in problems[:MAX_LISTED])
        raise ValueError(f"{root}: {len(problems):,} files have names that can't be packed; rename them:{listed}")
    if table is None and (root / TABLE).is_file():
        table = root / TABLE
    return Tiles(root, tuple(files), *(_read_table(table) if table else ()))


def _image_files(root: Path) -> list[str]:
    found = []
    for at, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if os.path.splitext(name)[1].lower() in IMAGES and not name.startswith("."):  # macOS writes "._a.png" next to "a.png"
                found.append(Path(at, name).relative_to(root).as_posix())
    return found


def _bad_names(files: list[str]) -> list[str]:
    problems, file_of_key = [], dict[str, str]()
    for file in files:
        if not file.isprintable() or file != file.strip():  # undecodable bytes become surrogates, which are not printable
            problems.append(f"{file!r}: has leading or trailing spaces, or characters that can't be written to a CSV file")
        elif (before := file_of_key.setdefault(key_of(file), file)) != file:
            problems.append(f"{file}: has the same key {key_of(file)} as {before}")
    return problems


def _read_table(path: Path) -> tuple[tuple[str, ...], dict[str, dict[str, str]]]:
    """Read a CSV file; returns its columns without ``file``, and its rows by file."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, restval="", strict=True)
            columns = tuple(name for name in reader.fieldnames or () if name and name != "file")
            if "file" not in (reader.fieldnames or ()):
                raise ValueError(f"{path}: has no column `file`; its columns are {', '.join(columns) or 'empty'}")
            return columns, {row["file"].strip(): {name: row[name].strip() for name in columns} for row in reader}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a readable UTF-8 CSV file: {error}") from error


def picture(path: Path) -> tuple[bytes, str]:
    """Return a tile for the browser and its media type: the file itself if browsers support its format, else a PNG.

    Raises:
        ValueError: not a readable image.
    """
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if image.format in EXTENSIONS and image.mode != "CMYK":
                return data, MEDIA[image.format]
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, format="PNG", compress_level=1)
            return buffer.getvalue(), "image/png"
    except DECODING_ERRORS as error:
        raise ValueError(f"{path.name}: not a readable image: {error}") from error
