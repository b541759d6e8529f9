"""Reads the files of a tar in order, with the offsets of their data; damaged, truncated and unsafe tars are rejected.

`tarfile` stops silently at a damaged header, at a truncation between two members, and after the first of several concatenated tars:
`check_end` detects all three.
"""

from __future__ import annotations

import struct
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

from data_shards.format.litter import is_litter

LONGEST_NAME = 4096


class Member(NamedTuple):
    """A file in a tar; key and kind are the parts of its name before and after the first dot, as in WebDataset."""

    key: str
    kind: str
    offset: int
    data: bytes


def members(tar: tarfile.TarFile, litter: list[str] | None = None) -> Iterator[Member]:
    """Yields the files of a tar.

    Args:
        litter: receives the names of skipped files that are not data.

    Raises:
        tarfile.TarError: the tar is damaged or truncated, or has members that are unsafe to unpack or read.
    """
    try:
        for info in tar:
            if info.isfile() and is_litter(info.name.removeprefix("./")):
                if litter is not None:
                    litter.append(info.name)
                continue
            if problem := _unsafe(info):
                raise tarfile.ReadError(f"member {info.name[:100]!r} {problem}")
            if info.isfile():
                folder, slash, name = info.name.rpartition("/")
                stem, _, kind = name.partition(".")
                stream = tar.extractfile(info)
                assert stream is not None
                yield Member(folder + slash + stem, kind.lower(), info.offset_data, stream.read())
                tar.members.clear()  # type: ignore[attr-defined]  # it would grow without bound
        check_end(tar)
    except (ValueError, LookupError, OverflowError, EOFError, struct.error) as error:  # not wrapped by tarfile
        raise tarfile.ReadError(f"damaged header: {error}") from error


def check_end(tar: tarfile.TarFile) -> None:
    """Check that a tar that `tarfile` has read to its end is complete and has nothing after its end.

    Raises:
        tarfile.ReadError: truncated, damaged, or several concatenated tars.
    """
    stream = tar.fileobj
    assert stream is not None
    end = tar.offset
    stream.seek(end)
    block = stream.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"truncated after {end + len(block):,} bytes; copy or write it again")
    if block.count(0) < len(block):
        raise tarfile.ReadError(f"damaged header at byte {end:,}")
    while block := stream.read(1 << 20):
        if block.count(0) < len(block):
            raise tarfile.ReadError(
                "has data after its end: several tars were concatenated; unpack it with `tar --ignore-zeros -xf`, and pack again"
            )


def _unsafe(info: tarfile.TarInfo) -> str:
    """Returns why a member is unsafe, or ""."""
    path = PurePosixPath(info.name)
    if path.is_absolute() or ".." in path.parts or len(info.name) > LONGEST_NAME:
        return "has an absolute, escaping or overlong path; write the tar with names relative to the folder (tar -C FOLDER -cf …)"
    if info.issym() or info.islnk():
        return "is a link; write the tar with the files themselves (tar --dereference --hard-dereference)"
    if not (info.isfile() or info.isdir()):
        return "is not a regular file"
    if info.size < 0 or info.issparse():
        return "has a size that does not match its data; write the tar without --sparse"
    return ""
