"""Names of groups, such as slides and patients: when two spellings are one name, and which names only look alike.

All tiles of a group stay on one side of a split. So do groups whose names look alike, since they may be one slide.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import PurePosixPath

import numpy as np

from attributegan.attributes import number_in

MISSING = frozenset(("", "nan", "none", "null", "na", "n/a", "#n/a", "<na>", "nat"))  # what programs write for no entry
SLIDES = (".svs", ".ndpi", ".mrxs", ".scn", ".tif", ".tiff", ".czi", ".vms", ".bif", ".svslide", ".dcm", ".isyntax", ".qptiff")


def name_of(value: object) -> str:
    """The name of a group as a table or JSON has it: without blanks at the ends, and a whole number without decimals (7.0 is 7).

    Returns:
        "" where there is none.

    Raises:
        ValueError: neither text nor a number.
    """
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{str(value)[:40]!r} is no name; write a text or a number")
    text = " ".join(unicodedata.normalize("NFC", str(value)).split())
    if text.casefold() in MISSING:
        return ""
    return text.split(".")[0] if re.fullmatch(r"[+-]?\d+\.0*", text, re.ASCII) else text


def look_alikes(names: Iterable[str]) -> list[list[str]]:
    """Names that differ in letter case, leading zeros, blanks and dashes, or a slide's extension alone; two or more in each list."""
    found: dict[str, set[str]] = defaultdict(set)
    for name in names:
        found[_loose(name)].add(name)
    return sorted(sorted(alike) for alike in found.values() if len(alike) > 1)


def inseparable(names: Sequence[str]) -> np.ndarray:
    """A number for each name, int [N], in the order in which they come; names that look alike have the same one."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(_loose(name), len(numbers)) for name in names], np.int64)


def warning(names: Iterable[str]) -> str:
    """What to say of names that look alike, or ""."""
    if not (alike := look_alikes(names)):
        return ""
    lines = "".join(f"\n  {', '.join(names)}" for names in alike[:20]) + (f"\n  and {len(alike) - 20:,} more" if len(alike) > 20 else "")
    return f"{len(alike):,} groups have names that look alike; they stay on one side of the split. Write each slide in one way:{lines}"


def _loose(name: str) -> str:
    text = unicodedata.normalize("NFKC", name).casefold().strip()
    if (number := number_in(text)) is not None:
        return f"{Decimal(number).normalize():f}"
    if PurePosixPath(text).suffix in SLIDES:
        text = text[: -len(PurePosixPath(text).suffix)]
    if (number := number_in(text)) is not None:
        return f"{Decimal(number).normalize():f}"
    text = re.sub(r"[\s_./\\-]+", "-", text)
    return re.sub(r"\d+", lambda digits: digits[0].lstrip("0") or "0", text)
