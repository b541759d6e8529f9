"""Import of captions and of the published table into the CSV of pack."""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from attributegan import cli
from attributegan.attributes import PUBLISHED
from data_shards.ingest import captions, importers
from data_shards.ingest.spelling import correct, edit_distance
from data_shards.packing.labels import read_labels
from tools.shards import import_labels

SHARED = Path(__file__).parents[4] / ".." / "shared"
CAPTIONS = SHARED / "tiles" / "captions.json"
TABLE = SHARED / "reference" / "attribute_levels.csv"
needs_shared = pytest.mark.skipif(
    not (CAPTIONS.is_file() and TABLE.is_file()), reason="../shared with the captions and the table is missing"
)

CAPTION = (
    "Mild pleomorphism is present. Nuclei are severely crowded together. Polarity is partially lost. "
    "Mitosis is rare. Nucleoli is prominent. Low grade."
)
LEVELS = {"cell_crowding": 4, "cell_polarity": 2, "mitosis": 1, "nucleoli": 2, "pleomorphism": 2, "diagnosis": 1}


def run(*words: object) -> int:
    parser = argparse.ArgumentParser()
    import_labels.add(parser.add_subparsers(required=True))
    arguments = parser.parse_args([str(word) for word in words])
    status = []
    return cli.exit_status(lambda: status.append(arguments.run(arguments))) or status[0]


def rows_of(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return {row["file"]: row for row in csv.DictReader(stream)}


def write_captions(path: Path, tree: dict[str, Sequence[str]]) -> Path:
    path.write_text(json.dumps({tile: {"caption": list(texts), "label": 1} for tile, texts in tree.items()}))
    return path


@pytest.mark.parametrize(
    ("sentence", "attribute", "level"),
    [
        ("Polarity is not completely lost toward the surface urothelium", "cell_polarity", 2),
        ("There is no full-thickness lack of polarity observed", "cell_polarity", 2),
        ("Polarity of nuclei is negligibly lost", "cell_polarity", 1),
        ("Complete loss of polarity", "cell_polarity", 3),
        ("Polarity is preserved", "cell_polarity", 1),
        ("Minimal variability in nuclear size, shape and outline, consistent with moderate pleomorphism", "pleomorphism", 3),
        ("The nuclei appear normal", "pleomorphism", 1),
        ("Severly pleomorphic nuclei", "pleomorphism", 4),
        ("No nuclear crowding is seen", "cell_crowding", 1),
        ("The nuclei are crowded to a slight degree", "cell_crowding", 2),
        ("No mitoses", "mitosis", 1),
        ("Mitotic figures are rare", "mitosis", 1),
        ("Mitoses are infreqent", "mitosis", 2),
        ("Numerous mitotic figures", "mitosis", 3),
        ("Mitosis can't be assessed", "mitosis", 0),
        ("Visible and prominent nucleoli are not observed or exceedingly rare", "nucleoli", 1),
        ("Nucleoli are not prominent", "nucleoli", 1),
        ("The nuclei have promiment nucleoli", "nucleoli", 2),
        ("High-grade", "diagnosis", 2),
        ("Insuficient information", "", None),
    ],
)
def test_a_sentence_is_read_by_its_content(sentence: str, attribute: str, level: int | None) -> None:
    assert captions.read_sentence(sentence) == captions.Meaning(attribute, level)


@pytest.mark.parametrize(
    "sentence",
    [
        "Mitosis is not rare",
        "Mitosis is nfrequent",  # one error away from frequent and from infrequent
        "Nucleoli are hardly prominent",
        "Nucleoli are improminent",
        "Polarity is almost completely lost",
        "Polarity is not retained",
        "Polarity is lost",
        "Nuclei appear abnormal",
        "Nuclei are crowded",
        "Mild to moderate pleomorphism",
        "Pleomorphism is not severe",
        "Not severely crowded",
        "Pleomorphism and crowding are mild",
        "The tissue is folded",
    ],
)
def test_an_unknown_sentence_is_not_guessed(sentence: str) -> None:
    with pytest.raises(captions.Unclear):
        captions.read_sentence(sentence)


def test_sentences_may_come_in_any_order() -> None:
    backwards = ". ".join(reversed(captions.sentences_of(CAPTION)))
    assert captions.read_caption(CAPTION) == (LEVELS, []) == captions.read_caption(backwards)


def test_bare_insufficient_information_is_assigned_to_remaining_attributes() -> None:
    text = CAPTION.replace("Polarity is partially lost", "insufficient information").replace("Mitosis is rare", "insufficient information")
    assert captions.read_caption(text) == (LEVELS | {"cell_polarity": 0, "mitosis": 0}, [])
    nothing = ". ".join(["Insufficient information"] * 6)
    assert captions.read_caption(nothing) == ({name: 0 for name in PUBLISHED.names} | {"diagnosis": 3}, [])


def test_too_many_and_too_few_sentences_are_reported() -> None:
    without = CAPTION.replace("Mitosis is rare. ", "")
    assert [problem[0] for problem in captions.read_caption(without)[1]] == ["mitosis"]
    assert "already" in captions.read_caption(CAPTION + " Insufficient information.")[1][0][2]
    twice = captions.read_caption(CAPTION + " Mitosis is frequent.")[1]
    assert [(problem[0], problem[1]) for problem in twice] == [("mitosis", "Mitosis is frequent")]


def test_disagreement_is_listed_and_gives_no_levels() -> None:
    other = CAPTION.replace("Mitosis is rare", "Mitosis is frequent")
    levels, problems = captions.read_tiles({"good": [CAPTION] * 5, "bad": [CAPTION] * 4 + [other]})
    assert levels == {"good": LEVELS}
    assert [(problem.tile, problem.caption, problem.attribute) for problem in problems] == [("bad", 0, "mitosis")]
    assert "1, 1, 1, 1, 3" in str(problems[0])


def test_an_unknown_sentence_is_listed_with_its_location() -> None:
    odd = CAPTION.replace("Mitosis is rare", "Mitosis is weird")
    _, problems = captions.read_tiles({"t": [CAPTION, odd]})
    assert [str(problem) for problem in problems] == ['t, caption 2, mitosis: "Mitosis is weird": no rule matches this sentence']


def test_spelling_corrects_one_error_and_never_a_negation() -> None:
    assert edit_distance("abcd", "acbd") == 1 and edit_distance("kitten", "sitting") == 3 and edit_distance("", "abc") == 3
    assert correct("pleomorphsim") == "pleomorphism" and correct("moderatley") == "moderately"
    for word in ("frequent", "infrequent", "conspicuous", "abnormal", "unfrequent", "nfrequent", "weird"):
        assert correct(word) == word


def test_import_captions_lists_problems_and_writes_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = CAPTION.replace("Nucleoli is prominent", "Nucleoli are weird")
    path = write_captions(tmp_path / "captions.json", {"H7_1_2": [CAPTION] * 5, "1_00061_sub0_009": [CAPTION], "N5_1_1": [odd], "x_1": []})
    assert run("import-captions", path, "--out", tmp_path / "levels.csv") == 2
    errors = capsys.readouterr().err
    assert "N5_1_1, caption 1, nucleoli" in errors and "'x_1': no list of captions" in errors and len(errors.splitlines()) == 2
    rows = rows_of(tmp_path / "levels.csv")
    assert {file: row["slide"] for file, row in rows.items()} == {"H7_1_2.png": "H7", "1_00061_sub0_009.png": "1_00061"}
    assert rows["H7_1_2.png"]["diagnosis"] == "low grade" and not list(tmp_path.glob("*.part"))
    labels = read_labels([tmp_path / "levels.csv"], PUBLISHED, group="slide")
    assert labels.bad == [] and [labels.table[name][0].as_py() for name in PUBLISHED.names] == [LEVELS[name] for name in PUBLISHED.names]


def test_images_determine_file_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_captions(tmp_path / "captions.json", {tile: [CAPTION] for tile in ("H7_1_2", "H7_1_3", "H7_1_4")})
    for name in ("a/H7_1_2.jpg", "a/H7_1_4.jpg", "b/H7_1_4.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "images" / name)
    assert run("import-captions", path, "--out", tmp_path / "levels.csv", "--images", tmp_path / "images") == 2
    assert list(rows_of(tmp_path / "levels.csv")) == ["a/H7_1_2.jpg"]
    printed = capsys.readouterr()
    assert f"2 images with this name in {tmp_path / 'images'}: a/H7_1_4.jpg, b/H7_1_4.png" in printed.err and "1 left out" in printed.out
    assert run("import-captions", path, "--out", tmp_path / "none.csv", "--images", tmp_path / "absent") == 2
    assert not (tmp_path / "none.csv").exists()


@pytest.mark.parametrize("text", ["[1]", "{}", "{", '"x"'])
def test_other_files_are_rejected(tmp_path: Path, text: str) -> None:
    path = tmp_path / "captions.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="captions.json"):
        importers.read_captions(path)


def test_duplicate_tiles_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    entry = json.dumps({"caption": [CAPTION]})
    path.write_text(f'{{"a_1": {entry}, "b_1": {entry}, "a_1": {entry}}}')
    table = importers.read_captions(path)
    assert [row["file"] for row in table.rows] == ["b_1"] and table.bad == ["captions.json: a_1: given 2 times"]


HEADER = "path,cell_crowding_level,cell_polarity_level,mitosis_level,nucleoli_level,pleomorphism_level,freq_id,cl_labels\n"


def test_import_published_keeps_levels_and_lists_invalid_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "table.csv"
    table.write_text(
        HEADER + "/p/H7_1_2.png,4,3,3,2,4,0,12\n/p/N5_1_1.png,0,0,1,2,2,1,100\n/q/N5_1_2.png,0,0,0,0,0,0,1\n"
        "/p/N5_1_3.png,0,4,0,0,0,0,1\n/p/N5_1_4.png,0,,0,0,0,0,1\n/p/H7_1_2.png,0,0,0,0,0,0,1\n"
        "/p/../N5_1_5.png,0,0,0,0,0,0,1\n/p/N5_1_6.png,0,0,0,0,0,2,1\n"
    )
    out = tmp_path / "levels.csv"
    assert run("import-published", table, "--out", out, "--prefix", "/p/") == 2
    assert [line.split(":")[1] for line in capsys.readouterr().err.splitlines()] == ["4", "5", "6", "7", "8", "9"]
    assert list(rows_of(out).values())[0] == dict(
        zip(
            ("file", "slide", *PUBLISHED.names, "freq_id", "cl_labels"),
            ("H7_1_2.png", "H7", "4", "3", "3", "2", "4", "0", "12"),
            strict=True,
        )
    )
    assert rows_of(out)["N5_1_1.png"]["freq_id"] == "1"
    run("import-published", table, "--out", out, "--prefix", "/p/", "--without-rare")
    assert list(rows_of(out)) == ["H7_1_2.png"]
    assert run("import-published", table, "--out", tmp_path / "no.csv") == 2 and not (tmp_path / "no.csv").exists()


def test_other_tables_are_rejected(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("file,mitosis\na.png,1\n")
    with pytest.raises(ValueError, match="no column path"):
        importers.read_published(table)


@needs_shared
def test_captions_give_the_published_table() -> None:
    published = {Path(str(row["file"])).stem: row for row in importers.read_published(TABLE).rows}
    table = importers.read_captions(CAPTIONS)
    read = {str(row["file"]): row for row in table.rows}
    both = set(read) & set(published)
    assert table.bad == [] and (len(read), len(published), len(both)) == (3416, 4062, 3262)
    assert [tile for tile in both if any(read[tile][name] != published[tile][name] for name in PUBLISHED.names)] == []


@needs_shared
def test_captions_give_the_diagnosis_of_the_data_set() -> None:
    labels = {tile: entry["label"] for tile, entry in json.loads(CAPTIONS.read_text()).items()}
    rows = importers.read_captions(CAPTIONS).rows
    assert [row["file"] for row in rows if captions.DIAGNOSES.index(str(row["diagnosis"])) != labels[str(row["file"])]] == []


@needs_shared
def test_the_published_table_is_complete() -> None:
    every, frequent = importers.read_published(TABLE), importers.read_published(TABLE, without_rare=True)
    assert (len(every.rows), len(frequent.rows), frequent.left_out) == (4062, 3530, 532)
    for name, count in zip(PUBLISHED.names, PUBLISHED.num_levels, strict=True):
        assert {row[name] for row in every.rows} == set(range(count))
    assert all(row["slide"] for row in every.rows)
