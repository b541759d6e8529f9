"""Reads ``evaluation.jsonl`` of a run, which has a line per evaluated checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LINES = "evaluation.jsonl"


def lines(run: Path, name: str = LINES) -> list[dict[str, Any]]:
    """Return the entries of a JSON Lines file of a run, oldest first. Skips truncated lines and entries without ``images``."""
    found = []
    path = run / name
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("images"), int | float):
            found.append(entry)
    return found


def comparable(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the entries with the same data, features and settings as the newest."""
    kinds = [line.get("of") for line in found if "of" in line]
    return [line for line in found if kinds and line.get("of") == kinds[-1]]
