"""Large bodies, taken apart by real media workers."""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from lightvl.errors import RequestError
from lightvl.multimodal import request
from lightvl.multimodal.pool import ImageSource, MediaPool
from tests.integration.media_helpers import (
    CONFIG,
    MIB,
    expected_pixels,
    inline,
    native_body,
    pieces,
    pixels_in,
    png,
    with_pool,
)


def test_a_native_body_is_taken_apart() -> None:
    files = [png(700, 500), png(30, 40, 1)]
    body = native_body(files, parameters={"seed": 2**63, "x": [1.5, None, "é\ud83d\ude00"[:1]]})

    async def test(pool: MediaPool) -> None:
        media = pool.open()
        text = await media.parse_body(pieces(body), len(body))
        assert len(text) < 1000
        parsed, original = msgspec.json.decode(text), msgspec.json.decode(body)
        named = parsed["multimodal_params"]["images"]
        for entry, source in zip(named, original["multimodal_params"]["images"], strict=True):
            entry["data"], reference = source["data"], entry["data"]
            entry["reference"] = reference
        references = [entry.pop("reference") for entry in named]
        assert parsed == original
        assert pool.allocator.used_bytes("request") == sum(map(len, files))
        images = await media.load([ImageSource("base64", text) for text in references])
        for image, data in zip(images, files, strict=True):
            assert image.md5 == hashlib.md5(data).hexdigest()
            pixels = await pool.decode(image)
            assert pixels_in(pool, pixels) == expected_pixels(data)
            pool.free(pixels)
        media.release()

    with_pool(test)


def test_an_openai_body_is_taken_apart() -> None:
    data = png(700, 500)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    content: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": "https://a.example/x.png"}},
        {"type": "text", "text": "data:image/png;base64,AAAA"},
        {"type": "image_url", "image_url": {"url": url, "detail": "high"}},
    ]
    messages = [{"role": "system", "content": "data:,x"}, {"role": "user", "content": content}]
    body = msgspec.json.encode({"model": "m", "messages": messages})

    async def test(pool: MediaPool) -> None:
        media = pool.open()
        parsed = msgspec.json.decode(await media.parse_body(pieces(body), None))
        reference = parsed["messages"][1]["content"][2]["image_url"].pop("url")
        content[2]["image_url"].pop("url")
        assert parsed == {"model": "m", "messages": messages}
        (image,) = await media.load([ImageSource("url", reference)])
        assert (image.width, image.height) == (700, 500)
        media.release()

    with_pool(test)


def test_pictures_inside_and_outside_of_a_large_body() -> None:
    inside, outside = png(700, 500), png(20, 20)

    async def test(pool: MediaPool) -> None:
        body = native_body([inside])
        media = pool.open()
        parsed = msgspec.json.decode(await media.parse_body(pieces(body), len(body)))
        reference = parsed["multimodal_params"]["images"][0]["data"]
        images = await media.load([inline(outside), ImageSource("base64", reference)])
        assert [(image.index, image.width) for image in images] == [(0, 20), (1, 700)]
        assert pool.allocator.used_bytes("more") == len(outside)
        media.release()

    with_pool(test)


def test_a_large_body_without_pictures() -> None:
    body = msgspec.json.encode({"inputs": "word " * 100_000})

    async def test(pool: MediaPool) -> None:
        media = pool.open()
        assert await media.parse_body(pieces(body), len(body)) == body
        assert pool.allocator.used_bytes("request") == 0
        media.release()

    with_pool(test)


def body_refusal(body: bytes, num_bytes: int | None = None) -> RequestError:
    caught: list[RequestError] = []

    async def test(pool: MediaPool) -> None:
        media = pool.open()
        with pytest.raises(RequestError) as info:
            await media.parse_body(pieces(body), num_bytes or len(body))
        caught.append(info.value)
        media.release()
        good = native_body([png()])
        await media.parse_body(pieces(good), len(good))  # serves on
        media.release()

    with_pool(test)
    return caught[0]


@pytest.mark.parametrize(
    "body", [b"{" * 100, b"[" * 100_000, b'{"a": 1}}', b"\xff\xfe", b'"\xff"', b"", b"{'a': 1}"]
)
def test_what_is_no_json(body: bytes) -> None:
    error = body_refusal(body)
    assert (error.status, error.message) == (400, "the body is not valid JSON")


def test_a_body_that_is_too_large() -> None:
    error = body_refusal(b"{}", num_bytes=CONFIG.max_body_bytes + 1)
    assert (error.status, error.message) == (
        413,
        "the body is larger than the 12582912 bytes allowed",
    )


def test_a_body_that_is_longer_than_it_said() -> None:
    assert body_refusal(b"x" * 1000, num_bytes=999).status == 413


def test_a_body_that_comes_too_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request, "_BODY_GRACE_S", 0.1)

    async def drip() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.01)

    async def test(pool: MediaPool) -> None:
        media = pool.open()
        with pytest.raises(RequestError, match="the body comes too slowly"):
            await media.parse_body(drip(), 1000)
        media.release()

    with_pool(test)


def test_a_body_with_too_much_text() -> None:
    error = body_refusal(msgspec.json.encode("x" * (4 * MIB)))
    assert (error.status, error.message) == (413, "the body is over 4 MiB without its pictures")


def test_a_body_of_many_small_objects() -> None:
    assert body_refusal(b"[" + b"{}," * (3 * MIB) + b"1]").status in (400, 413)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            [png(), b"no picture"],
            "images[1]: is damaged or not a JPEG, PNG, WebP, GIF, BMP or TIFF",
        ),
        ([png(3000, 2700, mode="1")], "images[0]: has 3000x2700 pixels, at most 8 Mpx are allowed"),
        ([png()] * 9, "the body has more than 8 images, the most allowed in a request"),
        ([b"x" * (4 * MIB + 1)], "images[0]: has 4194305 bytes, at most 4194304 are allowed"),
    ],
)
def test_a_bad_picture_in_a_body(files: list[bytes], message: str) -> None:
    error = body_refusal(native_body(files))
    assert error.status == 400
    assert error.message.startswith(message)


def test_bad_base64_in_a_body() -> None:
    image = {"type": "base64", "data": "?" * 100}
    error = body_refusal(msgspec.json.encode({"multimodal_params": {"images": [image]}}))
    assert error.message == "images[0]: is not valid base64"
    assert (error.param, error.code) == ("images[0]", "invalid_image")


def test_odd_shapes_of_a_body_are_left_to_the_schema() -> None:
    bodies: list[object] = [
        *([], 5, None, {"multimodal_params": []}, {"multimodal_params": {"images": {"type": 1}}}),
        *({"multimodal_params": {"images": [1, None, {}, {"type": "base64"}]}}, {"messages": {}}),
        *({"messages": [1, {"content": [{"type": "image_url", "image_url": "data:x"}]}]},),
        *({"multimodal_params": {"images": [{"type": "base64", "data": 5}]}},),
    ]

    async def test(pool: MediaPool) -> None:
        for body in bodies:
            data = msgspec.json.encode(body)
            media = pool.open()
            assert await media.parse_body(pieces(data), len(data)) == data
            media.release()

    with_pool(test)


def test_references_mean_nothing_to_other_requests() -> None:
    async def test(pool: MediaPool) -> None:
        body = native_body([png()])
        media, other = pool.open(), pool.open()
        parsed = msgspec.json.decode(await media.parse_body(pieces(body), len(body)))
        reference = parsed["multimodal_params"]["images"][0]["data"]
        for source in (ImageSource("base64", reference), ImageSource("url", reference)):
            with pytest.raises(RequestError, match=r"images\[0\]: "):
                await other.load([source])
        other.release()
        media.release()

    with_pool(test)
