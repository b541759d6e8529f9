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
    """The hash of a file's bytes, in hexadecimal."""
    with file.open("rb") if isinstance(file, Path) else nullcontext(file) as stream:
        stream.seek(0)
        return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]


def write(folder: Path, header: index.Header) -> None:
    """Write the sums of a set whose index is in place."""
    with atomic_write(folder / FILE) as stream:
        stream.write(_text(header, sha256_of(folder / index.FILE)).encode())


def check_index(folder: Path) -> index.Header:
    """The header of a set's index, when the index is byte for byte the one that was written.

    An index is checked before it is parsed, since its levels and offsets are believed from then on.

    Raises:
        ValueError: it is not, or there is none.
    """
    path = folder / index.FILE
    try:
        written = (folder / FILE).read_bytes()
        index_sha256 = sha256_of(path)
    except FileNotFoundError as error:
        raise ValueError(
            f"{error.filename}: not there; {folder} is no whole shard set. Make one with `attributegan-shard pack`, "
            "or with `attributegan-shard index` from tars"
        ) from error
    except OSError as error:
        raise ValueError(f"{error.filename}: can't be read ({error.strerror})") from error
    if index_sha256.encode() not in written:
        raise ValueError(f"{path}: is not the index that {FILE} is about; copy the set again")
    header = index.read_header(path)
    if written != _text(header, index_sha256).encode():
        raise ValueError(f"{folder / FILE}: is damaged or of another set; copy the set again")
    return header


def _text(header: index.Header, index_sha256: str) -> str:
    lines = [f"{shard.sha256}  {shard.name}" for shard in header.shards] + [f"{index_sha256}  {index.FILE}"]
    return "".join(f"{line}\n" for line in lines)
