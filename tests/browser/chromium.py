"""A headless Chromium of the distribution, for tests of the page."""

import base64
import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

AXE = Path(str(files("axe_core_python").joinpath("axe.min.js")))
MISSING = "needs Chromium: apt-get install --no-install-recommends chromium chromium-driver"

_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--force-device-scale-factor=1",
)


def is_there() -> bool:
    """Whether Chromium and its driver are installed."""
    return shutil.which("chromium") is not None and shutil.which("chromedriver") is not None


class Page:
    """The page in a browser, as a person uses it."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self.driver = driver
        self.url = url

    def open(self) -> None:
        """Loads the page anew, with nothing kept from before."""
        self.driver.get(self.url)
        self.driver.execute_script("sessionStorage.clear()")
        self.driver.get(self.url)

    def look(
        self, *, width: int = 1200, height: int = 960, dark: bool = False, phone: bool = False
    ) -> None:
        """Sets the window's size, the colors that the person likes, and fingers for a mouse."""
        if phone:
            width, height = 390, 844
        features = {
            "prefers-color-scheme": "dark" if dark else "light",
            "prefers-reduced-motion": "reduce" if phone else "no-preference",
        }
        self._emulate(
            "setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=phone,
        )  # fmt: skip
        self._emulate("setTouchEmulationEnabled", enabled=phone)
        media = [{"name": name, "value": value} for name, value in features.items()]
        self._emulate("setEmulatedMedia", features=media)

    def find(self, selector: str) -> WebElement:
        """Returns the first element."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        """Returns all elements."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """Returns the texts of all elements."""
        return [element.text for element in self.all(selector)]

    def wait(self, selector: str, seconds: float = 20.0) -> WebElement:
        """Waits until an element is seen and returns it."""
        waiting: Any = WebDriverWait(self.driver, seconds, 0.05)
        found: WebElement = waiting.until(
            lambda _: next((e for e in self.all(selector) if e.is_displayed()), False)
        )
        return found

    def wait_for(self, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        """Waits until a condition holds."""
        waiting: Any = WebDriverWait(self.driver, seconds, 0.05)
        waiting.until(lambda _: condition())

    def ask(self, question: str) -> None:
        """Types a question and sends it by Enter."""
        self.find("#text").send_keys(question + "\n")

    def answered(self) -> str:
        """Waits for the end of the answer and returns its text."""
        self.wait(".turn:last-child .retry")
        return self.find(".turn:last-child .text").text

    def choose(self, *paths: Path) -> None:
        """Chooses files in the file dialog."""
        self.find("#files").send_keys("\n".join(map(str, paths)))

    def drop(self, path: Path) -> None:
        """Drops a file from outside on the page."""
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            event = {"type": kind, "x": 300, "y": 300, "data": data}
            self.driver.execute_cdp_cmd("Input.dispatchDragEvent", event)

    def paste(self, path: Path) -> None:
        """Pastes a picture."""
        self.driver.execute_script(
            """
            const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
            const data = new DataTransfer();
            data.items.add(new File([bytes], "image.png", { type: "image/png" }));
            const event = new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
            document.getElementById("text").dispatchEvent(event);
            """,
            base64.b64encode(path.read_bytes()).decode(),
        )

    def violations(self) -> list[str]:
        """Returns what axe finds wrong, a line each."""
        self.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": AXE.read_text()})
        found = self.driver.execute_async_script(
            "axe.run().then((result) => arguments[0](result.violations))"
        )
        return [
            f"{v['id']}: {v['help']}: {[n['target'] + [n['failureSummary']] for n in v['nodes']]}"
            for v in found
        ]

    def console(self) -> list[str]:
        """Returns the browser's warnings and errors since the last call."""
        entries = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [e["message"] for e in entries if e["level"] in ("WARNING", "SEVERE")]

    def requested(self) -> list[str]:
        """Returns the addresses that were asked for since the last call."""
        entries = self.driver.get_log("performance")  # type: ignore[no-untyped-call]
        events = [json.loads(entry["message"])["message"] for entry in entries]
        return [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]

    def picture(self, path: Path) -> None:
        """Writes a screenshot, in few colors so that the file is small."""
        shot = Image.open(io.BytesIO(self.driver.get_screenshot_as_png())).convert("RGB")
        shot.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)

    def _emulate(self, what: str, **arguments: object) -> None:
        self.driver.execute_cdp_cmd(f"Emulation.{what}", arguments)


@contextmanager
def browser(profile: Path) -> Iterator[webdriver.Chrome]:
    """Runs a browser with a new profile in a directory."""
    options = Options()
    for flag in _FLAGS:
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    executor: Any = driver.command_executor
    executor.client_config.timeout = 30  # seconds, of one command
    driver.set_page_load_timeout(20)
    driver.set_script_timeout(20)
    try:
        yield driver
    finally:
        driver.quit()
