"""Random bytes on the socket: whatever comes, the server answers or closes, and goes on serving."""

import contextlib
import re
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lightvl.testing.server import ServerProcess

ANSWER_S = 0.05
PATIENCE_S = 20.0
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
BODY = b'{"inputs":"a b","parameters":{"max_new_tokens":2}}'


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess("--media_workers", "1") as running:
        yield running
        assert httpx.get(running.url + "/health").status_code == 200
        metrics = httpx.get(running.url + "/metrics").text
        assert re.search(r"^lightvl:num_requests_queued 0\.0$", metrics, re.MULTILINE)
        assert re.search(r"^lightvl:num_requests_running 0\.0$", metrics, re.MULTILINE)
        assert "Traceback" not in running.log, running.log


def statuses(url: str, pieces: list[bytes]) -> list[int]:
    """Returns the statuses of all answers; one that says that it will end must end."""
    address = urlsplit(url)
    answer = b""
    with socket.create_connection((address.hostname, address.port)) as client:
        try:
            for piece in pieces:
                client.sendall(piece)
            client.settimeout(ANSWER_S)
            with contextlib.suppress(TimeoutError):  # it may wait for more, and rightly so
                while data := client.recv(65536):
                    answer += data
            client.settimeout(PATIENCE_S)
            client.shutdown(socket.SHUT_WR)
            while data := client.recv(65536):
                answer += data
        except TimeoutError:
            raise AssertionError("the server holds on to a connection that has ended") from None
        except OSError:
            pass  # it has closed already
    return [int(status) for status in STATUS.findall(answer)]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {len(data)})
    return [data[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


TOKEN = st.text(st.characters(codec="latin-1"), max_size=12).map(lambda t: t.encode("latin-1"))
METHOD = (
    st.sampled_from([b"POST", b"GET", b"PUT", b"HEAD", b"OPTIONS", b"CONNECT", b"BREW"]) | TOKEN
)
TARGET = (
    st.sampled_from([b"/generate", b"/", b"/v1/chat/completions", b"/tokens", b"*", b"//", b"/%00"])
    | st.just(b"http://elsewhere/generate")
    | TOKEN
)
HEADER = st.tuples(
    st.sampled_from(
        [
            *(
                b"content-length",
                b"transfer-encoding",
                b"expect",
                b"connection",
                b"upgrade",
                b"host",
            ),
            *(b"content-type", b"authorization", b"content-encoding", b"x-request-id", b"te"),
        ]
    )
    | TOKEN,
    st.sampled_from(
        [
            *(b"0", b"-1", b"50", b"99999999999999999999", b"5, 5", b"chunked", b"gzip, chunked"),
            *(
                b"100-continue",
                b"close",
                b"keep-alive, upgrade",
                b"websocket",
                b"h2c",
                b"\x00",
                b"",
            ),
        ]
    )
    | TOKEN,
)
CHUNKS = st.lists(st.binary(max_size=20), max_size=3).map(
    lambda parts: b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
)
PAYLOAD = st.just(BODY) | st.binary(max_size=60) | CHUNKS


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Nearly HTTP."""
    end = draw(st.sampled_from([b"\r\n", b"\r\n", b"\n", b"\r"]))
    version = draw(st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"ICY"]))
    head = [b"%s %s %s" % (draw(METHOD), draw(TARGET), version)]
    head += [b"%s: %s" % header for header in draw(st.lists(HEADER, max_size=4))]
    return end.join(head) + end + end + draw(PAYLOAD)


WHOLE = b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good request with bytes of it changed."""
    data = bytearray(WHOLE)
    for place, byte in draw(
        st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), max_size=5)
    ):
        data[place % len(data)] = byte
    return bytes(data[: draw(st.integers(0, len(data)))])


@settings(
    max_examples=250,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(
    st.lists(st.binary(max_size=200) | requests() | damaged() | st.just(WHOLE), max_size=3),
    st.lists(st.integers(0, 2000), max_size=4),
)
@example([WHOLE, WHOLE], [])
@example([b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"], [])
@example([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"], [])
def test_random_bytes(server: ServerProcess, parts: list[bytes], places: list[int]) -> None:
    found = statuses(server.url, cut(b"".join(parts), places))
    assert not [status for status in found if status >= 500], (parts, found)


def test_the_fuzzer_reaches_the_routes(server: ServerProcess) -> None:
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), PATIENCE_S) as client:
        client.sendall(WHOLE)
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
