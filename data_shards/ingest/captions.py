"""From a pathologist's caption to levels: what each sentence says of which attribute.

Owns the rules, for captions of the kind in Zhang et al., Nature Machine Intelligence 2019: a sentence for each attribute of
`attributegan.attributes.PUBLISHED` and one for the diagnosis, in any order. A sentence is read by the phrases in it. Where no phrase is
known, phrases contradict each other, or a "not" or "almost" is left over that no phrase explains, it is a problem to be told, never a
guess. Files are in importers.py, misspelt words in spelling.py.
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
UNCLEAR = {name: 0 for name in PUBLISHED.names} | {DIAGNOSIS: 3}  # the level of "insufficient information"

# Which words show what a sentence is about; the last entry only when none of the others is met.
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
_JUDGED = r"(assess(ed|able)?|determine[d]?|evaluate[d]?|evaluable|judge[d]?)"
_WHOLE = r"(complete(ly)?|total(ly)?|entire(ly)?|full thickness)"
_LOSS = r"(loss|lost|lack|absence)"
_KEPT = r"(retain(s|ed)?|preserv(es|ed)|maintain(s|ed)|intact|normal(ly)?)"
_MITOSES = r"(mitos[ie]s|mitotic (figures?|activity))"

_INSUFFICIENT = (
    rf"(insufficient|inadequate|not enough|not sufficient|no) {_MATTER}",
    rf"{_MATTER} {_IS} (insufficient|inadequate|not sufficient|not enough)",
    rf"\b(can|could) not be {_JUDGED}|unable to {_JUDGED}|not {_JUDGED}",
    r"^insufficient( for \w+)?$",
)
_GRADES = {
    1: (r"normal(ly)?", r"unremarkable"),
    2: (r"mild(ly)?", r"slight(ly)?"),
    3: (r"moderate(ly)?",),
    4: (r"severe(ly)?", r"marked(ly)?", r"pronounced", r"extreme(ly)?"),
}

# Level -> phrases. They are looked for from the top, and a phrase that is found is taken out of the sentence: "not completely lost"
# is gone before "completely" is looked for. None: says nothing of the level.
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
        # "Minimal variability … consistent with moderate pleomorphism": the grade is the one that is named last.
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

# Words that turn or weaken what is said around them; a sentence in which one is left over is not understood.
_TURNS = re.compile(
    r"\b(no|not|non|nor|never|neither|without|hardly|barely|almost|nearly|near|but|except|than|least|most|may|might|possibl[ey]|probabl[ey]"
    r"|questionabl[ey]|borderline|absen\w+|rare(ly)?|seldom|few|occasional(ly)?|focal(ly)?|partial(ly)?|minimal(ly)?|ab\w+al(ly)?)\b"
)
# Any other word makes a bare "insufficient information" speak of something that is not known.
_MORE = re.compile(r"\b(?!(?:there|is|are|was|available|provided|given|here|in|on|this|the|image|tile|slide|field|to|be)\b)\w+")


class Unclear(ValueError):
    """A sentence that no rule knows; ``attribute`` is what it is about, "" when not even that is known."""

    def __init__(self, what: str, attribute: str = "") -> None:
        super().__init__(what)
        self.attribute = attribute


@dataclass(frozen=True)
class Meaning:
    """One sentence, read: ``attribute`` is "" for a bare "insufficient information", which has no level of its own."""

    attribute: str
    level: int | None


@dataclass(frozen=True)
class Problem:
    """Something in the captions of a tile that gives no levels; ``caption`` counts from 1, 0 is all of them together."""

    tile: str
    caption: int
    attribute: str
    sentence: str
    what: str

    def __str__(self) -> str:
        where = f"caption {self.caption}" if self.caption else "captions"
        about = f", {self.attribute}" if self.attribute else ""
        return f"{self.tile}, {where}{about}: " + (f'"{self.sentence}": ' if self.sentence else "") + self.what


def sentences_of(caption: str) -> list[str]:
    """A caption's sentences, without their full stops."""
    return [sentence.strip() for sentence in re.split(r"\.(?!\d)|[;!\n]", caption) if sentence.strip()]


@lru_cache(maxsize=100_000)  # a collection repeats a few sentences
def read_sentence(sentence: str) -> Meaning:
    """What one sentence says.

    Raises:
        Unclear: no rule knows it, or it says two things.
    """
    text = _plain(sentence)
    attribute = _topic(text)
    rest, found = text, set[int | None]()
    rules = RULES.get(attribute, ())
    for level, phrases in ((UNCLEAR.get(attribute), _INSUFFICIENT), *rules):
        rest, count = re.subn("|".join(rf"(?<!\w)(?:{phrase})(?!\w)" for phrase in phrases), "·", rest)
        found |= {level} if count and not (attribute and level is None) else set()
    if not found or (not attribute and _MORE.search(rest)):
        raise Unclear("no rule knows this sentence", attribute)
    if len(found) > 1:
        raise Unclear(f"says levels {' and '.join(map(str, sorted(found, key=str)))} at once", attribute)
    if turn := _TURNS.search(rest):
        raise Unclear(f"no rule knows what {turn[0]!r} changes here", attribute)
    return Meaning(attribute, found.pop())


def _plain(sentence: str) -> str:
    """Lower case, words that are spelt right, single blanks, no punctuation."""
    text = re.sub(r"n['’]t\b|cannot\b", lambda match: "can not" if match[0] == "cannot" else " not", sentence.lower())
    text = text.replace("ca not", "can not")
    return " ".join(correct(word) for word in re.findall(r"\w+", text))


def _topic(text: str) -> str:
    topics = [attribute for attribute, words in TOPICS.items() if re.search(rf"\b(?:{words})(?!\w)", text)]
    if len(topics) > 1:
        raise Unclear(f"speaks of {' and '.join(topics)} at once; one attribute a sentence can be read")
    if topics:
        return topics[0]
    return WEAK_TOPIC[0] if re.search(rf"\b(?:{WEAK_TOPIC[1]})\b", text) else ""


def read_caption(caption: str) -> tuple[dict[str, int], list[tuple[str, str, str]]]:
    """The level of each attribute, and of `DIAGNOSIS` where it is there.

    Sentences that name what they speak of may stand in any order. A bare "insufficient information" names nothing; as many of them
    as there are attributes left stand for those.

    Returns:
        the levels, complete when the second list is empty: problems as (attribute, sentence, what).
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
            problems.append((meaning.attribute, sentence, f"another sentence of the caption says level {levels[meaning.attribute]}"))
    return (levels, problems) if problems else _with_bare(levels, bare)


def _with_bare(levels: dict[str, int], bare: Sequence[str]) -> tuple[dict[str, int], list[tuple[str, str, str]]]:
    """Give the sentences that name nothing to the attributes that no other sentence speaks of."""
    left = [name for name in PUBLISHED.names if name not in levels]
    also = [] if DIAGNOSIS in levels else [DIAGNOSIS]
    if len(bare) == len(left):
        return levels | {name: UNCLEAR[name] for name in left}, []
    if len(bare) == len(left) + len(also):
        return levels | {name: UNCLEAR[name] for name in left + also}, []
    if len(bare) < len(left):
        return levels, [(name, "", f"{len(bare)} sentences for {len(left)} attributes: {', '.join(left)}") for name in left]
    return levels, [("", bare[-1], "all attributes have a sentence already")]


def read_tile(tile: str, captions: Sequence[str]) -> tuple[dict[str, int], list[Problem]]:
    """The levels that all captions of a tile give it (see `read_caption`); they count only when there is no problem."""
    problems: list[Problem] = []
    read: list[dict[str, int]] = []
    for number, caption in enumerate(captions, 1):
        levels, unclear = read_caption(caption)
        problems += [Problem(tile, number, *problem) for problem in unclear]
        read += [] if unclear else [levels]
    for name in (*PUBLISHED.names, DIAGNOSIS):
        said = [levels.get(name) for levels in read]
        if len(set(said)) > 1:
            problems.append(Problem(tile, 0, name, "", f"the captions disagree, levels {_listed(said)}"))
    return read[0] if read else {}, problems or ([] if read else [Problem(tile, 0, "", "", "there is none")])


def _listed(levels: Sequence[int | None]) -> str:
    return ", ".join("none" if level is None else str(level) for level in levels)


def read_tiles(captions: Mapping[str, Sequence[str]]) -> tuple[dict[str, dict[str, int]], list[Problem]]:
    """The levels of every tile whose captions are understood and agree, and the problems of all others."""
    levels: dict[str, dict[str, int]] = {}
    problems: list[Problem] = []
    for tile, texts in captions.items():
        read, wrong = read_tile(tile, texts)
        problems += wrong
        if not wrong:
            levels[tile] = read
    return levels, problems
