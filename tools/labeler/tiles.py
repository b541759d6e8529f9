"""The tiles of a folder, what a table says of them, and their pictures as a browser shows them."""

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
LISTED = 10  # problems in one message


@dataclass(frozen=True)
class Tiles:
    """
    Args:
        files: names relative to ``root``, sorted.
        columns: of the table, without ``file``.
        more: what the table says of each file, by column.
    """

    root: Path
    files: tuple[str, ...]
    columns: tuple[str, ...] = ()
    more: Mapping[str, Mapping[str, str]] | None = None

    def row(self, file: str) -> Mapping[str, str]:
        """What the table says of a file; {} for nothing."""
        return (self.more or {}).get(file, {})


def find_tiles(root: Path, table: Path | None = None) -> Tiles:
    """All images below a folder.

    Args:
        table: CSV with a column ``file`` and others to keep, such as the slide; by default ``tiles.csv`` of the folder, if there is one.

    Raises:
        ValueError: no folder, no image in it, names that can't be packed, or a table that can't be read.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: not a folder; give the folder of the tiles")
    files = sorted(_image_files(root))
    if not files:
        raise ValueError(f"{root}: has no images ({', '.join(sorted(IMAGES))})")
    if problems := _bad_names(files):
        listed = "".join(f"\n  {problem}" for problem in problems[:LISTED])
        raise ValueError(f"{root}: {len(problems):,} files can't be packed under their names; rename them:{listed}")
    if table is None and (root / TABLE).is_file():
        table = root / TABLE
    return Tiles(root, tuple(files), *(_read_table(table) if table else ()))


def _image_files(root: Path) -> list[str]:
    found = []
    for at, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if os.path.splitext(name)[1].lower() in IMAGES and not name.startswith("."):  # macOS leaves "._a.png" beside "a.png"
                found.append(Path(at, name).relative_to(root).as_posix())
    return found


def _bad_names(files: list[str]) -> list[str]:
    problems, file_of_key = [], dict[str, str]()
    for file in files:
        if not file.isprintable() or file != file.strip():  # undecodable bytes are surrogates, which aren't printable
            problems.append(f"{file!r}: has spaces at an end, or characters that can't be written to a CSV")
        elif (before := file_of_key.setdefault(key_of(file), file)) != file:
            problems.append(f"{file}: has the same key {key_of(file)} as {before}")
    return problems


def _read_table(path: Path) -> tuple[tuple[str, ...], dict[str, dict[str, str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, restval="", strict=True)
            columns = tuple(name for name in reader.fieldnames or () if name and name != "file")
            if "file" not in (reader.fieldnames or ()):
                raise ValueError(f"{path}: has no column `file`; it has {', '.join(columns) or 'nothing'}")
            return columns, {row["file"].strip(): {name: row[name].strip() for name in columns} for row in reader}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a readable CSV in UTF-8: {error}") from error


def picture(path: Path) -> tuple[bytes, str]:
    """A tile as a browser shows it, and its media type: the file itself where browsers know its format, else a PNG.

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
