"""Where pictures' bytes come from: each source is opened, then read into the arena.

Opening tells the length if it can be known, so that room for all pictures of a request can be
reserved at once before any of them is read.
"""

import asyncio
import os
import stat
from collections.abc import Callable
from typing import Protocol, TypeVar

from lightvl.multimodal.base64 import BadBase64, data_url_payload, decode_base64

T = TypeVar("T")


class SourceError(Exception):
    """A picture's bytes can't be had; the message is for the client, as a clause."""


class Source(Protocol):
    """An opened picture.

    Attributes:
        num_bytes: Its length, or None if that is only known once it is read.
    """

    num_bytes: int | None

    async def read_into(self, room: memoryview) -> int:
        """Reads all bytes into the front of `room`; returns how many there were.

        Raises:
            SourceError: They can't be read, or are more than fit.
        """

    async def close(self) -> None:
        """Lets go of it; may be called twice."""


class Base64Source:
    """A picture inside the request.

    Raises:
        SourceError: It isn't base64, or is longer than `max_bytes`.
    """

    def __init__(self, text: str, max_bytes: int) -> None:
        try:
            self._data = decode_base64(data_url_payload(text), max_bytes)
        except BadBase64 as error:
            raise SourceError(str(error)) from None
        self.num_bytes: int | None = len(self._data)

    async def read_into(self, room: memoryview) -> int:
        """See `Source`."""
        room[: len(self._data)] = self._data
        return len(self._data)

    async def close(self) -> None:
        """See `Source`."""


class FileSource:
    """A file below a directory that the operator opened to clients; `open` makes one."""

    def __init__(self, fd: int, num_bytes: int) -> None:
        self._fd: int | None = fd
        self.num_bytes: int | None = num_bytes

    @classmethod
    async def open(cls, path: str, directory: str, max_bytes: int) -> "FileSource":
        """Opens a regular file.

        Args:
            path: Absolute path.
            directory: The file must lie below it, once symbolic links are resolved.
            max_bytes: Most bytes it may have.

        Raises:
            SourceError: It isn't there, isn't allowed, isn't a file, or is too long.
        """
        try:
            fd = await _to_its_end(lambda: _open_below(path, directory), os.close)
        except OSError:
            raise SourceError("can't be read: no such file is allowed") from None
        source = cls(fd, os.fstat(fd).st_size)
        if (source.num_bytes or 0) > max_bytes:
            await source.close()
            raise SourceError(f"is larger than the {max_bytes} bytes allowed")
        return source

    async def read_into(self, room: memoryview) -> int:
        """See `Source`."""
        assert self._fd is not None
        fd = self._fd
        return await _to_its_end(lambda: _read_all(fd, room))

    async def close(self) -> None:
        """See `Source`."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


async def _to_its_end(call: Callable[[], T], undo: Callable[[T], object] | None = None) -> T:
    """Runs a call in a thread; if cancelled, ends only with it: room and file are its till then.

    Args:
        call: What to do.
        undo: Takes a result that nobody will have.
    """
    task = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if task.exception() is None and undo is not None:
            undo(task.result())
        raise


def _open_below(path: str, directory: str) -> int:
    """Looks again where opening led, so that nothing can be exchanged in between."""
    root = os.path.realpath(directory)
    _check_below(os.path.realpath(path), root)
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check_below(os.readlink(f"/proc/self/fd/{fd}"), root)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise PermissionError
    except OSError:
        os.close(fd)
        raise
    return fd


def _check_below(path: str, root: str) -> None:
    if os.path.commonpath([path, root]) != root:
        raise PermissionError


def _read_all(fd: int, room: memoryview) -> int:
    done = 0
    while done < len(room):
        count = os.preadv(fd, [room[done:]], done)
        if count == 0:
            break
        done += count
    return done
