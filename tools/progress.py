"""Progress of a command: a bar on a terminal, a line every 30 s in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

LINE_EVERY_S = 30.0


class TileProgress:
    """Shows tiles/s and the time left on stderr; called with the number of tiles done so far.

    Args:
        total: number of tiles, or None if it is not known.
        unit: what is counted, if not tiles.
    """

    def __init__(self, total: int | None = None, unit: str = "tiles") -> None:
        from tqdm import tqdm

        self.total, self.done, self.unit = total, 0, unit
        self.started = self.printed = time.monotonic()
        self.bar = tqdm(total=total, unit=f" {unit}", unit_scale=True, leave=False) if sys.stderr.isatty() else None

    def __enter__(self) -> TileProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar:
            self.bar.close()
        if self.done and kind is None:
            self._print_rate()

    def __call__(self, done: int) -> None:
        if self.bar:
            self.bar.update(done - self.done)
        self.done = done
        if not self.bar and time.monotonic() - self.printed > LINE_EVERY_S:
            self._print_rate()

    def print(self, line: str) -> None:
        """Print a line to stdout without breaking the bar."""
        self.bar.write(line) if self.bar else print(line, flush=True)

    def _print_rate(self) -> None:
        self.printed = time.monotonic()
        seconds = max(self.printed - self.started, 1e-9)
        of, left = "", ""
        rate = f"{self.done / seconds:,.{0 if self.unit == 'tiles' else 2}f}"
        if self.total and self.done < self.total:
            of, left = f" of {self.total:,}", f", {(self.total - self.done) * seconds / self.done:,.0f} s left"
        print(f"{self.done:,}{of} {self.unit}, {rate} {self.unit}/s{left}", file=sys.stderr, flush=True)


class StageProgress:
    """Shows one bar per stage on stderr; called with the stage, the number of items done, and their total."""

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
        """Close the bar of the current stage."""
        if self.bar is not None:
            self.bar.close()
        self.stage, self.bar = "", None
