"""Parses pathologists' captions into levels of attributes.

Owns the rules for captions like those of Zhang et al., Nature Machine Intelligence 2019: a sentence for each attribute of
`attributegan.attributes.PUBLISHED` and one for the diagnosis, in any order. Sentences are parsed by the phrases in them. Unknown phrases,
contradictions, and an unexplained "not" or "almost" are reported as problems, never guessed. File formats are in importers.py, spelling
correction in spelling.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from attributegan.attributes import PUBLISHED
from data_shards.ingest.spelling import correct

DIAGNOSIS = "diagnosis"
DIAGNOSES = ("normal", "low grade", "high grade", "insufficient information")
INSUFFICIENT_LEVEL = {name: 0 for name in PUBLISHED.names} | {DIAGNOSIS: 3}  # the level of "insufficient information"

# Words that identify the topic of a sentence; WEAK_TOPIC applies only if none of these matches.
TOPICS = {
    "cell_crowding": r"crowd\w*|overlap\w*",
    "cell_polarity": r"polarity|disorgani[sz]ation",
    "mitosis": r"mitos[ie]s|mitotic",
    "nucleoli": r"nucleol(i|us|ar)",
    "pleomorphism": r"pleomorphi\w+|atypia|variability|variation",
    DIAGNOSIS: r"(low|high) grade|diagnos\w+|carcinoma|urothelium is (normal|benign)|^(normal|benign)( urothelium)?$",
}
WEAK_TOPIC = ("pleomorphism", r"nuclei|nucleus|nuclear")

_SEEN = r"(seen|present|observed|identified|found|noted|evident|visible|detected)"
_IS = r"(is|are|was|were|can be|could be)"
_NO = r"\b(no|without)( (signs?|evidence) of| visible| nuclear| cellular| cell)*"
_NOT_SEEN = rf"({_IS} )?(not (be )?{_SEEN}|absent)( in the nuclei)?"
_MATTER = r"(information|data|material|tissue)"
_ASSESSED = r"(assess(ed|able)?|determine[d]?|evaluate[d]?|evaluable|judge[d]?)"
_WHOLE = r"(complete(ly)?|total(ly)?|entire(ly)?|full thickness)"
_LOSS = r"(loss|lost|lack|absence)"
_KEPT = r"(retain(s|ed)?|preserv(es|ed)|maintain(s|ed)|intact|normal(ly)?)"
_MITOSES = r"(mitos[ie]s|mitotic (figures?|activity))"

_INSUFFICIENT_PHRASES = (
    rf"(insufficient|inadequate|not enough|not sufficient|no) {_MATTER}",
    rf"{_MATTER} {_IS} (insufficient|inadequate|not sufficient|not enough)",
    rf"\b(can|could) not be {_ASSESSED}|unable to {_ASSESSED}|not {_ASSESSED}",
    r"^insufficient( for \w+)?$",
)
_GRADES = {
    1: (r"normal(ly)?", r"unremarkable"),
    2: (r"mild(ly)?", r"slight(ly)?"),
    3: (r"moderate(ly)?",),
    4: (r"severe(ly)?", r"marked(ly)?", r"pronounced", r"extreme(ly)?"),
}

# Level -> phrases, matched in this order. Matched phrases are removed from the sentence: "not completely lost" is removed before
# "completely" is searched. None: phrases that say nothing about the level.
RULES: dict[str, tuple[tuple[int | None, tuple[str, ...]], ...]] = {
    "cell_crowding": (
        (1, (rf"{_NO} (crowding|overlap\w*)", rf"(crowding|overlap\w*) {_NOT_SEEN}", r"\bnot (crowded|overlapping)")),
        *_GRADES.items(),
    ),
    "cell_polarity": (
        (2, (rf"not {_WHOLE} (lost|absent|lacking)", rf"not lost {_WHOLE}", rf"no (overt|{_WHOLE}) (loss|lack)")),
        (1, (r"\bno( signs? of| evidence of)? loss", r"not lost", r"negligibl[ey]")),
        (2, (rf"(partial(ly)?|partly|incomplete(ly)?)( {_KEPT})?", rf"(some|some degree of|focal|focally) {_LOSS}", r"to some degree")),
        (1, (rf"({_WHOLE} |well )?{_KEPT}",)),
        (3, (_WHOLE, r"marked (disorgani[sz]ation|disarray)( and lack)?", r"absent")),
    ),
    "mitosis": (
        (1, (rf"{_NO} {_MITOSES}", rf"{_MITOSES} {_NOT_SEEN}", r"\babsent")),
        (2, (r"infrequent(ly)?", r"uncommon(ly)?", r"occasional(ly)?")),
        (1, (r"rare(ly)?", r"scarce(ly)?", r"seldom")),
        (3, (r"frequent(ly)?", r"numerous", r"abundant", r"many", r"common(ly)?", r"brisk")),
    ),
    "nucleoli": (
        (1, (rf"{_NO}( prominent| conspicuous)? nucleol(i|us)",)),
        (1, (rf"((prominent|conspicuous|visible|and) )*nucleol(i|us) ({_NOT_SEEN}|{_IS} rare(ly {_SEEN})?)( or (exceedingly )?rare)?",)),
        (1, (r"not (prominent|conspicuous|visible)", r"inconspicuous", r"indistinct", r"absent")),
        (2, (r"prominent", r"conspicuous")),
    ),
    "pleomorphism": (
        # "Minimal variability … consistent with moderate pleomorphism": the grade is named last.
        (None, (r"\w+ (variability|variation)( in| of)?( nuclear| size| shape| outline| and)* (consistent|compatible|in keeping) with",)),
        (1, (rf"{_NO} (pleomorphism|atypia|variability|variation)", rf"(pleomorphism|atypia) {_NOT_SEEN}")),
        *_GRADES.items(),
    ),
    DIAGNOSIS: (
        (0, (r"normal", r"benign")),
        (1, (r"low grade",)),
        (2, (r"high grade",)),
    ),
}

# Negations and hedges; a sentence in which one remains unexplained is rejected.
_QUALIFIERS = re.compile(
    r"\b(no|not|non|nor|never|neither|without|hardly|barely|almost|nearly|near|but|except|than|least|most|may|might|possibl[ey]|probabl[ey]"
    r"|questionabl[ey]|borderline|absen\w+|rare(ly)?|seldom|few|occasional(ly)?|focal(ly)?|partial(ly)?|minimal(ly)?|ab\w+al(ly)?)\b"
)
# With any other word, a bare "insufficient information" is about an unknown topic.
_OTHER_WORDS = re.compile(r"\b(?!(?:there|is|are|was|available|provided|given|here|in|on|this|the|image|tile|slide|field|to|be)\b)\w+")


class Unclear(ValueError):
    """A sentence that no rule matches; ``attribute`` is its topic, "" if unknown."""

    def __init__(self, problem: str, attribute: str = "") -> None:
        super().__init__(problem)
        self.attribute = attribute


@dataclass(frozen=True)
class Meaning:
    """A parsed sentence; ``attribute`` is "" for a bare "insufficient information", which has no level."""

    attribute: str
    level: int | None


@dataclass(frozen=True)
class Problem:
    """A problem in the captions of a tile; ``caption`` counts from 1, 0 means all captions together."""

    tile: str
    caption: int
    attribute: str
    sentence: str
    description: str

    def __str__(self) -> str:
        where = f"caption {self.caption}" if self.caption else "captions"
        about = f", {self.attribute}" if self.attribute else ""
        return f"{self.tile}, {where}{about}: " + (f'"{self.sentence}": ' if self.sentence else "") + self.description


def sentences_of(caption: str) -> list[str]:
    """Split a caption into sentences, without full stops."""
    return [sentence.strip() for sentence in re.split(r"\.(?!\d)|[;!\n]", caption) if sentence.strip()]


@lru_cache(maxsize=100_000)  # collections repeat a small number of sentences
def read_sentence(sentence: str) -> Meaning:
    """Parse one sentence.

    Raises:
        Unclear: no rule matches, or the sentence contradicts itself.
    """
    text = _normalized(sentence)
    attribute = _topic(text)
    rest, found = text, set[int | None]()
    rules = RULES.get(attribute, ())
    for level, phrases in ((INSUFFICIENT_LEVEL.get(attribute), _INSUFFICIENT_PHRASES), *rules):
        rest, count = re.subn("|".join(rf"(?<!\w)(?:{phrase})(?!\w)" for phrase in phrases), "·", rest)
        found |= {level} if count and not (attribute and level is None) else set()
    if not found or (not attribute and _OTHER_WORDS.search(rest)):
        raise Unclear("no rule matches this sentence", attribute)
    if len(found) > 1:
        raise Unclear(f"contradictory levels {' and '.join(map(str, sorted(found, key=str)))}", attribute)
    if qualifier := _QUALIFIERS.search(rest):
        raise Unclear(f"unknown meaning of {qualifier[0]!r} in this sentence", attribute)
    return Meaning(attribute, found.pop())


def _normalized(sentence: str) -> str:
    """Convert to lower case with corrected spelling, single blanks and no punctuation."""
    text = re.sub(r"n['’]t\b|cannot\b", lambda match: "can not" if match[0] == "cannot" else " not", sentence.lower())
    text = text.replace("ca not", "can not")
    return " ".join(correct(word) for word in re.findall(r"\w+", text))


def _topic(text: str) -> str:
    topics = [attribute for attribute, words in TOPICS.items() if re.search(rf"\b(?:{words})(?!\w)", text)]
    if len(topics) > 1:
        raise Unclear(f"mentions {' and '.join(topics)}; use one sentence per attribute")
    if topics:
        return topics[0]
    return WEAK_TOPIC[0] if re.search(rf"\b(?:{WEAK_TOPIC[1]})\b", text) else ""


def read_caption(caption: str) -> tuple[dict[str, int], list[tuple[str, str, str]]]:
    """Parse the level of each attribute, and of `DIAGNOSIS` if present.

    Sentences with a topic may come in any order. Bare "insufficient information" sentences have no topic; if their number equals that of
    the remaining attributes, they are assigned to those.

    Returns:
        The levels, complete if the second list is empty, and problems as (attribute, sentence, description).
    """
    levels: dict[str, int] = {}
    problems: list[tuple[str, str, str]] = []
    bare: list[str] = []
    for sentence in sentences_of(caption):
        try:
            meaning = read_sentence(sentence)
        except Unclear as error:
            problems.append((error.attribute, sentence, str(error)))
            continue
        if meaning.level is None:
            bare.append(sentence)
        elif levels.setdefault(meaning.attribute, meaning.level) != meaning.level:
            problems.append(
                (meaning.attribute, sentence, f"contradicts another sentence of the caption, with level {levels[meaning.attribute]}")
            )
    return (levels, problems) if problems else _with_bare(levels, bare)


def _with_bare(levels: dict[str, int], bare: Sequence[str]) -> tuple[dict[str, int], list[tuple[str, str, str]]]:
    """Assign the sentences without a topic to the attributes without a sentence."""
    remaining = [name for name in PUBLISHED.names if name not in levels]
    optional = [] if DIAGNOSIS in levels else [DIAGNOSIS]
    if len(bare) == len(remaining):
        return levels | {name: INSUFFICIENT_LEVEL[name] for name in remaining}, []
    if len(bare) == len(remaining) + len(optional):
        return levels | {name: INSUFFICIENT_LEVEL[name] for name in remaining + optional}, []
    if len(bare) < len(remaining):
        return levels, [(name, "", f"{len(bare)} sentences for {len(remaining)} attributes: {', '.join(remaining)}") for name in remaining]
    return levels, [("", bare[-1], "all attributes already have a sentence")]


def read_tile(tile: str, captions: Sequence[str]) -> tuple[dict[str, int], list[Problem]]:
    """Parse all captions of a tile (see `read_caption`); the levels are valid only if there are no problems."""
    problems: list[Problem] = []
    read: list[dict[str, int]] = []
    for number, caption in enumerate(captions, 1):
        levels, unclear = read_caption(caption)
        problems += [Problem(tile, number, *problem) for problem in unclear]
        read += [] if unclear else [levels]
    for name in (*PUBLISHED.names, DIAGNOSIS):
        given = [levels.get(name) for levels in read]
        if len(set(given)) > 1:
            problems.append(Problem(tile, 0, name, "", f"captions disagree: levels {_listed(given)}"))
    return read[0] if read else {}, problems or ([] if read else [Problem(tile, 0, "", "", "no captions")])


def _listed(levels: Sequence[int | None]) -> str:
    return ", ".join("none" if level is None else str(level) for level in levels)


def read_tiles(captions: Mapping[str, Sequence[str]]) -> tuple[dict[str, dict[str, int]], list[Problem]]:
    """Parse many tiles; returns the levels of every tile without problems, and the problems of all others."""
    levels: dict[str, dict[str, int]] = {}
    problems: list[Problem] = []
    for tile, texts in captions.items():
        read, of_tile = read_tile(tile, texts)
        problems += of_tile
        if not of_tile:
            levels[tile] = read
    return levels, problems
