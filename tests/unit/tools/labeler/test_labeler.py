"""The labeler without a browser: answers on disk, queue, agreement, consensus, CSV files, cross-site requests, the command line."""

from __future__ import annotations

import csv
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import numpy as np
import pytest
import yaml
from browser import Served, served
from PIL import Image
from runs import ROOT
from shards import TWO, pixels_of
from time_limits import seconds

from attributegan.attributes import PUBLISHED, Attribute, AttributeSchema
from attributegan.evaluation import reference
from attributegan.metrics import predictor
from data_shards.packing.labels import read_labels
from tools import label, shard
from tools.labeler import agreement, tiles
from tools.labeler.app import KEYS, choices
from tools.labeler.consensus import Writer, consensus, spread
from tools.labeler.predictions import predict
from tools.labeler.queue import HELD_S, Queue
from tools.labeler.ratings import Conflict, Ratings

GRADE = TWO.attributes[0]  # none (not assessable), low, high


def write_images(folder: Path, names: Sequence[str]) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels_of(number)).save(folder / name)
    return folder


def schema_file(folder: Path, schema: AttributeSchema = TWO) -> Path:
    path = folder / "attributes.yaml"
    path.write_text(yaml.safe_dump(schema.to_dict(), sort_keys=False), encoding="utf-8")
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def ratings(tmp_path: Path) -> Iterator[Ratings]:
    opened = Ratings(tmp_path / "levels.ratings.jsonl", TWO)
    yield opened
    opened.close()


def reopened(ratings: Ratings, schema: AttributeSchema = TWO) -> Ratings:
    ratings.close()
    ratings.__init__(ratings.path, schema)  # type: ignore[misc]
    return ratings


# Answers on disk


def test_answers_are_restored_from_the_file(ratings: Ratings) -> None:
    ratings.answer("Ann", "a.png", (1, 0), "two\nlines", 0)
    ratings.answer("Zoë", "ä/b.png", (-1, 1), "", 0)
    ratings.answer("Ann", "a.png", (2, 0), "", 1)
    ratings.skip("Ann", "c.png", 0)
    ratings.answer("Ann", "d.png", (0, 0), "", 0)
    ratings.skip("Ann", "e.png", 0)
    assert ratings.undo("Ann") == ("e.png", None)
    assert ratings.undo("Ann")[0] == "d.png"  # type: ignore[index]
    before = ratings.state
    after = reopened(ratings).state
    assert after.answers == before.answers and after.history == before.history and after.skipped == before.skipped
    assert (
        after.actions == before.actions == {"Ann": dict.fromkeys(["a.png", "c.png"]), "Zoë": {"ä/b.png": None}}
        and after.revisions == before.revisions
    )
    assert [rating.levels for rating in ratings.rated()["a.png"]] == [(2, 0)] and list(ratings.rated()) == ["a.png", "ä/b.png"]
    assert ratings.rater(" zoë ") == "Zoë" and ratings.rater("ZOË") == "Zoë" and ratings.rater("Zoe\u0308") == "Zoë"


def test_an_answer_to_an_outdated_revision_is_a_conflict(ratings: Ratings) -> None:
    ratings.answer("Ann", "a.png", (1, 0), "", 0)
    for act in (lambda: ratings.answer("Ann", "a.png", (2, 1), "", 0), lambda: ratings.skip("Ann", "a.png", 0)):
        with pytest.raises(Conflict):
            act()
    ratings.answer("Bea", "a.png", (2, 1), "", 0)  # another rater
    assert [rating.levels for rating in ratings.rated()["a.png"]] == [(1, 0), (2, 1)]


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_truncated_last_line_is_dropped(ratings: Ratings, cut: int) -> None:
    ratings.answer("Ann", "a.png", (1, 0), "", 0)
    whole = ratings.path.read_bytes()
    ratings.answer("Ann", "b.png", (1, 0), "", 0)
    data = ratings.path.read_bytes()
    ratings.path.write_bytes(data[: len(whole) + cut])
    assert list(reopened(ratings).rated()) == ["a.png"]
    assert ratings.path.read_bytes() == whole
    ratings.answer("Ann", "c.png", (1, 0), "", 0)
    assert list(reopened(ratings).rated()) == ["a.png", "c.png"]


def test_a_last_line_without_newline_is_kept(ratings: Ratings) -> None:
    ratings.answer("Ann", "a.png", (1, 0), "", 0)
    ratings.path.write_bytes(ratings.path.read_bytes().rstrip())
    reopened(ratings).answer("Ann", "b.png", (2, 0), "", 0)
    assert list(reopened(ratings).rated()) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "{}",
        '{"rater": "Ann", "file": "a.png"}',
        '{"rater": "Ann", "file": "a.png", "levels": {"grade": 1}}',
        '{"rater": "Ann", "file": "a.png", "levels": {"grade": 7, "size": 0}}',
        '{"rater": "Ann", "file": "a.png", "undone": true}',
        '{"rater": "Ann", "file": "a.png", "levels": {"grade": "low", "size": 0}}',
        '{"rater": 3, "file": "a.png", "skipped": true}',
    ],
)
def test_a_damaged_line_is_an_error_with_its_number(ratings: Ratings, line: str) -> None:
    with ratings.path.open("a") as stream:
        stream.write(f'{line}\n{{"settings": {{"seed": 1}}}}\n')
    with pytest.raises(ValueError, match=r"levels\.ratings\.jsonl: line 2 is damaged"):
        reopened(ratings)


def test_other_attributes_are_refused(ratings: Ratings) -> None:
    other = AttributeSchema((Attribute("grade", ("none", "low", "mid", "high"), 0), TWO.attributes[1]))
    with pytest.raises(ValueError, match="was created with other attributes: grade has the levels none, low, high"):
        reopened(ratings, other)
    with pytest.raises(ValueError, match="the file has grade, size; --attributes has cell_crowding"):
        Ratings(ratings.path, PUBLISHED)
    ratings.path.write_text("file,grade\n")
    with pytest.raises(ValueError, match="line 1 is not the header of a ratings file"):
        Ratings(ratings.path, TWO)


def test_one_process_locks_the_ratings_file(ratings: Ratings) -> None:
    with pytest.raises(ValueError, match="is in use by another attributegan-label"):
        Ratings(ratings.path, TWO)


def test_a_failed_write_leaves_no_partial_line(ratings: Ratings, monkeypatch: pytest.MonkeyPatch) -> None:
    ratings.answer("Ann", "a.png", (1, 0), "", 0)
    whole = ratings.path.read_bytes()
    wrote = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: wrote(descriptor, data[:7]))  # as on a full disk
    with pytest.raises(OSError, match="No space left"):
        ratings.answer("Ann", "b.png", (1, 0), "", 0)
    assert ratings.path.read_bytes() == whole and ratings.revision("Ann", "b.png") == 0


@pytest.mark.parametrize("name", ["", " ", "=cmd", "-x", "a" * 61, "a\x00b", "a\u202eb"])
def test_invalid_rater_names(ratings: Ratings, name: str) -> None:
    with pytest.raises(ValueError, match="rater: a name needs"):
        ratings.rater(name)


def test_many_threads_may_answer(ratings: Ratings) -> None:
    def work(rater: str) -> None:
        for number in range(25):
            ratings.answer(rater, f"{number}.png", (1, 0), "", 0)

    threads = [threading.Thread(target=work, args=(f"r{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(found) == 4 for found in reopened(ratings).rated().values()) and len(ratings.rated()) == 25


# The queue


FILES = [f"t{number:03d}.png" for number in range(200)]


def label_all(queue: Queue, rater: str) -> list[str]:
    seen = []
    while found := queue.next(rater)[0]:
        queue.ratings.answer(rater, found[0], (1, 0), "", queue.ratings.revision(rater, found[0]))
        seen.append(found[0])
    return seen


def test_the_order_is_seeded_and_independent_of_other_tiles(ratings: Ratings) -> None:
    first, again, other = (Queue(FILES, ratings, seed, 0.25) for seed in (0, 0, 1))
    assert first.order == again.order != other.order and sorted(first.order) == FILES != first.order
    fewer = Queue(FILES[::2], ratings, 0, 0.25)
    assert fewer.order == [file for file in first.order if file in FILES[::2]]
    assert fewer.shared == first.shared & set(FILES[::2]) and 30 < len(first.shared) < 70
    assert first.shared < Queue(FILES, ratings, 0, 0.5).shared and Queue(FILES, ratings, 0, 1).shared == set(FILES)


def test_shared_tiles_go_to_every_rater_and_others_to_one(ratings: Ratings) -> None:
    queue = Queue(FILES, ratings, 0, 0.25)
    half = [queue.next("Ann")[0][0] for _ in range(3)]
    assert len(set(half)) == 1  # until it is answered
    ann = label_all(queue, "Ann")
    bea = label_all(queue, "Bea")
    assert set(ann) == set(FILES) and set(bea) == queue.shared
    assert queue.next("Bea") == ([], queue.next("Bea")[1]) and queue.next("Bea")[1].left == 0


def test_two_raters_at_once_see_different_tiles(ratings: Ratings, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(FILES, ratings, 0, 0)
    (ann,), (bea,) = queue.next("Ann")[0], queue.next("Bea")[0]
    assert [ann, bea] == queue.order[:2]
    monkeypatch.setattr("tools.labeler.queue.time.monotonic", lambda: 1e9 + HELD_S)
    assert queue.next("Cem")[0] == [ann]  # nobody has touched it for long


def test_most_uncertain_first(ratings: Ratings) -> None:
    uncertainty = {file: float(number % 7) for number, file in enumerate(FILES[:-1])}
    queue = Queue(FILES, ratings, 0, 0.1, uncertainty)
    values = [uncertainty.get(file, 0.0) for file in queue.order]
    assert values == sorted(values, reverse=True) and queue.order[:20] != sorted(queue.order[:20])


def test_skipped_tiles_are_shown_again_on_request(ratings: Ratings) -> None:
    queue = Queue(FILES[:4], ratings, 0, 0)
    first = queue.next("Ann")[0][0]
    ratings.skip("Ann", first, 0)
    assert first not in label_all(queue, "Ann") and queue.next("Ann")[1].skipped == 1
    ratings.show_skipped("Ann")
    reopened(ratings)
    assert Queue(FILES[:4], ratings, 0, 0).next("Ann")[0] == [first]


# Agreement and consensus


def test_quadratic_kappa() -> None:
    # Two raters, three levels; the formula by hand: penalties 0, 1, 4.
    counts_LL = np.array([[10, 2, 0], [3, 8, 1], [0, 2, 4]])
    total, rows_L, columns_L = counts_LL.sum(), counts_LL.sum(axis=1), counts_LL.sum(axis=0)
    observed = expected = 0.0
    for i in range(3):
        for j in range(3):
            observed += (i - j) ** 2 * counts_LL[i, j] / total
            expected += (i - j) ** 2 * rows_L[i] * columns_L[j] / total**2
    assert agreement.quadratic_kappa(counts_LL) == pytest.approx(1 - observed / expected)
    assert agreement.quadratic_kappa(np.diag([3, 4])) == 1 and agreement.quadratic_kappa(np.array([[0, 5], [5, 0]])) == -1
    assert agreement.quadratic_kappa(np.array([[2, 2], [2, 2]])) == 0
    assert agreement.quadratic_kappa(np.zeros((3, 3))) is None and agreement.quadratic_kappa(np.array([[7, 0], [0, 0]])) is None


def test_random_raters_have_a_kappa_near_zero(ratings: Ratings) -> None:
    rng = np.random.default_rng(0)
    for number in range(300):
        ratings.answer("Ann", f"{number}", (int(rng.integers(1, 3)), 0), "", 0)
        ratings.answer("Bea", f"{number}", (int(rng.integers(1, 3)), 1), "", 0)
    grade, size = agreement.pairs(TWO, ratings.rated())
    assert abs(grade.kappa or 9) < 0.15 and grade.tiles == 300  # chance
    assert size.kappa == 0 and size.exact == 0


def test_not_assessable_is_excluded_from_kappa(ratings: Ratings) -> None:
    for number, (a, b) in enumerate([(1, 1), (2, 2), (0, 2), (0, 0), (1, -1)]):
        ratings.answer("Ann", f"{number}", (a, 0), "", 0)
        ratings.answer("Bea", f"{number}", (b, 0), "", 0)
    grade = agreement.pairs(TWO, ratings.rated())[0]
    assert grade.kappa == 1 and grade.tiles == 4 and grade.one_assessable == 1 and grade.exact == 0.75
    assert agreement.mean_kappa([grade]) == 1 and agreement.mean_kappa([]) is None


@pytest.mark.parametrize(
    ("levels", "most_apart", "expected"),
    [
        ([2], None, 2),
        ([1, 2], None, 1),
        ([1, 2, 2], None, 2),
        ([1, 4, 4, 2], None, 2),
        ([0, 0, 3], None, 0),
        ([0, 3], None, -1),
        ([-1, 3], None, 3),
        ([-1], None, -1),
        ([0], None, 0),
        ([0, 0], 1, 0),
        ([2, 3], 1, 2),
        ([2, 3], 0, -1),
        ([1, 3, 3], 1, -1),
        ([0, 3, 3], 1, -1),
        ([3, 3], 0, 3),
    ],
)
def test_consensus(levels: list[int], most_apart: int | None, expected: int) -> None:
    assert consensus(PUBLISHED.attributes[0], levels, most_apart) == expected


# The CSV


def test_the_csv_can_be_packed(tmp_path: Path, ratings: Ratings) -> None:
    folder = write_images(tmp_path / "tiles", ["H7/a.png", "H7/b.png", "ä ö/c, d.png", "H8/gone.png"])
    (folder / "tiles.csv").write_text('file,slide,x,grade\nH7/a.png,H7,3,9\nH7/b.png,H7,4,9\n"ä ö/c, d.png",S2,5,9\nH8/gone.png,H8,6,9\n')
    found = tiles.find_tiles(folder)
    for file in found.files:
        ratings.answer("Ann", file, (2, 1), '=1+1, "quoted"', 0)
    ratings.answer("Bea", "H7/a.png", (1, 1), "", 0)
    (folder / "H8/gone.png").unlink()
    writer = Writer(tmp_path / "levels.csv", found, ratings, None)
    assert writer.write() == 3 and writer.missing == 1
    rows = rows_of(tmp_path / "levels.csv")
    assert list(rows[0]) == ["file", "slide", "x", "grade", "size", "raters", "spread", "comments"]
    assert [(row["file"], row["grade"], row["raters"], row["spread"]) for row in rows] == [
        ("H7/a.png", "1", "2", "1"),
        ("H7/b.png", "2", "1", ""),
        ("ä ö/c, d.png", "2", "1", ""),
    ]
    assert rows[0]["comments"] == 'Ann: =1+1, "quoted"'
    out, attributes = tmp_path / "set", schema_file(tmp_path)
    command = [
        "pack",
        "--images",
        folder,
        "--labels",
        tmp_path / "levels.csv",
        "--attributes",
        attributes,
        "--group",
        "slide",
        "--out",
        out,
    ]
    assert shard.main([str(word) for word in (*command, "--val-fraction", "0", "--workers", "1")]) == 0
    table = rows_of(tmp_path / "levels.agreement.csv")
    assert [row["attribute"] for row in table] == ["grade", "size"] and table[0]["rater_1"] == "Ann"
    assert json.loads(table[0]["confusion"]) == [[0, 0, 0], [0, 0, 0], [0, 1, 0]] and table[0]["exact"] == "0.0000"


def test_a_csv_written_or_changed_by_others_is_not_overwritten(tmp_path: Path, ratings: Ratings) -> None:
    found = tiles.find_tiles(write_images(tmp_path / "tiles", ["a.png", "b.png"]))
    out = tmp_path / "levels.csv"
    out.write_text("mine\n")
    with pytest.raises(ValueError, match=r"levels\.csv: was not written by this command"):
        Writer(out, found, ratings, None)
    out.unlink()
    writer = Writer(out, found, ratings, None)
    ratings.answer("Ann", "a.png", (2, 1), "", 0)
    writer.write()
    before = out.read_bytes()
    ratings.answer("Ann", "b.png", (1, 1), "", 0)
    out.write_bytes(before[:-9])  # truncated by hand
    with pytest.raises(ValueError, match="was changed since"):
        writer.write()
    assert out.read_bytes() == before[:-9]
    with pytest.raises(ValueError, match="was changed since"):
        Writer(out, found, reopened(ratings), None)
    out.write_bytes(before)  # as a crash leaves it between the note and the file
    writer = Writer(out, found, ratings, None)
    for digest in ("1", "2", "3"):  # several crashes, each between the note and the file
        ratings.will_write(out.name, digest)
    assert writer.write() == 2 and len(rows_of(out)) == 2
    out.unlink()
    assert writer.write() == 2 and len(rows_of(out)) == 2


def test_an_attribute_may_have_the_name_of_a_column(tmp_path: Path) -> None:
    schema = AttributeSchema((Attribute("raters", ("few", "many")), Attribute("tissue", ("none", "some"))))
    folder = write_images(tmp_path / "tiles", ["a.png"])
    (folder / "tiles.csv").write_text("file,slide,tissue,spread\na.png,H7,0.93,2\n")
    answers = Ratings(tmp_path / "levels.ratings.jsonl", schema)
    answers.answer("Ann", "a.png", (1, 0), "", 0)
    Writer(tmp_path / "levels.csv", tiles.find_tiles(folder), answers, None).write()
    answers.close()
    assert rows_of(tmp_path / "levels.csv") == [
        {"file": "a.png", "slide": "H7", "raters": "1", "tissue": "0", "spread": "", "comments": ""}
    ]
    assert not read_labels([tmp_path / "levels.csv"], schema, group="slide").bad


def test_spread() -> None:
    from tools.labeler.ratings import Rating

    pair = [Rating("a", "f", (1, 4, -1), "", ""), Rating("b", "f", (0, 1, 1), "", "")]
    schema = AttributeSchema(tuple(Attribute(name, ("a", "b", "c", "d", "e"), 0) for name in "xyz"))
    assert spread(schema, pair) == 3


# Tiles


def test_only_images_and_no_hidden_ones(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png", "b/c.JPG", "b/d.tif", ".hidden/e.png", "._a.png"])
    (tmp_path / "notes.txt").write_text("x")
    assert tiles.find_tiles(tmp_path).files == ("a.png", "b/c.JPG", "b/d.tif")


def test_names_that_can_not_be_packed_are_listed(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.b.png", "a_b.png", "c.png", "c.jpg", " d.png", "e\nf.png"])
    os.link(tmp_path / "c.png", os.fsencode(tmp_path) + b"/g\xff.png")
    with pytest.raises(ValueError) as error:
        tiles.find_tiles(tmp_path)
    text = str(error.value)
    assert (
        "5 files have names that can't be packed" in text and "a_b.png: has the same key a_b as a.b.png" in text and r"'e\nf.png'" in text
    )
    with pytest.raises(ValueError, match="has no images"):
        tiles.find_tiles((tmp_path / "empty").mkdir() or tmp_path / "empty")


def test_formats_unknown_to_browsers_become_png(tmp_path: Path) -> None:
    pixels = Image.fromarray(pixels_of(1))
    for name in ("a.png", "b.jpg", "c.tif", "d.bmp"):
        pixels.save(tmp_path / name)
    pixels.convert("CMYK").save(tmp_path / "e.jpg")
    kinds = {path.name: tiles.picture(path) for path in sorted(tmp_path.iterdir())}
    assert [kind for _, kind in kinds.values()] == ["image/png", "image/jpeg", "image/png", "image/png", "image/png"]
    assert kinds["a.png"][0] == (tmp_path / "a.png").read_bytes() and kinds["c.tif"][0].startswith(b"\x89PNG")
    (tmp_path / "a.png").write_bytes(kinds["a.png"][0][:200])
    (tmp_path / "b.jpg").write_text("<svg onload=alert(1)>")
    for name in ("a.png", "b.jpg", "gone.png"):
        with pytest.raises(ValueError, match="not a readable image"):
            tiles.picture(tmp_path / name)


def test_buttons_and_keys() -> None:
    assert [(one["level"], one["key"]) for one in choices(GRADE)] == [(1, "1"), (2, "2"), (0, "n")]
    plain = choices(TWO.attributes[1])
    assert plain[-1] == {"level": -1, "name": "not assessable", "key": "n"} and [one["key"] for one in plain] == ["0", "1", "n"]
    many = choices(Attribute("grade", tuple(map(str, range(40)))))
    assert len({one["key"] for one in many if one["key"]}) == len(KEYS) + 1 and not set(KEYS) & set("cnsu")


# Predictions


def test_predictions_are_cached_and_skip_unreadable_tiles(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "tiles", [f"t{number}.png" for number in range(5)])
    (folder / "t9.png").write_bytes(b"no image")
    pixels = np.stack([pixels_of(number) for number in range(5)])
    levels = np.array([[1, 0], [2, 1], [1, 1], [2, 0], [1, 0]])
    attribute_predictor = predictor.fit_cnn(pixels, levels, TWO, steps=2)
    predictor.PredictorCache(tmp_path / "judge").save(attribute_predictor, {"training_tiles": 5})
    found, cache, calls = tiles.find_tiles(folder), reference.FeatureCache.at(tmp_path / "cache"), []
    with pytest.raises(ValueError, match="the tile size is not saved"):
        predict(tmp_path / "judge", TWO, found, None, cache, lambda done, total: None)
    predictor.PredictorCache(tmp_path / "judge").save(attribute_predictor, {"training_tiles": 5, "tile_size": 16})
    first = predict(tmp_path / "judge", TWO, found, None, cache, lambda done, total: calls.append(done))
    again = predict(tmp_path / "judge", TWO, found, None, cache, lambda done, total: calls.append(done))
    assert first == again and calls == [6] and set(first.levels) == set(found.files) - {"t9.png"}
    assert first.levels["t0.png"] == pytest.approx(attribute_predictor.predict(pixels[:1])[0].tolist(), abs=1e-6)
    assert all(0 <= value <= 1 for value in first.uncertainty.values())
    with pytest.raises(ValueError, match="no predictor for these attributes"):
        predict(tmp_path / "judge", PUBLISHED, found, None, cache, lambda done, total: None)


# Requests


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Path]]:
    folder = tmp_path_factory.mktemp("label")
    write_images(folder / "tiles", FILES[:30])
    options = ["--out", str(folder / "levels.csv"), "--attributes", str(schema_file(folder))]
    with served(folder / "tiles", *options, module="tools.label") as found:
        yield found, folder


def asked(at: Served, path: str, body: Any = None, **headers: str) -> tuple[http.client.HTTPResponse, Any]:
    connection = http.client.HTTPConnection(urlsplit(at.address).netloc, timeout=seconds(60))
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("GET" if body is None else "POST", path, data, ({"Content-Type": "application/json"} if data else {}) | headers)
    answer = connection.getresponse()
    text = answer.read()
    return answer, json.loads(text) if answer.getheader("content-type") == "application/json" else text


def shown(at: Served, rater: str) -> Any:
    return asked(at, f"/next?{urlencode({'rater': rater})}")[1]


LEVELS = {"grade": 1, "size": 0}


@pytest.mark.slow
def test_an_answer_is_on_disk_before_it_is_confirmed(server: tuple[Served, Path]) -> None:
    at, folder = server
    tile = shown(at, "Disk")
    body = {"rater": "Disk", "file": tile["file"], "revision": 0, "levels": LEVELS, "comment": "héllo"}
    answer, said = asked(at, "/answer", body)
    line = json.loads((folder / "levels.ratings.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert answer.status == 200 and line["file"] == tile["file"] and line["comment"] == "héllo" and said["done"] == 1
    assert (
        said["last"]["rows"] == [{"title": "Grade", "given": "low"}, {"title": "Size", "given": "small"}] and said["file"] != tile["file"]
    )
    assert asked(at, "/answer", body)[0].status == 409
    _, taken = asked(at, "/undo", {"rater": "Disk"})
    assert taken["file"] == tile["file"] and taken["levels"] == LEVELS and taken["comment"] == "héllo" and taken["done"] == 0
    assert asked(at, "/undo", {"rater": "Disk"})[1]["levels"] is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"file": "../levels.csv"}, "file: not one of the tiles"),
        ({"file": None}, "file: not one of the tiles"),
        ({"revision": "0"}, "revision"),
        ({"revision": True}, "revision"),
        ({"rater": "=x"}, "rater: a name needs"),
        ({"levels": {"grade": 1}}, "levels: give one for each"),
        ({"levels": {"grade": 1, "size": 2}}, "levels: size is 2"),
        ({"levels": {"grade": 1.0, "size": 0}}, "not all are integers"),
        ({"levels": {"grade": True, "size": 0}}, "not all are integers"),
        ({"levels": [1, 0]}, "levels: give one"),
        ({"comment": 3}, "comment: not a string"),
    ],
)
def test_bad_answers_are_refused(server: tuple[Served, Path], change: dict[str, Any], what: str) -> None:
    at, folder = server
    before = (folder / "levels.ratings.jsonl").read_bytes()
    body = {"rater": "Bad", "file": FILES[0], "revision": 0, "levels": LEVELS, "comment": ""} | change
    answer, said = asked(at, "/answer", body)
    assert answer.status == 400 and what in said["error"] and (folder / "levels.ratings.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content_Type": "text/plain"}, b'{"rater": "x"}', 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, b"rater=x", 415),
        ({"Origin": "http://evil.example"}, b'{"rater": "x"}', 403),
        ({"Origin": "null"}, b'{"rater": "x"}', 403),
        ({"Host": "evil.example"}, b'{"rater": "x"}', 400),
        ({}, b"[]", 400),
        ({}, b"{", 400),
        ({}, b"[" * 60000, 400),
        ({}, b'{"a": "' + b"x" * 70000 + b'"}', 400),
        ({}, b"\xff", 400),
    ],
)
def test_cross_site_requests_are_rejected(server: tuple[Served, Path], headers: dict[str, str], body: bytes, status: int) -> None:
    assert asked(server[0], "/skip", body, **headers)[0].status == status


@pytest.mark.parametrize("file", ["../levels.csv", "/etc/passwd", "..%2flevels.csv", "nope.png", ""])
def test_only_tiles_are_sent(server: tuple[Served, Path], file: str) -> None:
    assert asked(server[0], f"/image?file={quote(file)}")[0].status == 400
    picture, data = asked(server[0], f"/image?file={FILES[0]}")
    assert picture.status == 200 and data.startswith(b"\x89PNG") and picture.getheader("x-content-type-options") == "nosniff"


def test_names_are_escaped(server: tuple[Served, Path]) -> None:
    name = "A<script>alert(1)</script>"
    _, text = asked(server[0], f"/?{urlencode({'rater': name})}")
    assert b"<script>alert" not in text and b"A&lt;script&gt;" in text
    answer, text = asked(server[0], f"/?{urlencode({'rater': '=A<b>'})}")
    assert answer.status == 200 and b"rater: a name needs" in text


@pytest.mark.slow
def test_other_addresses_than_loopback_require_a_token(tmp_path: Path) -> None:
    write_images(tmp_path / "tiles", ["a.png"])
    with served(tmp_path / "tiles", "--out", str(tmp_path / "l.csv"), "--host", "0.0.0.0", module="tools.label") as at:
        assert at.token and asked(at, "/next?rater=Ann")[0].status == 401 and asked(at, "/image?file=a.png")[0].status == 401
        assert asked(at, "/skip", {"rater": "Ann", "file": "a.png", "revision": 0})[0].status == 401
        entered, _ = asked(at, f"/?rater=Ann&token={at.token}")
        assert entered.status == 303 and entered.getheader("location") == "/?rater=Ann"
        cookie = (entered.getheader("set-cookie") or "").partition(";")[0]
        assert asked(at, "/next?rater=Ann", Cookie=cookie)[1]["file"] == "a.png"


# The command


def run(*words: object) -> int:
    return label.main([str(word) for word in words])


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--out", "x.txt"], "--out: x.txt must end in .csv"),
        (["--out", "no/where.csv"], "--out: no is not a folder"),
        (["--shared", "1.5"], "--shared: 1.5 is not from 0 to 1"),
        (["--disagreement", "-1"], "--disagreement: -1 is below 0"),
        (["--host", ""], "--host: is empty"),
        (["--port", "70000"], "--port: 70000"),
        (["--predictor-size", "2"], "--predictor-size: 2"),
        (["--table", "none.csv"], "none.csv: not a readable UTF-8 CSV"),
        (["--predictor", "none"], "--predictor none: no predictor"),
    ],
)
def test_bad_options(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], what: str) -> None:
    folder = write_images(tmp_path / "tiles", ["a.png"])
    assert run(folder, "--out", tmp_path / "levels.csv", "--port", 0, *options) == 2
    assert what in capsys.readouterr().err


def test_csv_files_are_rewritten_with_another_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_images(tmp_path / "tiles", ["a.png"])
    command = [folder, "--out", tmp_path / "levels.csv", "--attributes", schema_file(tmp_path), "--no-page"]
    assert run(*command) == 0 and "no answers yet" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"attributes.yaml", "tiles"}  # nothing was written
    answers = Ratings(tmp_path / "levels.ratings.jsonl", TWO)
    answers.answer("Ann", "a.png", (1, 1), "", 0)
    answers.answer("Bea", "a.png", (2, 1), "", 0)
    answers.close()
    assert run(*command) == 0 and rows_of(tmp_path / "levels.csv")[0]["grade"] == "1"
    assert run(*command, "--disagreement", 0) == 0 and rows_of(tmp_path / "levels.csv")[0]["grade"] == "-1"
    assert "levels of 1 tiles" in capsys.readouterr().out


@pytest.mark.slow
def test_csv_files_are_written_on_shutdown(tmp_path: Path) -> None:
    write_images(tmp_path / "tiles", ["a.png", "b.png"])
    options = ["--out", str(tmp_path / "levels.csv"), "--attributes", str(schema_file(tmp_path)), "--seed", "3", "--shared", "0.5"]
    with served(tmp_path / "tiles", *options, module="tools.label") as at:
        file = shown(at, "Ann")["file"]
        asked(at, "/answer", {"rater": "Ann", "file": file, "revision": 0, "levels": LEVELS})
        at.process.send_signal(signal.SIGINT)
        assert at.process.wait(seconds(30)) in (0, 130, -signal.SIGINT)  # uvicorn may end in order before the interrupt is raised again
    assert [row["file"] for row in rows_of(tmp_path / "levels.csv")] == [file]
    text = (tmp_path / "levels.ratings.jsonl").read_text()
    assert re.search(r'"settings": \{"seed": 3, "shared": 0.5\}', text)


@pytest.mark.slow
def test_help_needs_no_torch() -> None:
    code = "import sys, tools.label, tools.labeler.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=seconds(60), check=False).returncode == 0
