"""Misspelt words of captions, set right where only one word can be meant.

Owns the words that captions.py knows and the distance between two spellings.
"""

from __future__ import annotations

from functools import lru_cache

# The words that rules look for, and some that must stay as they are although they look like one.
_WORDS = """
absent abundant atypia benign brisk carcinoma common commonly complete completely conspicuous crowded crowding degree diagnosis
disorganisation disorganization entirely evidence extreme extremely features figures frequent frequently grade inadequate incomplete
incompletely inconspicuous indistinct information infrequent infrequently insufficient intact maintained maintains marked markedly mild
mildly mitoses mitosis mitotic moderate moderately negligible negligibly normal normally nuclear nuclei nucleoli nucleolus nucleus
numerous observed occasional occasionally outline overlap overlapping partial partially partly pleomorphic pleomorphism polarity present
preserved preserves prominent prominently pronounced rarely remain remained remains retain retained retains scarce scarcely seldom
severe severely severity shape slight slightly sufficient tissue totally uncommon uncommonly unremarkable urothelial urothelium
variability variation visible
"""
WORDS = frozenset(_WORDS.split())
_SHORT, _LONG = 5, 11  # letters from which one and two slips are forgiven


@lru_cache(maxsize=100_000)
def correct(word: str) -> str:
    """The only known word that is one slip away (two, from 11 letters on); ``word`` itself when there is none, or more than one.

    The first letter must be right: a slip there could add or take away a negation ("infrequent", "abnormal").
    """
    if word in WORDS or len(word) < _SHORT:
        return word
    allowed = 2 if len(word) >= _LONG else 1
    near = [(edit_distance(word, known), known) for known in WORDS if known[0] == word[0] and abs(len(known) - len(word)) <= allowed]
    fewest = min((count for count, _ in near), default=allowed + 1)
    best = [known for count, known in near if count == fewest]
    return best[0] if fewest <= allowed and len(best) == 1 else word


def edit_distance(one: str, other: str) -> int:
    """Letters to add, drop, replace or swap with their neighbour (Damerau 1964, optimal string alignment)."""
    before: list[int] = []
    last = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        row = [i]
        for j, wanted in enumerate(other, 1):
            cost = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before, last = last, row
    return last[-1]
