"""Text of the project is plain English: no words of the list below in comments, docstrings, messages, templates, configs and docs."""

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COVERED = (  # files and folders
    ".github",
    "AGENTS.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Dockerfile",
    "Makefile",
    "README.md",
    "SECURITY.md",
    "attributegan",
    "configs",
    "data_shards",
    "docs",
    "launch",
    "mkdocs.yml",
    "setup.cfg",
    "setup.py",
    "slurm",
    "tests",
    "tools",
)
EXCLUDED = ("tests/data",)  # recorded files
SUFFIXES = {".cff", ".cfg", ".css", ".html", ".js", ".md", ".py", ".sbatch", ".toml", ".yaml", ".yml"}
BANNED = {  # regular expression: what to write instead
    r"(in|with) (\w+ )?words": "as text, as a message; or the message itself",
    r"mend(s|ed|ing)?": "fix, repair",
    r"an own": "its own",
    r"anew": "again",
    r"as they were": "unchanged",
    r"aside": "a temporary name, beside, skipped",
    r"befall(s|en)?|befell": "happen",
    r"by heart": "cached, memorized",
    r"by the clock": "wall-clock",
    r"(come|comes|came) to grief": "fails",
    r"goes on|going on": "continues, resumes, running",
    r"held against": "compared with",
    r"of now": "current",
    r"of theirs": "their",
    r"one that": "a NOUN that",
    r"(take|takes|took|taking) part": "joins",
    r"tells?|told": "report, log, signal, configure",
    r"whoever": "the process or user that",
    r"without a word": "silently",
}
PATTERN = re.compile("|".join(r"\b(?:" + pattern.replace(" ", r"\s+") + r")\b" for pattern in BANNED), re.IGNORECASE)
ALLOWED: dict[str, dict[str, str]] = {  # by file: a word that it may have, and why
    "attributegan/run_dir/status.py": {"told": "the name of a field in the status.json of earlier versions"},
    "data_shards/packing/index_tars.py": {"as they were": "stored in the index"},
    "tests/unit/test_style.py": {"*": "has the list"},
    "tools/explorer/templates/base.html": {"aside": "an HTML element"},
}


def text_files() -> Iterator[Path]:
    for name in COVERED:
        path = ROOT / name
        assert path.exists(), f"{name}: missing; correct COVERED"
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            excluded = "__pycache__" in file.parts or any(file.is_relative_to(ROOT / folder) for folder in EXCLUDED)
            if file.is_file() and file.suffix in SUFFIXES and not excluded:
                yield file


def prose(file_name: str, text: str) -> Iterator[tuple[int, str]]:
    """Yields pieces of text with the number of their first line: comments and strings of Python, all of other files."""
    if not file_name.endswith(".py"):
        yield 1, text
        return
    comments: list[str] = []
    first = last = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind = tokenize.tok_name[token.type]
        if kind == "COMMENT":
            if comments and token.start[0] != last + 1:
                yield first, "\n".join(comments)
                comments = []
            first, last = (first if comments else token.start[0]), token.start[0]
            comments.append(token.string.lstrip("# "))
        elif kind == "STRING":  # before Python 3.12 also f-strings, whose expressions are code
            is_format = "f" in token.string[: token.string.index(token.string[-1])].lower()
            yield token.start[0], re.sub(r"\{[^{}]*\}", "", token.string) if is_format else token.string
        elif kind == "FSTRING_MIDDLE":
            yield token.start[0], token.string
    if comments:
        yield first, "\n".join(comments)


def banned_words(file_name: str, text: str) -> list[str]:
    """Returns ``file:line: word`` for each banned word."""
    allowed = ALLOWED.get(file_name, {})
    found = []
    for first, piece in prose(file_name, text):
        for match in PATTERN.finditer(piece):
            word = " ".join(match.group().lower().split())
            if word not in allowed and "*" not in allowed:
                found.append(f"{file_name}:{first + piece[: match.start()].count(chr(10))}: {word}")
    return found


def test_no_banned_words() -> None:
    found = [line for file in text_files() for line in banned_words(str(file.relative_to(ROOT)), file.read_text(encoding="utf-8"))]
    assert not found, "write plain English (see BANNED for alternatives):\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('x = 1  # it is told\ny = "ok"\n', ["a.py:1: told"]),
        ('"""Fine.\n\nThe one\nthat fails.\n"""\n', ["a.py:3: one that"]),
        ("# a run that goes\n# on with it\n", ["a.py:1: goes on"]),
        ("told = tell(anew)\n", []),
        ('f"{told} images"\n', []),
        ('f"{x} is told"\n', ["a.py:1: told"]),
        ("retold = 'intellect recommend amend'  # asides\n", []),
    ],
)
def test_check_of_python_files(text: str, expected: list[str]) -> None:
    assert banned_words("a.py", text) == expected


def test_check_of_other_files() -> None:
    assert banned_words("a.md", "Fine.\nRuns are\nmended anew.\n") == ["a.md:3: mended", "a.md:3: anew"]
