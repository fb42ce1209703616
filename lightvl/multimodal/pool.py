"""The front's door to pictures: bodies taken apart, bytes fetched, pixels decoded.

Bytes and pixels lie in one shared-memory arena; the work on them is done by media workers. A
request's bytes stay until the request ends, pixels until the engine has read them.
"""

import math
import time
from collections.abc import Callable
from typing import Literal

from lightvl.errors import RequestError
from lightvl.multimodal.base64 import is_data_url
from lightvl.multimodal.fetch import Fetcher, FetchRules
from lightvl.multimodal.identity import ConflictCounter
from lightvl.multimodal.jobs import CheckConstraint, Decode, Job, Refused, Reply, Start
from lightvl.multimodal.media import (
    ImageSource,
    LoadedImage,
    MediaConfig,
    PixelRegion,
    check_reply,
)
from lightvl.multimodal.request import RequestMedia
from lightvl.multimodal.sources import Base64Source, FileSource, Source, SourceError
from lightvl.multimodal.url import parse_file_address
from lightvl.multimodal.workers import WorkerPool
from lightvl.types import Constraint
from lightvl.utils.shm import Arena, ArenaAllocator, Region

__all__ = ["ImageSource", "LoadedImage", "MediaConfig", "MediaPool", "PixelRegion", "RequestMedia"]

Observe = Callable[[Literal["fetch", "decode"], float], None]


class MediaPool:
    """Owns the arena, the media workers and the fetcher; for one event loop.

    Args:
        config: Sizes and limits.
        observe: Told how long each fetch of an address and each decoding took, in seconds.

    Attributes:
        arena: Shared with the engine.
        conflicts: Counts pictures that share an MD5 without being equal.
    """

    def __init__(self, config: MediaConfig, observe: Observe = lambda stage, seconds: None) -> None:
        self.config = config
        self._observe = observe
        self.arena = Arena.create(config.arena_bytes)
        self.allocator = ArenaAllocator(
            config.arena_bytes, config.bytes_in_flight, config.max_body_bytes
        )
        self.conflicts = ConflictCounter()
        start = Start(
            arena_bytes=config.arena_bytes,
            max_body_bytes=config.max_body_bytes,
            max_image_bytes=config.max_image_bytes,
            max_image_pixels=config.max_image_pixels,
            max_images=config.max_images,
            job_cpu_s=math.ceil(config.job_timeout_s),
        )
        self.workers = WorkerPool(self.arena, start, config.num_workers, config.job_timeout_s)
        self._fetcher = Fetcher(
            FetchRules(
                max_bytes=config.max_image_bytes,
                allowed_domains=config.allowed_domains,
                allow_private=config.allow_private,
                timeout_s=config.fetch_timeout_s,
                proxy=config.proxy,
            ),
            lambda seconds: observe("fetch", seconds),
        )

    async def start(self) -> None:
        """Starts the first worker; further ones start when there is work for them."""
        await self.workers.warm_up()

    async def close(self) -> None:
        """Kills the workers, closes connections and the arena."""
        await self.workers.close()
        await self._fetcher.close()
        self.arena.close()

    def open(self) -> RequestMedia:
        """Returns what keeps one request's bytes; its `release` must be called."""
        return RequestMedia(self)

    async def decode(self, image: LoadedImage) -> PixelRegion:
        """Decodes a picture; waits for room.

        Returns:
            Its pixels; give them to `free`.

        Raises:
            RequestError: The picture is damaged, or its request has ended.
        """
        if image.region.users == 0:
            raise RequestError(f"images[{image.index}]: its request has ended")
        begin_s = time.monotonic()
        self.allocator.retain(image.region)
        try:
            room = await self.allocator.alloc(3 * image.width * image.height, "pixels")
            pixels = PixelRegion(room.offset, image.width, image.height, room)
            try:
                job = Decode(image.offset, image.num_bytes, room.offset, image.width, image.height)
                reply = await self.run(job, image.region, room)
                check_reply(reply, image.index)
            except BaseException:
                self.free(pixels)
                raise
        finally:
            self.allocator.free(image.region)
        self._observe("decode", time.monotonic() - begin_s)
        return pixels

    def free(self, pixels: PixelRegion) -> None:
        """Gives back the room of pixels that nobody reads any more."""
        self.allocator.free(pixels.region)

    async def run(self, job: Job, *regions: Region) -> Reply:
        """Has a worker do a job; `regions` stay taken until it is through, whoever waits."""
        for region in regions:
            self.allocator.retain(region)

        def done() -> None:
            for region in regions:
                self.allocator.free(region)

        return await self.workers.run(job, done)

    async def check_constraint(self, constraint: Constraint) -> None:
        """Tries a constraint where it can do no harm.

        Raises:
            RequestError: It can't be used; names its field.
        """
        reply = await self.run(CheckConstraint(constraint))
        if isinstance(reply, Refused):
            field = constraint.field
            raise RequestError(f"{field}: {reply.message}", param=field)

    async def open_source(self, source: ImageSource) -> Source:
        """Opens a picture for reading.

        Raises:
            SourceError: It isn't allowed or can't be had.
        """
        config = self.config
        if source.type == "base64" or is_data_url(source.data):
            return Base64Source(source.data, config.max_image_bytes)
        if source.data[:5].lower() == "file:":
            if config.local_path is None:
                raise SourceError("is a file address, which this server does not allow")
            path = parse_file_address(source.data)
            return await FileSource.open(path, config.local_path, config.max_image_bytes)
        return await self._fetcher.open(source.data)
