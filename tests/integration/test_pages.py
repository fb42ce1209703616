"""The page's files: who may read them, how they are cached, what they may load."""

from collections.abc import Iterator

import httpx
import pytest

from lightvl.testing.server import ServerProcess


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with (
        ServerProcess("--api_key", "k", "--media_workers", "1") as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        yield client


def test_the_page_needs_no_key(http: httpx.Client) -> None:
    page = http.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for name, kind in (("app.js", "text/javascript"), ("style.css", "text/css")):
        assert f'"static/{name}"' in page.text
        file = http.get(f"/static/{name}")
        assert file.status_code == 200
        assert file.headers["content-type"].startswith(kind)
    assert http.head("/").headers["content-length"] == page.headers["content-length"]
    assert http.post("/", json={"inputs": "a"}).status_code == 401
    assert http.get("/static/nothing.js").status_code == 404
    for path in ("/static/../metrics", "/static/%2e%2e/metrics", "/static/..%2fmetrics"):
        assert http.get(path).status_code in (401, 404)
    key = {"Authorization": "Bearer k"}
    assert http.post("/", json={"inputs": "a"}, headers=key).status_code == 200
    assert http.put("/", headers=key).status_code == 405


def test_the_page_loads_nothing_from_elsewhere(http: httpx.Client) -> None:
    for path in ("/", "/static/app.js"):
        headers = http.get(path).headers
        policy = dict(
            directive.strip().split(" ", 1)
            for directive in headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


def test_an_unchanged_file_is_not_sent_again(http: httpx.Client) -> None:
    first = http.get("/static/app.js")
    tag = first.headers["etag"]
    again = http.get("/static/app.js", headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == tag
    other = http.get("/static/app.js", headers={"If-None-Match": '"other"'})
    assert other.content == first.content
