"""Names of groups, such as slides and patients: normalization, and detection of names that look alike.

All tiles of a group go to the same split. So do groups whose names look alike, because they may be the same slide.
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

MISSING = frozenset(("", "nan", "none", "null", "na", "n/a", "#n/a", "<na>", "nat"))  # what programs write for missing values
SLIDES = (".svs", ".ndpi", ".mrxs", ".scn", ".tif", ".tiff", ".czi", ".vms", ".bif", ".svslide", ".dcm", ".isyntax", ".qptiff")


def name_of(value: object) -> str:
    """Normalize the name of a group from a table or JSON: strips blanks and writes whole numbers without decimals (7.0 becomes 7).

    Returns:
        The name, "" if missing.

    Raises:
        ValueError: neither a text nor a number.
    """
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{str(value)[:40]!r} is not a group name; use a text or a number")
    text = " ".join(unicodedata.normalize("NFC", str(value)).split())
    if text.casefold() in MISSING:
        return ""
    return text.split(".")[0] if re.fullmatch(r"[+-]?\d+\.0*", text, re.ASCII) else text


def look_alikes(names: Iterable[str]) -> list[list[str]]:
    """Returns lists of two or more names that differ only in letter case, leading zeros, blanks, dashes or a slide's extension."""
    found: dict[str, set[str]] = defaultdict(set)
    for name in names:
        found[_normalized(name)].add(name)
    return sorted(sorted(alike) for alike in found.values() if len(alike) > 1)


def inseparable(names: Sequence[str]) -> np.ndarray:
    """Returns a number for each name, int64 [N], in order of appearance; names that look alike get the same number."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(_normalized(name), len(numbers)) for name in names], np.int64)


def warning(names: Iterable[str]) -> str:
    """Returns a warning about names that look alike, or ""."""
    if not (alike := look_alikes(names)):
        return ""
    lines = "".join(f"\n  {', '.join(names)}" for names in alike[:20]) + (f"\n  and {len(alike) - 20:,} more" if len(alike) > 20 else "")
    return f"{len(alike):,} groups have names that look alike and are kept in the same split. Use one spelling for each slide:{lines}"


def _normalized(name: str) -> str:
    text = unicodedata.normalize("NFKC", name).casefold().strip()
    if (number := number_in(text)) is not None:
        return f"{Decimal(number).normalize():f}"
    if PurePosixPath(text).suffix in SLIDES:
        text = text[: -len(PurePosixPath(text).suffix)]
    if (number := number_in(text)) is not None:
        return f"{Decimal(number).normalize():f}"
    text = re.sub(r"[\s_./\\-]+", "-", text)
    return re.sub(r"\d+", lambda digits: digits[0].lstrip("0") or "0", text)
