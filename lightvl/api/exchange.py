"""One HTTP request to a generating route and its answer, over raw ASGI."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import msgspec
from starlette.types import Message, Receive, Scope, Send

from lightvl.api.admission import Ticket
from lightvl.api.front import Front
from lightvl.api.generation import Generation, GenerationRequest, TokenEvent
from lightvl.api.schema import BodyT, decode_body
from lightvl.api.timings import server_timing
from lightvl.api.tracing import Tracing
from lightvl.errors import RequestError
from lightvl.multimodal.pool import ImageSource, LoadedImage, RequestMedia

log = logging.getLogger(__name__)

SMALL_BODY = 65536
"""Bytes up to which a body is parsed here; larger ones go to a media worker."""

_SMALL_BODY_S = 10.0

JSON = b"application/json"
EVENTS = b"text/event-stream; charset=utf-8"


class ClientGoneError(RequestError):
    """The client has closed its connection; nobody reads the answer."""

    def __init__(self) -> None:
        super().__init__("the client has closed the connection", 499)


class Exchange:
    """Reads the body, runs generations, answers; `close` gives back all that was taken.

    Args:
        front: The parts to work with.
        scope: Of the ASGI request.
        receive: Of the ASGI request.
        send: Of the ASGI request.

    Attributes:
        body: The body's JSON; pictures of a large one replaced by references.
        status: Of the answer, 0 before it begins.
    """

    def __init__(self, front: Front, scope: Scope, receive: Receive, send: Send) -> None:
        self.front = front
        self.body = b""
        self.status = 0
        self._began_s = time.monotonic()
        self._scope = scope
        self._receive = receive
        self._send = send
        self._ticket: Ticket | None = None
        self._held: RequestMedia | None = None
        self._generations: list[Generation] = []
        self._watcher: asyncio.Task[None] | None = None
        self._handler: asyncio.Task[object] | None = None
        self._started = False
        self._end: RequestError | None = None
        self._failed: Callable[[RequestError], bytes] = _error_event

    @property
    def client(self) -> bytes:
        """Who asks: a digest of the key, empty without one."""
        return bytes(self._scope.get("state", {}).get("client", b""))

    @property
    def salt(self) -> bytes:
        """The client's cache namespace."""
        return self.front.salt_of(self.client)

    async def run(
        self, handler: Callable[["Exchange"], Awaitable[None]], *, queued: bool = True
    ) -> None:
        """Has a handler answer; its errors become answers, and so does `end`.

        Args:
            handler: Reads, generates and answers.
            queued: Whether the request takes a place in the queue, before its body is read.
        """
        self._handler = asyncio.current_task()
        try:
            await self._run(handler, queued=queued)
        except asyncio.CancelledError:
            if self._end is None or self._handler is None:
                raise
            self._handler.uncancel()
            if self._started or not self.status:  # else its whole answer is on its way
                await self.refuse(self._end)

    def end(self, error: RequestError) -> None:
        """Ends the handler, wherever it is; the client is told the error if it still listens."""
        if self._end is None and self._handler is not None:
            self._end = error
            self._handler.cancel()

    async def _run(self, handler: Callable[["Exchange"], Awaitable[None]], *, queued: bool) -> None:
        try:
            if queued:
                self._ticket = self.front.admission.arrive(self.client)
            await handler(self)
        except RequestError as error:
            await self.refuse(error)
        except Exception:
            log.exception("a request failed inside the server")
            await self.refuse(internal_error())

    async def read(self, kind: type[BodyT]) -> BodyT:
        """Returns the decoded body.

        Raises:
            RequestError: 413 or 400.
        """
        num_bytes = self._content_length()
        if num_bytes is not None and num_bytes > self.front.config.max_body_bytes:
            raise _too_large(self.front.config.max_body_bytes)
        head = b""
        chunks = self._chunks()
        if num_bytes is None or num_bytes <= SMALL_BODY:
            head = await _first_bytes(chunks)
        if num_bytes is None and len(head) <= SMALL_BODY:
            num_bytes = len(head)
        is_small = num_bytes is not None and num_bytes <= SMALL_BODY
        if is_small:
            self.body = head
        else:
            self._held = self.front.media.open()
            whole = _chained(head, chunks, self._watch)
            self.body = await self._held.parse_body(whole, num_bytes)
        self._watch()
        return decode_body(self.body, kind, checked=not is_small)

    async def load(self, sources: Sequence[ImageSource]) -> list[LoadedImage]:
        """Returns pictures whose sizes are wanted but no generation.

        Raises:
            RequestError: One is bad.
        """
        if not sources:
            return []
        self._held = self._held or self.front.media.open()
        return await self._held.load(sources)

    async def generate(self, request: GenerationRequest, *, streaming: bool = False) -> Generation:
        """Sends a request to the engine; `close` ends it.

        Raises:
            RequestError: It can't be served.
        """
        held, self._held = self._held, None
        prepared = await self.front.client.prepare(request, held)
        try:
            if self._ticket is not None:
                self._ticket.add_tokens(len(prepared.token_ids) * request.num_sequences)
        except RequestError:
            prepared.release()
            raise
        generation = self.front.client.start(prepared, self._ticket, streaming=streaming)
        generation.began_s = self._began_s
        self._generations.append(generation)
        return generation

    async def reply(self, answer: object, generations: Sequence[Generation] = ()) -> None:
        """Answers 200 with JSON; the stages of `generations` go into `Server-Timing`."""
        self.status = 200
        data = msgspec.json.encode(answer)
        headers = [(b"server-timing", server_timing(generations))] if generations else []
        await send_bytes(self._send, data, JSON, headers=headers)

    async def stream(
        self,
        generation: Generation,
        encode: Callable[[TokenEvent], bytes],
        *,
        head: bytes = b"",
        tail: Callable[[], bytes] = bytes,
        failed: Callable[[RequestError], bytes] | None = None,
    ) -> None:
        """Answers 200 with an event for each token; lagging clients get several in one send.

        Args:
            generation: Started with `streaming`.
            encode: Makes the event of a token.
            head: Written before the first event.
            tail: Makes what is written after the last event.
            failed: Makes the event of an error, or None for `{"error": ...}`.

        An error before the first byte is an answer of its own; later, it is an event.
        """
        self._failed = failed or self._failed
        try:
            async for events in generation.events():
                data = b"".join([encode(event) for event in events])
                await self._write(data if self._started else head + data)
            await self._write(tail())
        except RequestError as error:
            await self.refuse(error)
            return
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def refuse(self, error: RequestError) -> None:
        """Answers with an error: as an event, and the end, where a stream has begun."""
        self.front.count_rejected(error)
        if not self._started:
            self.status = error.status
            await send_error(self._send, error)
            return
        data = self._failed(error)
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    def trace(self, tracing: Tracing) -> None:
        """Hands over the request's times."""
        pairs = self._scope["headers"]
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in pairs}
        path = self._scope["path"]
        tracing.record(path, headers, self._began_s, self.status, self._generations)

    def close(self) -> None:
        """Aborts what still runs and gives back everything."""
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None  # its traceback holds this object: no cycle is left to collect
        for generation in self._generations:
            generation.close()
        if self._ticket is not None:
            self._ticket.leave()
        if self._held is not None:
            self._held.release()

    def _content_length(self) -> int | None:
        for name, value in self._scope["headers"]:
            if name == b"content-length":
                return int(value)
        return None

    async def _chunks(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            more = message.get("more_body", False)
            yield message.get("body", b"")

    def _watch(self) -> None:
        """From now on the request ends when the client leaves.

        The body must have been read: what comes now is a disconnect.
        """
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._wait_for_leave())

    async def _wait_for_leave(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.end(ClientGoneError())  # nobody hears it; it is logged and counted

    async def _write(self, data: bytes) -> None:
        if not self._started:
            self._started = True
            self.status = 200
            await self._send(_start(200, EVENTS, [(b"cache-control", b"no-cache")]))
        if data:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})


class Endpoint:
    """An ASGI application from a handler of exchanges; errors become answers.

    Args:
        front: The parts to work with.
        handler: Reads, generates and answers.
        queued: Whether the request takes a place in the queue.
    """

    def __init__(
        self, front: Front, handler: Callable[[Exchange], Awaitable[None]], *, queued: bool = True
    ) -> None:
        self._front = front
        self._handler = handler
        self._queued = queued

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        exchange = Exchange(self._front, scope, receive, send)
        self._front.opened(exchange.end)
        try:
            await exchange.run(self._handler, queued=self._queued)
        finally:
            exchange.close()
            if self._front.tracing is not None:
                exchange.trace(self._front.tracing)
            self._front.closed(exchange.end)


def internal_error() -> RequestError:
    """Returns what a client is told about an error of ours."""
    return RequestError("internal error", 500, code="internal")


async def send_error(send: Send, error: RequestError) -> None:
    """Answers with the error's status and body."""
    headers = []
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(error.retry_after_s).encode()))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    data = msgspec.json.encode(error.body())
    await send_bytes(send, data, JSON, error.status, headers)


async def send_bytes(
    send: Send,
    data: bytes,
    content_type: bytes,
    status: int = 200,
    headers: list[tuple[bytes, bytes]] | None = None,
) -> None:
    """Answers with a whole body."""
    length = (b"content-length", str(len(data)).encode())
    await send(_start(status, content_type, [length, *(headers or [])]))
    await send({"type": "http.response.body", "body": data})


def _error_event(error: RequestError) -> bytes:
    return b"data:" + msgspec.json.encode(error.body()) + b"\n\n"


def _start(status: int, content_type: bytes, headers: list[tuple[bytes, bytes]]) -> Message:
    return {
        "type": "http.response.start",
        "status": status,
        "headers": [(b"content-type", content_type), *headers],
    }


def _too_large(most: int) -> RequestError:
    return RequestError(f"body: expected at most {most} bytes", 413, param="body")


async def _first_bytes(chunks: AsyncIterator[bytes]) -> bytes:
    """Returns a small body, or the beginning of a larger one."""
    head = b""
    try:
        async with asyncio.timeout(_SMALL_BODY_S):
            async for chunk in chunks:
                head += chunk
                if len(head) > SMALL_BODY:
                    break
    except TimeoutError:
        raise RequestError("the body comes too slowly", 408, param="body") from None
    return head


async def _chained(
    head: bytes, chunks: AsyncIterator[bytes], ended: Callable[[], None]
) -> AsyncIterator[bytes]:
    if head:
        yield head
    async for chunk in chunks:
        yield chunk
    ended()
