"""One request's bodies and pictures on their way into the arena."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from lightvl.errors import RequestError
from lightvl.multimodal.jobs import Inspect, Inspected, ParseBody, Parsed
from lightvl.multimodal.media import ImageSource, LoadedImage, bad_image, check_reply
from lightvl.multimodal.sources import Source, SourceError
from lightvl.utils.shm import Purpose, Region

if TYPE_CHECKING:
    from lightvl.multimodal.pool import MediaPool

T = TypeVar("T")

_BODY_GRACE_S = 10.0
_BODY_BYTES_PER_S = 64 << 10
"""A body holds its room in the arena while it comes, so it must come at least so fast."""


class RequestMedia:
    """One request's bytes in the arena."""

    def __init__(self, pool: "MediaPool") -> None:
        self._pool = pool
        self._room = pool.allocator
        self._regions: list[Region] = []
        self._inside: dict[str, LoadedImage] = {}

    async def parse_body(self, chunks: AsyncIterator[bytes], num_bytes: int | None) -> bytes:
        """Streams a body into the arena and has a worker take it apart.

        Args:
            chunks: The body; none is asked for before there is room for all of them.
            num_bytes: Its length, or None where the client doesn't say.

        Returns:
            The JSON with each base64 picture replaced by a string that `load` understands.

        Raises:
            RequestError: The body is too large or no JSON, or a picture in it is bad.
        """
        most = self._pool.config.max_body_bytes
        if num_bytes is not None and num_bytes > most:
            raise _body_too_large(most)
        region = await self._room.alloc(most if num_bytes is None else num_bytes, "request")
        self._regions.append(region)
        used_bytes = await self._store_in_time(chunks, region)
        self._room.shrink(region, used_bytes)
        reply = await self._pool.run(ParseBody(region.offset, used_bytes), region)
        check_reply(reply)
        assert isinstance(reply, Parsed)
        if reply.pictures:
            self._room.shrink(region, reply.used_bytes)
        else:
            self._regions.remove(region)
            self._room.free(region)
        for index, picture in enumerate(reply.pictures):
            self._inside[picture.reference] = _loaded(
                index, picture.inspected, region, picture.offset, picture.num_bytes
            )
        return reply.json

    async def load(self, sources: Sequence[ImageSource]) -> list[LoadedImage]:
        """Brings all pictures of the request into the arena and reads their headers.

        Raises:
            RequestError: One can't be had or is bad; the message names it.
        """
        most = self._pool.config.max_images
        if len(sources) > most:
            raise RequestError(f"{len(sources)} images, at most {most} are allowed in a request")
        outside = [
            (i, source) for i, source in enumerate(sources) if source.data not in self._inside
        ]
        loaded = await self._load_outside(outside) if outside else {}
        images = [
            loaded[i] if i in loaded else replace(self._inside[source.data], index=i)
            for i, source in enumerate(sources)
        ]
        for image in images:
            self._pool.conflicts.note(image.md5, image.sha256)
        return images

    def release(self) -> None:
        """Gives back all room; may be called again."""
        regions, self._regions = self._regions, []
        for region in regions:
            self._room.free(region)

    async def _store_in_time(self, chunks: AsyncIterator[bytes], region: Region) -> int:
        try:
            async with asyncio.timeout(_BODY_GRACE_S + region.size / _BODY_BYTES_PER_S):
                return await self._store(chunks, region)
        except TimeoutError:
            raise RequestError("the body comes too slowly", 408, param="body") from None

    async def _store(self, chunks: AsyncIterator[bytes], region: Region) -> int:
        used_bytes = 0
        async for chunk in chunks:
            if used_bytes + len(chunk) > region.size:
                raise _body_too_large(self._pool.config.max_body_bytes)
            at = region.offset + used_bytes
            self._pool.arena.buffer[at : at + len(chunk)] = chunk
            used_bytes += len(chunk)
        return used_bytes

    async def _load_outside(
        self, sources: Sequence[tuple[int, ImageSource]]
    ) -> dict[int, LoadedImage]:
        opened: dict[int, Source] = {}
        try:
            await _together(self._open(i, source, opened) for i, source in sources)
            known = {i: s for i, s in opened.items() if s.num_bytes is not None}
            unknown = {i: s for i, s in sorted(opened.items()) if s.num_bytes is None}
            region, tail = await self._reserve(known, len(unknown))
            offsets = _offsets(known, region.offset)
            jobs = [
                self._read(i, s, region, offsets[i], s.num_bytes or 0) for i, s in known.items()
            ]
            jobs.append(self._read_in_turn(unknown, region, tail))
            return {image.index: image for images in await _together(jobs) for image in images}
        finally:
            for source in opened.values():
                await source.close()

    async def _open(self, index: int, source: ImageSource, opened: dict[int, Source]) -> None:
        try:
            opened[index] = await self._pool.open_source(source)
        except SourceError as error:
            raise bad_image(index, str(error)) from None

    async def _reserve(self, known: dict[int, Source], num_unknown: int) -> tuple[Region, int]:
        """Takes the room for all pictures at once, so as never to hold some and wait for more.

        Returns:
            The room, and where in the arena its part for those of unknown length begins.
        """
        config = self._pool.config
        known_bytes = sum(source.num_bytes or 0 for source in known.values())
        left = config.max_body_bytes - known_bytes
        if left < num_unknown:
            raise RequestError(
                f"images: together larger than the {config.max_body_bytes} bytes allowed"
            )
        tail_bytes = min(num_unknown * config.max_image_bytes, left)
        purpose: Purpose = "more" if self._regions else "request"
        region = await self._room.alloc(known_bytes + tail_bytes, purpose)
        self._regions.append(region)
        return region, region.offset + known_bytes

    async def _read(
        self, index: int, source: Source, region: Region, offset: int, room_bytes: int
    ) -> list[LoadedImage]:
        room = self._pool.arena.buffer[offset : offset + room_bytes]
        try:
            num_bytes = await source.read_into(room)
        except SourceError as error:
            raise bad_image(index, str(error)) from None
        reply = await self._pool.run(Inspect(offset, num_bytes), region)
        check_reply(reply, index)
        assert isinstance(reply, Inspected)
        return [_loaded(index, reply, region, offset, num_bytes)]

    async def _read_in_turn(
        self, sources: dict[int, Source], region: Region, offset: int
    ) -> list[LoadedImage]:
        """Reads pictures of unknown length one behind the other, then gives back what is left."""
        images: list[LoadedImage] = []
        end = region.offset + region.size
        for index, source in sources.items():
            room_bytes = min(self._pool.config.max_image_bytes, end - offset)
            images += await self._read(index, source, region, offset, room_bytes)
            offset += images[-1].num_bytes
        if sources:
            self._room.shrink(region, offset - region.offset)
        return images


def _loaded(
    index: int, inspected: Inspected, region: Region, offset: int, num_bytes: int
) -> LoadedImage:
    width, height = inspected.width, inspected.height
    return LoadedImage(
        index, inspected.md5, inspected.sha256, width, height, region, offset, num_bytes
    )


def _offsets(sources: dict[int, Source], start: int) -> dict[int, int]:
    offsets = {}
    for index, source in sources.items():
        offsets[index] = start
        start += source.num_bytes or 0
    return offsets


def _body_too_large(most: int) -> RequestError:
    return RequestError(f"the body is larger than the {most} bytes allowed", 413)


async def _together(jobs: Iterable[Coroutine[object, object, T]]) -> list[T]:
    """Runs all at once; the first failure ends the others and is raised alone."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(job) for job in jobs]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
