"""The explorer page in a browser, with a model briefly trained on phantoms."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qsl
from urllib.request import urlopen

import numpy as np
import pytest
from browser import Served, chromium, served
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect
from runs import CONTROL, train
from time_limits import seconds

from attributegan.export import AttributeGenerator
from attributegan.metrics import predictor
from data_shards.loader.shard_set import ShardSet
from tools.explorer import model, quiz
from tools.explorer.drawing import Painter
from tools.explorer.state import read

PHONE = {"width": 375, "height": 812}


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explore") / "phantoms"
    train(shards, folder, *CONTROL, "train.images=32")
    return folder


@pytest.fixture(scope="module")
def attribute_predictor(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A predictor trained for a few steps."""
    opened = ShardSet.open(shards)
    folder = tmp_path_factory.mktemp("judge")
    tiles = np.random.default_rng(0).integers(0, 255, (len(opened), 32, 32, 3), np.uint8)
    predictor.PredictorCache(folder).save(
        predictor.fit_cnn(tiles, opened.levels_NA.astype(int), opened.schema, steps=3), {"training_tiles": 77}
    )
    return folder


@pytest.fixture(scope="module")
def explorer(trained: Path, shards: Path, attribute_predictor: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    cache = str(tmp_path_factory.mktemp("cache"))
    with served(trained, "--shards", str(shards), "--cache", cache, "--predictor", str(attribute_predictor)) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def page(browser: Browser, explorer: Served) -> Iterator[Page]:
    """A page in a new browser context, which must have no errors and send no requests to other hosts."""
    context = browser.new_context(base_url=explorer.address)
    found = context.new_page()
    troubles: list[str] = []
    found.on("pageerror", lambda error: troubles.append(str(error)))
    found.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    found.on(
        "request",
        lambda request: None if request.url.startswith((explorer.address, f"blob:{explorer.address}")) else troubles.append(request.url),
    )
    yield found
    seen = list(troubles)  # before closing, which aborts pending requests
    context.close()
    assert not seen


def pixels(page: Page, image: str) -> np.ndarray:
    """Returns the pixels of an <img>."""
    expect(page.locator(image)).to_have_js_property("complete", True)
    numbers = page.evaluate(
        """async (found) => { const image = document.querySelector(found); await image.decode();
        const pen = new OffscreenCanvas(image.naturalWidth, image.naturalHeight).getContext("2d"); pen.drawImage(image, 0, 0);
        return [...pen.getImageData(0, 0, image.naturalWidth, image.naturalHeight).data] }""",
        image,
    )
    return np.array(numbers, np.uint8).reshape(page.locator(image).evaluate("image => image.naturalHeight"), -1, 4)[..., :3]


def settled(page: Page) -> Page:
    """Wait until the tile of the URL and its difference from the previous one are shown."""
    expect(page.locator("#now")).to_have_attribute("data-query", page.evaluate("location.search.slice(1)"))
    expect(page.locator(".stage")).to_have_attribute("aria-busy", "false")
    return page


def opened(page: Page, link: str = "/") -> Page:
    """Open the page and wait until it is loaded."""
    page.goto(link)
    expect(page.locator("#status")).not_to_be_empty()
    return settled(page)


def drawn(trained: Path, link: str) -> np.ndarray:
    """Generate the tile of a link without the server."""
    shown = model.load(trained)
    state, problems = read(shown.generator.schema, 32, dict(parse_qsl(link.partition("?")[2])))
    assert not problems
    return Painter(shown).tile(state)


def close(a: np.ndarray, b: np.ndarray) -> bool:
    """Returns whether tiles are equal up to rounding: two processes may use different kernels."""
    return a.shape == b.shape and int(np.abs(a.astype(int) - b).max()) <= 2


def test_a_slider_moves_the_tile_and_the_tile_before_stays(page: Page, trained: Path) -> None:
    opened(page, "/?seed=5")
    expect(page.locator("#status")).to_contain_text("Move a slider")
    first = pixels(page, "#now")
    slider = page.get_by_role("slider", name="Pleomorphism")
    slider.press("4")
    page.wait_for_url(re.compile(r"a\.pleomorphism=4"))
    settled(page)
    expect(page.locator("#status")).to_contain_text("of the pixels changed")
    assert not np.array_equal(pixels(page, "#now"), first) and np.array_equal(pixels(page, "#before"), first)
    assert float(page.locator("#difference").get_attribute("data-changed") or 0) > 0
    expect(slider).to_have_attribute("aria-valuetext", "severe")
    slider.press("ArrowLeft")
    expect(slider).to_have_attribute("aria-valuetext", "3.9 · moderate to severe")
    page.wait_for_url(re.compile(r"a\.pleomorphism=3\.9"))
    settled(page)
    assert close(pixels(page, "#now"), drawn(trained, page.url))
    page.go_back()
    expect(slider).to_have_value("4")
    page.go_back()
    expect(slider).to_have_value("2")
    settled(page)
    assert np.array_equal(pixels(page, "#now"), first)


def test_before_can_be_held_and_not_assessable_is_a_tick(page: Page) -> None:
    opened(page)
    first = pixels(page, "#now")
    page.get_by_label("Keep “before” fixed").check()
    page.get_by_role("slider", name="Mitosis").press("3")
    page.locator(".attribute", has_text="Nucleoli").get_by_label("Not assessable").check()
    page.wait_for_url(re.compile(r"na\.nucleoli=1"))
    expect(page.get_by_role("slider", name="Nucleoli")).to_be_disabled()
    settled(page)
    assert (
        not np.array_equal(pixels(page, "#now"), first) and np.array_equal(pixels(page, "#before"), first) and "&a.nucleoli" not in page.url
    )


def test_a_link_gives_the_same_tile_to_another_visitor(page: Page, browser: Browser, trained: Path) -> None:
    opened(page)
    page.get_by_label("Seed", exact=True).fill("99")
    page.get_by_role("slider", name="Mix amount").press("End")
    for _ in range(40):
        page.get_by_role("slider", name="Mix amount").press("ArrowLeft")
    page.get_by_label("Mix with seed").fill("12")
    page.get_by_label("Truncate at").check()
    page.get_by_role("slider", name="Cell polarity").press("ArrowRight")
    page.get_by_label("Size").select_option("128")
    page.wait_for_url(re.compile("size=128.*"))
    settled(page)
    context = browser.new_context()
    other = opened(context.new_page(), page.url)
    assert np.array_equal(pixels(other, "#now"), pixels(page, "#now"))
    for label, value in (("Seed", "99"), ("Mix with seed", "12"), ("Mix amount", "0.6"), ("Truncation", "1.5"), ("Cell polarity", "2.1")):
        expect(other.get_by_label(label, exact=True)).to_have_value(value)
    assert close(np.asarray(Image.fromarray(drawn(trained, page.url)).resize((128, 128), Image.Resampling.BICUBIC)), pixels(page, "#now"))
    context.close()


def test_new_tissue_is_another_one(page: Page) -> None:
    opened(page)
    first = pixels(page, "#now")
    page.get_by_role("button", name="New tissue").click()
    settled(page)
    assert "seed=0&" not in page.url and not np.array_equal(pixels(page, "#now"), first)


def test_the_download_says_what_it_is(page: Page, trained: Path, tmp_path: Path) -> None:
    opened(page, "/?seed=8&a.mitosis=2.5&na.nucleoli=1&truncation=1.2")
    with page.expect_download() as loading:
        page.get_by_role("link", name="Download PNG").click()
    loading.value.save_as(tmp_path / "tile.png")
    with Image.open(tmp_path / "tile.png") as image:
        texts, tile = image.text, np.asarray(image)  # type: ignore[attr-defined]
    levels = {"cell_crowding": 2, "cell_polarity": 2, "mitosis": 2.5, "nucleoli": 0, "pleomorphism": 2}
    assert json.loads(texts["attributegan:levels"]) == levels and texts["attributegan:seed"] == "8"
    assert json.loads(texts["attributegan:latent"])["truncation"] == 1.2
    identity = model.load(trained).identity
    assert json.loads(texts["attributegan:model"]) == {"name": "phantoms", "checkpoint": identity, "images": 32}
    assert "not for diagnosis" in texts["Disclaimer"] and identity in loading.value.suggested_filename
    assert close(tile, drawn(trained, texts["attributegan:link"]))


def test_rows_and_grids_lead_to_their_tiles(page: Page) -> None:
    opened(page)
    page.locator("#sweep-attribute").select_option("mitosis")
    tiles = page.locator("#sweep button")
    expect(tiles).to_have_count(3)
    page.get_by_role("button", name="Mitosis frequent", exact=True).click()
    expect(page.get_by_role("slider", name="Mitosis")).to_have_value("3")
    expect(tiles.nth(2)).to_have_class(re.compile(r"\bon\b"))
    page.get_by_text("Two attributes, all levels").click()
    cells = page.locator("#grid button")
    expect(cells).to_have_count(16)
    expect(cells.last.locator("img")).to_have_attribute("src", re.compile("^blob:"))
    cells.first.click()
    expect(page.get_by_role("slider", name="Cell crowding")).to_have_value("1")
    expect(page.get_by_role("slider", name="Pleomorphism")).to_have_value("1")
    expect(cells.first).to_be_focused()


def test_a_reading_stands_beside_what_was_asked(page: Page) -> None:
    opened(page, "/?a.cell_crowding=3.5&na.mitosis=1")
    row = page.locator("#predictions tr", has_text="Cell crowding").locator("td")
    expect(row.nth(0)).to_have_text(re.compile(r"^3\.5 · "))
    expect(row.nth(1)).to_have_text(re.compile(r"^\d\.\d · (normal|mild|moderate|severe)$"))
    unclear = page.locator("#predictions tr", has_text="Mitosis").locator("td")
    expect(unclear.nth(0)).to_have_text("not assessable")
    expect(page.get_by_text("The predictor was trained on 77 real tiles")).to_be_visible()
    near = page.locator("#nearest img")
    expect(near).to_have_count(4)
    expect(near.last).to_have_attribute("src", re.compile("^blob:"))
    expect(near.first).to_have_attribute("alt", re.compile("^Real tile. Cell crowding: "))


def test_a_round_of_the_quiz(page: Page, trained: Path) -> None:
    schema = model.load(trained).generator.schema
    page.goto("/quiz")
    expect(page.get_by_role("radio").first).to_be_visible()
    with page.expect_response(re.compile("/quiz/question")) as asked:
        page.get_by_label("Ask about").select_option("mitosis")
    number = asked.value.json()["round"]
    expect(page.locator("#question")).to_have_attribute("aria-busy", "false")  # the first tile may have asked about mitosis too
    expect(page.get_by_role("group", name="Mitosis of this tile?")).to_be_visible()
    level = int(quiz.state_of(schema, number, 32).levels[2])
    choices = page.get_by_role("radio")
    expect(choices).to_have_count(3)
    choices.nth(level - 1).check()
    page.get_by_role("button", name="Answer").click()
    name = schema.attributes[2].levels[level]
    expect(page.locator("#verdict")).to_have_text(re.compile(rf"^Right: mitosis is {name} \({level}\)\. Predicted level: \d\.\d\.$"))
    expect(page.locator("#score")).to_have_text("1 of 1")
    expect(page.locator("#levels .on")).to_have_text(name)
    with page.expect_response(re.compile("/quiz/question")) as asked:
        page.get_by_role("button", name="Next tile").click()
    level = int(quiz.state_of(schema, asked.value.json()["round"], 32).levels[2])
    expect(page.locator("#verdict")).to_be_empty()
    choices.nth(level % 3).check()  # another one
    page.keyboard.press("Enter")
    expect(page.locator("#verdict")).to_have_text(re.compile("^Not quite"))
    expect(page.locator("#score")).to_have_text("1 of 2")
    page.get_by_role("link", name="Open this tile").click()
    expect(page.get_by_role("slider", name="Mitosis")).to_have_value(str(level))


def test_a_bad_link_gets_a_message_and_the_rest_of_it(page: Page) -> None:
    opened(page, "/?a.mitosis=9&seed=<b>7&mix=2&a.pleomorphism=4&model=other")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("a.mitosis: mitosis has the levels 0 (insufficient information), 1 (rare)")
    expect(alert).to_contain_text("seed: “<b>7” is not a valid seed")
    expect(alert).to_contain_text("mix: “2” is not a number from 0 to 1")
    expect(alert).to_contain_text("made with another model")
    expect(page.get_by_role("slider", name="Pleomorphism")).to_have_value("4")
    expect(page.get_by_role("slider", name="Mitosis")).to_have_value("2")
    page.get_by_role("slider", name="Mitosis").press("3")
    expect(alert).to_be_hidden()
    page.get_by_label("Seed", exact=True).fill("-1")
    expect(alert).to_contain_text("Seed: ")


def test_a_complaint_is_seen_from_anywhere_and_goes_with_its_reason(browser: Browser, explorer: Served) -> None:
    context = browser.new_context(base_url=explorer.address, viewport=PHONE)  # type: ignore[arg-type]
    page = opened(context.new_page(), "/?seed=7&mix=2&size=x")
    alert, seed = page.get_by_role("alert"), page.get_by_label("Seed", exact=True)
    assert alert.inner_text().splitlines()[0].startswith("mix: ") and alert.inner_text().splitlines()[1].startswith("size: ")
    seed.fill("-1")
    expect(alert).to_contain_text("Seed: ")
    expect(alert).to_be_in_viewport()
    seed.fill("7")  # the tile that is still shown
    expect(alert).to_be_hidden()
    context.close()


def test_keys_of_the_browser_and_moves_to_the_same_place_are_no_moves(page: Page) -> None:
    opened(page)
    slider, status = page.get_by_role("slider", name="Mitosis"), page.get_by_role("status").filter(has_text="pixels changed")
    slider.press("3")
    expect(status).to_be_visible()
    slider.press("Control+1")
    slider.press("3")
    page.get_by_role("button", name="Pleomorphism mild", exact=True).click()
    page.get_by_text("Skip to the content").press("Enter")
    page.wait_for_url(re.compile("#main$"))
    expect(slider).to_have_value("3")
    page.get_by_label("Size").select_option("64")  # which redraws both tiles
    expect(page.locator("#before")).to_have_attribute("data-query", re.compile("a.mitosis=2&.*size=64"))
    settled(page)


def test_visitors_do_not_mix(browser: Browser, explorer: Served, trained: Path) -> None:
    contexts = [browser.new_context(base_url=explorer.address) for _ in range(3)]
    visitors = [context.new_page() for context in contexts]
    for visitor in visitors:
        visitor.goto("/")
    for level in ("3", "1", "4"):
        for number, visitor in enumerate(visitors):
            visitor.get_by_label("Seed", exact=True).fill(str(number))
            visitor.get_by_role("slider", name="Cell crowding").press(level)
    for number, visitor in enumerate(visitors):
        visitor.wait_for_url(re.compile(rf"a\.cell_crowding=4.*seed={number}"))
        settled(visitor)
        assert close(pixels(visitor, "#now"), drawn(trained, visitor.url))
    for context in contexts:
        context.close()


def test_an_answer_counts_once_and_for_its_own_tile(page: Page) -> None:
    page.goto("/quiz")
    page.get_by_role("radio").first.check()
    page.evaluate("for (let k = 0; k < 3; k++) document.getElementById('question').requestSubmit()")
    expect(page.locator("#verdict")).not_to_be_empty()
    expect(page.locator("#score")).to_have_text(re.compile("of 1$"))
    expect(page.get_by_role("button", name="Next tile")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("radio").first).to_be_focused()  # within the group that is named by the question
    page.keyboard.press("Space")
    held: list[Route] = []
    page.route("**/quiz/answer?*", lambda route: held.append(route))
    page.get_by_role("button", name="Answer").click()
    with page.expect_response(re.compile("/quiz/tile.png")):
        page.get_by_role("button", name="Next tile").click()
    expect(page.get_by_role("button", name="Answer")).to_be_enabled()
    for route in held:
        route.fulfill(json={"right": True, "off": 0, "level": 1, "name": "late", "predicted": None, "link": ""})
    page.unroute("**/quiz/answer?*")
    page.get_by_role("radio").first.check()
    page.get_by_role("button", name="Answer").click()
    expect(page.locator("#score")).to_have_text(re.compile("of 2$"))
    expect(page.locator("#verdict")).not_to_contain_text("late")


@pytest.fixture(scope="module")
def wordy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A model with many attributes and levels with long names."""
    folder = tmp_path_factory.mktemp("wordy")
    attributes = {
        "differentiation_of_the_glands_as_the_second_reader_saw_it": [
            "poorly differentiated",
            "moderately differentiated",
            "well differentiated",
        ],
        "only_one": ["unclear", "there"],
        "grade": [f"grade {level}" for level in range(12)],
    }
    AttributeGenerator(
        {"image_size": 32, "latent_dim": 16, "fmap_max": 16, "generator_attention": []},
        [{"name": name, "levels": levels, "not_assessable": 0 if name == "only_one" else None} for name, levels in attributes.items()],
    ).save_pretrained(folder)
    with served(folder) as found:
        yield found


@pytest.mark.parametrize("width", [320, 390, 1280])
@pytest.mark.parametrize("path", ["/", "/quiz"])
def test_long_names_stay_in_their_places(browser: Browser, wordy: Served, path: str, width: int) -> None:
    context = browser.new_context(base_url=wordy.address, viewport={"width": width, "height": 800})
    page = context.new_page()
    page.goto(path)
    expect(page.locator("#now, #tile")).to_have_attribute("src", re.compile("^blob:"))
    assert page.evaluate("document.documentElement.scrollWidth") == width
    crossing = page.evaluate(
        """() => [...document.querySelectorAll(".ticks button + button")].filter((one) => { const range = document.createRange();
        const box = (tick) => { range.selectNodeContents(tick); return range.getBoundingClientRect() };
        return box(one.previousElementSibling).right > box(one).left }).map((one) => one.textContent)"""
    )
    assert crossing == []
    context.close()


@pytest.mark.parametrize("path", ["/", "/quiz"])
def test_a_phone_needs_no_scrolling_sideways(browser: Browser, explorer: Served, path: str) -> None:
    context = browser.new_context(base_url=explorer.address, viewport=PHONE)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(path)
    if path == "/":
        expect(page.locator("#nearest img")).to_have_count(4)
        for part in page.locator("summary").all():
            part.click()
        expect(page.locator("#grid button")).to_have_count(16)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    context.close()


@pytest.mark.parametrize("path", ["/", "/quiz"])
def test_everything_has_a_name_and_the_keyboard_reaches_it(page: Page, path: str) -> None:
    page.goto(path)
    expect(page.locator("#now, #tile")).to_have_attribute("src", re.compile("^blob:"))
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("input, select, button, a")].filter((one) => one.offsetParent &&
        !(one.labels?.length || one.textContent.trim() || one.getAttribute("aria-label"))).map((one) => one.outerHTML)"""
    )
    pictures = page.evaluate("[...document.querySelectorAll('img')].filter((one) => !one.alt && !one.closest('button')).length")
    assert nameless == [] and pictures == 0
    for name in ("Mitosis", "Nucleoli") if path == "/" else ():
        expect(page.get_by_role("checkbox", name=re.compile(f"^Not assessable.*{name}$"))).to_have_count(1)
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the content")).to_be_focused()
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    wanted = {"seed", "new", "mix", "size", "download", "copy", "hold", "a-mitosis"} if path == "/" else {"about", "answer", "next"}
    assert wanted <= reached


def test_every_text_is_there_without_a_script(explorer: Served) -> None:
    with urlopen(explorer.address, timeout=seconds(30)) as answer:
        text = answer.read().decode()
    assert "Not for diagnosis" in text and "Model card" in text and "AttributeGAN generator, 32 px" in text
    with urlopen(f"{explorer.address}/tile.png?seed=1", timeout=seconds(30)) as answer:
        assert Image.open(io.BytesIO(answer.read())).size == (32, 32)
