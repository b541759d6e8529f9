"""Import and export of ImageFolder metadata, and Parquet tables."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from shards import TWO, write_csv

from data_shards.ingest import tables
from data_shards.packing.labels import read_labels
from tools import shard

GRADE = TWO.attributes[0]  # none (not assessable), low, high


@pytest.fixture
def attributes(tmp_path: Path) -> Path:
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump(TWO.to_dict(), sort_keys=False))
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def run(*words: object) -> int:
    return shard.main([str(word) for word in words])


@pytest.mark.parametrize(
    ("value", "level"),
    [
        (0, 0),
        (2, 2),
        (1.0, 1),
        ("2", 2),
        ("1.0", 1),
        (" high ", 2),
        ("none", 0),
        (None, -1),
        ("", -1),
        (float("nan"), -1),
        (-1, -1),
        ("-1", -1),
    ],
)
def test_a_level_by_number_or_name(value: Any, level: int) -> None:
    assert tables.level_of(GRADE, value) == level


@pytest.mark.parametrize("value", [3, 1.5, "medium", True, "nan", float("inf"), [1], -2])
def test_invalid_levels(value: Any) -> None:
    with pytest.raises(ValueError, match=r"grade is .*(levels are 0 to 2, or -1|not one of|neither a number nor)"):
        tables.level_of(GRADE, value)


def test_an_imagefolder_with_splits_and_every_kind_of_metadata(
    tmp_path: Path, attributes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "dataset"
    for name in ("train", "test", "validation"):
        (folder / name).mkdir(parents=True)
    write_csv(
        folder / "train" / "metadata.csv",
        ["file_name", "grade", "size", "site"],
        [["a.png", "high", 1, "x"], ["sub/b.png", "", "large", ""]],
    )
    lines = [{"file_name": "c.png", "grade": 1, "size": None, "note": "ä", "boxes": [1, 2]}, {"file_name": "d.png", "grade": 9, "size": 0}]
    (folder / "test" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    table = pa.table(
        {"file_name": ["e.png"], "grade": pa.array([None], pa.int64()), "size": ["small"], "image": [{"bytes": b"x", "path": "e"}]}
    )
    pq.write_table(table, folder / "validation" / "metadata.parquet")
    out = tmp_path / "levels.csv"
    assert run("import-imagefolder", folder, "--attributes", attributes, "--out", out) == 2
    assert "metadata.jsonl:2: grade is 9" in capsys.readouterr().err
    assert {row["file"]: (row["grade"], row["size"]) for row in rows_of(out)} == {
        "test/c.png": ("1", "-1"),
        "train/a.png": ("2", "1"),
        "train/sub/b.png": ("-1", "1"),
        "validation/e.png": ("-1", "0"),
    }
    row = next(row for row in rows_of(out) if row["file"] == "test/c.png")
    assert row["note"] == "ä" and row["boxes"] == "[1, 2]" and row["site"] == "" and "image" not in row
    assert not read_labels([out], TWO).bad


def test_class_labels_are_mapped_by_name_and_not_by_number(tmp_path: Path) -> None:
    features = {"grade": {"names": ["high", "low", "none"], "_type": "ClassLabel"}, "size": {"dtype": "int64", "_type": "Value"}}
    about = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    table = pa.table({"file": ["a", "b", "c", "d"], "grade": [0, 1, 2, -1], "size": [0, 1, 1, 0]}).replace_schema_metadata(about)
    pq.write_table(table, tmp_path / "t.parquet")
    found = tables.read_table(tmp_path / "t.parquet", TWO, {})
    assert [row["grade"] for row in found.rows] == [2, 1, 0, -1] and not found.bad


def test_a_parquet_table_with_other_column_names(tmp_path: Path, attributes: Path) -> None:
    pq.write_table(
        pa.table({"path": ["a/b.png", "a/../b.png"], "isup": [1.0, 2.0], "size": [0, 1], "mpp": [0.25, None]}), tmp_path / "t.parquet"
    )
    out = tmp_path / "levels.csv"
    command = ["import-table", tmp_path / "t.parquet", "--attributes", attributes, "--out", out]
    assert run(*command) == 2 and not out.exists()
    assert run(*command, "--column", "file=path", "--column", "grade=isup") == 0
    assert rows_of(out) == [
        {"file": "a/b.png", "mpp": "0.25", "grade": "1", "size": "0"},
        {"file": "b.png", "mpp": "", "grade": "2", "size": "1"},
    ]
    assert run(*command, "--column", "colour=isup") == 2


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("t.parquet", b"no", "not a readable table"),
        ("t.jsonl", b'{"file": 1\n', "t.jsonl:1: not valid JSON"),
        ("t.jsonl", b"[1]\n", "not a JSON object"),
        ("t.csv", b"\xff\xfe", "not a readable table"),
        ("t.xlsx", b"", "not a .parquet"),
        ("t.csv", b"file,grade\n", "no column size"),
        ("t.jsonl", b"", "no column file"),
    ],
)
def test_files_that_are_not_tables(tmp_path: Path, name: str, data: bytes, what: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=what):
        tables.read_table(tmp_path / name, TWO, {})


def test_invalid_rows_are_listed(tmp_path: Path) -> None:
    rows = [["../a.png", 1, 0], ["", 1, 0], ["/etc/x.png", 1, 0], ["a.png", 1, 0], ["./a.png", 2, 0]]
    found = tables.read_table(write_csv(tmp_path / "t.csv", ["file", "grade", "size"], rows), TWO, {})
    assert [row["grade"] for row in found.rows] == [1] and len(found.bad) == 4 and "a.png: duplicate" in found.bad[-1]


@pytest.mark.parametrize("options", [[], ["--format", "csv"], ["--names"], ["--format", "csv", "--names"]])
def test_round_trip(tmp_path: Path, attributes: Path, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    files = ["a.png", "b/ü.png", "c.png"]
    for name in (*files, "more.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(tmp_path / "images" / name)
    labels = write_csv(
        tmp_path / "l.csv", ["file", "slide", "grade", "size"], [[files[0], "S, 1", 2, 0], [files[1], "007", -1, 1], [files[2], "x", 0, -1]]
    )
    command = ["export-imagefolder", "--images", tmp_path / "images", "--labels", labels, "--attributes", attributes, *options]
    assert run(*command) == 0
    assert "3 images; 1 images of the folder have no row" in capsys.readouterr().out
    if not options:
        first, second, _ = map(json.loads, (tmp_path / "images" / "metadata.jsonl").read_text(encoding="utf-8").splitlines())
        assert first == {"file_name": "a.png", "grade": 2, "size": 0, "slide": "S, 1"} and second["grade"] is None
    out = tmp_path / "back.csv"
    assert run("import-imagefolder", tmp_path / "images", "--attributes", attributes, "--out", out) == 0
    before = {row["file"]: row for row in rows_of(labels)}
    assert {row["file"]: row for row in rows_of(out)} == before
    assert run(*command) == 2 and "exists already; use --overwrite to replace it" in capsys.readouterr().err
    assert run(*command, "--overwrite") == 0
    (tmp_path / "images" / "a.png").unlink()
    assert run(*command, "--overwrite") == 2 and "1 images of the table are not in" in capsys.readouterr().err
