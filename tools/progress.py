"""How far a command is: a bar on a terminal, now and then a line in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

LINE_EVERY_S = 30.0


class TileProgress:
    """Called with the number of tiles done so far; shows tiles/s and the time left on stderr."""

    def __init__(self, total: int | None = None) -> None:
        from tqdm import tqdm

        self.total, self.done = total, 0
        self.started = self.told = time.monotonic()
        self.bar = tqdm(total=total, unit=" tiles", unit_scale=True, leave=False) if sys.stderr.isatty() else None

    def __enter__(self) -> TileProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar:
            self.bar.close()
        if self.done and kind is None:
            self._tell()

    def __call__(self, done: int) -> None:
        if self.bar:
            self.bar.update(done - self.done)
        self.done = done
        if not self.bar and time.monotonic() - self.told > LINE_EVERY_S:
            self._tell()

    def print(self, line: str) -> None:
        """A line of the report, without breaking the bar."""
        self.bar.write(line) if self.bar else print(line, flush=True)

    def _tell(self) -> None:
        self.told = time.monotonic()
        seconds = max(self.told - self.started, 1e-9)
        of, left = "", ""
        if self.total and self.done < self.total:
            of, left = f" of {self.total:,}", f", {(self.total - self.done) * seconds / self.done:,.0f} s left"
        print(f"{self.done:,}{of} tiles, {self.done / seconds:,.0f} tiles/s{left}", file=sys.stderr, flush=True)


class StageProgress:
    """Called with what is being done, how much of it is done, and of how much; a bar for each stage on stderr."""

    def __init__(self, enabled: bool = True) -> None:
        self.enabled, self.stage = enabled, ""
        self.bar: Any = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if not self.enabled:
            return
        if stage != self.stage:
            self.close()
            self.stage, self.bar = stage, tqdm(total=total, desc=stage, file=sys.stderr, dynamic_ncols=True, mininterval=1)
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.stage, self.bar = "", None
