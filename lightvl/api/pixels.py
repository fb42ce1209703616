"""Decoded pictures for the engine: made when it asks, freed when it is done."""

import asyncio
from collections.abc import Callable

from lightvl.errors import RequestError
from lightvl.messages import NeedPixels, Pixels
from lightvl.multimodal.pool import LoadedImage, MediaPool, PixelRegion


class PixelSupply:
    """Answers `NeedPixels` and owns the pixel regions that the engine reads.

    Args:
        media: Decodes.
        send: Sends one message to the engine.
    """

    def __init__(self, media: MediaPool, send: Callable[[object], None]) -> None:
        self._media = media
        self._send = send
        self._regions: dict[int, PixelRegion] = {}
        self._decodes: dict[int, set[asyncio.Task[None]]] = {}

    def supply(
        self,
        need: NeedPixels,
        image: LoadedImage,
        failed: Callable[[RequestError], None],
        decoded: Callable[[], None],
    ) -> None:
        """Decodes a picture in the background and sends it.

        Args:
            need: The engine's question.
            image: The picture that the request carries under that key.
            failed: Told when the picture is broken inside.
            decoded: Told when the pixels are on their way.
        """
        task = asyncio.create_task(self._decode(need, image, failed, decoded))
        tasks = self._decodes.setdefault(need.request_id, set())
        tasks.add(task)
        task.add_done_callback(lambda _: self._forget(need.request_id, task))

    def cancel(self, request_id: int) -> None:
        """Gives up what is being decoded for a request that has ended."""
        for task in self._decodes.pop(request_id, ()):
            task.cancel()

    def done(self, offset: int) -> None:
        """The engine no longer reads the pixels at `offset`."""
        region = self._regions.pop(offset, None)
        if region is not None:
            self._media.free(region)

    async def _decode(
        self,
        need: NeedPixels,
        image: LoadedImage,
        failed: Callable[[RequestError], None],
        decoded: Callable[[], None],
    ) -> None:
        try:
            region = await self._media.decode(image)
            self._regions[region.offset] = region
            self._send(Pixels(need.key, region.offset, region.width, region.height))
            decoded()
        except RequestError as error:
            failed(error)

    def _forget(self, request_id: int, task: asyncio.Task[None]) -> None:
        tasks = self._decodes.get(request_id)
        if tasks is not None:
            tasks.discard(task)
            if not tasks:
                del self._decodes[request_id]
