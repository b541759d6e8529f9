"""Reader studies without a browser: statistics, pairs, answers on disk, requests, the command line, the section of a report."""

from __future__ import annotations

import csv
import http.client
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import numpy as np
import pytest
from browser import Served, served
from PIL import Image
from shards import TWO, levels_of, make_set, pixels_of
from time_limits import seconds
from untrained_run import untrained_run

from tools import label
from tools.evaluation import report
from tools.labeler.ratings import Conflict
from tools.shard import main as shard_main
from tools.two_afc import results, scores, study
from tools.two_afc.answers import Answers
from tools.two_afc.scores import Choice

# Statistics


# Newcombe 1998 (Statistics in Medicine 17), table I, method 3: Wilson without continuity correction
@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_of_a_published_table(correct: int, count: int, low: float, high: float) -> None:
    assert scores.wilson(correct / count, count) == pytest.approx((low, high), abs=5e-5)


def choices(shares: dict[str, Sequence[bool]]) -> list[Choice]:
    return [Choice(reader, pair, correct) for reader, given in shares.items() for pair, correct in enumerate(given)]


def test_a_single_reader_has_a_binomial_interval() -> None:
    given = [True] * 63 + [False] * 37
    found = scores.rate(choices({"Ann": given}))
    assert (found.value, found.choices, found.pairs) == (0.63, 100, 100) and (found.low, found.high) == scores.wilson(0.63, 100)


def test_readers_who_agree_on_every_pair_count_as_one_and_independent_ones_as_many() -> None:
    given = [True] * 60 + [False] * 40
    alike = scores.rate(choices({reader: given for reader in "abcde"}))
    assert alike.choices == 500 and (alike.low, alike.high) == pytest.approx(scores.wilson(0.6, 100), abs=2e-3)
    rng = np.random.default_rng(0)
    independent = scores.rate(choices({reader: rng.random(400) < 0.6 for reader in "abcde"}))
    low, high = scores.wilson(independent.value, 2000)
    assert (independent.high - independent.low) == pytest.approx(high - low, rel=0.12)
    perfect = scores.rate(choices({"a": [True] * 50, "b": [True] * 50}))
    assert (perfect.low, perfect.high) == scores.wilson(1.0, 50) and perfect.high == 1


def test_intervals_cover_the_truth() -> None:
    """Three readers whose choices share a component by pair: without the effective number, far fewer intervals cover."""
    rng, inside, naive = np.random.default_rng(1), 0, 0
    for _ in range(400):
        of_pair_P1 = rng.random((60, 1)) < 0.7  # the choice that a pair suggests to every reader
        own_PR = rng.random((60, 3)) < 0.7
        chosen_PR = np.where(rng.random((60, 3)) < 0.7, of_pair_P1, own_PR)
        found = scores.rate([Choice(str(reader), pair, bool(chosen_PR[pair, reader])) for pair in range(60) for reader in range(3)])
        inside += found.low <= 0.7 <= found.high
        low, high = scores.wilson(found.value, 180)
        naive += low <= 0.7 <= high
    assert inside >= 0.92 * 400 > naive


def test_sentences_follow_the_interval() -> None:
    def of(correct: int, count: int) -> str:
        return scores.sentence("Ann", scores.rate(choices({"Ann": [True] * correct + [False] * (count - correct)})))

    assert of(52, 100) == (
        "Ann chose the real tile in 52 % of 100 choices (95 % interval 42 % to 62 %): not distinguishable from chance (50 %); "
        "rates above 62 % are excluded."
    )
    assert "more often than by chance (50 %): generated tiles can be distinguished" in of(70, 100)
    assert "less often than by chance (50 %)" in of(30, 100)
    assert of(20, 20).endswith("; 20 pairs are too few to compare with chance (50 %), at least 30 are needed.")


def test_levels_are_reported_from_twenty_pairs_on() -> None:
    levels = [(1, 0)] * 20 + [(2, 1)] * 19 + [(0, 1)] * 25
    found = scores.summary(TWO, levels, choices({"Ann": [True] * 64, "Bea": [True] * 30}), 64)
    assert {name: set(of) for name, of in found["levels"].items()} == {"grade": {"low"}, "size": {"small", "large"}}  # not "none"
    assert found["levels"]["grade"]["low"]["choices"] == 40 and found["levels"]["size"]["large"]["pairs"] == 44
    assert [one["finished"] for one in found["readers"].values()] == [True, False] and found["sentence"].startswith("2 readers chose")
    assert scores.summary(TWO, levels, choices({"Ann": [True] * 4, "Bea": [False] * 4}), 64, "Bea")["all"]["correct"] == 0
    assert scores.summary(TWO, levels, [], 64)["sentence"] == "No choices yet."


# Pairs


def write_study(folder: Path, count: int = 40, size: int = 16) -> study.Study:
    """A study whose real tiles have an even number in red, and generated ones an odd number."""
    pngs = ((encoded(2 * pair, size), encoded(2 * pair + 1, size)) for pair in range(count))
    source = {"generated": "runs/a", "images": 5, "shards": "set", "split": "val", "pairs": count, "seed": 3, "image_size": size}
    study.write(folder, TWO, [levels_of(pair) for pair in range(count)], source, pngs)
    return study.read(folder)


def encoded(number: int, size: int) -> bytes:
    from data_shards.format.tile import encode_png

    return encode_png(pixels_of(number, size))


def is_real(path: Path) -> bool:
    return int(np.asarray(Image.open(path))[0, 0, 0]) % 2 == 0


def test_sides_and_orders_are_random_seeded_and_by_reader(tmp_path: Path) -> None:
    opened = write_study(tmp_path / "study", 120)
    for reader in ("Ann", "Bea"):
        sides = [opened.real_side(reader, pair) for pair in range(120)]
        assert 42 < sides.count("left") < 78 and sorted(opened.order(reader)) == list(range(120)) != opened.order(reader)
        assert all(is_real(opened.picture(reader, pair, side)) for pair, side in enumerate(sides))
        assert not any(is_real(opened.picture(reader, pair, {"left": "right", "right": "left"}[side])) for pair, side in enumerate(sides))
    assert opened.order("Ann") != opened.order("Bea") and opened.order("Ann") == study.read(tmp_path / "study").order("ann")
    agree = sum(opened.real_side("Ann", pair) == opened.real_side("Bea", pair) for pair in range(120))
    assert 42 < agree < 78


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "study.json").write_text("{"), "not a study of this command"),
        (lambda folder: (folder / "study.json").write_text('{"format": 9}'), "format 9, this version reads 1"),
        (lambda folder: (folder / "real" / "0003.png").unlink(), "0003.png: is missing"),
        (lambda folder: (folder / "study.json").unlink(), "can't be read"),
    ],
)
def test_damaged_studies_are_refused(tmp_path: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    write_study(tmp_path / "study", 5)
    damage(tmp_path / "study")
    with pytest.raises(ValueError, match=message):
        study.read(tmp_path / "study")


# Answers on disk


@pytest.fixture
def answers(tmp_path: Path) -> Iterator[Answers]:
    opened = Answers(write_study(tmp_path / "study"))
    yield opened
    opened.close()


def reopened(answers: Answers) -> Answers:
    answers.close()
    answers.__init__(answers.study)  # type: ignore[misc]
    return answers


def give(answers: Answers, reader: str, count: int, correct: bool = True) -> None:
    for _ in range(count):
        (pair,) = answers.next(reader)
        side = answers.study.real_side(reader, pair)
        answers.answer(reader, pair, side if correct else {"left": "right", "right": "left"}[side], 1.234)


def test_answers_are_restored_and_readers_resume(answers: Answers) -> None:
    give(answers, "Zoë", 3)
    give(answers, "Ann", 40, correct=False)
    before = answers.all()
    after = reopened(answers)
    assert after.all() == before and after.readers() == {"Ann": 40, "Zoë": 3} and after.reader(" ZOË ") == "Zoë"
    assert after.next("Ann") == [] and after.next("Zoë") == [after.study.order("Zoë")[3]]
    assert sum(one.correct for one in after.choices()) == 3 and after.all()[0].seconds == 1.23
    data = (after.study.folder / "answers.jsonl").read_bytes()
    (after.study.folder / "answers.jsonl").write_bytes(data[:-20])  # a crash while the last line was written
    assert reopened(after).readers() == {"Ann": 39, "Zoë": 3}


def test_only_the_next_pair_can_be_answered(answers: Answers) -> None:
    first, second = answers.next("Ann", 2)
    answers.answer("Ann", first, "left", 1)
    for pair in (first, answers.next("Ann", 2)[1]):
        with pytest.raises(Conflict):
            answers.answer("Ann", pair, "left", 1)
    answers.answer("Ann", second, "left", 1)
    assert answers.readers() == {"Ann": 2}


@pytest.mark.parametrize(
    "change",
    [
        {"pair": 40},
        {"pair": "0"},
        {"chosen": "middle"},
        {"real": None},
        {"seconds": "x"},
    ],
)
def test_a_damaged_line_is_an_error_with_its_number(answers: Answers, change: dict[str, Any]) -> None:
    give(answers, "Ann", 1)
    path = answers.study.folder / "answers.jsonl"
    header, line = path.read_text().splitlines()
    path.write_text(f"{header}\n{json.dumps(json.loads(line) | change)}\n")
    with pytest.raises(ValueError, match=r"answers\.jsonl: line 2 is damaged"):
        reopened(answers)
    path.write_text(f"{header}\n{line}\n{line}\n")
    with pytest.raises(ValueError, match="line 3 is damaged .* was answered before"):
        reopened(answers)


def test_answers_of_another_study_are_refused(answers: Answers, tmp_path: Path) -> None:
    path = answers.study.folder / "study.json"
    path.write_text(path.read_text().replace("runs/a", "runs/b"))
    answers.close()
    with pytest.raises(ValueError, match="has answers of another study"):
        Answers(study.read(answers.study.folder))


def test_one_process_locks_the_answers_and_a_full_disk_loses_none(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="is in use by another attributegan-label"):
        Answers(answers.study)
    give(answers, "Ann", 1)
    whole, wrote = (answers.study.folder / "answers.jsonl").read_bytes(), os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: wrote(descriptor, data[:7]))
    with pytest.raises(OSError, match="No space left"):
        give(answers, "Ann", 1)
    assert (answers.study.folder / "answers.jsonl").read_bytes() == whole and answers.readers() == {"Ann": 1}


def test_results_as_csv_and_json(answers: Answers) -> None:
    give(answers, "Ann", 40)
    give(answers, "Bea", 10, correct=False)
    found = results.write(answers)
    folder = answers.study.folder
    with (folder / "answers.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["reader", "pair", "grade", "size", "real", "chosen", "correct", "seconds", "time"]
    assert [row["correct"] for row in rows] == ["1"] * 40 + ["0"] * 10 and rows[0]["pair"] == str(answers.study.order("Ann")[0])
    assert [int(row["grade"]) for row in rows] == [levels_of(int(row["pair"]))[0] for row in rows]
    assert results.read(folder) == results.read(folder / "result.json") == json.loads(json.dumps(found))
    assert found["all"]["correct"] == 0.8 and found["sides"]["left"] + found["sides"]["right"] == 50
    assert found["readers"]["Ann"]["finished"] and not found["readers"]["Bea"]["finished"]
    assert results.summary(answers, "Bea")["all"]["correct"] == 0


def test_a_report_includes_the_study(answers: Answers, tmp_path: Path) -> None:
    assert not report.reader_study(results.write(answers)).tables
    give(answers, "Ann", 40)
    assert [row[0] for row in report.reader_study(results.write(answers)).tables[0].rows][0] == "Ann"
    give(answers, "Bea", 40)
    section = report.reader_study(results.write(answers))
    names = [row[0] for row in section.tables[0].rows]
    assert names[:3] == ["Ann", "Bea", "all readers"] and "size: small" in names
    assert "2 readers chose the real tile in 100 % of 80 choices" in section.text and "runs/a" in section.text
    for path, message in ((tmp_path / "none", "can't be read"), (tmp_path / "x.json", "not a result of")):
        (tmp_path / "x.json").write_text('{"format": 1}')
        with pytest.raises(ValueError, match=message):
            results.read(path)


# The command line


def run(*words: object) -> int:
    return label.main(["2afc", *map(str, words)])


def test_tile_sets_are_matched_by_level(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real = make_set(tmp_path / "real", 70, val_fraction=0.5)
    folder = tmp_path / "generated"
    folder.mkdir()
    with (folder / "levels.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["file", "grade", "size"])
        for number in range(100, 130):
            Image.fromarray(pixels_of(number)).save(folder / f"{number}.png")
            rows.writerow([f"{number}.png", *levels_of(number)])
    command = [folder, "--shards", real, "--out", tmp_path / "study", "--pairs", 60, "--no-page"]
    assert run(*command) == 0
    opened = study.read(tmp_path / "study")
    out = capsys.readouterr().out
    assert 10 < len(opened) < 30 and f"{len(opened)} pairs instead of 60" in out and "No choices yet" in out
    numbers = {kind: [] for kind in study.KINDS}  # type: ignore[var-annotated]
    for pair, level_A in enumerate(opened.levels):
        for kind in study.KINDS:
            number = int(np.asarray(Image.open(tmp_path / "study" / kind / study.file_name(pair)))[0, 0, 0])
            assert list(levels_of(number)) == level_A
            numbers[kind].append(number)
    assert len(set(numbers["real"])) == len(set(numbers["generated"])) == len(opened)
    assert max(numbers["real"]) < 70 and min(numbers["generated"]) >= 100
    before = (tmp_path / "study" / "study.json").read_bytes()
    assert run(*command) == 0 and run("--out", tmp_path / "study", "--no-page") == 0
    assert (tmp_path / "study" / "study.json").read_bytes() == before and "resuming the study" in capsys.readouterr().out
    assert run(*command, "--seed", 1) == 2 and "has a study of other tiles" in capsys.readouterr().err
    (folder / "levels.csv").write_text("file,grade,size\n100.png,-1,0\n")
    assert run(folder, "--shards", real, "--out", tmp_path / "other", "--no-page") == 2
    assert "no generated tile has the levels of a real tile" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_a_model_is_sampled_at_the_levels_of_held_out_tiles(tmp_path: Path) -> None:
    assert (
        shard_main(["phantom", "--count", "30", "--size", "32", "--val-fraction", "0.4", "--out", str(tmp_path / "real"), "--workers", "1"])
        == 0
    )
    checkpoint = untrained_run(tmp_path / "run", 77)
    command = [checkpoint, "--shards", tmp_path / "real", "--pairs", 8, "--precision", "fp32", "--no-page"]
    for name, batch in (("a", 16), ("b", 8)):
        assert run(*command, "--out", tmp_path / name, "--batch", batch) == 0
    first = study.read(tmp_path / "a")
    assert len(first) == 8 and first.source["images"] == 77 and first.source["image_size"] == 32
    for kind in study.KINDS:
        pictures = [np.asarray(Image.open(tmp_path / "a" / kind / study.file_name(pair))) for pair in range(8)]
        assert all(pixels.shape == (32, 32, 3) for pixels in pictures) and len({pixels.tobytes() for pixels in pictures}) == 8
    assert [(tmp_path / name / "real" / "0000.png").read_bytes() for name in "ab"][0] == (tmp_path / "b" / "real" / "0000.png").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shards", "set"], "a new study needs both the generated tiles"),
        (["run"], "a new study needs both the generated tiles"),
        (["--pairs", "0"], "--pairs: 0 must be at least 1"),
        (["--port", "70000"], "--port: 70000 is not from 0 to 65535"),
        ([], "study.json: can't be read"),
        (["nowhere", "--shards", "set"], "nowhere"),
    ],
)
def test_bad_options(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    assert run("--out", tmp_path / "study", *options) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "study").exists()


def test_the_help_of_both_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, expected in ((["2afc", "--help"], "usage: attributegan-label 2afc"), (["--help"], "attributegan-label 2afc --help")):
        with pytest.raises(SystemExit):
            label.main(arguments)
        assert expected in capsys.readouterr().out


# Requests


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served") / "study"
    write_study(folder, 4)
    with served(Path("2afc"), "--out", str(folder), module="tools.label") as running:
        yield running


def get(at: Served, path: str, headers: dict[str, str] | None = None) -> tuple[int, bytes, http.client.HTTPMessage]:
    return _send(at, "GET", path, None, headers or {})


def post(at: Served, body: object, headers: dict[str, str] | None = None) -> tuple[int, dict[str, Any]]:
    status, data, _ = _send(at, "POST", "/answer", json.dumps(body), {"Content-Type": "application/json"} | (headers or {}))
    return status, json.loads(data)


def _send(at: Served, method: str, path: str, body: str | None, headers: dict[str, str]) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection(urlsplit(at.address).netloc, timeout=seconds(60))
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read(), response.headers
    finally:
        connection.close()


@pytest.mark.slow
def test_requests_and_refusals(at: Served) -> None:
    status, data, headers = get(at, "/next?reader=Ann")
    state = json.loads(data)
    assert status == 200 and set(state) == {"pair", "images", "preload", "done", "total"} and (state["done"], state["total"]) == (0, 4)
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    good = {"reader": "Ann", "pair": state["pair"], "chosen": "left", "seconds": 2.5}
    sizes = [len(get(at, state["images"][side])[1]) > 100 for side in ("left", "right")]
    assert sizes == [True, True]
    for path in (
        "/image?reader=Ann&pair=9&side=left",
        "/image?reader=Ann&pair=0&side=up",
        "/image?reader=Ann&pair=../0&side=left",
        "/next",
    ):
        assert get(at, path)[0] == 400
    for change in ({"chosen": "up"}, {"pair": "0"}, {"pair": None}, {"seconds": -1}, {"seconds": None}, {"seconds": "1"}, {"reader": ""}):
        assert post(at, good | change)[0] == 400, change
    assert post(at, [])[0] == 400
    assert post(at, good, {"Content-Type": "text/plain"})[0] == 415 and post(at, good, {"Origin": "http://evil.example"})[0] == 403
    assert get(at, "/", {"Host": "evil.example"})[0] == 400  # DNS rebinding
    status, after = post(at, good)
    assert status == 200 and after["done"] == 1 and after["pair"] != state["pair"] and "correct" not in json.dumps(after)
    assert post(at, good)[0] == 409
    status, _, headers = get(at, "/result?reader=Ann")  # not before the last pair
    assert status == 303 and headers["location"] == "/?reader=Ann"
    for _ in range(3):
        after = post(at, good | {"pair": after["pair"]})[1]
    assert after["pair"] is None
    status, page, _ = get(at, "/result?reader=ann")
    assert status == 200 and b"4 pairs are too few" in page
    assert get(at, "/?" + urlencode({"reader": "<b>"}))[0] == 200 and b"<b>" not in get(at, f"/?reader={quote('<b>')}")[1]


@pytest.mark.slow
def test_other_machines_need_the_token(tmp_path: Path) -> None:
    write_study(tmp_path / "study", 4)
    with served(Path("2afc"), "--out", str(tmp_path / "study"), "--host", "0.0.0.0", module="tools.label") as open_to_all:
        assert len(open_to_all.token) > 20
        for path in ("/", "/next?reader=Ann", "/image?reader=Ann&pair=0&side=left", "/result?reader=Ann"):
            assert get(open_to_all, path)[0] == 401
        cookie = get(open_to_all, f"/?token={open_to_all.token}")[2]["set-cookie"].partition(";")[0]
        assert get(open_to_all, "/next?reader=Ann", {"Cookie": cookie})[0] == 200
