"""Pictures that break decoders, the right answer to each, and a server that is shown them.

A file's right answer is Pillow's own: 200 if Pillow decodes it in one of the formats that are
served and its header keeps to the limits, else 400. So refusing everything fails, too.
"""

import asyncio
import base64
import io
import random
import struct
import time
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from PIL import Image

from lightvl.multimodal.decode import FORMATS, MAX_SIDE

MAX_PIXELS = 16_000_000
MAX_BYTES = 8 << 20
FLAGS = ["--max_image_pixels", str(MAX_PIXELS), "--max_image_bytes", str(MAX_BYTES)]
LONGEST_S = 5.0

SAVED = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("P", "L"),
    "BMP": ("1", "L", "P", "RGB"),
    "TIFF": ("1", "L", "RGB", "RGBA", "CMYK", "I;16", "F"),
}


@dataclass(frozen=True)
class File:
    """A picture and where it comes from."""

    name: str
    data: bytes


def generated(seed: int) -> Iterator[File]:
    """Good pictures in every format and mode; each cut, flipped, overwritten; bombs; others."""
    rng = random.Random(seed)
    for format, modes in SAVED.items():
        for mode in modes:
            data = _encoded(format, mode, rng)
            yield File(f"good {format} {mode}", data)
            for share in (0.0, 0.02, 0.3, 0.9, 0.99):
                yield File(f"cut {share} {format} {mode}", data[: int(share * len(data))])
            for number in range(6):
                yield File(f"flipped {number} {format} {mode}", _flipped(data, rng))
            yield File(f"noise behind {format} {mode}", data + rng.randbytes(5000))
            yield File(f"noise within {format} {mode}", _overwritten(data, rng))
    yield from _bombs()
    yield from _no_pictures(rng)


def folder(path: Path) -> Iterator[File]:
    """All files below a folder, those too large for a request left out."""
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.stat().st_size <= MAX_BYTES:
            yield File(str(file.relative_to(path)), file.read_bytes())


def right_status(data: bytes) -> int:
    """What a file must be answered."""
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
                return 400
            image.load()
            image.convert("RGB")
    except Exception:
        return 400
    return 200


async def show(url: str, files: list[File]) -> list[str]:
    """Shows a server every file, a good picture between them; returns what went wrong."""
    good = _encoded("PNG", "RGB", random.Random(0))
    faults: list[str] = []
    gate = asyncio.Semaphore(2)  # as many as cores: waiting isn't what is measured
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        expected = (await _ask(http, good)).json()["generated_text"]

        async def one(number: int, file: File) -> None:
            right = await asyncio.to_thread(right_status, file.data)
            async with gate:
                begin_s = time.monotonic()
                answer = await _ask(http, file.data)
                seconds = time.monotonic() - begin_s
                if answer.status_code != right:
                    faults.append(f"{file.name}: {answer.status_code}, not {right}: {answer.text}")
                if seconds > LONGEST_S:
                    faults.append(f"{file.name}: took {seconds:.1f} s")
                if (
                    number % 20 == 0
                    and (await _ask(http, good)).json()["generated_text"] != expected
                ):
                    faults.append(f"the good picture after {file.name} is answered differently")

        await asyncio.gather(*(one(number, file) for number, file in enumerate(files)))
    return faults


async def _ask(http: httpx.AsyncClient, data: bytes) -> httpx.Response:
    images = [{"type": "base64", "data": base64.b64encode(data).decode()}]
    body = {"inputs": "What is <image>?", "multimodal_params": {"images": images}}
    return await http.post("/generate", json=body)


def _encoded(format: str, mode: str, rng: random.Random) -> bytes:
    size = (rng.randrange(20, 90), rng.randrange(20, 90))
    noise = Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1]))
    image = noise.convert("L").convert("I;16") if mode == "I;16" else noise.convert(mode)
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


def _flipped(data: bytes, rng: random.Random) -> bytes:
    flipped = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 20))):
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def _overwritten(data: bytes, rng: random.Random) -> bytes:
    begin = rng.randrange(len(data))
    return data[:begin] + rng.randbytes(min(40, len(data) - begin)) + data[begin + 40 :]


def _chunk(kind: bytes, data: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + check


def _png(width: int, height: int, *chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join([_chunk(b"IHDR", header), *chunks, _chunk(b"IEND", b"")])


def _bombs() -> Iterator[File]:
    zeros = zlib.compress(bytes(64 << 20), 9)
    yield File("png of 4 gigapixels", _png(65535, 65535, _chunk(b"IDAT", zeros)))
    yield File("png wider than anything", _png(2**31 - 1, 1, _chunk(b"IDAT", zeros)))
    yield File("png of no pixels", _png(0, 0, _chunk(b"IDAT", zlib.compress(b""))))
    yield File("png at the limit, empty", _png(4000, 4000, _chunk(b"IDAT", zlib.compress(b"\0"))))
    yield File(
        "png at the limit", _png(4000, 4000, _chunk(b"IDAT", zlib.compress(bytes(4000 * 12001), 9)))
    )
    yield File(
        "png one beyond", _png(4001, 4000, _chunk(b"IDAT", zlib.compress(bytes(4000 * 12004), 9)))
    )
    text = _chunk(b"zTXt", b"Comment\0\0" + zeros)
    body = _chunk(b"IDAT", zlib.compress(bytes(8 * 25), 9))
    yield File("png with a text bomb", _png(8, 8, text, body))
    yield File("png with a profile bomb", _png(8, 8, _chunk(b"iCCP", b"p\0\0" + zeros), body))
    yield File("png with 20,000 chunks", _png(8, 8, *[_chunk(b"tEXt", b"a\0b")] * 20_000, body))
    yield File("bmp of 4 gigapixels", _bmp(65535, 65535))
    yield File("bmp of a negative width", _bmp(-100, 100))
    yield File(
        "gif of 4 gigapixels", b"GIF89a" + b"\xff" * 4 + b"\xf0\0\0" + bytes(6) + b"\x2c" + bytes(9)
    )
    yield File("tiff whose directory is its own next", _tiff_loop())
    yield File("animation of 3,000 frames", _animation())


def _bmp(width: int, height: int) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return struct.pack("<2sIHHI", b"BM", 54, 0, 0, 54) + info


def _tiff_loop() -> bytes:
    entry = struct.pack("<HHII", 256, 4, 1, 10) + struct.pack("<HHII", 257, 4, 1, 10)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 2) + entry + struct.pack("<I", 8)


def _animation() -> bytes:
    frames = [Image.new("P", (16, 16), n % 7) for n in range(3000)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], optimize=False)
    return file.getvalue()


def _no_pictures(rng: random.Random) -> Iterator[File]:
    yield File("nothing", b"")
    yield File("a null", b"\0")
    yield File("svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"/>')
    yield File("html", b"<html><img src=x></html>")
    yield File("pdf", b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n")
    yield File("postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    yield File("xpm", b'/* XPM */\nstatic char *a[] = {"1 1 1 1", "a c #000000", "a"};')
    yield File("zip", b"PK\3\4" + rng.randbytes(200))
    for magic in (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"MM\0*"):
        yield File(f"noise that begins {magic!r}", magic + rng.randbytes(3000))
    yield File(
        "noise in a webp", b"RIFF" + struct.pack("<I", 3000) + b"WEBPVP8 " + rng.randbytes(2988)
    )
