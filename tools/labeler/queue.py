"""The order of tiles for each rater: seeded random or most uncertain first; a fraction of the tiles goes to every rater."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tools.labeler.ratings import Ratings

HELD_S = 1800.0  # how long a tile shown to one rater is withheld from the others


@dataclass(frozen=True)
class Progress:
    """Progress of one rater in tiles: answered, left (including skipped ones), and skipped."""

    done: int
    left: int
    skipped: int


class Queue:
    """The order of the tiles, and which tile is shown to which rater.

    A tile's position and whether it is shared are hashes of the seed and its name, so adding or removing tiles does not affect others.

    Args:
        shared: fraction of the tiles that every rater labels, in [0, 1]; each other tile goes to one rater.
        uncertainty: uncertainty by file, to order the tiles by; None for random order.
    """

    def __init__(
        self, files: Sequence[str], ratings: Ratings, seed: int, shared: float, uncertainty: Mapping[str, float] | None = None
    ) -> None:
        self.ratings = ratings
        self.order = sorted(files, key=lambda file: uniform(seed, "order", file))
        if uncertainty is not None:
            self.order.sort(key=lambda file: -uncertainty.get(file, 0.0))
        self.shared = frozenset(file for file in files if uniform(seed, "shared", file) < shared)
        self._held: dict[str, tuple[str, float]] = {}  # rater and time, by file

    def next(self, rater: str, count: int = 1) -> tuple[list[str], Progress]:
        """Return the next tiles of a rater, at most ``count``, and the rater's progress; the first tile is held for the rater."""
        skipped = self.ratings.state.skipped.get(rater, {})
        open_files = [file for file in self.order if self._is_open(rater, file)]
        found = []
        for file in open_files:
            if file not in skipped and not self._is_held(file, rater):
                found.append(file)
                if len(found) == count:
                    break
        if found:
            self.hold(rater, found[0])
        left_skipped = sum(file in skipped for file in open_files)
        return found, Progress(len(self.ratings.state.history.get(rater, ())), len(open_files), left_skipped)

    def hold(self, rater: str, file: str) -> None:
        """Withhold a tile from other raters for `HELD_S`, and release the rater's previous tile."""
        self._held = {other: held for other, held in self._held.items() if held[0] != rater}
        self._held[file] = (rater, time.monotonic())

    def _is_open(self, rater: str, file: str) -> bool:
        answers = self.ratings.state.answers.get(file)
        return not answers or (rater not in answers and file in self.shared)

    def _is_held(self, file: str, rater: str) -> bool:
        if file in self.shared or file not in self._held:
            return False
        by, since = self._held[file]
        return by != rater and time.monotonic() - since < HELD_S


def uniform(seed: int, purpose: str, file: str) -> float:
    """Return a pseudorandom number in [0, 1), the same on every machine."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{file}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
