"""The answers of all raters: an append-only JSON Lines file. Each line is fsynced before the next tile is shown.

The first line has the attributes. Every other line is an event: an answer, a skipped tile, an undo, settings of the queue, or the digest of
a CSV file about to be written. Replaying the events restores the state.
"""

from __future__ import annotations

import json
import re
import threading
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attributegan.attributes import AttributeSchema
from tools.labeler.event_log import EventLog

FORMAT = 1
LONGEST_NAME, LONGEST_COMMENT = 60, 2000  # characters


@dataclass(frozen=True)
class Rating:
    """One rater's levels of one tile, in the order of the attributes; -1 for not assessable without such a level."""

    rater: str
    file: str
    levels: tuple[int, ...]
    comment: str
    time: str  # ISO 8601, UTC


class Conflict(Exception):
    """The rater has meanwhile answered or skipped this tile elsewhere, such as in another tab."""


@dataclass
class _State:
    """The state after the events so far."""

    answers: dict[str, dict[str, Rating]] = field(default_factory=lambda: defaultdict(dict))  # by file, by rater
    history: dict[str, dict[str, None]] = field(default_factory=lambda: defaultdict(dict))  # answered files by rater, oldest first
    actions: dict[str, dict[str, None]] = field(
        default_factory=lambda: defaultdict(dict)
    )  # answered or skipped files by rater, oldest first
    skipped: dict[str, dict[str, None]] = field(default_factory=lambda: defaultdict(dict))  # skipped files by rater, oldest first
    revisions: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))  # number of events by rater and file
    raters: dict[str, str] = field(default_factory=dict)  # names by their casefolded form
    settings: dict[str, Any] = field(default_factory=dict)
    written: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # digests of all versions of each CSV file


class Ratings:
    """The open ratings file. Locked by one process; methods may be called from several threads.

    Raises:
        ValueError: locked by another process, damaged, or made for other attributes.
    """

    def __init__(self, path: Path, schema: AttributeSchema) -> None:
        self.path, self.schema, self.state = path, schema, _State()
        self._lock = threading.Lock()
        self._log = EventLog(path, {"format": FORMAT, "attributes": schema.to_dict()}, self._check_header, self._apply)

    def close(self) -> None:
        """Close the file and release the lock."""
        self._log.close()

    def rater(self, name: str) -> str:
        """Return the canonical name of a rater: as first entered; names are case-insensitive.

        Raises:
            ValueError: not a valid name.
        """
        name = valid_name(name)
        return self.state.raters.get(name.casefold(), name)

    def answer(self, rater: str, file: str, levels: Sequence[int], comment: str, revision: int) -> None:
        """Save an answer; replaces the rater's earlier answer.

        Args:
            revision: `revision` of the tile when it was shown to the rater.

        Raises:
            Conflict: the rater has answered or skipped the tile since.
            OSError: the answer could not be saved.
        """
        named = dict(zip(self.schema.names, levels, strict=True))
        comment = re.sub(r"\s+", " ", "".join(c if c.isprintable() else " " for c in comment)).strip()[:LONGEST_COMMENT]
        self._append({"rater": rater, "file": file, "levels": named, "comment": comment}, revision)

    def skip(self, rater: str, file: str, revision: int) -> None:
        """Skip a tile; raises like `answer`."""
        self._append({"rater": rater, "file": file, "skipped": True}, revision)

    def undo(self, rater: str) -> tuple[str, Rating | None] | None:
        """Undo the rater's last answer or skip.

        Returns:
            The file, and its answer or None if it was skipped; None if there is nothing to undo.
        """
        with self._lock:
            actions = self.state.actions.get(rater)
            if not actions:
                return None
            file = next(reversed(actions))
            last = self.state.answers[file].get(rater)
            self._log.append({"rater": rater, "file": file, "undone": True})
        return file, last

    def show_skipped(self, rater: str) -> None:
        """Put the rater's skipped tiles back into the queue."""
        self._append({"rater": rater, "again": True})

    def set(self, **settings: Any) -> None:
        """Save settings of the queue, if they have changed."""
        if changed := {name: value for name, value in settings.items() if self.state.settings.get(name) != value}:
            self._append({"settings": changed})

    def will_write(self, name: str, digest: str) -> None:
        """Save the SHA-256 of a CSV file that is about to be written."""
        if digest not in self.state.written[name]:
            self._append({"writes": name, "sha256": digest})

    def revision(self, rater: str, file: str) -> int:
        """Return the number of events of this tile and rater."""
        return self.state.revisions.get((rater, file), 0)

    def rated(self) -> dict[str, list[Rating]]:
        """Return the current answers by file, sorted by file and by the name of the rater."""
        with self._lock:
            answers = self.state.answers
            return {file: [answers[file][rater] for rater in sorted(answers[file])] for file in sorted(answers) if answers[file]}

    def _append(self, event: Mapping[str, Any], revision: int | None = None) -> None:
        with self._lock:
            if revision is not None and revision != self.revision(event["rater"], event["file"]):
                raise Conflict
            self._log.append(event)

    def _check_header(self, line: bytes) -> None:
        try:
            header = json.loads(line)
            saved = AttributeSchema.from_dict(header["attributes"], str(self.path)) if header["format"] == FORMAT else None
        except (ValueError, KeyError, TypeError, RecursionError):
            saved = None
        if saved is None:
            raise ValueError(f"{self.path}: line 1 is not the header of a ratings file; restore the file, or use another --out")
        if saved != self.schema:
            raise ValueError(
                f"{self.path}: was created with other attributes: {'; '.join(_differences(saved, self.schema))}. Use the same "
                "--attributes, or another --out"
            )

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
            self._undo(rater, file)
        elif event.get("skipped"):
            state.skipped[rater][file] = None
            _to_end(state.actions[rater], file)
        else:
            raise ValueError("not an event")
        state.revisions[rater, file] += 1

    def _apply_answer(self, rater: str, file: str, event: Mapping[str, Any]) -> None:
        levels = tuple(event["levels"][name] for name in self.schema.names)
        if any(type(level) is not int for level in levels) or (wrong := self.schema.check(levels)):
            raise ValueError(wrong if all(type(level) is int for level in levels) else f"levels {levels} are not all integers")
        state = self.state
        state.answers[file][rater] = Rating(rater, file, levels, str(event.get("comment", "")), str(event.get("time", "")))
        _to_end(state.history[rater], file)
        _to_end(state.actions[rater], file)
        state.skipped[rater].pop(file, None)

    def _undo(self, rater: str, file: str) -> None:
        state = self.state
        if state.answers[file].pop(rater, None) is not None:
            del state.history[rater][file]
        else:
            del state.skipped[rater][file]
        del state.actions[rater][file]


def _to_end(files: dict[str, None], file: str) -> None:
    """Move a file to the end of an ordered set, or add it."""
    files.pop(file, None)
    files[file] = None


def valid_name(name: str, field: str = "rater") -> str:
    """Return the name of a person in Unicode's composed form, with single spaces.

    Raises:
        ValueError: not a valid name; the message starts with ``field``.
    """
    name = unicodedata.normalize("NFC", " ".join(name.split()))
    if not name or len(name) > LONGEST_NAME or not name.isprintable() or not name[0].isalnum():
        raise ValueError(f"{field}: a name needs 1 to {LONGEST_NAME} characters and must begin with a letter or a digit")
    return name


def _differences(saved: AttributeSchema, given: AttributeSchema) -> list[str]:
    if saved.names != given.names:
        return [f"the file has {', '.join(saved.names)}; --attributes has {', '.join(given.names)}"]
    return [
        f"{one.name} has the levels {', '.join(one.levels)}"
        + (f" (not assessable: {one.not_assessable})" if one.not_assessable is not None else "")
        for one, other in zip(saved.attributes, given.attributes, strict=True)
        if one != other
    ]
