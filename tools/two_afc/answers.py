"""The choices of all readers: an event log, each line fsynced before the next pair is shown."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tools.labeler.event_log import EventLog
from tools.labeler.ratings import Conflict, valid_name
from tools.two_afc.scores import Choice
from tools.two_afc.study import ANSWERS, SIDES, Study

FORMAT = 1


@dataclass(frozen=True)
class Answer:
    """A reader's choice about a pair: the sides of the chosen and of the real tile, and how long it took."""

    reader: str
    pair: int
    chosen: str
    real: str
    seconds: float
    time: str  # ISO 8601, UTC


class Answers:
    """The open answers of a study. Locked by one process; methods may be called from several threads.

    Raises:
        ValueError: locked by another process, damaged, or of another study.
    """

    def __init__(self, study: Study) -> None:
        self.study, self._by_reader = study, dict[str, dict[int, Answer]]()
        self._names: dict[str, str] = {}  # by their casefolded form
        self._lock = threading.Lock()
        self._log = EventLog(study.folder / ANSWERS, {"format": FORMAT, "study": study.digest}, self._check_header, self._apply)

    def close(self) -> None:
        """Close the file and release the lock."""
        self._log.close()

    def reader(self, name: str) -> str:
        """Return the canonical name of a reader: as first entered; names are case-insensitive.

        Raises:
            ValueError: not a valid name.
        """
        name = valid_name(name, "reader")
        return self._names.get(name.casefold(), name)

    def readers(self) -> dict[str, int]:
        """Return the number of answers of each reader, sorted by name."""
        with self._lock:
            return {reader: len(self._by_reader[reader]) for reader in sorted(self._by_reader)}

    def next(self, reader: str, count: int = 1) -> list[int]:
        """Return the next pairs of a reader, at most ``count``; [] after the last."""
        done = self._by_reader.get(reader, {})
        return [pair for pair in self.study.order(reader) if pair not in done][:count]

    def answer(self, reader: str, pair: int, chosen: str, seconds: float) -> None:
        """Save a choice.

        Raises:
            Conflict: ``pair`` is not the reader's next pair, such as after an answer in another tab.
            OSError: the choice could not be saved.
        """
        with self._lock:
            if self.next(reader) != [pair]:
                raise Conflict
            real = self.study.real_side(reader, pair)
            self._log.append({"reader": reader, "pair": pair, "chosen": chosen, "real": real, "seconds": round(seconds, 2)})

    def all(self) -> list[Answer]:
        """Return all answers, sorted by reader and in the order given."""
        with self._lock:
            return [answer for reader in sorted(self._by_reader) for answer in self._by_reader[reader].values()]

    def choices(self) -> list[Choice]:
        """Return all answers as input of the statistics."""
        return [Choice(answer.reader, answer.pair, answer.chosen == answer.real) for answer in self.all()]

    def _check_header(self, line: bytes) -> None:
        path = self.study.folder / ANSWERS
        try:
            header = json.loads(line)
            fits = header["format"] == FORMAT and header["study"] == self.study.digest
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}: line 1 is not the header of a file of answers; restore the file, or use another --out") from error
        if not fits:
            raise ValueError(f"{path}: has answers of another study, or study.json was changed; restore it, or use another --out")

    def _apply(self, event: Mapping[str, Any]) -> None:
        answer = Answer(*(event[name] for name in ("reader", "pair", "chosen", "real", "seconds", "time")))
        float(answer.seconds)
        if type(answer.pair) is not int or not 0 <= answer.pair < len(self.study):
            raise ValueError(f"pair {answer.pair} is not one of the study")
        if answer.chosen not in SIDES or answer.real != self.study.real_side(answer.reader, answer.pair):
            raise ValueError("the sides are not those of the study")
        if answer.pair in self._by_reader.get(answer.reader, {}):
            raise ValueError(f"pair {answer.pair} was answered before")
        self._by_reader.setdefault(answer.reader, {})[answer.pair] = answer
        self._names.setdefault(answer.reader.casefold(), answer.reader)
