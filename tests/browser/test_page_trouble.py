"""The page when things go wrong or take long, with the stub engine that echoes the prompt."""

from collections.abc import Iterator

import httpx
import pytest
from selenium import webdriver

from lightvl.testing.server import STUB, ServerProcess
from tests.browser.chromium import Page

KEY = "a-secret-key"


@pytest.fixture(scope="module")
def locked(driver: webdriver.Chrome) -> Iterator[ServerProcess]:
    """A slow server with a key."""
    arguments = ("--api_key", KEY, "--model_name", "stub", "--media_workers", "1")
    with ServerProcess(*arguments, engine=f"{STUB} --step-ms 20") as started:
        yield started


@pytest.fixture
def page(driver: webdriver.Chrome, locked: ServerProcess) -> Page:
    page = Page(driver, locked.url)
    page.look()
    page.open()
    return page


def enter_key(page: Page, key: str) -> None:
    page.find("#access summary").click()
    page.find("#key").send_keys(key + "\n")


def test_a_missing_key_is_asked_for(page: Page) -> None:
    page.ask("Hello")
    page.answered()
    assert "API key is missing or unknown" in page.wait(".error").text
    page.find(".below button").click()
    assert page.driver.switch_to.active_element == page.find("#key")
    page.find("#key").send_keys(KEY)
    page.find(".retry").click()
    assert page.answered().startswith("system")
    assert page.texts(".turn .error") == []
    assert page.find("#model").text == "stub"
    stored = page.driver.execute_script("return [localStorage.length, sessionStorage.key]")
    assert stored[0] == 0
    page.driver.switch_to.new_window("tab")
    page.driver.get(page.url)
    assert page.find("#key").get_property("value") == ""  # another tab doesn't know it
    page.driver.close()
    page.driver.switch_to.window(page.driver.window_handles[0])
    assert "unknown" not in " ".join(page.texts(".below"))


def test_stop_and_retry(page: Page, locked: ServerProcess) -> None:
    enter_key(page, KEY)
    page.console()  # the first question for the model's name had no key
    page.find("#system").send_keys("one two three four five six seven eight nine ten " * 20)
    page.ask("Hello")
    page.wait(".turn.writing")
    assert not page.find("#send").is_displayed()
    page.wait_for(lambda: "three" in page.find(".turn:last-child .text").text)
    page.find("#stop").click()
    stopped = page.answered()
    assert stopped.startswith("system\none two three")
    assert "Stopped." in page.find(".below").text
    assert page.find("#send").is_displayed()
    headers = {"Authorization": f"Bearer {KEY}"}
    metrics = httpx.get(locked.url + "/metrics", headers=headers).text
    assert "lightvl:num_requests_running 0.0" in metrics
    page.find("#system").clear()
    page.find("#system").send_keys("short")
    page.find(".retry").click()
    assert page.answered() == "system\nshort"
    assert len(page.all(".turn")) == 2
    assert page.console() == []


PARSE = """
const [text, size, done] = arguments;
const bytes = new TextEncoder().encode(text);
const body = new ReadableStream({
  start(controller) {
    for (let i = 0; i < bytes.length; i += size) controller.enqueue(bytes.slice(i, i + size));
    controller.close();
  },
});
import("/static/sse.js").then(async ({ readEvents }) => {
  const events = [];
  for await (const data of readEvents(body)) events.push(data);
  done(events);
});
"""


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_events_are_read_however_they_are_cut(page: Page, end: str, size: int) -> None:
    lines = (
        "data: one", "", ":a comment", "data:zwei \u00fc\U0001f642", "", "event: x",
        "data: two", "data: lines", "", "", "id: 7", "", "data: cut off by the end",
    )  # fmt: skip
    found = page.driver.execute_async_script(PARSE, end.join(lines), size)
    assert found == ["one", "zwei \u00fc\U0001f642", "two\nlines"]


def test_text_is_text(page: Page) -> None:
    enter_key(page, KEY)
    evil = "<img src=x onerror=alert(1)><b>bold</b>"
    page.find("#system").send_keys(evil)
    page.ask(evil)
    assert page.answered() == f"system\n{evil}"
    assert page.find(".turn.user .text").text == evil
    assert page.all(".turn img, .turn b") == []


def test_a_server_that_is_gone(driver: webdriver.Chrome) -> None:
    with ServerProcess("--media_workers", "1") as server:
        page = Page(driver, server.url)
        page.look()
        page.open()
    page.ask("Hello")
    page.answered()
    assert "can't be reached" in page.wait(".turn .error").text
    page.console()  # it complains of the connection


def test_a_bad_picture(page: Page, tmp_path_factory: pytest.TempPathFactory) -> None:
    bad = tmp_path_factory.mktemp("bad") / "bad.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    enter_key(page, KEY)
    page.choose(bad)
    page.ask("What is this?")
    page.answered()
    assert "images[0]" in page.wait(".turn .error").text
    page.console()  # it complains of the 400
    page.find("#text").send_keys("Hello")
    page.find("#send").click()
    assert page.answered()  # the bad picture isn't sent again
