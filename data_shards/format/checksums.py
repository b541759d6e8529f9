"""``SHA256SUMS``: the checksums of all files of a set, in the form that ``sha256sum --check`` reads."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

from attributegan.utils.files import atomic_write
from data_shards.format import index

FILE = "SHA256SUMS"


def sha256_of(file: Path | BinaryIO) -> str:
    """Returns the SHA-256 of a file's bytes, in hexadecimal."""
    with file.open("rb") if isinstance(file, Path) else nullcontext(file) as stream:
        stream.seek(0)
        return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]


def write(folder: Path, header: index.Header) -> None:
    """Write the checksums of a set whose index exists already."""
    with atomic_write(folder / FILE) as stream:
        stream.write(_text(header, sha256_of(folder / index.FILE)).encode())


def check_index(folder: Path) -> index.Header:
    """Check a set's index against its checksum and return its header.

    The index is checked before it is parsed, because its levels and offsets are trusted afterwards.

    Raises:
        ValueError: the index is missing, unreadable or not as written.
    """
    path = folder / index.FILE
    try:
        written = (folder / FILE).read_bytes()
        index_sha256 = sha256_of(path)
    except FileNotFoundError as error:
        raise ValueError(
            f"{error.filename}: not found; {folder} is not a complete shard set. Create one with `attributegan-shard pack`, "
            "or with `attributegan-shard index` from existing tars"
        ) from error
    except OSError as error:
        raise ValueError(f"{error.filename}: can't be read ({error.strerror})") from error
    if index_sha256.encode() not in written:
        raise ValueError(f"{path}: does not match its checksum in {FILE}; copy the set again")
    header = index.read_header(path)
    if written != _text(header, index_sha256).encode():
        raise ValueError(f"{folder / FILE}: damaged, or belongs to another set; copy the set again")
    return header


def _text(header: index.Header, index_sha256: str) -> str:
    lines = [f"{shard.sha256}  {shard.name}" for shard in header.shards] + [f"{index_sha256}  {index.FILE}"]
    return "".join(f"{line}\n" for line in lines)
