"""Levels survive every tool that writes a table for ``attributegan-shard pack``, also where level names are numbers."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from shards import pixels_of, rows_of, write_csv

from attributegan.attributes import PUBLISHED, UNKNOWN, Attribute, AttributeSchema
from data_shards.measure import levels as measured_levels
from tools import shard
from tools.labeler import tiles
from tools.labeler.app import KEYS, choices
from tools.labeler.consensus import Writer
from tools.labeler.ratings import Ratings

SCALES = [("1", "2", "3"), ("benign", "3", "4", "5"), ("none", "some", "many")]
pytestmark = pytest.mark.parametrize("names", SCALES, ids=["numbers", "mixed", "words"])


def typed(name: str) -> int | str:
    """Returns a level name as other programs save it: numbers as numbers."""
    return int(name) if name.isdecimal() else name


def prepared(tmp_path: Path, names: Sequence[str]) -> tuple[AttributeSchema, Path, dict[str, int]]:
    """Writes an image for every level and one without a level; returns the schema, its file, and the level of each image."""
    schema = AttributeSchema((Attribute("grade", tuple(names)),))
    attributes = tmp_path / "attributes.yaml"
    attributes.write_text(yaml.safe_dump({"grade": {"levels": [typed(name) for name in names]}}), encoding="utf-8")
    expected = {f"t{number}.png": number for number in range(len(names))} | {"unknown.png": UNKNOWN}
    (tmp_path / "images").mkdir()
    for number, file in enumerate(expected):
        Image.fromarray(pixels_of(number)).save(tmp_path / "images" / file)
    return schema, attributes, expected


def run(*words: object) -> None:
    assert shard.main([str(word) for word in words]) == 0


def packed(tmp_path: Path, table: Path, attributes: Path) -> dict[str, int]:
    """Packs ``table``; returns the level of each image in the index of the set."""
    out = tmp_path / "set"
    command = ("pack", "--images", tmp_path / "images", "--labels", table, "--attributes", attributes, "--out", out)
    run(*command, "--val-fraction", "0", "--workers", "1")
    return {f"{row['key']}.png": row["grade"] for row in rows_of(out)}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_import_table(tmp_path: Path, names: Sequence[str], kind: str) -> None:
    _, attributes, expected = prepared(tmp_path, names)
    values = [None if level == UNKNOWN else typed(names[level]) for level in expected.values()]
    source = tmp_path / f"t.{kind}"
    if kind == "csv":
        write_csv(source, ["file", "grade"], list(zip(expected, values, strict=True)))
    elif kind == "jsonl":
        source.write_text("".join(json.dumps({"file": file, "grade": value}) + "\n" for file, value in zip(expected, values, strict=True)))
    else:
        numeric = all(isinstance(value, int | None) for value in values)
        column = values if numeric else [None if value is None else str(value) for value in values]
        pq.write_table(pa.table({"file": list(expected), "grade": column}), source)
    run("import-table", source, "--attributes", attributes, "--out", tmp_path / "levels.csv")
    assert packed(tmp_path, tmp_path / "levels.csv", attributes) == expected


@pytest.mark.parametrize("options", [[], ["--names"], ["--format", "csv"]])
def test_export_and_import_imagefolder(tmp_path: Path, names: Sequence[str], options: list[str]) -> None:
    _, attributes, expected = prepared(tmp_path, names)
    rows = [(file, UNKNOWN if level == UNKNOWN else names[level]) for file, level in expected.items()]
    table = write_csv(tmp_path / "first.csv", ["file", "grade"], rows)
    run("export-imagefolder", "--images", tmp_path / "images", "--labels", table, "--attributes", attributes, *options)
    run("import-imagefolder", tmp_path / "images", "--attributes", attributes, "--out", tmp_path / "levels.csv")
    assert packed(tmp_path, tmp_path / "levels.csv", attributes) == expected


def test_import_qupath(tmp_path: Path, names: Sequence[str]) -> None:
    pytest.importorskip("shapely", reason="needs the extra `qupath`")
    _, attributes, expected = prepared(tmp_path, names)
    labelled = {file: level for file, level in expected.items() if level != UNKNOWN}
    for file, level in labelled.items():
        ring = [[0, 0], [16, 0], [16, 16], [0, 16], [0, 0]]
        properties = {"objectType": "annotation", "classification": {"name": f"class {level}"}}
        feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}
        (tmp_path / f"{file}.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    rules = tmp_path / "rules.yaml"
    rules.write_text(yaml.safe_dump({"grade": {"classes": {f"class {level}": typed(name) for level, name in enumerate(names)}}}))
    exports = [tmp_path / f"{file}.geojson" for file in labelled]
    command = ("import-qupath", *exports, "--images", tmp_path / "images", "--attributes", attributes, "--out", tmp_path / "levels.csv")
    run(*command, "--rules", rules)
    assert packed(tmp_path, tmp_path / "levels.csv", attributes) == labelled


def test_label(tmp_path: Path, names: Sequence[str]) -> None:
    schema, attributes, expected = prepared(tmp_path, names)
    with closing(Ratings(tmp_path / "levels.ratings.jsonl", schema)) as ratings:
        for file, level in expected.items():
            ratings.answer("Ann", file, (level,), "", 0)
    with closing(Ratings(tmp_path / "levels.ratings.jsonl", schema)) as ratings:  # read from the file again
        assert Writer(tmp_path / "levels.csv", tiles.find_tiles(tmp_path / "images"), ratings, None).write() == len(expected)
    with (tmp_path / "levels.csv").open(newline="", encoding="utf-8") as stream:
        written = [row["grade"] for row in csv.DictReader(stream)]
    assert written == [*(names if schema.attributes[0].numbered else map(str, range(len(names)))), str(UNKNOWN)]
    assert packed(tmp_path, tmp_path / "levels.csv", attributes) == expected


def test_the_key_of_a_level_is_its_number(names: Sequence[str]) -> None:
    attribute = Attribute("grade", tuple(names))
    keys = {one["name"]: one["key"] for one in choices(attribute)}
    for level, name in enumerate(names):
        if not attribute.numbered:
            assert keys[name] == str(level)
        elif name.isdecimal():
            assert keys[name] == name
        else:
            assert keys[name] in KEYS[10:]  # a letter, as a digit could be mistaken for a name
    assert len(set(keys.values())) == len(names) + 1


def test_other_tools_have_levels_named_by_words(names: Sequence[str]) -> None:
    made = [measured_levels.Rule("grade", "area_spread", tuple(map(float, range(count)))).schema for count in range(1, 20)]
    assert not any(attribute.numbered for attribute in (*PUBLISHED.attributes, *made))
    assert Attribute("grade", tuple(names)).numbered == ("3" in names)
