"""Messages between processes: length-prefixed msgpack over one end of a Unix stream socketpair.

`Channel` blocks and serves the engine and the media workers; `AsyncChannel` serves the front's
event loop. When the other process ends, or closes its end, both raise `ChannelClosed`.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

Received = TypeVar("Received")

_LENGTH = struct.Struct("<I")
_RECV_BYTES = 1 << 18


class ChannelClosed(ConnectionError):
    """The other end is gone."""


def channel_pair() -> tuple[socket.socket, socket.socket]:
    """Returns two connected stream sockets; one is handed to a child by `pass_fds`."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


class Channel(Generic[Received]):
    """Blocking end of a channel, for one thread.

    Args:
        sock: A connected stream socket, which the channel owns from now on.
        decode: The type, or union of tagged structs, that the other end sends.
    """

    def __init__(self, sock: socket.socket, decode: object) -> None:
        sock.setblocking(True)
        self._sock = sock
        self._decoder: msgspec.msgpack.Decoder[Received] = msgspec.msgpack.Decoder(decode)
        self._encoder = msgspec.msgpack.Encoder()
        self._buffer = bytearray()

    @classmethod
    def from_fd(cls, fd: int, decode: object) -> "Channel[Received]":
        """Returns the channel over an inherited descriptor."""
        return cls(socket.socket(fileno=fd), decode)

    def fileno(self) -> int:
        """Returns the descriptor, for `select`."""
        return self._sock.fileno()

    def send(self, *messages: object) -> None:
        """Sends messages in order with one system call; blocks while the socket is full.

        Raises:
            ChannelClosed: The other end is gone.
        """
        data = b"".join(_frame(self._encoder, message) for message in messages)
        try:
            self._sock.sendall(data)
        except ConnectionError as error:
            raise ChannelClosed from error

    def recv(self) -> Received:
        """Returns the next message; blocks until it is there.

        Raises:
            ChannelClosed: The other end is gone.
        """
        while (message := next(self._buffered(), None)) is None:
            self._read(flags=0)
        return message

    def recv_ready(self) -> list[Received]:
        """Returns the messages that have arrived, perhaps none, without blocking.

        Raises:
            ChannelClosed: The other end is gone.
        """
        try:
            while True:
                self._read(socket.MSG_DONTWAIT)
        except BlockingIOError:
            return list(self._buffered())

    def close(self) -> None:
        """Closes this end, which the other end notices at once."""
        self._sock.close()

    def _read(self, flags: int) -> None:
        try:
            data = self._sock.recv(_RECV_BYTES, flags)
        except ConnectionError as error:
            raise ChannelClosed from error
        if not data:
            raise ChannelClosed
        self._buffer += data

    def _buffered(self) -> Iterator[Received]:
        """Yields the whole messages at the head of the buffer, removing each."""
        while len(self._buffer) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                return
            message = self._decoder.decode(memoryview(self._buffer)[_LENGTH.size : end])
            del self._buffer[:end]
            yield message


class AsyncChannel(Generic[Received]):
    """End of a channel on an event loop; `open` makes one."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, decode: object
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder: msgspec.msgpack.Decoder[Received] = msgspec.msgpack.Decoder(decode)
        self._encoder = msgspec.msgpack.Encoder()

    @classmethod
    async def open(cls, sock: socket.socket, decode: object) -> "AsyncChannel[Received]":
        """Returns the channel over a connected stream socket, which it owns from now on.

        Args:
            sock: One end of `channel_pair`.
            decode: The type, or union of tagged structs, that the other end sends.
        """
        sock.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=sock, limit=_RECV_BYTES)
        return cls(reader, writer, decode)

    def send(self, *messages: object) -> None:
        """Queues messages in order and never blocks; what doesn't fit the socket is buffered.

        Raises:
            ChannelClosed: The other end is known to be gone.
        """
        if self._writer.is_closing() or self._reader.at_eof():
            raise ChannelClosed
        self._writer.write(b"".join(_frame(self._encoder, message) for message in messages))

    async def recv(self) -> Received:
        """Returns the next message.

        Raises:
            ChannelClosed: The other end is gone.
        """
        try:
            header = await self._reader.readexactly(_LENGTH.size)
            data = await self._reader.readexactly(_LENGTH.unpack(header)[0])
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise ChannelClosed from error
        return self._decoder.decode(data)

    async def close(self) -> None:
        """Closes this end after what is queued has been written."""
        self._writer.close()
        with contextlib.suppress(ConnectionError):  # the other end may have been faster
            await self._writer.wait_closed()


def _frame(encoder: msgspec.msgpack.Encoder, message: object) -> bytes:
    data = encoder.encode(message)
    return _LENGTH.pack(len(data)) + data
