"""The evaluations of a run so far: ``evaluation.jsonl``, a line for each checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LINES = "evaluation.jsonl"


def lines(run: Path, name: str = LINES) -> list[dict[str, Any]]:
    """What has been evaluated, or another table of a run, oldest first; a line that a kill cut short is passed over."""
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
    """The lines that compare with the newest."""
    kinds = [line.get("of") for line in found if "of" in line]
    return [line for line in found if kinds and line.get("of") == kinds[-1]]
