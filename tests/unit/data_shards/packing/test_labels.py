"""Label tables: parsing of every kind of entry, and rejected rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from shards import TWO, write_csv

from data_shards.packing import labels
from data_shards.packing.labels import read_labels


def read(folder: Path, text: str, **options: Any) -> labels.Labels:
    (folder / "a.csv").write_text(text, encoding="utf-8")
    return read_labels([folder / "a.csv"], TWO, **options)


def test_every_column_of_the_table(tmp_path: Path) -> None:
    found = read(tmp_path, "note, file ,slide,grade,size,age\n x , a/b.c.png ,s1, high ,1,70\n,./d.png,s2,-1,small,\n", group="slide")
    assert found.table.to_pylist() == [
        {"file": "a/b.c.png", "key": "a/b_c", "group": "s1", "where": "a.csv:2", "more": '{"note": "x", "age": 70}', "grade": 2, "size": 1},
        {"file": "d.png", "key": "d", "group": "s2", "where": "a.csv:3", "more": "", "grade": -1, "size": 0},
    ]
    assert found.grouped and found.bad == [] and found.schema is TWO
    assert [str(found.table.schema.field(name).type) for name in ("file", "grade")] == ["string", "int8"]


def test_without_group_option_the_column_is_kept_as_other(tmp_path: Path) -> None:
    found = read(tmp_path, "file,slide,grade,size\na.png,s1,0,0\n")
    (row,) = found.table.to_pylist()
    assert row["group"] == "" and row["more"] == '{"slide": "s1"}' and not found.grouped


def test_columns_by_another_name(tmp_path: Path) -> None:
    found = read(tmp_path, "name,grade,size,g\na.png,x,1,low\n", columns={"file": "name", "grade": "g"})
    (row,) = found.table.to_pylist()
    assert (row["file"], row["grade"], row["size"], row["more"]) == ("a.png", 1, 1, '{"grade": "x"}')
    with pytest.raises(ValueError, match="--column: file and grade both map to column g"):
        read(tmp_path, "g,size\na.png,1\n", columns={"file": "g", "grade": "g"})
    with pytest.raises(ValueError, match=r"--column weight=…: neither `file` nor an attribute; attributes are grade, size"):
        read(tmp_path, "file,grade,size\n", columns={"weight": "w"})


@pytest.mark.parametrize(
    ("text", "level"), [("0", 0), ("2", 2), ("2.0", 2), ("-1", -1), ("none", 0), ("high", 2), (" low ", 1), ("-1.0", -1)]
)
def test_levels_by_number_and_name(tmp_path: Path, text: str, level: int) -> None:
    found = read(tmp_path, f"file,grade,size\na.png,{text},0\nb.png,{text},0\n")
    assert found.table["grade"].to_pylist() == [level, level]


@pytest.mark.parametrize("text", ["3", "-2", "0.5", "", "High", "nan", "inf", "1e9"])
def test_invalid_levels_are_rejected_by_line(tmp_path: Path, text: str) -> None:
    found = read(tmp_path, f"file,grade,size\na.png,{text},0\nb.png,1,1\nc.png,{text},0\n")
    assert found.table["file"].to_pylist() == ["b.png"]
    assert [line.split(": ")[0] for line in found.bad] == ["a.csv:2", "a.csv:4"] and all("grade is" in line for line in found.bad)


@pytest.mark.parametrize("name", ["", "/a.png", "../a.png", "b/../../a.png"])
def test_files_outside_the_folder_are_rejected(tmp_path: Path, name: str) -> None:
    found = read(tmp_path, f"file,grade,size\n{name},1,0\n..a.png,1,0\nb/../c.png,1,0\n")
    assert found.table["file"].to_pylist() == ["..a.png", "c.png"]
    assert len(found.bad) == 1 and found.bad[0].startswith(f"a.csv:2: file {name!r}: not a path")


def test_short_rows_and_rows_without_group_are_rejected(tmp_path: Path) -> None:
    found = read(tmp_path, "file,grade,size,slide\na.png,1,0,s\n\nb.png,1\nc.png,1,0,\nd.png,1,0\n", group="slide")
    assert found.table["file"].to_pylist() == ["a.png"]
    assert [line.split(": ", 1)[1] for line in found.bad][1:] == ["c.png: column slide is empty", "d.png: column slide is empty"]
    assert found.bad[0].startswith("a.csv:4: size is empty; write -1 for unknown")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("-7", -7),
        ("0", 0),
        ("-0", 0),
        ("007", "007"),
        ("9" * 18, int("9" * 18)),
        ("9" * 19, "9" * 19),
        ("1.5", 1.5),
        ("-0.25", -0.25),
        ("1.50", "1.50"),
        ("01.5", "01.5"),
        ("1e5", "1e5"),
        ("0.1000000000000000055", "0.1000000000000000055"),
        ("٣", "٣"),
        ("true", "true"),
        ("12.0", 12.0),
    ],
)
def test_other_columns_become_numbers_where_nothing_is_lost(tmp_path: Path, text: str, value: object) -> None:
    (row,) = read(tmp_path, f"file,grade,size,more\na.png,1,0,{text}\n").table.to_pylist()
    found = json.loads(row["more"])["more"]
    assert found == value and type(found) is type(value)


def test_duplicate_keys_are_rejected_across_files(tmp_path: Path) -> None:
    first = write_csv(tmp_path / "a.csv", ["file", "grade", "size"], [["a.png", 1, 0], ["b.png", 1, 0]])
    second = write_csv(tmp_path / "b.csv", ["file", "grade", "size"], [["b.jpg", 2, 1], ["c.png", 0, 0], ["a.png", 1, 1]])
    found = read_labels([first, second], TWO)
    assert found.table["file"].to_pylist() == ["a.png", "b.png", "c.png"]
    assert found.bad == [
        "b.csv:2: b.jpg: its key b is taken by a.csv:3 (b.png)",
        "b.csv:4: a.png: its key a is taken by a.csv:2",
    ]


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_tables_longer_than_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(labels, "CHUNK", chunk)
    rows = [[f"{k}.png", k % 3, k % 2] for k in range(4)]
    found = read_labels([write_csv(tmp_path / "a.csv", ["file", "grade", "size"], rows)] * 1, TWO)
    assert [list(row) for row in zip(*(found.table[name].to_pylist() for name in ("file", "grade", "size")), strict=True)] == rows
    assert found.table["file"].num_chunks == 1


def test_empty_tables(tmp_path: Path) -> None:
    found = read(tmp_path, "file,grade,size\n")
    assert len(found.table) == 0 and found.table.column_names == ["file", "key", "group", "where", "more", "grade", "size"]
    for text, named in (("", "found none"), ("file,size\n", "no column grade; found file, size")):
        with pytest.raises(ValueError, match=named):
            read(tmp_path, text)


def test_texts_of_other_columns_are_kept_as_they_are_and_long_rows_have_no_more_columns(tmp_path: Path) -> None:
    (row,) = read(tmp_path, 'file,grade,size,note,more\na.png,1,0,"é\n1",\n').table.to_pylist()
    assert row["more"] == '{"note": "é\\n1"}'
    found = read(tmp_path, "file,grade,size,note,more\na.png,1,0,x,y\nb.png,1,0\nc.png,1,0,x\nd.png,1,0,x,y,z\n")
    assert [row["more"] for row in found.table.to_pylist()] == ['{"note": "x", "more": "y"}', "", '{"note": "x"}']
    assert len(found.bad) == 1 and ":5:" in found.bad[0]
    (tmp_path / "b.csv").write_bytes(b'file,grade,size,note\r\na.png,1,0,"x\r\ny"\r\n')
    (row,) = read_labels([tmp_path / "b.csv"], TWO).table.to_pylist()
    assert row["more"] == '{"note": "x\\r\\ny"}'  # line breaks inside quotes are preserved


def test_files_that_are_not_csv_are_named(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_bytes(b"file,grade,size\n\xff.png,1,0\n")
    for name, problem in (("b.csv", "not a readable CSV in UTF-8"), ("absent.csv", "can't be read: No such file or directory$")):
        with pytest.raises(ValueError, match=f"{tmp_path / name}: {problem}"):
            read_labels([tmp_path / name], TWO)
    (tmp_path / "c.csv").write_text("\ufefffile,grade,size\na.png,1,0\n", encoding="utf-8")  # as written by Excel
    assert len(read_labels([tmp_path / "c.csv"], TWO).table) == 1


def test_digits_of_other_scripts_stay_text(tmp_path: Path) -> None:
    (row,) = read(tmp_path, "file,grade,size,age\na.png,0,0,7\uff10\n").table.to_pylist()
    assert json.loads(row["more"]) == {"age": "7\uff10"}


def test_tables_of_more_rows_than_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    table = labels._table
    monkeypatch.setattr(labels, "CHUNK", 3)
    monkeypatch.setattr(labels, "_table", lambda schema, rows: (sizes.append(len(rows)), table(schema, rows))[1])
    found = read(tmp_path, "file,grade,size\n" + "".join(f"{number}.png,0,0\n" for number in range(7)))
    assert sizes == [3, 3, 1] and found.table["file"].to_pylist() == [f"{number}.png" for number in range(7)]
