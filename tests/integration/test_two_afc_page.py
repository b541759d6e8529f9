"""The 2AFC page in a browser: two readers, a crash and a resume, the score at the end; keys, touch, no feedback before."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Served, chromium, served
from playwright.sync_api import Browser, Page, expect
from shards import TWO, levels_of, pixels_of
from time_limits import seconds

from data_shards.format.tile import encode_png
from tools.two_afc import study

COUNT = 32  # enough for a sentence about chance


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study; real tiles have an even number in red, generated ones an odd number."""
    pngs = ((encode_png(pixels_of(2 * pair, 64)), encode_png(pixels_of(2 * pair + 1, 64))) for pair in range(COUNT))
    source = {"generated": "runs/a", "images": 5, "shards": "set", "split": "val", "pairs": COUNT, "seed": 3, "image_size": 64}
    study.write(tmp_path / "study", TWO, [levels_of(pair) for pair in range(COUNT)], source, pngs)
    return tmp_path / "study"


def serving(folder: Path):  # type: ignore[no-untyped-def]
    return served(Path("2afc"), "--out", str(folder), module="tools.label")


def opened(browser: Browser, at: Served, reader: str, **context: object) -> Page:
    """Open the page of a reader in a new browser context; page errors and requests to other hosts fail the test in `closed`."""
    page = browser.new_context(base_url=at.address, **context).new_page()  # type: ignore[arg-type]
    troubles: list[str] = []
    page.troubles = troubles  # type: ignore[attr-defined]
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda one: None if one.url.startswith(at.address) else troubles.append(one.url))
    page.goto("/")
    page.get_by_label("Your name or initials").fill(reader)
    page.keyboard.press("Enter")
    return ready(page)


def ready(page: Page) -> Page:
    expect(page.locator("#pair")).to_have_attribute("aria-busy", "false")
    return page


def closed(page: Page) -> None:
    assert not page.troubles  # type: ignore[attr-defined]
    page.context.close()


def real_side(page: Page) -> str:
    """The side of the real tile, read from the pixels as a reader would."""
    reds = page.evaluate(
        """() => ["left", "right"].map((side) => {
          const canvas = document.createElement("canvas");
          canvas.width = canvas.height = 64;
          const context = canvas.getContext("2d");
          context.drawImage(document.querySelector(`#${side} img`), 0, 0);
          return context.getImageData(0, 0, 1, 1).data[0];
        })"""
    )
    assert sorted(red % 2 for red in reds) == [0, 1]
    return "left" if reds[0] % 2 == 0 else "right"


def choose(page: Page, side: str, key: bool = True) -> None:
    """Choose a side by key or button and wait for the next pair or the score."""
    done = page.locator("#progress-text").inner_text()
    if key:
        page.keyboard.press({"left": "1", "right": "ArrowRight"}[side])
    else:
        page.get_by_role("button", name=f"The {side} tile is real").click()
    expect(page.locator("#progress-text, #sentence")).not_to_have_text(done)
    if done != f"{COUNT - 1} of {COUNT} pairs done":
        ready(page)


def test_two_readers_a_crash_a_resume_and_their_scores(browser: Browser, folder: Path) -> None:
    right: dict[str, int] = {"Ann": 0, "Bea": 0}
    with serving(folder) as at:
        ann = opened(browser, at, "Ann")
        for number in range(4):
            choose(ann, real_side(ann), key=number % 2 == 0)
            right["Ann"] += 1
        before = ann.locator("#left img").get_attribute("src")
        body = ann.locator("body").inner_text()
        assert "4 of 32 pairs done" in body and not re.search("correct|score|right answer|wrong", body, re.IGNORECASE)
        ann.goto("/result?reader=Ann")  # no score before the end
        expect(ann.locator("#progress-text")).to_have_text("4 of 32 pairs done")
        ready(ann)
        at.process.kill()  # like a power failure
        at.process.wait(seconds(30))
        ann.keyboard.press("1")
        expect(ann.get_by_role("alert")).to_contain_text("The server does not respond")
        closed(ann)
    with serving(folder) as at:
        ann, bea = opened(browser, at, "ann"), opened(browser, at, "Bea")  # case-insensitive
        expect(ann.locator("header")).to_contain_text("Read by Ann")
        assert ann.locator("#left img").get_attribute("src") == before and "4 of 32" in ann.locator("#progress-text").inner_text()
        for _ in range(COUNT - 4):
            choose(ann, real_side(ann))
            right["Ann"] += 1
        for number in range(COUNT):
            side = real_side(bea)
            other = {"left": "right", "right": "left"}[side]
            choose(bea, side if number % 2 else other)
            right["Bea"] += number % 2
        expect(ann.locator("#sentence")).to_have_text(
            "Ann chose the real tile in 100 % of 32 choices (95 % interval 89 % to 100 %), more often than by chance (50 %): generated "
            "tiles can be distinguished from real ones."
        )
        expect(bea.locator("#sentence")).to_contain_text("50 % of 32 choices")
        expect(bea.locator("#sentence")).to_contain_text("not distinguishable from chance (50 %); rates above 66 % are excluded")
        expect(ann.get_by_role("row", name="All")).to_contain_text("89 to 100 %")
        ann.goto("/?reader=Ann")  # all pairs are done
        expect(ann.locator("#sentence")).to_be_visible()
        closed(ann), closed(bea)
        at.process.terminate()
        at.process.wait(seconds(30))
    with (folder / "answers.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert {name: sum(int(row["correct"]) for row in rows if row["reader"] == name) for name in right} == right == {"Ann": 32, "Bea": 16}
    took = [float(row["seconds"]) for row in rows]  # rounded to 0.01 s, and this reader is fast
    assert all(0 <= one < 600 for one in took) and sum(took) > 0
    found = json.loads((folder / "result.json").read_text())
    assert found["all"]["choices"] == 2 * COUNT and found["sentence"].startswith("2 readers chose the real tile in 75 % of 64 choices")


def test_two_windows_of_one_reader_and_keys_held_down(browser: Browser, folder: Path) -> None:
    with serving(folder) as at:
        one = opened(browser, at, "Ann")
        other = one.context.new_page()
        other.goto(one.url)
        ready(other)
        choose(one, "left")
        other.keyboard.press("2")
        expect(other.get_by_role("alert")).to_contain_text("already answered in another window")
        expect(other.locator("#progress-text")).to_have_text(f"1 of {COUNT} pairs done")
        ready(other)
        one.keyboard.down("1")
        one.keyboard.down("1")  # repeats
        expect(one.locator("#progress-text")).to_have_text(f"2 of {COUNT} pairs done")
        one.keyboard.up("1")
        closed(one)
    lines = (folder / "answers.jsonl").read_text().splitlines()[1:]
    assert [json.loads(line)["chosen"] for line in lines] == ["left", "left"]


@pytest.mark.parametrize("viewport", [{"width": 820, "height": 1180}, {"width": 375, "height": 812}])
def test_tiles_of_equal_size_large_targets_and_names(browser: Browser, folder: Path, viewport: dict[str, int]) -> None:
    with serving(folder) as at:
        page = opened(browser, at, "Ann", viewport=viewport, has_touch=True, is_mobile=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        boxes = page.evaluate("() => [...document.querySelectorAll('#pair img')].map((one) => one.getBoundingClientRect().toJSON())")
        assert boxes[0]["width"] == boxes[1]["width"] > 100 and boxes[0]["y"] == boxes[1]["y"]
        expect(page.get_by_role("progressbar", name=re.compile("0 of 32"))).to_be_visible()
        expect(page.get_by_role("button", name="The left tile is real")).to_have_attribute("aria-keyshortcuts", "1 ArrowLeft")
        page.get_by_role("button", name="The right tile is real").tap()
        expect(page.locator("#progress-text")).to_have_text(f"1 of {COUNT} pairs done")
        expect(page.get_by_role("status")).to_have_text(f"Pair 2 of {COUNT}.")
        closed(page)
