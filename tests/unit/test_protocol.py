"""Connections that send too much head, too slowly, or never read, on a server in this process."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from lightvl.api import protocol
from lightvl.api.protocol import MAX_HEAD_BYTES, HttpProtocol

OK = b"HTTP/1.1 200 "
MIB = 1 << 20


class App:
    """Reads the body, answers with `num_bytes` bytes and remembers how it ended."""

    def __init__(self, num_bytes: int = 2) -> None:
        self._num_bytes = num_bytes
        self.num_read = 0
        self.ended = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            self.num_read += len(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        left = self._num_bytes
        while left > 0:
            part = bytes(min(left, MIB))
            left -= len(part)
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        self.ended.set()


def serve(app: ASGIApp, test: Callable[[int], Awaitable[None]]) -> None:
    async def run() -> None:
        config = uvicorn.Config(app, http=HttpProtocol, ws="none", lifespan="off", log_config=None)
        server = uvicorn.Server(config)
        config.load()
        server.lifespan = config.lifespan_class(config)
        listener = await asyncio.get_running_loop().create_server(
            lambda: HttpProtocol(config, server.server_state, {}), "127.0.0.1", 0
        )
        async with listener, asyncio.timeout(30):
            await test(listener.sockets[0].getsockname()[1])

    asyncio.run(run())


async def answer_to(port: int, data: bytes) -> bytes:
    """All that comes back until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    answer = b""
    try:
        while part := await reader.read(65536):
            answer += part
    except ConnectionResetError:  # closed with some of what was sent unread
        pass
    writer.close()
    return answer


def code_of(answer: bytes) -> str:
    return str(json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"])


LARGE_HEADS = {
    "one header without an end": b"GET / HTTP/1.1\r\nx: " + b"a" * (2 * MAX_HEAD_BYTES),
    "many headers": b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * MAX_HEAD_BYTES,
    "a long line": b"GET /" + b"a" * (2 * MAX_HEAD_BYTES),
}


@pytest.mark.parametrize("head", LARGE_HEADS)
def test_a_head_that_grows_is_refused(head: str) -> None:
    async def test(port: int) -> None:
        answer = await answer_to(port, LARGE_HEADS[head])
        assert answer.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 "))
        assert code_of(answer) == "invalid_http"

    serve(App(), test)


def test_a_large_head_in_one_piece_is_refused() -> None:
    async def test(port: int) -> None:
        head = b"GET / HTTP/1.1\r\nx: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n"
        assert not (await answer_to(port, head)).startswith(OK)

    serve(App(), test)


def test_what_follows_a_body_is_bounded_too() -> None:
    app = App()

    async def test(port: int) -> None:
        begin = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nx: "
        answer = await answer_to(port, begin + b"a" * (4 * MAX_HEAD_BYTES))
        assert not answer.startswith(OK)

    serve(app, test)


def test_a_large_body_is_no_head() -> None:
    app = App()

    async def test(port: int) -> None:
        begin = b"POST / HTTP/1.1\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % (4 * MIB)
        assert (await answer_to(port, begin + b"a" * (4 * MIB))).startswith(OK)
        assert app.num_read == 4 * MIB

    serve(app, test)


def test_a_head_that_comes_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_S", 0.2)

    async def test(port: int) -> None:
        answer = await answer_to(port, b"GET / HTTP/1.1\r\nhost:")
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert code_of(answer) == "invalid_http"

    serve(App(), test)


def test_a_connection_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "SILENCE_S", 0.2)

    async def test(port: int) -> None:
        assert await answer_to(port, b"") == b""

    serve(App(), test)


def test_a_second_request_may_come_later_than_a_head_may_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(protocol, "HEAD_S", 0.1)

    async def test(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            assert (await reader.readuntil(b"0\r\n\r\n")).startswith(OK)
            await asyncio.sleep(0.3)
        writer.close()

    serve(App(), test)


def test_a_client_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "STALL_S", 0.2)
    app = App(num_bytes=64 * MIB)

    async def test(port: int) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await app.ended.wait()  # it could not end if the connection weren't given up
        writer.close()

    serve(app, test)


def test_a_slow_reader_is_not_a_dead_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "STALL_S", 0.5)
    app = App(num_bytes=16 * MIB)

    async def test(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n")
        num_bytes = 0
        while part := await reader.read(MIB // 2):
            num_bytes += len(part)
            await asyncio.sleep(0.02)
        assert num_bytes > 16 * MIB
        writer.close()

    serve(app, test)


def test_a_request_before_the_answer_ends_the_connection_with_it() -> None:
    app = App()

    async def test(port: int) -> None:
        request = b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\nab"
        answer = await answer_to(port, request + request + b"garbage" * 100_000)
        assert answer.count(OK) == 1
        assert app.num_read == 2

    serve(app, test)


def test_a_client_that_leaves_with_a_second_request_sent_is_noticed() -> None:
    gone = asyncio.Event()

    async def waiting(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    async def test(port: int) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n" * 20 + b"a" * (1 << 20))
        await writer.drain()
        writer.transport.abort()
        async with asyncio.timeout(5):
            await gone.wait()

    serve(waiting, test)
