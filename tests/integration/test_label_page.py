"""The label page in a browser: two raters, a crash and a resume, agreement; keyboard, screen reader, tablet."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from browser import Served, chromium, served
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from shards import TWO, pixels_of
from stores import wait_until
from time_limits import seconds

from attributegan.attributes import Attribute, AttributeSchema
from attributegan.metrics import predictor
from tools import shard

TABLET = {"width": 820, "height": 1180}
COUNT = 12


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with tiles and the attributes `TWO`."""
    (tmp_path / "tiles").mkdir()
    for number in range(COUNT):
        Image.fromarray(pixels_of(number, 64)).save(tmp_path / "tiles" / f"t{number:02d}.png")
    return with_attributes(tmp_path, TWO)


def with_attributes(folder: Path, schema: AttributeSchema) -> Path:
    (folder / "my.yaml").write_text(yaml.safe_dump(schema.to_dict(), sort_keys=False), encoding="utf-8")
    return folder


def serving(work: Path, *options: str):  # type: ignore[no-untyped-def]
    command = ["--out", str(work / "levels.csv"), "--attributes", str(work / "my.yaml"), *options]
    return served(work / "tiles", *command, module="tools.label")


def opened(browser: Browser, at: Served, rater: str, **context: object) -> Page:
    """Open the page of a rater in a new browser context; page errors and requests to other hosts fail the test in `closed`."""
    page = browser.new_context(base_url=at.address, **context).new_page()  # type: ignore[arg-type]
    troubles: list[str] = []
    page.troubles = troubles  # type: ignore[attr-defined]
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda one: None if one.url.startswith(at.address) else troubles.append(one.url))
    page.goto("/")
    page.get_by_label("Your name or initials").fill(rater)
    page.keyboard.press("Enter")
    return ready(page)


def ready(page: Page) -> Page:
    expect(page.locator("#status")).not_to_be_empty()
    expect(page.get_by_role("button", name="Skip")).to_be_enabled()
    return page


def closed(page: Page) -> None:
    assert not page.troubles  # type: ignore[attr-defined]
    page.context.close()


def tile(page: Page) -> str:
    return page.locator("#tile-name").inner_text()


def press(page: Page, keys: str) -> str:
    """Answer with keys and wait for the next tile; returns the answered file."""
    expect(page.locator("#levels")).to_have_attribute("aria-busy", "false")  # keys are ignored while a picture loads, below its name
    file = tile(page)
    for key in keys.split():
        page.keyboard.press(key)
    expect(page.locator("#tile-name")).not_to_have_text(file)
    expect(page.locator("#levels")).to_have_attribute("aria-busy", "false")
    return file


def rows_of(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return {row["file"]: row for row in csv.DictReader(stream)}


def answers_of(work: Path) -> list[tuple[str, str, dict[str, int]]]:
    lines = [json.loads(line) for line in (work / "levels.ratings.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(line["rater"], line["file"], line["levels"]) for line in lines if "levels" in line]


def test_two_raters_a_crash_a_resume_and_what_they_agree_on(browser: Browser, work: Path) -> None:
    given: dict[str, dict[str, tuple[int, int]]] = {"Ann": {}, "Bea": {}}
    with serving(work, "--shared", "1", "--seed", "5") as at:
        ann, bea = opened(browser, at, "Ann"), opened(browser, at, "Bea")
        for number in range(5):
            given["Ann"][press(ann, f"{1 + number % 2} 0 Enter")] = (1 + number % 2, 0)
            given["Bea"][press(bea, f"{1 + number % 2} {int(number == 4)} Enter")] = (1 + number % 2, int(number == 4))
        before = tile(ann)
        at.process.kill()  # like a power failure: nothing more is written
        at.process.wait(seconds(30))
        ann.keyboard.press("1")
        ann.keyboard.press("0")
        ann.keyboard.press("Enter")
        expect(ann.get_by_role("alert")).to_contain_text("The server does not respond")
        assert tile(ann) == before  # and the selection is kept
        expect(ann.get_by_role("radio", name="low")).to_be_checked()
        closed(ann), closed(bea)
    assert len(answers_of(work)) == 10
    with serving(work) as at:  # same seed and share
        assert len(rows_of(work / "levels.csv")) == 5  # the crash came before it was written; the restart wrote it
        ann, bea = opened(browser, at, "Ann"), opened(browser, at, "bea")  # case-insensitive
        expect(bea.locator("header")).to_contain_text("rated by Bea")
        assert tile(ann) == before and ann.locator("#progress-text").inner_text() == f"5 done, {COUNT - 5} to go"
        for number in range(COUNT - 5):
            given["Ann"][press(ann, "2 1 Enter")] = (2, 1)
            given["Bea"][press(bea, "1 1 Enter" if number == 0 else "2 1 Enter")] = (1 if number == 0 else 2, 1)
        expect(ann.locator("#end-text")).to_have_text("All tiles are done. Thank you.")
        expect(ann.locator("#end-text")).to_be_focused()
        ann.get_by_role("link", name="Agreement").click()
        grade = ann.get_by_role("row", name="Grade")
        expect(grade).to_contain_text(f"{COUNT}")
        table = ann.locator("table.confusion").first
        expect(table).to_contain_text("Ann (rows) and Bea (columns)")
        expect(table).to_contain_text(f"same level {100 * (COUNT - 1) / COUNT:.0f} % of {COUNT} tiles")
        closed(ann), closed(bea)
        at.process.terminate()
        at.process.wait(seconds(30))
    assert set(given["Ann"]) == set(given["Bea"]) == {f"t{number:02d}.png" for number in range(COUNT)}
    rows = rows_of(work / "levels.csv")
    for file, row in rows.items():
        pair = [given[rater][file] for rater in given]
        assert (int(row["grade"]), int(row["size"])) == tuple(min(levels) for levels in zip(*pair, strict=True))  # the lower median
        assert row["raters"] == "2" and int(row["spread"]) == max(abs(a - b) for a, b in zip(*pair, strict=True))
    command = ["pack", "--images", work / "tiles", "--labels", work / "levels.csv", "--attributes", work / "my.yaml", "--out", work / "set"]
    assert shard.main([str(word) for word in (*command, "--workers", "1")]) == 0


def test_undo_skip_and_comment(browser: Browser, work: Path) -> None:
    with serving(work) as at:
        page = opened(browser, at, "Ann")
        expect(page.get_by_role("button", name="Undo")).to_be_disabled()
        slip = press(page, "s")
        page.keyboard.press("u")
        expect(page.locator("#tile-name")).to_have_text(slip)
        skipped = press(page, "s")
        page.keyboard.press("c")
        page.keyboard.type("s u 1 2 n")  # keys are text here
        page.keyboard.press("Escape")
        wrong = press(page, "2 1 Enter")
        page.keyboard.press("u")
        expect(page.locator("#tile-name")).to_have_text(wrong)
        expect(page.get_by_role("radio", name="high")).to_be_checked()
        expect(page.get_by_label("Comment")).to_have_value("s u 1 2 n")
        page.get_by_role("radio", name="low").check()
        page.get_by_role("button", name="Save").click()
        expect(page.locator("#tile-name")).not_to_have_text(wrong)
        for _ in range(COUNT - 2):
            press(page, "n n Enter")
        expect(page.locator("#end-text")).to_have_text("All other tiles are done; 1 skipped.")
        page.get_by_role("button", name="Show the skipped tiles").click()
        expect(page.locator("#tile-name")).to_have_text(skipped)
        press(page, "1 0 Enter")
        closed(page)
        at.process.terminate()
        at.process.wait(seconds(30))
    rows = rows_of(work / "levels.csv")
    assert rows[wrong]["grade"] == "1" and rows[wrong]["comments"] == "Ann: s u 1 2 n" and rows[skipped]["grade"] == "1"
    others = [row for file, row in rows.items() if file not in (wrong, skipped)]
    assert len(others) == COUNT - 2 and all((row["grade"], row["size"]) == ("0", "-1") for row in others)


def test_two_windows_of_one_rater(browser: Browser, work: Path) -> None:
    with serving(work) as at:
        one = opened(browser, at, "Ann")
        other = ready_copy(one)
        assert tile(one) == tile(other)
        file = press(one, "2 1 Enter")
        for key in ("1", "0", "Enter"):
            other.keyboard.press(key)
        expect(other.get_by_role("alert")).to_contain_text("answered or skipped in another window")
        assert tile(other) == tile(one) != file
        closed(one)
    assert answers_of(work) == [("Ann", file, {"grade": 2, "size": 1})]


def ready_copy(page: Page) -> Page:
    other = page.context.new_page()
    other.goto(page.url)
    return ready(other)


def test_raters_at_once_get_different_tiles(browser: Browser, work: Path) -> None:
    with serving(work) as at:
        pages = [opened(browser, at, name) for name in ("Ann", "Bea", "Cem")]
        assert len({tile(page) for page in pages}) == 3
        for _ in range(2):
            for page in pages:
                press(page, "1 1 Enter")
        for page in pages:
            closed(page)
    assert len({file for _, file, _ in answers_of(work)}) == 6


def test_a_tile_that_is_deleted_or_damaged_is_not_labelled_unseen(browser: Browser, work: Path) -> None:
    with serving(work) as at:
        page = opened(browser, at, "Ann")
        first = tile(page)
        files = sorted(path.name for path in (work / "tiles").iterdir() if path.name != first)
        for name in files[1:]:
            (work / "tiles" / name).unlink()
        (work / "tiles" / files[0]).write_bytes(b"no image")
        press(page, "1 1 Enter")  # the next tile was preloaded, and is now missing or damaged
        expect(page.locator("#tile-name")).to_have_text(files[0])
        expect(page.get_by_role("alert")).to_contain_text(f"{files[0]} can't be displayed; skip it")
        for key in ("1", "1", "Enter"):
            page.keyboard.press(key)
        expect(page.get_by_role("button", name="Save")).to_be_disabled()
        press(page, "s")
        expect(page.locator("#end-text")).to_contain_text("skipped")
        closed(page)
    assert len(answers_of(work)) == 1


def test_a_csv_changed_meanwhile_is_kept_and_said(browser: Browser, work: Path) -> None:
    with serving(work) as at:
        page = opened(browser, at, "Ann")
        press(page, "1 1 Enter")
        wait_until((work / "levels.csv").exists)
        (work / "levels.csv").write_text("mine\n")
        press(page, "1 1 Enter")
        wait_until(lambda: page.request.get("/next?rater=Ann").json()["write_error"])  # the next attempt to write, on a slow disk later
        press(page, "1 1 Enter")
        expect(page.get_by_role("alert")).to_contain_text("levels.csv: was not written by this command, or was changed")
        assert (work / "levels.csv").read_text() == "mine\n"
        closed(page)
    assert len(answers_of(work)) == 3


def test_predictions_come_after_the_answer(browser: Browser, work: Path) -> None:
    pixels = np.stack([pixels_of(number, 64) for number in range(COUNT)])
    levels = np.array([[1 + number % 2, number % 2] for number in range(COUNT)])
    attribute_predictor = predictor.fit_cnn(pixels, levels, TWO, steps=2)
    predictor.PredictorCache(work / "judge").save(attribute_predictor, {"training_tiles": COUNT, "tile_size": 64})
    with serving(work, "--predictor", str(work / "judge"), "--cache", str(work / "cache")) as at:
        page = opened(browser, at, "Ann")
        bodies: list[str] = []
        page.on("response", lambda answer: bodies.append(answer.text()) if "/next" in answer.url else None)
        page.reload()
        ready(page)
        assert "redict" not in page.locator(".stage, .controls").all_inner_texts()[0] and all("predicted" not in body for body in bodies)
        file = press(page, "1 1 Enter")
        row = page.locator("#last tbody tr").first
        expect(row).to_have_text(re.compile(r"^Gradelow\d\.\d · (low|high)$"))
        predicted = attribute_predictor.predict(pixels[[int(file[1:3])]])[0]
        expect(row).to_contain_text(f"{predicted[0]:.1f} · ")
        closed(page)


def test_the_keyboard_is_enough_and_can_be_turned_off(browser: Browser, work: Path) -> None:
    with serving(work) as at:
        page = opened(browser, at, "Ann")
        expect(page.get_by_role("radio", name="low")).to_be_focused()
        page.keyboard.press("Space")
        page.keyboard.press("Tab")
        expect(page.get_by_role("radio", name="small")).to_be_focused()
        page.keyboard.press("ArrowRight")  # chooses within the group
        expect(page.get_by_role("radio", name="large")).to_be_checked()
        page.keyboard.press("ArrowLeft")
        file = press(page, "Enter")
        page.keyboard.press("2")
        expect(page.get_by_role("radio", name="small")).to_be_focused()  # the next attribute
        page.keyboard.press("0")
        expect(page.get_by_role("button", name="Save")).to_be_focused()
        second = press(page, "Enter")
        page.get_by_label("Keyboard shortcuts").uncheck()
        page.get_by_role("radio", name="low").focus()
        page.keyboard.press("s")
        page.keyboard.press("2")
        page.wait_for_timeout(300)
        expect(page.get_by_role("radio", name="high")).not_to_be_checked()
        page.reload()
        ready(page)
        expect(page.get_by_label("Keyboard shortcuts")).not_to_be_checked()  # it is remembered
        closed(page)
    assert answers_of(work) == [("Ann", file, {"grade": 1, "size": 0}), ("Ann", second, {"grade": 2, "size": 0})]


def test_saving_by_itself_saves_once_and_keys_held_down_count_once(browser: Browser, work: Path) -> None:
    with serving(work) as at:
        page = opened(browser, at, "Ann")
        page.get_by_label("Save as soon as every attribute has a level").check()
        page.get_by_role("radio", name="low").focus()
        press(page, "1 0")
        file = tile(page)
        page.keyboard.down("2")
        page.keyboard.down("2")  # repeats
        page.keyboard.up("2")
        assert tile(page) == file
        press(page, "1")
        closed(page)
    assert [levels for _, _, levels in answers_of(work)] == [{"grade": 1, "size": 0}, {"grade": 2, "size": 1}]


def test_everything_has_a_name_and_changes_are_announced(browser: Browser, work: Path) -> None:
    with serving(work) as at:
        page = opened(browser, at, "Ann")
        nameless = page.evaluate(
            """() => [...document.querySelectorAll("input, textarea, button, a, progress")].filter((one) => one.offsetParent &&
            !(one.labels?.length || one.textContent.trim() || one.getAttribute("aria-labelledby"))).map((one) => one.outerHTML)"""
        )
        assert nameless == []
        expect(page.get_by_role("group", name="Grade").get_by_role("radio")).to_have_count(3)
        expect(page.get_by_role("radio", name="low", exact=True)).to_have_attribute("aria-keyshortcuts", "1")
        expect(page.get_by_role("img", name=f"Tile {tile(page)}")).to_be_visible()
        expect(page.get_by_role("progressbar", name=re.compile("0 done"))).to_be_visible()
        press(page, "1 0 Enter")
        expect(page.get_by_role("status")).to_have_text(re.compile(rf"^Saved\. {tile(page)}\. 1 done, {COUNT - 1} to go\.$"))
        page.keyboard.press("Shift+Tab")
        for _ in range(8):  # the skip link is the first of the page
            page.keyboard.press("Shift+Tab")
        page.goto("/agreement?rater=Ann")
        expect(page.get_by_role("table")).to_have_count(1)
        expect(page.get_by_role("rowheader", name="Grade")).to_be_visible()
        closed(page)


@pytest.mark.parametrize("viewport", [TABLET, {"width": 1180, "height": 820}, {"width": 375, "height": 812}])
def test_a_tablet_has_large_targets_and_needs_no_hover(browser: Browser, work: Path, viewport: dict[str, int]) -> None:
    schema = AttributeSchema(
        (
            Attribute("differentiation_of_the_glands", ("poorly differentiated", "moderately differentiated", "well")),
            Attribute("reset", tuple(f"grade {level}" for level in range(14))),
        )
    )
    with serving(with_attributes(work, schema)) as at:
        page = opened(browser, at, "Ann", viewport=viewport, has_touch=True, is_mobile=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        targets = page.evaluate(
            """() => [...document.querySelectorAll(".levels label, form .buttons button")].map((one) => one.getBoundingClientRect())
            .map((box) => Math.min(box.width, box.height))"""
        )
        assert len(targets) == 4 + 15 + 3 and min(targets) >= 44
        file = tile(page)
        page.get_by_role("radio", name="well", exact=True).tap()
        page.get_by_role("radio", name="grade 13").tap()
        page.get_by_role("button", name="Save").tap()
        expect(page.locator("#tile-name")).not_to_have_text(file)
        closed(page)
    assert answers_of(work) == [("Ann", file, {"differentiation_of_the_glands": 2, "reset": 13})]
