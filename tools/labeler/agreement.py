"""Rater agreement: quadratic weighted kappa and confusion matrix, by attribute and pair of raters."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from attributegan.attributes import UNKNOWN, Attribute, AttributeSchema
from tools.labeler.ratings import Rating


@dataclass(frozen=True)
class Pair:
    """Agreement of two raters on one attribute, over the tiles that both labelled.

    Args:
        confusion_LL: number of tiles by the first rater's level (rows) and the second's (columns), including "not assessable"; int64.
    """

    attribute: Attribute
    raters: tuple[str, str]
    confusion_LL: np.ndarray

    @property
    def tiles(self) -> int:
        """Number of tiles that both raters labelled."""
        return int(self.confusion_LL.sum())

    @property
    def exact(self) -> float | None:
        """Fraction of the tiles with the same level; None without tiles."""
        return float(np.trace(self.confusion_LL) / self.tiles) if self.tiles else None

    @property
    def assessable_LL(self) -> np.ndarray:
        """Confusion matrix of the tiles that both raters found assessable, from which kappa is computed."""
        levels = list(self.attribute.assessable)
        return self.confusion_LL[np.ix_(levels, levels)]

    @property
    def kappa(self) -> float | None:
        """Quadratic weighted kappa; None if undefined."""
        return quadratic_kappa(self.assessable_LL)

    @property
    def one_assessable(self) -> int:
        """Number of tiles that exactly one of the two raters found not assessable."""
        level = self.attribute.not_assessable
        if level is None:
            return 0
        return int(self.confusion_LL[level].sum() + self.confusion_LL[:, level].sum() - 2 * self.confusion_LL[level, level])


def quadratic_kappa(confusion_LL: np.ndarray) -> float | None:
    """Return the weighted kappa with quadratic weights (Cohen 1968, Psychological Bulletin 70(4), eq. 9): 1 is perfect, 0 is chance.

    Returns None if it is undefined: no tiles, or both raters always gave the same single level.
    """
    steps_L = np.arange(len(confusion_LL))
    penalty_LL = (steps_L[:, None] - steps_L) ** 2
    total = confusion_LL.sum()
    chance_LL = np.outer(confusion_LL.sum(axis=1), confusion_LL.sum(axis=0))
    expected = float((penalty_LL * chance_LL).sum())
    return 1 - float((penalty_LL * confusion_LL).sum()) * float(total) / expected if expected else None


def pairs(schema: AttributeSchema, rated: Mapping[str, Sequence[Rating]]) -> list[Pair]:
    """Return the agreement for every attribute and pair of raters with a tile in common."""
    confusion: dict[tuple[str, str], list[np.ndarray]] = {}
    for ratings in rated.values():
        for first, second in itertools.combinations(sorted(ratings, key=lambda rating: rating.rater), 2):
            tables = confusion.setdefault((first.rater, second.rater), [np.zeros((n, n), np.int64) for n in schema.num_levels])
            for table_LL, a, b in zip(tables, first.levels, second.levels, strict=True):
                if UNKNOWN not in (a, b):
                    table_LL[a, b] += 1
    return [
        Pair(attribute, raters, confusion[raters][column])
        for column, attribute in enumerate(schema.attributes)
        for raters in sorted(confusion)
    ]


def mean_kappa(found: Sequence[Pair]) -> float | None:
    """Return the mean kappa over pairs of raters, weighted by tiles; None if no pair has a kappa."""
    defined = [(pair.kappa, int(pair.assessable_LL.sum())) for pair in found if pair.kappa is not None]
    total = sum(tiles for _, tiles in defined)
    return sum(kappa * tiles for kappa, tiles in defined if kappa is not None) / total if total else None
