"""Two pictures with one MD5: neither gets what is cached for the other.

The pictures are BMP files whose first 64 bytes (head and start of the palette) are followed by the
two blocks of an identical-prefix collision (X. Wang, H. Yu, "How to break MD5 and other hash
functions", 2005), which differ in the colours of a few palette entries. All that follows is equal.
"""

import base64
import hashlib
import io
import struct
from collections.abc import Iterator

import httpx
import pytest
from PIL import Image, ImageDraw

from lightvl.testing.server import ENGINE, ServerProcess

SIDE = 224
PALETTE_BEGIN, PIXELS_BEGIN = 54, 54 + 1024
HEAD = b"BM" + struct.pack(
    "<IHHI IiiHHIIiiII",
    *(PIXELS_BEGIN + SIDE * SIDE, 0, 0, PIXELS_BEGIN),
    *(40, SIDE, SIDE, 1, 8, 0, SIDE * SIDE, 2835, 2835, 256, 0),
)
PREFIX = HEAD + bytes((255, 255, 255, 0, 0, 0, 0, 0, 128, 128))
BLOCKS = bytes.fromhex(
    "2ad929a7285da5ed3f5d37b224618c118ba9bffc6754341938be41ba6bc4ae2c"
    "e6db06cbd3ab22b48f20ec141fc2f9a98c27b774ff02dd850d25348f4147cae2"
    "0f5cfecaf907ea27d97ee5b2d5d03f9ec7b6a8a8cd5cc5edfc6c33474c5badbd"
    "dd97ba973f341246329015a294b4627cce88fa0d90d2c3384e2e42ec253f6b2b"
)
DIFFERENCES = (
    *((4, 1 << 31), (11, 1 << 15), (14, 1 << 31)),
    *((20, 1 << 31), (27, -(1 << 15)), (30, 1 << 31)),
)
"""32-bit words of the blocks, and what is added to them in the second file."""
ENTRY = 7
"""The palette entry of the figure: green in one file, blue in the other."""
BACKGROUND = 255
QUESTION = "<|im_start|>user\n<image>\nWhat is this?<|im_end|>\n<|im_start|>assistant\n"
GREEN, BLUE = "This is a green circle.", "This is a blue circle."


def other_blocks() -> bytes:
    words = list(struct.unpack("<32I", BLOCKS))
    for index, difference in DIFFERENCES:
        words[index] = (words[index] + difference) % 2**32
    return struct.pack("<32I", *words)


def picture(blocks: bytes) -> bytes:
    """Returns a white picture with a circle in the colour that the blocks give it."""
    figure = Image.new("P", (SIDE, SIDE), BACKGROUND)
    ImageDraw.Draw(figure).ellipse((52, 52, 172, 172), fill=ENTRY)
    pixels = figure.transpose(Image.Transpose.FLIP_TOP_BOTTOM).tobytes()
    begin = PREFIX + blocks
    return begin + bytes(PIXELS_BEGIN - 4 - len(begin)) + b"\xff\xff\xff\0" + pixels


FILES = [picture(BLOCKS), picture(other_blocks())]


def test_the_pictures_are_valid_and_share_their_md5() -> None:
    assert len({hashlib.md5(file).digest() for file in FILES}) == 1
    assert len({hashlib.sha256(file).digest() for file in FILES}) == 2
    images = [Image.open(io.BytesIO(file)).convert("RGB") for file in FILES]
    assert [image.getpixel((112, 112)) for image in images] == [(103, 252, 191), (103, 124, 191)]
    assert {image.getpixel((5, 5)) for image in images} == {(255, 255, 255)}


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with (
        ServerProcess(engine=ENGINE, environment={"OMP_NUM_THREADS": "1"}) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        yield client


def ask(http: httpx.Client, *files: bytes) -> tuple[str, list[tuple[str, bool]]]:
    """Returns the answer, and each picture's MD5 and whether its embedding was there."""
    images = [{"type": "base64", "data": base64.b64encode(file).decode()} for file in files]
    body = {
        "inputs": QUESTION.replace("<image>\n", "<image>\n" * len(files)),
        "parameters": {"max_new_tokens": 16, "return_details": True},
        "multimodal_params": {"images": images},
    }
    answer = http.post("/generate", json=body)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    return told["generated_text"][0], [(i["md5"], i["cached"]) for i in told["images"]]


def conflicts(http: httpx.Client) -> float:
    name = "lightvl:image_identity_conflicts_total"
    lines = http.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(name)).split()[1])


def test_a_collision_is_a_miss_and_is_counted(http: httpx.Client) -> None:
    md5 = hashlib.md5(FILES[0]).hexdigest()
    assert ask(http, FILES[0]) == (GREEN, [(md5, False)])
    assert conflicts(http) == 0
    assert ask(http, FILES[1]) == (BLUE, [(md5, False)])
    assert conflicts(http) == 1
    assert ask(http, FILES[1]) == (BLUE, [(md5, True)])
    assert conflicts(http) == 1
    assert ask(http, FILES[0]) == (GREEN, [(md5, True)])
    assert conflicts(http) == 2


def test_both_in_one_request_are_two_pictures(http: httpx.Client) -> None:
    text, images = ask(http, *FILES)
    assert len({md5 for md5, _ in images}) == 1
    assert text == ask(http, *FILES)[0] != ask(http, FILES[0], FILES[0])[0]
