"""The fetcher against servers on loopback, with names resolved by the tests."""

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiodns
import httpcore2
import pytest

from lightvl.multimodal import fetch
from lightvl.multimodal.fetch import Fetcher, FetchRules
from lightvl.multimodal.sources import SourceError
from tests.unit.http_server import BODY, ok, redirect, serving

RULES = FetchRules(max_bytes=100_000, allow_private=True, timeout_s=10.0)


@asynccontextmanager
async def fetching(rules: FetchRules = RULES) -> AsyncIterator[Fetcher]:
    fetcher = Fetcher(rules)
    try:
        yield fetcher
    finally:
        await fetcher.close()


async def get(fetcher: Fetcher, url: str, room_bytes: int = 100_000) -> bytes:
    source = await fetcher.open(url)
    room = bytearray(room_bytes)
    count = await source.read_into(memoryview(room))
    return bytes(room[:count])


def run(test: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(test, 60)
        await asyncio.sleep(0)

    asyncio.run(limited())


async def refused(awaitable: Awaitable[object]) -> str:
    with pytest.raises(SourceError) as caught:
        await awaitable
    for secret in ("127.0", "10.", "localhost", ".example", "Errno", "Connect"):
        assert secret not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """A resolver: names and their addresses; lookups are noted under `"#name"`."""
    table: dict[str, list[str]] = {}

    async def addresses(resolver: aiodns.DNSResolver, host: str) -> list[str]:
        table.setdefault(f"#{host}", []).append("asked")
        if host not in table:
            raise aiodns.error.DNSError
        return table[host]

    monkeypatch.setattr(fetch, "_addresses", addresses)
    return table


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every address that a connection is opened to; each leads to loopback instead."""
    seen: list[str] = []
    connect = httpcore2.AnyIOBackend.connect_tcp

    async def to_loopback(self: Any, host: str, *args: Any, **kwargs: Any) -> Any:
        seen.append(host)
        return await connect(self, "127.0.0.1", *args, **kwargs)

    monkeypatch.setattr(httpcore2.AnyIOBackend, "connect_tcp", to_loopback)
    return seen


def test_a_picture_is_fetched_and_its_length_known_before() -> None:
    async def test() -> None:
        async with serving(lambda *_: ok()) as server, fetching() as fetcher:
            source = await fetcher.open(f"http://127.0.0.1:{server.port}/a.png?b=c")
            assert source.num_bytes == len(BODY)
            room = bytearray(len(BODY))
            assert await source.read_into(memoryview(room)) == len(BODY)
            assert room == BODY
            ((path, headers),) = server.requests
            assert path == "/a.png?b=c"
            assert headers["host"] == f"127.0.0.1:{server.port}"
            assert headers["accept-encoding"] == "identity"

    run(test())


def test_connections_are_kept_alive() -> None:
    async def test() -> None:
        async with serving(lambda *_: ok()) as server, fetching() as fetcher:
            for _ in range(5):
                assert await get(fetcher, f"http://127.0.0.1:{server.port}/") == BODY
            assert server.num_connections == 1

    run(test())


def test_a_length_that_is_not_told() -> None:
    async def test() -> None:
        chunk = f"{len(BODY):x}\r\n".encode() + BODY + b"\r\n0\r\n\r\n"
        answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk
        async with serving(lambda *_: answer) as server, fetching() as fetcher:
            source = await fetcher.open(f"http://127.0.0.1:{server.port}/")
            assert source.num_bytes is None
            room = bytearray(len(BODY) + 5)
            assert await source.read_into(memoryview(room)) == len(BODY)
            small = await fetcher.open(f"http://127.0.0.1:{server.port}/")
            text = await refused(small.read_into(memoryview(bytearray(len(BODY) - 1))))
            assert text == "is larger than the 100000 bytes allowed"

    run(test())


@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.1:{}/", "http://localhost:{}/", "http://2130706433:{}/"),
        *("http://0x7f.1:{}/", "http://127.1:{}/", "http://[::ffff:127.0.0.1]:{}/"),
        *("http://0.0.0.0:{}/", "http://0:{}/", "http://[::]:{}/"),
    ],
)
def test_loopback_is_refused_in_every_spelling(url: str) -> None:
    async def test() -> None:
        rules = FetchRules(max_bytes=100_000)
        async with serving(lambda *_: ok()) as server, fetching(rules) as fetcher:
            text = await refused(fetcher.open(url.format(server.port)))
            assert text == "can't be fetched: its host has no address that may be used"
            assert server.num_connections == 0

    run(test())


def test_a_name_that_does_not_exist_looks_the_same_as_a_private_one(
    names: dict[str, list[str]],
) -> None:
    async def test() -> None:
        names["private.example"] = ["10.0.0.1"]
        async with fetching(FetchRules(max_bytes=1)) as fetcher:
            unknown = await refused(fetcher.open("http://unknown.example/"))
            assert unknown == await refused(fetcher.open("http://private.example/"))

    run(test())


def test_the_connection_goes_to_the_address_that_was_checked(
    names: dict[str, list[str]], dialled: list[str]
) -> None:
    """Also when the name changes its mind between two lookups."""

    async def test() -> None:
        names["rebind.example"] = ["10.0.0.1", "8.8.8.8"]
        async with serving(lambda *_: ok()) as server, fetching(FetchRules(max_bytes=99999)) as f:
            assert await get(f, f"http://rebind.example:{server.port}/") == BODY
            names["rebind.example"] = ["127.0.0.1"]
            assert await get(f, f"http://rebind.example:{server.port}/") == BODY
            assert dialled == ["8.8.8.8"]
            assert names["#rebind.example"] == ["asked"]
            assert server.requests[0][1]["host"] == f"rebind.example:{server.port}"

    run(test())


def test_the_next_address_is_tried(names: dict[str, list[str]]) -> None:
    async def test() -> None:
        names["two.example"] = ["127.9.9.9", "127.0.0.1"]
        async with serving(lambda *_: ok()) as server, fetching() as fetcher:
            assert await get(fetcher, f"http://two.example:{server.port}/") == BODY

    run(test())


def test_every_hop_is_checked(names: dict[str, list[str]], dialled: list[str]) -> None:
    async def test() -> None:
        names.update({"good.example": ["8.8.8.8"], "evil.example": ["169.254.169.254"]})
        rules = FetchRules(max_bytes=100_000)
        for target in (
            "http://evil.example/",
            "http://127.0.0.1/",
            "file:///etc/passwd",
            "//[::1]",
        ):
            answer = redirect(target)
            async with serving(lambda *_, a=answer: a) as server, fetching(rules) as fetcher:
                await refused(fetcher.open(f"http://good.example:{server.port}/"))
                assert len(server.requests) == 1
        assert set(dialled) == {"8.8.8.8"}

    run(test())


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(status: int) -> None:
    async def test() -> None:
        def answer(path: str, headers: dict[str, str]) -> bytes:
            return ok() if path == "/end" else redirect("/end", status)

        async with serving(answer) as server, fetching() as fetcher:
            assert await get(fetcher, f"http://127.0.0.1:{server.port}/start") == BODY

    run(test())


@pytest.mark.parametrize(("hops", "followed"), [(5, True), (6, False)])
def test_five_redirects_are_enough(hops: int, followed: bool) -> None:
    async def test() -> None:
        def answer(path: str, headers: dict[str, str]) -> bytes:
            left = int(path[1:])
            return redirect(f"/{left - 1}") if left else ok()

        async with serving(answer) as server, fetching() as fetcher:
            url = f"http://127.0.0.1:{server.port}/{hops}"
            if followed:
                assert await get(fetcher, url) == BODY
            else:
                assert "more than 5 redirects" in await refused(fetcher.open(url))

    run(test())


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", "the server answered 404"),
        (b"HTTP/1.1 206 Part\r\nContent-Length: 0\r\n\r\n", "the server answered 206"),
        (b"nonsense\r\n\r\n", "no valid answer"),
        (b"HTTP/1.1 302 Go\r\nContent-Length: 0\r\n\r\n", "more than 5 redirects"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100001\r\n\r\n", "larger than the 100000 bytes"),
    ],
)
def test_bad_answers(answer: bytes, text: str) -> None:
    async def test() -> None:
        async with serving(lambda *_: answer) as server, fetching() as fetcher:
            assert text in await refused(fetcher.open(f"http://127.0.0.1:{server.port}/"))

    run(test())


def test_nobody_listens() -> None:
    async def test() -> None:
        async with serving(lambda *_: ok()) as server:
            port = server.port
        async with fetching() as fetcher:
            assert "no valid answer" in await refused(fetcher.open(f"http://127.0.0.1:{port}/"))

    run(test())


def test_an_answer_that_breaks_off() -> None:
    async def cut() -> AsyncIterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nshort"

    async def test() -> None:
        async with serving(lambda *_: cut()) as server, fetching() as fetcher:
            text = await refused(get(fetcher, f"http://127.0.0.1:{server.port}/"))
            assert text == "can't be fetched: the answer broke off"

    run(test())


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nx"])
def test_a_slow_server_runs_into_the_deadline(head: bytes) -> None:
    async def test() -> None:
        refusal_came = asyncio.Event()

        async def drip() -> AsyncIterator[bytes]:
            yield head
            await refusal_came.wait()

        rules = FetchRules(max_bytes=100_000, allow_private=True, timeout_s=0.2)
        async with serving(lambda *_: drip()) as server, fetching(rules) as fetcher:
            text = await refused(get(fetcher, f"http://127.0.0.1:{server.port}/"))
            assert text == "can't be fetched: it took longer than 0.2 s"
            refusal_came.set()
            await asyncio.sleep(0.01)  # the server ends by itself

    run(test())


def test_only_allowed_domains(names: dict[str, list[str]], dialled: list[str]) -> None:
    async def test() -> None:
        names.update(
            {"a.example": ["8.8.8.8"], "b.example": ["8.8.4.4"], "x.b.example": ["9.9.9.9"]}
        )
        names["in.a.example"] = ["10.0.0.1"]
        domains = ("a.example", "*.b.example", "in.a.example")
        rules = FetchRules(max_bytes=100_000, allowed_domains=domains)
        async with serving(lambda *_: ok()) as server, fetching(rules) as fetcher:
            for host in ("a.example", "x.b.example"):
                assert await get(fetcher, f"http://{host}:{server.port}/") == BODY
            for host in ("b.example", "c.example", "8.8.8.8", "in.a.example"):
                await refused(fetcher.open(f"http://{host}:{server.port}/"))
        assert dialled == ["8.8.8.8", "9.9.9.9"]

    run(test())


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    async def test() -> None:
        async with serving(lambda *_: ok()) as server, fetching() as fetcher:
            assert await get(fetcher, f"http://127.0.0.1:{server.port}/") == BODY

    run(test())


def test_a_proxy_that_is_asked_for_is_used() -> None:
    async def test() -> None:
        async with serving(lambda *_: ok()) as proxy:
            rules = FetchRules(max_bytes=100_000, proxy=f"http://127.0.0.1:{proxy.port}")
            async with fetching(rules) as fetcher:
                assert await get(fetcher, "http://pictures.example/x") == BODY
                assert proxy.requests[0][0] == "http://pictures.example:80/x"
                for host in ("127.0.0.1", "169.254.169.254", "0x7f.1", "2130706433", "[::1]"):
                    await refused(fetcher.open(f"http://{host}/"))
                assert len(proxy.requests) == 1

    run(test())


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_tls_checks_the_name_and_not_the_address(
    names: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    subject = ["-subj", "/CN=test", "-addext", "subjectAltName=DNS:pictures.example"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    subprocess.run(
        [*command, "-keyout", key, "-out", certificate, *subject], check=True, capture_output=True
    )
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(certificate, key)
    asked: list[str | None] = []
    server_context.sni_callback = lambda _socket, name, _context: asked.append(name)
    monkeypatch.setattr(
        fetch, "_tls_context", lambda: ssl.create_default_context(cafile=certificate)
    )
    names.update({"pictures.example": ["127.0.0.1"], "other.example": ["127.0.0.1"]})

    async def test() -> None:
        async with serving(lambda *_: ok(), server_context) as server, fetching() as fetcher:
            assert await get(fetcher, f"https://pictures.example:{server.port}/") == BODY
            text = await refused(fetcher.open(f"https://other.example:{server.port}/"))
            assert "no valid answer" in text
            assert asked == ["pictures.example", "other.example"]

    run(test())
