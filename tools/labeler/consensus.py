"""Merges the levels of several raters, and writes the CSV files: levels for ``attributegan-shard pack``, and agreement."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attributegan.attributes import UNKNOWN, Attribute, AttributeSchema
from attributegan.utils.files import atomic_write
from tools.labeler import agreement
from tools.labeler.ratings import Rating, Ratings
from tools.labeler.tiles import Tiles

OWN_COLUMNS = ("raters", "spread", "comments")


def consensus(attribute: Attribute, levels: Sequence[int], most_apart: int | None = None) -> int:
    """Return the merged level of one attribute: the raters' median; the lower of two middle levels.

    Returns "not assessable" if more than half of the raters chose it, and `UNKNOWN` if exactly half did or no rater gave a level.

    Args:
        most_apart: if given, also return `UNKNOWN` if levels differ by more than this, or only some raters chose "not assessable".
    """
    given = [level for level in levels if level != UNKNOWN]
    on_scale = [level for level in given if level != attribute.not_assessable]
    not_assessable = len(given) - len(on_scale)
    if not_assessable and most_apart is not None and on_scale:
        return UNKNOWN
    if not_assessable > len(on_scale):
        assert attribute.not_assessable is not None
        return attribute.not_assessable
    if not on_scale or not_assessable == len(on_scale) or (most_apart is not None and max(on_scale) - min(on_scale) > most_apart):
        return UNKNOWN
    return statistics.median_low(on_scale)


def spread(schema: AttributeSchema, ratings: Sequence[Rating]) -> int:
    """Return the largest distance of two raters' levels over the attributes, ignoring "not assessable"."""
    widest = 0
    for attribute, levels in zip(schema.attributes, zip(*(rating.levels for rating in ratings), strict=True), strict=True):
        if on_scale := [level for level in levels if level in attribute.assessable]:
            widest = max(widest, max(on_scale) - min(on_scale))
    return widest


class Writer:
    """Writes NAME.csv and NAME.agreement.csv from the answers; never overwrites a file that another program wrote or changed.

    Args:
        out: CSV file of the levels.
        most_apart: see `consensus`.

    Raises:
        ValueError: one of the files was written or changed by another program.
    """

    def __init__(self, out: Path, tiles: Tiles, ratings: Ratings, most_apart: int | None) -> None:
        self.out, self.tiles, self.ratings, self.most_apart = out, tiles, ratings, most_apart
        self.missing = 0  # labelled tiles that were no longer in the folder at the last write
        for path in (self.out, self.agreement):
            self._check(path)

    @property
    def agreement(self) -> Path:
        """Path of the agreement CSV."""
        return self.out.with_name(f"{self.out.stem}.agreement.csv")

    def write(self) -> int:
        """Write both files; returns the number of tiles with levels.

        Raises:
            ValueError: one of the files was changed by another program.
            OSError: a file could not be written.
        """
        found = self.ratings.rated()
        present = {file: ratings for file, ratings in found.items() if (self.tiles.root / file).is_file()}
        self.missing = len(found) - len(present)
        if found or self.out.exists():
            self._write(self.out, *self._levels(present))
            self._write(self.agreement, *_agreement(self.ratings.schema, found))
        return len(present)

    def _levels(self, found: Mapping[str, Sequence[Rating]]) -> tuple[list[str], list[list[Any]]]:
        schema = self.ratings.schema
        taken = {"file", *schema.names}
        columns = [name for name in self.tiles.columns if name not in taken and name not in OWN_COLUMNS]
        own = [name for name in OWN_COLUMNS if name not in taken]
        rows = []
        for file, ratings in found.items():
            by_attribute = zip(*(rating.levels for rating in ratings), strict=True)
            levels = schema.written(
                [consensus(attribute, given, self.most_apart) for attribute, given in zip(schema.attributes, by_attribute, strict=True)]
            )
            comments = "; ".join(f"{rating.rater}: {rating.comment}" for rating in ratings if rating.comment)
            about = {"raters": len(ratings), "spread": spread(schema, ratings) if len(ratings) > 1 else "", "comments": comments}
            more = self.tiles.row(file)
            rows.append([file, *(more.get(name, "") for name in columns), *levels.values(), *(about[name] for name in own)])
        return ["file", *columns, *schema.names, *own], rows

    def _write(self, path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows([columns, *rows])
        data = text.getvalue().encode()
        self._check(path)
        self.ratings.will_write(path.name, hashlib.sha256(data).hexdigest())
        with atomic_write(path) as stream:
            stream.write(data)

    def _check(self, path: Path) -> None:
        """Raise ValueError if the command did not write the file; a crash may have left an older version of it."""
        if not path.exists():
            return
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest not in self.ratings.state.written.get(path.name, ()):
            raise ValueError(
                f"{path}: was not written by this command, or was changed since, and is not overwritten. Move it, or use another --out. "
                f"All answers are saved in {self.ratings.path}"
            )


def _agreement(schema: AttributeSchema, found: Mapping[str, Sequence[Rating]]) -> tuple[list[str], list[list[Any]]]:
    columns = ["attribute", "rater_1", "rater_2", "tiles", "exact", "quadratic_kappa", "one_not_assessable", "confusion"]
    return columns, [
        [
            pair.attribute.name,
            *pair.raters,
            pair.tiles,
            _number(pair.exact),
            _number(pair.kappa),
            pair.one_assessable,
            json.dumps(pair.confusion_LL.tolist()),
        ]
        for pair in agreement.pairs(schema, found)
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
