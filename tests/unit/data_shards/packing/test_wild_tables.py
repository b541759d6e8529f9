"""Tables and schemas from spreadsheets and other programs are read as intended, or rejected with the fix."""

from __future__ import annotations

import itertools
import json
import unicodedata
from pathlib import Path

import pytest
from PIL import Image
from shards import pixels_of, rows_of

from attributegan import strict_yaml
from attributegan.attributes import PUBLISHED, Attribute, AttributeSchema
from attributegan.config import load
from data_shards.format import groups
from data_shards.packing import level_counts
from tools.shard import main

GRADE = "grade: [low, mid, high]\n"


def pack(folder: Path, table: str | bytes, schema: str = GRADE, *more: str, tiles: int = 6) -> int:
    """Pack ``t0.png``, ``t1.png``, … with a table; returns the exit status."""
    images = folder / "images"
    images.mkdir(exist_ok=True)
    for number in range(tiles):
        Image.fromarray(pixels_of(number, 8)).save(images / f"t{number}.png")
    (folder / "levels.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
    (folder / "schema.yaml").write_text(schema)
    paths = ["--images", str(images), "--labels", str(folder / "levels.csv"), "--out", str(folder / "set")]
    common = ["--attributes", str(folder / "schema.yaml"), "--workers", "1", "--overwrite"]
    return main(["pack", *paths, *common, *(more if "--val-fraction" in more else ("--val-fraction", "0", *more))])


def levels(folder: Path, name: str = "grade") -> dict[str, int]:
    return {row["key"]: row[name] for row in rows_of(folder / "set")}


# Level names that are numbers

NAMED = Attribute("nottingham", ("1", "2", "3"))


@pytest.mark.parametrize("spelled", ["1", "1.0", "01", "1.", "+1", " 1 ", "1e0"])
def test_numeric_level_names_match_in_any_spelling(tmp_path: Path, spelled: str) -> None:
    assert pack(tmp_path, f"file,nottingham\nt0.png,{spelled}\nt1.png,3\nt2.png,-1\n", "nottingham: [1, 2, 3]\n") == 0
    assert levels(tmp_path, "nottingham") == {"t0": 0, "t1": 2, "t2": -1}
    assert main(["verify", str(tmp_path / "set"), "--workers", "1"]) == 0


@pytest.mark.parametrize("value", [1, 1.0, "1", "1.0"])
def test_all_readers_agree(value: object) -> None:
    assert NAMED.read(value) == 0
    assert NAMED.parse(str(value)) == 0
    assert AttributeSchema((NAMED,)).parse(f"nottingham={value}") == {"nottingham": 0}


@pytest.mark.parametrize(
    "schema",
    [
        ("1", "2", "3"),
        ("benign", "3", "4", "5"),
        ("3", "2", "1"),
        ("0", "1", "2"),
        ("low", "mid", "high"),
        ("0", "1+", "2+", "3+"),
        ("10", "20"),
        ("1.0", "2.5"),
        ("none", "1", "2"),
        ("1", "2", "9"),
    ],
)
def test_round_trip(schema: tuple[str, ...]) -> None:
    attribute = Attribute("a", schema)
    for level in range(len(schema)):
        written = attribute.written(level)
        assert attribute.read(written) == attribute.parse(str(written)) == level
        assert attribute.read(json.loads(json.dumps(written))) == level
        assert attribute.read(schema[level]) == attribute.parse(schema[level]) == level
    for between in (0.5, 0.3):
        assert attribute.parse(str(attribute.written(between))) == pytest.approx(between)
    assert attribute.read(attribute.written(-1)) == -1
    assert AttributeSchema.from_dict(AttributeSchema((attribute,)).to_dict()) == AttributeSchema((attribute,))


def test_levels_between_numbers_lie_between_their_names() -> None:
    assert NAMED.parse("2.5") == 1.5 and NAMED.parse("#1.5") == 1.5 and NAMED.parse("2.0") == 1
    assert Attribute("a", ("benign", "3", "4")).parse("3.25") == 1.25
    assert Attribute("a", ("3", "2", "1")).parse("1.5") == 1.5
    for bad in ("0", "0.5", "4", "3.5", "#3", "#x"):
        with pytest.raises(ValueError, match="numbers are level names here"):
            NAMED.parse(bad)
    with pytest.raises(ValueError, match="not one of 1, 2, 3"):
        NAMED.read(0)


def test_the_level_that_is_not_assessable_may_be_named() -> None:
    read = AttributeSchema.from_dict
    for value, location in (("unclear", 0), (0, 0), ("0", 0)):
        assert read({"a": {"levels": ["unclear", "low", "high"], "not_assessable": value}}).attributes[0].not_assessable == location
    assert read({"a": {"levels": ["1", "2", "9"], "not_assessable": 9}}).attributes[0].not_assessable == 2
    with pytest.raises(ValueError, match="'#0' for the level named 1, or '#1' for the level at index 1"):
        read({"a": {"levels": ["1", "2"], "not_assessable": 1}})
    schema = read({"a": {"levels": ["1", "2"], "not_assessable": "#1"}})
    assert schema.attributes[0].not_assessable == 1 and read(schema.to_dict()) == schema


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["-1", "0", "1"], "stands for an unknown level"),
        (["1", "1.0"], "same number"),
        (["a", ""], "empty"),
        (["a", " b"], "trailing spaces"),
        (["#1", "b"], "#"),
    ],
)
def test_ambiguous_names_are_rejected(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttributeSchema.from_dict({"a": names})


def test_duplicate_options_are_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="grade is given more than once"):
        AttributeSchema((Attribute("grade", ("a", "b")),)).parse("grade=a,grade=b")
    assert pack(tmp_path, "file,a,b\nt0.png,0,1\n", GRADE, "--column", "grade=a", "--column", "grade=b") == 2
    assert "grade is given more than once" in capsys.readouterr().err


# YAML


def test_duplicate_yaml_keys(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("train: {images: 5}\ntrain: {batch: 4}\n")
    with pytest.raises(ValueError, match=r"c.yaml: .*duplicate key 'train' \(lines 1 and 2\)"):
        load(tmp_path / "c.yaml")
    for text in ("a: 1\nb: {c: 1, c: 2}\n", "grade: [a, b]\ngrade: [c, d]\n"):
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(ValueError, match="duplicate key"):
            AttributeSchema.from_yaml(tmp_path / "a.yaml")
    assert strict_yaml.parse("x: &x {a: 1}\ny: {<<: *x, a: 2}") == {"x": {"a": 1}, "y": {"a": 2}}


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ("[no, yes]", ("no", "yes")),
        ("[off, on]", ("off", "on")),
        ("[01, 02]", ("01", "02")),
        ("[1.0, 2.0]", ("1.0", "2.0")),
        ("['1', 2]", ("1", "2")),
        ("[1:30, 2:30]", ("1:30", "2:30")),
        ("[null, low]", ("null", "low")),
        ("[2024-01-01, later]", ("2024-01-01", "later")),
    ],
)
def test_level_names_are_taken_literally(tmp_path: Path, written: str, names: tuple[str, ...]) -> None:
    table = f"file,a\nt0.png,{names[0]}\nt1.png,{names[1]}\n"
    assert pack(tmp_path, table, f"a: {written}\n") == 0
    assert levels(tmp_path, "a") == {"t0": 0, "t1": 1}
    assert AttributeSchema.from_yaml(tmp_path / "schema.yaml").attributes[0].levels == names


# Columns, separators, quotes, blank rows


@pytest.mark.parametrize(
    "twice",
    [
        "file,grade,grade",
        "file,grade, grade ",
        "file,grade,Grade",
        "file,grade,GRADE",
        "file,file,grade",
        "file,grade,grade.1",
        "file,grade,x,x",
        "file,gr ade,grade",
    ],
)
def test_duplicate_columns_are_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str], twice: str) -> None:
    row = ",".join(["t0.png", "0", "2", "1"][: len(twice.split(","))])
    assert pack(tmp_path, f"{twice}\n{row}\n") == 2
    assert "2 columns named " in capsys.readouterr().err and not (tmp_path / "set").exists()


def test_duplicate_group_columns_are_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pack(tmp_path, "file,grade,slide,Slide\nt0.png,0,a,b\n", GRADE, "--group", "slide") == 2
    assert "2 columns named slide: 'slide' (column 3), 'Slide' (column 4)" in capsys.readouterr().err
    assert pack(tmp_path, "file,grade,x\nt0.png,0,a\n", "grade: [low, mid, high]\nsize: [s, l]\n", "--column", "size=grade") == 2
    assert "grade and size both map to column grade" in capsys.readouterr().err


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("says", [False, True])
def test_separators_and_encodings(tmp_path: Path, separator: str, encoding: str, says: bool) -> None:
    rows = [["file", "grade", "größe"], ["t0.png", "2", "1,5"], ["t1.png", "mid", "a;b|c\td"]]
    quoted = [[f'"{entry}"' if any(mark in entry for mark in ",;|\t") else entry for entry in row] for row in rows]
    text = (f"sep={separator}\r\n" if says else "") + "\r\n".join(separator.join(row) for row in quoted) + "\r\n"
    assert pack(tmp_path, text.encode(encoding)) == 0
    assert levels(tmp_path) == {"t0": 2, "t1": 1}


def test_blank_rows_are_skipped(tmp_path: Path) -> None:
    assert pack(tmp_path, "file,grade\n\nt0.png,0\n,\n , \nt1.png,1\n,\n,\n\n") == 0
    assert levels(tmp_path) == {"t0": 0, "t1": 1}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('file,grade\nt0.png,0\n"t1.png,1\nt2.png,2\n', "levels.csv:3: a quote opened in this row is never closed"),
        (
            'file,grade,note\nt0.png,0,"ok\nt1.png,1,bad\nt2.png,2,done"\n',
            "levels.csv:2: a quote opened in this row is closed only in line 4",
        ),
        ('file,grade\nt0.png,0\n"t1.png,1\nt2.png,2\n"t3.png",0\n', "levels.csv:3: "),
        ("file,grade\na,b.png,1\n", "levels.csv:2: has 3 entries for 2 columns"),
        ("file,grade\nt0.png,0\nt1.png\n", "levels.csv:3: grade is empty; write -1 for unknown"),
        ("file;Grade\nt0.png;0\n", "no column grade; found file, Grade"),
    ],
)
def test_malformed_rows_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], table: str, message: str) -> None:
    assert pack(tmp_path, table) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "set").exists()


def test_multi_line_entries_are_valid(tmp_path: Path) -> None:
    assert pack(tmp_path, 'file,grade,note\nt0.png,0,"first\nsecond"\nt1.png,1,5" objective\n') == 0
    assert levels(tmp_path) == {"t0": 0, "t1": 1}


# Groups

SPELLINGS = [
    ["7", "7.0", " 7 ", "7.", "7.00"],
    ["slide a", "slide  a", " slide a"],
    [unicodedata.normalize(form, "Zürich") for form in ("NFC", "NFD")],
]
NEAR = [["S1", "s1"], ["07", "7"], ["a_1", "a-1", "a 1"], ["7", "7.svs"], ["7.10", "7.1"], ["S01", "S1"], ["ＡＢ", "ab"]]


@pytest.mark.parametrize("spelled", SPELLINGS)
def test_equivalent_spellings_are_one_group(tmp_path: Path, spelled: list[str]) -> None:
    names = [spelled[number % len(spelled)] if number < 20 else f"other {number // 4}" for number in range(40)]
    table = "file,grade,slide\n" + "".join(f"t{number}.png,{number % 3},{name}\n" for number, name in enumerate(names))
    for seed in range(3):
        assert pack(tmp_path, table, GRADE, "--group", "slide", "--val-fraction", "0.4", "--seed", str(seed), tiles=40) == 0
        rows = [row for row in rows_of(tmp_path / "set") if int(row["key"][1:]) < 20]
        assert len({row["split"] for row in rows}) == len({row["group"] for row in rows}) == 1


@pytest.mark.parametrize("spelled", NEAR)
def test_groups_that_look_alike_are_listed_and_stay_together(tmp_path: Path, caplog: pytest.LogCaptureFixture, spelled: list[str]) -> None:
    names = [spelled[number % len(spelled)] if number < 20 else f"other {number // 4}" for number in range(40)]
    table = "file,grade,slide\n" + "".join(f"t{number}.png,{number % 3},{name}\n" for number, name in enumerate(names))
    assert pack(tmp_path, table, GRADE, "--group", "slide", "--val-fraction", "0.4", tiles=40) == 0
    rows = [row for row in rows_of(tmp_path / "set") if int(row["key"][1:]) < 20]
    assert len({row["split"] for row in rows}) == 1 and {row["group"] for row in rows} == set(map(groups.name_of, spelled))
    assert "look alike" in caplog.text and ", ".join(sorted(map(groups.name_of, spelled))) in caplog.text


def test_different_groups_stay_separate(caplog: pytest.LogCaptureFixture) -> None:
    different = ["1-11", "11-1", "S1", "S10", "s-1-2", "1.5", "15", "a", "b"]
    assert groups.look_alikes(different) == [] and len(set(groups.inseparable(different))) == len(different)


@pytest.mark.parametrize("missing", ["", "nan", "NaN", "None", "<NA>", "#N/A", "null"])
def test_missing_values_are_no_group(tmp_path: Path, capsys: pytest.CaptureFixture[str], missing: str) -> None:
    assert pack(tmp_path, f"file,grade,slide\nt0.png,0,a\nt1.png,1,{missing}\n", GRADE, "--group", "slide") == 2
    assert "levels.csv:3: t1.png: column slide is" in capsys.readouterr().err


# File names


@pytest.mark.parametrize(
    ("written", "there"),
    [
        ("sub\\t.png", "sub/t.png"),
        ("SUB/T.PNG", "sub/t.png"),
        ("sub/t.jpg", "sub/t.png"),
        ("sub/t", "sub/t.png"),
        ("t.png", "sub/t.png"),
        ("tiles/sub/t.png", "sub/t.png"),
        (unicodedata.normalize("NFD", "ü.png"), unicodedata.normalize("NFC", "ü.png")),
        (unicodedata.normalize("NFC", "é.png"), unicodedata.normalize("NFD", "é.png")),
    ],
)
def test_existing_names_are_suggested(tmp_path: Path, capsys: pytest.CaptureFixture[str], written: str, there: str) -> None:
    (tmp_path / "images" / there).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels_of(0, 8)).save(tmp_path / "images" / there)
    assert pack(tmp_path, f"file,grade\n{written},1\n", tiles=0) == 2
    assert f"{written}: no such image; did you mean {there!r}" in capsys.readouterr().err


def test_unicode_forms_of_names_match(tmp_path: Path) -> None:
    for name in ("ü", "é"):
        for form in ("NFC", "NFD"):
            (tmp_path / "images").mkdir(exist_ok=True)
            spelled = unicodedata.normalize(form, f"{name}{form}.png")
            Image.fromarray(pixels_of(0, 8)).save(tmp_path / "images" / spelled)
            assert pack(tmp_path, f"file,grade\n{spelled},1\n", tiles=0) == 0


def test_two_files_with_one_key_are_both_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.b.png", "a_b.png"):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels_of(0, 8)).save(tmp_path / "images" / name)
    assert pack(tmp_path, "file,grade\na.b.png,1\na_b.png,1\n", tiles=0) == 2
    assert "levels.csv:3: a_b.png: its key a_b is taken by levels.csv:2 (a.b.png)" in capsys.readouterr().err


# Levels without tiles


def test_levels_without_a_tile_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pack(tmp_path, "file,grade\nt0.png,1\nt1.png,2\n") == 0
    assert "grade: no tile has level 0 (low); does the table count levels from 1?" in capsys.readouterr().out
    assert main(["card", str(tmp_path / "set"), "--out", str(tmp_path / "card.md")]) == 0
    assert "Grade: no tile has level 0 (low)" in (tmp_path / "card.md").read_text()
    assert pack(tmp_path, "file,grade\nt0.png,0\nt1.png,1\nt2.png,2\n") == 0
    assert "no tile has" not in capsys.readouterr().out


def test_levels_without_a_tile_by_schema() -> None:
    import numpy as np

    def printed(levels_NA: list[list[int]]) -> list[str]:
        return level_counts.absent(AttributeSchema(PUBLISHED.attributes[2:4]), np.array(levels_NA, np.int8))

    assert printed(list(map(list, itertools.product(range(4), range(3))))) == []
    assert printed([[1, 1], [2, 2], [3, 1]]) == [
        "mitosis: no tile has level 0 (insufficient information)",
        "nucleoli: no tile has level 0 (insufficient information)",
    ]
    assert printed([[-1, 0], [-1, 1], [-1, 2]]) == ["mitosis: all levels are unknown"]
