"""A small media pool, and pictures and bodies for it."""

import asyncio
import base64
import gc
import io
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import psutil
from PIL import Image

from lightvl.multimodal.pool import ImageSource, MediaConfig, MediaPool, PixelRegion

MIB = 1 << 20
CONFIG = MediaConfig(
    num_workers=2,
    arena_bytes=64 * MIB,
    bytes_in_flight=32 * MIB,
    max_body_bytes=12 * MIB,
    max_image_bytes=4 * MIB,
    max_image_pixels=8_000_000,
    max_images=8,
)


def png(width: int = 40, height: int = 30, seed: int = 0, mode: str = "RGB") -> bytes:
    image = Image.effect_noise((width, height), 50 + seed).convert(mode)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def inline(data: bytes) -> ImageSource:
    return ImageSource("base64", base64.b64encode(data).decode())


def expected_pixels(data: bytes) -> bytes:
    return Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def pixels_in(pool: MediaPool, pixels: PixelRegion) -> bytes:
    end = pixels.offset + 3 * pixels.width * pixels.height
    return bytes(pool.arena.buffer[pixels.offset : end])


async def pieces(data: bytes, size: int = 65536) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def used_bytes(pool: MediaPool) -> int:
    return sum(pool.allocator.used_bytes(purpose) for purpose in ("request", "more", "pixels"))


async def until(condition: Callable[[], bool]) -> None:
    """Waits for something that comes soon on an idle machine."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


def with_pool(test: Callable[[MediaPool], Awaitable[None]], config: MediaConfig = CONFIG) -> None:
    """Runs a test on a pool and checks that nothing is left behind."""

    async def run() -> None:
        pool = MediaPool(config)
        await pool.start()
        try:
            await asyncio.wait_for(test(pool), 120)
            await until(lambda: not used_bytes(pool))  # cancelled jobs may be under way
        finally:
            pids = pool.workers.pids
            await pool.close()
            assert not [pid for pid in pids if psutil.pid_exists(pid)]

    asyncio.run(run())
    gc.collect()


def native_body(files: list[bytes], **extra: object) -> bytes:
    images = [{"type": "base64", "data": base64.b64encode(data).decode()} for data in files]
    return msgspec.json.encode(
        {"inputs": "what?", **extra, "multimodal_params": {"images": images}}
    )
