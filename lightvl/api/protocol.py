"""HTTP/1.1 as uvicorn speaks it, with our shape of error for what is no HTTP.

Patience ends: with heads that are too large or too slow, and with clients that stop reading. One
request at a time: what comes before its answer is dropped, and the connection ends with the answer
(RFC 9112, 9.3.2, allows that); so a client that leaves is always noticed.
"""

import asyncio
from http import HTTPStatus
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from lightvl.errors import RequestError

MAX_HEAD_BYTES = 64 << 10
"""Of a request's line and headers together."""
SILENCE_S = 75.0
"""Until the first byte of a new connection."""
HEAD_S = 10.0
"""From a request's first byte to the end of its headers."""
STALL_S = 60.0
"""How long a client may leave an answer unread once all buffers are full."""


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **options)
        self._is_deaf = False  # a further request has begun before the answer
        self._num_pending_bytes = 0  # came since the last part of a body or end of a head
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Waits for the first request."""
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(SILENCE_S, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops all clocks."""
        _cancel(self._head_timer)
        _cancel(self._stall_timer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parses what came; a head, or what follows a body, ends the connection if it is large."""
        if self._is_deaf:
            return
        self._num_pending_bytes += len(data)
        super().data_received(data)
        if self._num_pending_bytes > MAX_HEAD_BYTES:
            self._refuse(431, f"the request's head is larger than {MAX_HEAD_BYTES} bytes")

    def on_message_begin(self) -> None:
        """A request's first byte is there."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._is_deaf = True
            self.cycle.keep_alive = False
            raise ValueError("one request at a time")
        super().on_message_begin()
        _cancel(self._head_timer)
        self._head_timer = self.loop.call_later(HEAD_S, self._too_slow)

    def on_headers_complete(self) -> None:
        """A request's head is whole."""
        _cancel(self._head_timer)
        self._num_pending_bytes = 0
        if len(self.url) + sum(len(n) + len(v) for n, v in self.headers) > MAX_HEAD_BYTES:
            raise ValueError("head too large")  # it came in one piece; answered 400
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of a request's body."""
        self._num_pending_bytes = 0
        super().on_body(body)

    def pause_writing(self) -> None:
        """The client reads more slowly than the answer is written."""
        super().pause_writing()
        _cancel(self._stall_timer)
        self._stall_timer = self.loop.call_later(STALL_S, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has caught up."""
        _cancel(self._stall_timer)
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answers 400 and closes the connection."""
        self._refuse(400, "this is no valid HTTP request")

    def _too_slow(self) -> None:
        self._refuse(408, f"the request's head took longer than {HEAD_S:g} s")

    def _refuse(self, status: int, message: str) -> None:
        if self.transport.is_closing() or self._is_deaf:
            return
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.close()  # an answer is on its way: nothing can be said
                return
        error = RequestError(message, status, code="invalid_http")
        body = msgspec.json.encode(error.body())
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
