"""An append-only JSON Lines file of events, locked by one process. Each line is fsynced before `EventLog.append` returns."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attributegan.utils.files import fsync_path


class EventLog:
    """An open file of events below a header line. Not safe for several threads without a lock of the caller.

    Args:
        path: created with ``header`` if it does not exist.
        header: first line of a new file.
        check_header: called with the first line of an existing file; raises ValueError if it does not fit.
        apply: called with each event, those of the file first; raises ValueError, KeyError, TypeError or AttributeError if it is damaged.

    Raises:
        ValueError: locked by another process, or damaged.
    """

    def __init__(
        self, path: Path, header: Mapping[str, Any], check_header: Callable[[bytes], None], apply: Callable[[Mapping[str, Any]], None]
    ) -> None:
        self.path, self._apply = path, apply
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ValueError(f"{path}: can't be opened ({error.strerror}); use another --out") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise ValueError(f"{path}: is in use by another attributegan-label; stop it, or use another --out") from None
        try:
            self._load(header, check_header)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file and release the lock."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def append(self, event: Mapping[str, Any]) -> None:
        """Append an event with the time, fsync it and apply it; on failure, truncate the file to its previous size and raise OSError."""
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

    def _load(self, header: Mapping[str, Any], check_header: Callable[[bytes], None]) -> None:
        data = self.path.read_bytes()
        lines = data.split(b"\n")
        if (rest := lines.pop()) and _is_json(rest):  # an editor has removed the last newline
            os.write(self._descriptor, b"\n")
            lines.append(rest)
        elif rest:  # a crash while this line was written: its answer was not confirmed
            os.ftruncate(self._descriptor, len(data) - len(rest))
        if not lines:
            os.write(self._descriptor, json.dumps(header, ensure_ascii=False).encode() + b"\n")
            os.fsync(self._descriptor)
            fsync_path(self.path.parent)
            return
        check_header(lines[0])
        for number, line in enumerate(lines[1:], 2):
            if line.strip():
                self._replay(number, line)

    def _replay(self, number: int, line: bytes) -> None:
        try:
            self._apply(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{self.path}: line {number} is damaged ({error}); restore the file, or delete this line, which loses only its answer"
            ) from error


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
