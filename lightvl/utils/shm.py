"""The shared-memory arena for bodies, encoded pictures and pixels, and who may use which part.

`Arena` maps one anonymous file that child processes inherit by descriptor. Only the front hands out
room in it, through an `ArenaAllocator`; everybody else is told offsets. A full arena makes callers
wait in line and is never an error.
"""

import asyncio
import bisect
import contextlib
import fcntl
import mmap
import os
from collections import deque
from dataclasses import dataclass
from typing import Literal, get_args

Purpose = Literal["request", "more", "pixels"]
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)


class Arena:
    """One mapped memfd.

    Args:
        fd: Descriptor of the memfd, owned by the arena from now on.
        size: Its bytes.

    Attributes:
        buffer: The whole arena, writable uint8.
    """

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.size = size
        self._map = mmap.mmap(fd, size)
        self.buffer = memoryview(self._map)

    @classmethod
    def create(cls, size: int) -> "Arena":
        """Makes an arena of `size` bytes that nobody can resize; pages cost nothing until used."""
        fd = os.memfd_create("lightvl-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, size)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        return cls(fd, size)

    @classmethod
    def attach(cls, fd: int, size: int) -> "Arena":
        """Maps an inherited arena."""
        return cls(fd, size)

    def close(self) -> None:
        """Unmaps the arena, or leaves that to the last user of a slice of it."""
        with contextlib.suppress(BufferError):
            self.buffer.release()
            self._map.close()
        os.close(self.fd)


@dataclass(eq=False, slots=True)
class Region:
    """Room in the arena; `users` counts who still needs it."""

    offset: int
    size: int
    purpose: Purpose
    users: int = 1


class ArenaAllocator:
    """Hands out the arena's room; for one event loop.

    The arena is cut into three zones, each with its own line, so that a request that waits in one
    line never holds what those before it wait for:

    * `request`: what a request reserves first, holding nothing: its body, or its pictures' bytes.
    * `more`: what a request reserves that already holds a body; it needs nothing afterwards.
    * `pixels`: decoded pictures, each freed by the engine whatever else waits.

    Args:
        arena_bytes: Size of the arena.
        bytes_in_flight: Bytes for the first two zones together.
        largest_request: Most bytes asked for at once in either; `more` gets exactly that.

    Raises:
        ValueError: The zones can't be cut like that.
    """

    def __init__(self, arena_bytes: int, bytes_in_flight: int, largest_request: int) -> None:
        if not 2 * largest_request <= bytes_in_flight < arena_bytes:
            raise ValueError(f"can't cut {arena_bytes} at {bytes_in_flight} by {largest_request}")
        first = bytes_in_flight - largest_request
        self._zones: dict[Purpose, _Zone] = {
            "request": _Zone(0, first),
            "more": _Zone(first, largest_request),
            "pixels": _Zone(bytes_in_flight, arena_bytes - bytes_in_flight),
        }

    async def alloc(self, num_bytes: int, purpose: Purpose) -> Region:
        """Waits in line for room and takes it.

        Args:
            num_bytes: Bytes wanted; nothing counts as one.
            purpose: Which zone.

        Raises:
            ValueError: More than the whole zone, which would wait for ever.
        """
        size = max(1, num_bytes)
        offset = await self._zones[purpose].take(size)
        return Region(offset, size, purpose)

    def shrink(self, region: Region, num_bytes: int) -> None:
        """Gives back the end of a region, all but its first `num_bytes`."""
        keep = max(1, num_bytes)
        if keep < region.size:
            self._zones[region.purpose].give(region.offset + keep, region.size - keep)
            region.size = keep

    def retain(self, region: Region) -> None:
        """Adds a user, who must `free` the region too."""
        assert region.users > 0
        region.users += 1

    def free(self, region: Region) -> None:
        """Takes a user away; the last one gives the room back."""
        assert region.users > 0
        region.users -= 1
        if region.users == 0:
            self._zones[region.purpose].give(region.offset, region.size)

    def used_bytes(self, purpose: Purpose) -> int:
        """Returns the bytes taken in a zone."""
        return self._zones[purpose].used_bytes

    def num_waiting(self, purpose: Purpose) -> int:
        """Returns how many stand in a zone's line."""
        return self._zones[purpose].num_waiting


class _Zone:
    """First fit over a sorted list of gaps; strictly first come, first served."""

    def __init__(self, offset: int, size: int) -> None:
        self._size = size
        self._gaps: list[tuple[int, int]] = [(offset, offset + size)]  # (start, end), sorted
        self._line: deque[tuple[int, asyncio.Future[int]]] = deque()
        self.used_bytes = 0

    @property
    def num_waiting(self) -> int:
        return sum(not future.done() for _, future in self._line)

    async def take(self, size: int) -> int:
        if size > self._size:
            raise ValueError(f"{size} bytes wanted of a zone of {self._size}")
        if not self._line and (offset := self._cut(size)) is not None:
            return offset
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._line.append((size, future))
        try:
            return await future
        except asyncio.CancelledError:
            if future.cancelled():
                self._serve()  # this one may have stood in front of others that fit
            else:
                self.give(future.result(), size)
            raise

    def give(self, start: int, size: int) -> None:
        self.used_bytes -= size
        end = start + size
        at = bisect.bisect(self._gaps, (start, end))
        if at < len(self._gaps) and self._gaps[at][0] == end:
            end = self._gaps.pop(at)[1]
        if at > 0 and self._gaps[at - 1][1] == start:
            at -= 1
            start = self._gaps.pop(at)[0]
        self._gaps.insert(at, (start, end))
        self._serve()

    def _serve(self) -> None:
        while self._line:
            size, future = self._line[0]
            if not future.done():
                offset = self._cut(size)
                if offset is None:
                    return
                future.set_result(offset)
            self._line.popleft()

    def _cut(self, size: int) -> int | None:
        for at, (start, end) in enumerate(self._gaps):
            if end - start >= size:
                self._gaps[at : at + 1] = [(start + size, end)] if end - start > size else []
                self.used_bytes += size
                return start
        return None
