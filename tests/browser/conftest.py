"""One browser for all tests of the page."""

from collections.abc import Iterator

import pytest
from selenium import webdriver

from lightvl.testing.server import ENGINE, ServerProcess
from tests.browser import chromium


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    if not chromium.is_there():
        pytest.skip(chromium.MISSING)
    with chromium.browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="session")
def server(driver: webdriver.Chrome) -> Iterator[ServerProcess]:
    """The engine with the demo model."""
    environment = {"OMP_NUM_THREADS": "1"}
    arguments = ("--model_name", "demo", "--max_total_token_num", "16384")
    with ServerProcess(*arguments, engine=ENGINE, environment=environment) as started:
        yield started


@pytest.fixture
def page(driver: webdriver.Chrome, server: ServerProcess) -> Iterator[chromium.Page]:
    """The page, opened anew; the test fails if the browser has anything to complain of."""
    page = chromium.Page(driver, server.url)
    page.look()
    page.open()
    page.console()
    page.requested()
    yield page
    assert page.console() == []
