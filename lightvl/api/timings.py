"""Where a request's time went: its stages, as answers, metrics and traces tell them.

A stage is wall-clock time of one request, the waits in it included, and the next one begins where
it ends. They are made from times that were noted on the way, once the request has ended.
"""

import time
from collections.abc import Iterable

from lightvl.api.generation import Generation

OF_PICTURES = ("image_decode", "preprocess", "vision")
STAGES = ("fetch", "prepare", "queue", *OF_PICTURES, "prefill", "decode")
"""In their order: the body and the pictures' bytes come; tokenizing; waiting to be admitted;
pictures become pixels; pixels become patches; the tower; the prompt up to the first token; the
rest. Those of pictures are only there where a picture needed them."""


def stages(generation: Generation, now_s: float) -> list[tuple[str, float, float]]:
    """Returns the stages that a generation has gone through: name, begin and end.

    Args:
        generation: Running or ended.
        now_s: The end of the stage that it is in, by the monotonic clock.
    """
    ends = {
        "fetch": generation.prepared.loaded_s,
        "prepare": generation.prepared_s,
        "queue": generation.started_s,
        "image_decode": generation.decoded_s,
        "preprocess": generation.preprocessed_s,
        "vision": generation.encoded_s,
        "prefill": generation.first_token_s,
        "decode": generation.ended_s,
    }
    found = []
    begin_s = generation.began_s
    for name, end_s in ends.items():
        if end_s is None and name in OF_PICTURES:
            continue
        stage_end_s = now_s if end_s is None else max(begin_s, end_s)
        found.append((name, begin_s, stage_end_s))
        if end_s is None:
            break
        begin_s = stage_end_s
    return found


def stage_seconds(generations: Iterable[Generation]) -> dict[str, float]:
    """Returns how long each stage took, with `total`; of several generations the longest."""
    now_s = time.monotonic()
    longest: dict[str, float] = {}
    for generation in generations:
        spans = stages(generation, now_s)
        totals = [("total", spans[0][1], spans[-1][2])]
        for name, begin_s, end_s in spans + totals:
            longest[name] = max(longest.get(name, 0.0), end_s - begin_s)
    return longest


def server_timing(generations: Iterable[Generation]) -> bytes:
    """Returns a `Server-Timing` header's value; durations are in milliseconds."""
    seconds = stage_seconds(generations)
    return ", ".join(f"{name};dur={1000 * s:.3f}" for name, s in seconds.items()).encode()


def usage_details(generation: Generation) -> dict[str, object]:
    """Returns what a stream's usage tells beyond OpenAI's: the stages and the pictures."""
    seconds = stage_seconds([generation])
    return {
        "timings_ms": {name: round(1000 * s, 3) for name, s in seconds.items()},
        "images": [
            {"cols": slot.grid.cols, "rows": slot.grid.rows, "thumbnail": slot.grid.thumbnail}
            | details
            for slot, details in zip(
                generation.prepared.slots, image_details(generation), strict=True
            )
        ],
    }


def image_details(generation: Generation) -> list[dict[str, object]]:
    """Returns what `images` of the native routes' details has."""
    prepared = generation.prepared
    return [
        {
            "md5": image.md5,
            "width": image.width,
            "height": image.height,
            "tiles": slot.grid.num_tiles,
            "tokens": slot.num_tokens,
            "cached": cached,
        }
        for image, slot, cached in zip(
            prepared.images, prepared.slots, generation.cached_images, strict=True
        )
    ]
