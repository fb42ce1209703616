"""The web page in a real Chromium, with the engine and the demo model behind it."""

import itertools
import os
import time
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from selenium.webdriver.common.keys import Keys

from tests.browser.chromium import Page

ROOT = Path(__file__).resolve().parents[2]
TIMES = "\N{MULTIPLICATION SIGN}"
FACE = ROOT / "examples/face.png"
STAGES = [
    "fetch", "prepare", "queue", "image_decode", "preprocess", "vision", "prefill", "decode",
]  # fmt: skip


NUMBERS = itertools.count(1)


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """A red circle and a blue square, wide enough for 2 x 1 tiles; no two files are equal."""
    path = tmp_path / "shapes.png"
    picture = Image.new("RGB", (600, 300), "white")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((50, 60, 230, 240), fill=(220, 30, 30))
    draw.rectangle((350, 60, 530, 240), fill=(30, 60, 200))
    picture.save(path)
    with path.open("ab") as file:
        file.write(bytes(next(NUMBERS)))  # decoders stop before it
    return path


def stages(page: Page) -> list[str]:
    """The stages of the last answer's bar."""
    parts = page.all(".turn:last-child .bar .stage")
    return [(part.get_dom_attribute("class") or "").removeprefix("stage ") for part in parts]


def test_a_question_about_a_dropped_picture(page: Page, shapes: Path) -> None:
    page.find("#temperature").send_keys("0")
    page.drop(shapes)
    assert page.wait("#attached img").get_dom_attribute("alt") == "shapes.png"
    page.ask("Describe the picture.")
    assert page.answered() == "A red circle and a blue square."
    assert page.texts("figcaption span") == [
        f"600 {TIMES} 300 px", f"2 {TIMES} 1 tiles + overview", "192 tokens", "computed",
    ]  # fmt: skip
    assert [len(page.all(f".grid .{kind}")) for kind in ("column", "row")] == [1, 0]
    middle = page.driver.execute_script(
        "const box = (e) => e.getBoundingClientRect();"
        "const frame = box(document.querySelector('.frame img'));"
        "const line = box(document.querySelector('.grid .column'));"
        "return (line.x + line.width / 2 - frame.x) / frame.width"
    )
    assert middle == pytest.approx(0.5, abs=0.01)
    assert stages(page) == STAGES
    assert "tokens/s" in page.find(".numbers").text
    label = page.find(".bar").get_dom_attribute("aria-label") or ""
    assert "vision tower" in label
    assert "prefill" in label
    # Asked again, the picture is cached and nothing of it is computed.
    page.find(".retry").click()
    assert page.answered() == "A red circle and a blue square."
    assert page.texts("figcaption .badge") == ["cached"]
    assert stages(page) == ["fetch", "prepare", "queue", "prefill", "decode"]
    assert len(page.all(".turn.assistant")) == 1
    # What was said is part of the next question, and its picture isn't sent twice as a new one.
    page.ask("What color is it?")
    assert page.answered()
    assert len(page.all(".turn")) == 4
    assert {url.removeprefix("blob:").startswith(page.url) for url in page.requested()} == {True}


def test_pictures_chosen_pasted_and_removed(page: Page) -> None:
    page.choose(FACE)
    page.paste(FACE)
    assert len(page.all("#attached img")) == 2
    page.find("#attached [aria-label='Remove face.png']").click()
    assert [i.get_dom_attribute("alt") for i in page.all("#attached img")] == ["image.png"]
    page.find("#temperature").send_keys("0")
    page.ask("What is this?")
    assert page.answered() == "This is a slightly smiling face."
    assert not page.find("#attached").is_displayed()
    assert len(page.all(".turn.user figure")) == 1
    page.find("#clear").click()
    assert page.texts(".turn") == []
    assert page.find("#empty").is_displayed()


def test_what_is_no_picture_is_left_out(page: Page, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    page.drop(text)
    assert page.wait("#note").text.endswith("1 file left out: no picture.")
    page.find("#text").send_keys(Keys.ENTER)
    assert "Type a question" in page.find("#note").text
    assert page.texts(".turn") == []


def test_the_server_is_asked_for_its_load_only_while_somebody_looks(page: Page) -> None:
    page.ask("Hello")
    page.answered()
    assert not [url for url in page.requested() if "/metrics" in url]
    page.find("#live summary").click()
    rows = page.wait("#live dl")
    page.wait_for(lambda: "Tokens a second\n0" in rows.text)
    assert len([url for url in page.requested() if "/metrics" in url]) >= 2
    shown = dict(zip(page.texts("#live dt"), page.texts("#live dd"), strict=True))
    assert shown["Running"] == "0"
    assert shown["First token, mean"].endswith("ms")
    page.find("#panel-button").click()
    page.requested()
    time.sleep(2.5)
    assert not [url for url in page.requested() if "/metrics" in url]


def test_a_wrong_setting_is_pointed_at(page: Page) -> None:
    page.find("#top_p").send_keys("7")
    page.ask("Hello")
    assert page.texts(".turn") == []
    assert page.driver.switch_to.active_element == page.find("#top_p")
    page.find("#top_p").clear()
    page.find("#max_completion_tokens").send_keys("1")
    page.find("#send").click()
    page.answered()
    assert "Cut at the longest length allowed." in page.find(".below").text


def test_the_keyboard_alone(page: Page) -> None:
    def press(key: str) -> str:
        page.driver.switch_to.active_element.send_keys(key)
        return page.driver.switch_to.active_element.get_dom_attribute("id") or ""

    assert page.driver.switch_to.active_element == page.find("#text")
    assert press("Hello") == "text"
    assert [press(Keys.TAB), press(Keys.TAB)] == ["choose", "send"]
    press(Keys.ENTER)
    page.answered()
    assert "Answer: " in (str(page.find("#status").get_property("textContent")))  # said once, whole
    page.look(phone=True)
    button = page.find("#panel-button")
    assert button.get_dom_attribute("aria-expanded") == "false"
    button.send_keys(Keys.ENTER)
    assert button.get_dom_attribute("aria-expanded") == "true"
    page.find("#temperature").send_keys(Keys.ESCAPE)
    assert page.driver.switch_to.active_element == button
    assert not page.find("#panel").is_displayed()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("phone", [False, True], ids=["wide", "phone"])
def test_looks_and_accessibility(
    page: Page, shapes: Path, tmp_path: Path, dark: bool, phone: bool
) -> None:
    page.look(dark=dark, phone=phone)
    page.open()
    assert page.find("#shoot").is_displayed() == phone
    assert page.violations() == []  # nothing asked yet
    if phone:
        page.find("#panel-button").click()
    page.find("#temperature").send_keys("0")
    page.find("#live summary").click()
    if phone:
        assert page.violations() == []  # the panel over the page
        page.find("#panel-button").click()
    page.choose(shapes)
    page.ask("Describe the picture.")
    assert page.answered() == "A red circle and a blue square."
    if not phone:
        page.ask("What color is the square?")
        page.answered()
        graph = page.find(".graph polyline")
        page.wait_for(lambda: (graph.get_dom_attribute("points") or "").count(",") > 2)
    width = page.driver.execute_script("return document.documentElement.scrollWidth")
    assert width <= (390 if phone else 1200)
    page.choose(FACE)
    page.wait("#attached img")
    assert page.violations() == []
    page.find("#attached .remove").click()
    # LIGHTVL_SCREENSHOTS=docs/images writes the pictures that the documents show.
    folder = Path(os.environ.get("LIGHTVL_SCREENSHOTS", tmp_path)).absolute()
    shot = folder / f"page-{'phone' if phone else 'wide'}-{'dark' if dark else 'light'}.png"
    page.picture(shot)
    assert shot.stat().st_size > 10_000
    motion = page.driver.execute_script(
        "document.querySelector('.turn:last-child').classList.add('writing');"
        "const text = document.querySelector('.turn:last-child .text > :last-child');"
        "return getComputedStyle(text, '::after').animationName"
    )
    assert motion == ("none" if phone else "blink")


def test_the_description_of_the_routes(page: Page) -> None:
    page.driver.get(page.url + "/docs")
    assert "POST /v1/responses" in page.find("table").text
    page.find("a[href='#ResponsesBody']").click()
    assert page.find("#ResponsesBody").text == "ResponsesBody"
    assert page.violations() == []
    assert {url.startswith(page.url) for url in page.requested()} == {True}
