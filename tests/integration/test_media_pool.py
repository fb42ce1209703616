"""Single pictures through real media workers."""

import hashlib
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from lightvl.errors import RequestError
from lightvl.multimodal.pool import ImageSource, MediaPool
from tests.integration.media_helpers import (
    CONFIG,
    MIB,
    expected_pixels,
    inline,
    pixels_in,
    png,
    with_pool,
)
from tests.unit.http_server import ok, serving


def test_a_picture_is_loaded_and_decoded() -> None:
    data = png()

    async def test(pool: MediaPool) -> None:
        media = pool.open()
        (image,) = await media.load([inline(data)])
        assert image.md5 == hashlib.md5(data).hexdigest()
        assert image.sha256 == hashlib.sha256(data).digest()
        assert (image.width, image.height, image.num_bytes) == (40, 30, len(data))
        pixels = await pool.decode(image)
        media.release()
        media.release()
        assert (pixels.width, pixels.height) == (40, 30)
        assert pixels_in(pool, pixels) == expected_pixels(data)
        pool.free(pixels)

    with_pool(test)


def test_the_front_loads_neither_torch_nor_pillow() -> None:
    code = (
        "import sys, lightvl.multimodal.pool, lightvl.multimodal.prompt, lightvl.grid\n"
        "print({'torch', 'PIL', 'numpy', 'transformers'} & set(sys.modules))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True
    )
    assert done.stdout == "set()\n"


def test_several_pictures_in_order() -> None:
    files = [png(10 + n, 20, n) for n in range(8)]

    async def test(pool: MediaPool) -> None:
        media = pool.open()
        images = await media.load([inline(data) for data in files])
        assert [image.width for image in images] == [10 + n for n in range(8)]
        assert [image.index for image in images] == list(range(8))
        media.release()

    with_pool(test)


def test_the_same_pictures_count_no_conflict() -> None:
    async def test(pool: MediaPool) -> None:
        media = pool.open()
        await media.load([inline(png()), inline(png(seed=1)), inline(png())])
        media.release()
        assert pool.conflicts.total == 0

    with_pool(test)


# --- refusals of single pictures -------------------------------------------------------------


async def load_refusal(pool: MediaPool, sources: list[ImageSource]) -> str:
    media = pool.open()
    with pytest.raises(RequestError) as caught:
        await media.load(sources)
    media.release()
    assert caught.value.status == 400
    return caught.value.message


def test_refusals_name_the_picture() -> None:
    async def test(pool: MediaPool) -> None:
        good, url = inline(png()), "http://127.0.0.1:9/x"
        for bad, text in [
            (inline(b"no picture"), "is damaged or not a JPEG"),
            (ImageSource("base64", "?"), "is not valid base64"),
            (ImageSource("url", "ftp://a.example/"), "is not a valid address"),
            (ImageSource("url", url), "can't be fetched: its host has no address that may be used"),
            (ImageSource("url", "file:///etc/passwd"), "is a file address, which this server"),
        ]:
            message = await load_refusal(pool, [good, bad, good])
            assert message.startswith(f"images[1]: {text}")
        message = await load_refusal(pool, [good] * 9)
        assert message == "9 images, at most 8 are allowed in a request"

    with_pool(test)


def test_pictures_that_are_too_large_together() -> None:
    async def test(pool: MediaPool) -> None:
        message = await load_refusal(pool, [inline(b"x" * (4 * MIB))] * 4)
        assert message == "images: together larger than the 12582912 bytes allowed"

    with_pool(test)


def test_a_picture_that_is_broken_inside_is_found_when_it_is_decoded() -> None:
    data = png(200, 200)

    async def test(pool: MediaPool) -> None:
        media = pool.open()
        _, image = await media.load([inline(png()), inline(data[: len(data) // 2])])
        with pytest.raises(RequestError, match=r"images\[1\]: is damaged or cut short"):
            await pool.decode(image)
        media.release()
        with pytest.raises(RequestError, match=r"images\[1\]: its request has ended"):
            await pool.decode(image)

    with_pool(test)


def test_local_files(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())

    async def test(pool: MediaPool) -> None:
        media = pool.open()
        (image,) = await media.load([ImageSource("url", f"file://{tmp_path}/a.png")])
        assert image.width == 40
        media.release()
        message = await load_refusal(pool, [ImageSource("url", "file:///etc/passwd")])
        assert message == "images[0]: can't be read: no such file is allowed"

    with_pool(test, msgspec.structs.replace(CONFIG, local_path=str(tmp_path)))


def test_pictures_from_the_web_of_known_and_unknown_length() -> None:
    files = [png(10 + n, 20, n) for n in range(4)]

    def answer(path: str, headers: dict[str, str]) -> bytes:
        data = files[int(path[-1])]
        if "chunked" in path:
            body = f"{len(data):x}\r\n".encode() + data + b"\r\n0\r\n\r\n"
            return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body
        return ok(data)

    async def test(pool: MediaPool) -> None:
        async with serving(answer) as server:
            paths = ["chunked0", "known1", "chunked2", "known3"]
            urls = [f"http://127.0.0.1:{server.port}/{path}" for path in paths]
            media = pool.open()
            images = await media.load([ImageSource("url", url) for url in urls])
            assert [image.width for image in images] == [10, 11, 12, 13]
            assert pool.allocator.used_bytes("request") == sum(map(len, files))
            for image, data in zip(images, files, strict=True):
                pixels = await pool.decode(image)
                assert pixels_in(pool, pixels) == expected_pixels(data)
                pool.free(pixels)
            media.release()
            missing = [ImageSource("url", urls[1]), ImageSource("url", "http://127.0.0.1:1/")]
            assert "images[1]: can't be fetched" in await load_refusal(pool, missing)

    with_pool(test, msgspec.structs.replace(CONFIG, allow_private=True))
