"""The files in a tar, in order, with the places of their data; tars that are damaged, cut off or do harm are refused.

`tarfile` ends in silence where a header is damaged, where a tar was cut off between two members, and at the first of several tars that were
joined: `check_end` finds all three.
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
    """A file in a tar; WebDataset's key and kind are what stands before and after the first dot of its name."""

    key: str
    kind: str
    offset: int
    data: bytes


def members(tar: tarfile.TarFile, litter: list[str] | None = None) -> Iterator[Member]:
    """The files of a tar.

    Args:
        litter: gets the names of files that are no data, which are passed over.

    Raises:
        tarfile.TarError: it is damaged or cut off, or has members that no shard has and that do harm to who unpacks it or reads them.
    """
    try:
        for info in tar:
            if info.isfile() and is_litter(info.name.removeprefix("./")):
                if litter is not None:
                    litter.append(info.name)
                continue
            if harm := _harm(info):
                raise tarfile.ReadError(f"member {info.name[:100]!r} {harm}")
            if info.isfile():
                folder, slash, name = info.name.rpartition("/")
                stem, _, kind = name.partition(".")
                stream = tar.extractfile(info)
                assert stream is not None
                yield Member(folder + slash + stem, kind.lower(), info.offset_data, stream.read())
                tar.members.clear()  # type: ignore[attr-defined]  # it would grow with the tar
        check_end(tar)
    except (ValueError, LookupError, OverflowError, EOFError, struct.error) as error:  # what tarfile lets through
        raise tarfile.ReadError(f"damaged header: {error}") from error


def check_end(tar: tarfile.TarFile) -> None:
    """Refuse a tar that was read to what `tarfile` takes for its end, and that goes on behind it or has none.

    Raises:
        tarfile.ReadError: says which.
    """
    stream = tar.fileobj
    assert stream is not None
    at = tar.offset
    stream.seek(at)
    block = stream.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"has no end: it was cut off after {at + len(block):,} bytes; copy or write it again")
    if block.count(0) < len(block):
        raise tarfile.ReadError(f"damaged header at byte {at:,}")
    while block := stream.read(1 << 20):
        if block.count(0) < len(block):
            raise tarfile.ReadError(
                "goes on behind its end: several tars were joined; unpack it with `tar --ignore-zeros -xf`, and pack again"
            )


def _harm(info: tarfile.TarInfo) -> str:
    """What is wrong with a member, or ""."""
    path = PurePosixPath(info.name)
    if path.is_absolute() or ".." in path.parts or len(info.name) > LONGEST_NAME:
        return "has a path that leads out of the tar, or is no path; write the tar with names relative to the folder (tar -C FOLDER -cf …)"
    if info.issym() or info.islnk():
        return "is a link or a device; write the tar with the files themselves (tar --dereference --hard-dereference)"
    if not (info.isfile() or info.isdir()):
        return "is a link or a device"
    if info.size < 0 or info.issparse():
        return "says that it is larger or smaller than what is there; write the tar without --sparse"
    return ""
