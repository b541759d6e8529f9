"""Corrects misspelt words of captions where the correction is unambiguous.

Owns the vocabulary of captions.py and the edit distance.
"""

from __future__ import annotations

from functools import lru_cache

# The words that rules match, and similar words that must not be corrected.
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
_SHORT, _LONG = 5, 11  # minimum length in letters for one and two corrected errors


@lru_cache(maxsize=100_000)
def correct(word: str) -> str:
    """Returns the only word of the vocabulary at edit distance 1 (2 from 11 letters on); ``word`` itself if there is none, or several.

    The first letter must match: an error there could add or remove a negation ("infrequent", "abnormal").
    """
    if word in WORDS or len(word) < _SHORT:
        return word
    allowed = 2 if len(word) >= _LONG else 1
    near = [(edit_distance(word, other), other) for other in WORDS if other[0] == word[0] and abs(len(other) - len(word)) <= allowed]
    fewest = min((count for count, _ in near), default=allowed + 1)
    best = [other for count, other in near if count == fewest]
    return best[0] if fewest <= allowed and len(best) == 1 else word


def edit_distance(one: str, other: str) -> int:
    """Count insertions, deletions, substitutions and transpositions (Damerau 1964, optimal string alignment)."""
    before: list[int] = []
    last = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        row = [i]
        for j, target in enumerate(other, 1):
            cost = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (letter != target))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == target:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before, last = last, row
    return last[-1]
