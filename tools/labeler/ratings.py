"""The answers of all raters: a file of JSON lines that only grows, each line on the disk before the next tile is shown.

The first line has the attributes. Every other line is an event: an answer, a skipped tile, an answer taken back, settings of the queue, or
the digest of a CSV about to be written. Replaying the lines gives the state.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import threading
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attributegan.attributes import AttributeSchema
from attributegan.utils.files import fsync_path

FORMAT = 1
LONGEST_NAME, LONGEST_COMMENT = 60, 2000  # characters


@dataclass(frozen=True)
class Rating:
    """One rater's levels of one tile, in the order of the attributes; -1 where the rater could not say."""

    rater: str
    file: str
    levels: tuple[int, ...]
    comment: str
    time: str  # ISO 8601, UTC


class Conflict(Exception):
    """The rater has meanwhile answered this tile elsewhere, such as in another tab."""


@dataclass
class _State:
    """What the events say so far."""

    answers: dict[str, dict[str, Rating]] = field(default_factory=lambda: defaultdict(dict))  # by file, by rater
    history: dict[str, dict[str, None]] = field(default_factory=lambda: defaultdict(dict))  # files answered, by rater, oldest first
    actions: dict[str, dict[str, None]] = field(default_factory=lambda: defaultdict(dict))  # files answered or skipped, likewise
    skipped: dict[str, dict[str, None]] = field(default_factory=lambda: defaultdict(dict))  # by rater, in order
    revisions: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))  # events, by rater and file
    raters: dict[str, str] = field(default_factory=dict)  # names by what makes them alike
    settings: dict[str, Any] = field(default_factory=dict)
    written: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # digests of every CSV so far, by name


class Ratings:
    """The open file. One process holds it; `append` may be called from several threads.

    Raises:
        ValueError: held by another process, damaged, or made for other attributes.
    """

    def __init__(self, path: Path, schema: AttributeSchema) -> None:
        self.path, self.schema, self.state = path, schema, _State()
        self._lock = threading.Lock()
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ValueError(f"{path}: can't be opened ({error.strerror}); give another --out") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise ValueError(f"{path}: another attributegan-label has it open; stop that one, or give another --out") from None
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def rater(self, name: str) -> str:
        """The name under which a rater's answers stand: as first written, whatever the case.

        Raises:
            ValueError: not a name.
        """
        name = unicodedata.normalize("NFC", " ".join(name.split()))
        if not name or len(name) > LONGEST_NAME or not name.isprintable() or not name[0].isalnum():
            raise ValueError(f"rater: give a name of 1 to {LONGEST_NAME} characters that begins with a letter or a digit")
        return self.state.raters.get(name.casefold(), name)

    def answer(self, rater: str, file: str, levels: Sequence[int], comment: str, revision: int) -> None:
        """Save an answer; it replaces an earlier one of this rater.

        Args:
            revision: of the tile, as the rater saw it (`revision`).

        Raises:
            Conflict: there is a newer one.
            OSError: not saved.
        """
        named = dict(zip(self.schema.names, levels, strict=True))
        comment = re.sub(r"\s+", " ", "".join(c if c.isprintable() else " " for c in comment)).strip()[:LONGEST_COMMENT]
        self._append({"rater": rater, "file": file, "levels": named, "comment": comment}, revision)

    def skip(self, rater: str, file: str, revision: int) -> None:
        """Put a tile off; raises as `answer`."""
        self._append({"rater": rater, "file": file, "skipped": True}, revision)

    def undo(self, rater: str) -> tuple[str, Rating | None] | None:
        """Take back what the rater did last: the file, with the answer unless it was skipped; None when there is nothing."""
        with self._lock:
            actions = self.state.actions.get(rater)
            if not actions:
                return None
            file = next(reversed(actions))
            last = self.state.answers[file].get(rater)
            self._write({"rater": rater, "file": file, "undone": True})
        return file, last

    def show_skipped(self, rater: str) -> None:
        """Put the rater's skipped tiles back into the queue."""
        self._append({"rater": rater, "again": True})

    def set(self, **settings: Any) -> None:
        """Save settings of the queue that differ from those saved."""
        if changed := {name: value for name, value in settings.items() if self.state.settings.get(name) != value}:
            self._append({"settings": changed})

    def will_write(self, name: str, digest: str) -> None:
        """Save the SHA-256 of a CSV that is about to take its name."""
        if digest not in self.state.written[name]:
            self._append({"writes": name, "sha256": digest})

    def revision(self, rater: str, file: str) -> int:
        """Events so far of this tile and rater."""
        return self.state.revisions.get((rater, file), 0)

    def rated(self) -> dict[str, list[Rating]]:
        """The answers that stand, by file, sorted; those of a file in the order of the raters' names."""
        with self._lock:
            answers = self.state.answers
            return {file: [answers[file][rater] for rater in sorted(answers[file])] for file in sorted(answers) if answers[file]}

    def _append(self, event: Mapping[str, Any], revision: int | None = None) -> None:
        with self._lock:
            if revision is not None and revision != self.revision(event["rater"], event["file"]):
                raise Conflict
            self._write(event)

    def _write(self, event: Mapping[str, Any]) -> None:
        """A line on the disk, or none of it."""
        event = {**event, "time": datetime.now(UTC).isoformat(timespec="seconds")}
        line = json.dumps(event, ensure_ascii=False).encode() + b"\n"
        size = os.fstat(self._descriptor).st_size
        try:
            if os.write(self._descriptor, line) != len(line):
                raise OSError(28, "No space left on device")
            os.fsync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, size)
            raise
        self._apply(event)

    def _load(self) -> None:
        data = self.path.read_bytes()
        lines = data.split(b"\n")
        if (rest := lines.pop()) and _is_json(rest):  # an editor took the last line's end off
            os.write(self._descriptor, b"\n")
            lines.append(rest)
        elif rest:  # a crash while this line was written: its answer was never confirmed
            os.ftruncate(self._descriptor, len(data) - len(rest))
        if not lines:
            header = {"format": FORMAT, "attributes": self.schema.to_dict()}
            os.write(self._descriptor, json.dumps(header, ensure_ascii=False).encode() + b"\n")
            os.fsync(self._descriptor)
            fsync_path(self.path.parent)
            return
        self._check_header(lines[0])
        for number, line in enumerate(lines[1:], 2):
            if line.strip():
                self._replay(number, line)

    def _check_header(self, line: bytes) -> None:
        try:
            header = json.loads(line)
            known = AttributeSchema.from_dict(header["attributes"], str(self.path)) if header["format"] == FORMAT else None
        except (ValueError, KeyError, TypeError, RecursionError):
            known = None
        if known is None:
            raise ValueError(f"{self.path}: line 1 is not that of ratings; restore the file, or give another --out")
        if known != self.schema:
            raise ValueError(
                f"{self.path}: was begun with other attributes: {'; '.join(_differences(known, self.schema))}. Give the --attributes that "
                "it was begun with, or another --out"
            )

    def _replay(self, number: int, line: bytes) -> None:
        try:
            self._apply(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{self.path}: line {number} is damaged ({error}); restore the file, or remove that line and lose its answer alone"
            ) from error

    def _apply(self, event: Mapping[str, Any]) -> None:
        state = self.state
        if "settings" in event:
            state.settings.update(event["settings"])
            return
        if "writes" in event:
            state.written[event["writes"]].add(event["sha256"])
            return
        rater = event["rater"]
        state.raters.setdefault(rater.casefold(), rater)
        if event.get("again"):
            skipped = state.skipped.pop(rater, {})
            state.actions[rater] = {file: None for file in state.actions[rater] if file not in skipped}
            return
        file = event["file"]
        if "levels" in event:
            self._apply_answer(rater, file, event)
        elif event.get("undone"):
            self._take_back(rater, file)
        elif event.get("skipped"):
            state.skipped[rater][file] = None
            _to_end(state.actions[rater], file)
        else:
            raise ValueError("not an event")
        state.revisions[rater, file] += 1

    def _apply_answer(self, rater: str, file: str, event: Mapping[str, Any]) -> None:
        levels = tuple(event["levels"][name] for name in self.schema.names)
        if any(type(level) is not int for level in levels) or (wrong := self.schema.check(levels)):
            raise ValueError(wrong if all(type(level) is int for level in levels) else f"levels {levels} are not all numbers")
        state = self.state
        state.answers[file][rater] = Rating(rater, file, levels, str(event.get("comment", "")), str(event.get("time", "")))
        _to_end(state.history[rater], file)
        _to_end(state.actions[rater], file)
        state.skipped[rater].pop(file, None)

    def _take_back(self, rater: str, file: str) -> None:
        state = self.state
        if state.answers[file].pop(rater, None) is not None:
            del state.history[rater][file]
        else:
            del state.skipped[rater][file]
        del state.actions[rater][file]


def _to_end(files: dict[str, None], file: str) -> None:
    """Put a file at the end of an ordered set that may have it already."""
    files.pop(file, None)
    files[file] = None


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _differences(known: AttributeSchema, given: AttributeSchema) -> list[str]:
    if known.names != given.names:
        return [f"those are {', '.join(known.names)}; these are {', '.join(given.names)}"]
    return [
        f"{one.name} had the levels {', '.join(one.levels)}"
        + (f" (not assessable: {one.not_assessable})" if one.not_assessable is not None else "")
        for one, other in zip(known.attributes, given.attributes, strict=True)
        if one != other
    ]
