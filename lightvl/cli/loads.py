"""The loads of `lightvl bench`: seeded questions, with or without synthetic pictures."""

import base64
import io
import json
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

Content = Literal["noise", "smooth"]

SYSTEM = "You are a helpful assistant."
JPEG_QUALITY = 85
_TEXT = (  # short, common: a token each, or nearly, in most vocabularies
    "the river runs past a small town where old men sit in the sun and talk of rain while "
    "children play near the bridge with a red ball that one boy found last week by the road and "
    "a dog looks on from under its tree as if it knew how this game will end before night comes "
    "and all go home to eat bread fish and rice then read books or tell each other about places "
    "far away over the sea that no one here has seen yet but every day some new ship brings "
    "letters wood glass and tea so we wait at the door for what may come next"
)
WORDS = _TEXT.split()


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is asked, and how many ask at once.

    Attributes:
        requests: In one repetition.
        concurrency: Requests under way at once, when no rate is given.
        image: Width and height of the pictures, or None for text alone.
        input_words: Words of text in a question.
        output_tokens: Tokens that are asked for.
        same_image: Whether all questions are about one picture.
        images_per_request: Pictures in a question.
        rate: Mean arrivals a second (Poisson), or None for a closed loop.
    """

    requests: int
    concurrency: int
    image: tuple[int, int] | None
    input_words: int
    output_tokens: int
    same_image: bool = False
    images_per_request: int = 1
    rate: float | None = None


def _preset(
    requests: int,
    concurrency: int,
    image: tuple[int, int] | None,
    input_words: int,
    output_tokens: int,
    same_image: bool = False,
) -> Load:
    return Load(
        requests=requests,
        concurrency=concurrency,
        image=image,
        input_words=input_words,
        output_tokens=output_tokens,
        same_image=same_image,
    )


PRESETS = {
    "L1": _preset(256, 32, (560, 560), 128, 32),
    "L2": _preset(128, 64, (1024, 1024), 100, 100),
    "L3": _preset(128, 32, (1024, 1024), 100, 100, same_image=True),
    "L4": _preset(128, 64, None, 1024, 128),
    "L5": _preset(10, 1, (448, 448), 32, 64),
    "L6": _preset(128, 64, (896, 896), 100, 100),
    "L7": _preset(128, 64, (1344, 896), 100, 100),
}


def make_bodies(
    load: Load,
    *,
    model: str,
    seed: int,
    count: int,
    image_seed: int,
    content: Content = "noise",
    plain: bool = False,
    done: Callable[[], None] = lambda: None,
) -> list[bytes]:
    """Returns encoded bodies for `/v1/chat/completions`; equal seeds give equal bodies.

    Args:
        load: What is asked.
        model: The model's name at the server.
        seed: Of texts and pictures.
        count: How many bodies.
        image_seed: Of the picture, where all share one.
        content: Of the pictures: noise, the dearest to decode, or smooth, as large as photographs.
        plain: Whether to leave out what not every server knows.
        done: Called after each body, from another thread.
    """

    def one(index: int) -> bytes:
        generator = random.Random(seed * 1_000_003 + index)
        pictures = []
        if load.image:
            source = random.Random(image_seed) if load.same_image else generator
            for _ in range(load.images_per_request):
                pictures.append(make_jpeg(load.image, source, content))
        text = " ".join(generator.choices(WORDS, k=load.input_words))
        encoded = json.dumps(_body(load, model, text, pictures, plain)).encode()
        done()
        return encoded

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, range(count)))


def make_jpeg(size: tuple[int, int], generator: random.Random, content: Content) -> bytes:
    """Returns a JPEG file of `size` pixels."""
    width, height = size
    noise = Image.frombytes("RGB", size, generator.randbytes(3 * width * height))
    if content == "smooth":
        colours = Image.frombytes("RGB", (12, 12), generator.randbytes(3 * 12 * 12))
        noise = Image.blend(colours.resize(size, Image.Resampling.BICUBIC), noise, 0.03)
    buffer = io.BytesIO()
    noise.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _body(load: Load, model: str, text: str, pictures: list[bytes], plain: bool) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [
        {
            "type": "image_url",
            "image_url": {"url": "data:image/jpeg;base64," + base64.b64encode(picture).decode()},
        }
        for picture in pictures
    ]
    content: Any = [*parts, {"type": "text", "text": text}] if parts else text
    body = {
        "model": model,
        "stream": True,
        "max_tokens": load.output_tokens,
        "temperature": 0,
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": content},
        ],
    }
    if not plain:
        body |= {"ignore_eos": True, "stream_options": {"include_usage": True}}
    return body
