"""Many clients that leave at any moment of a stream: nothing of them is left."""

import asyncio
import base64
import io
import json
import os
import random
import re
import time
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from PIL import Image

from lightvl.testing.server import ENGINE, ServerProcess

QUESTION = "<|im_start|>user\n<image>\nWhat is this?<|im_end|>\n<|im_start|>assistant\n"
GAUGE = re.compile(r"^lightvl:([a-z_]+(?:\{[^}]*\})?) ([0-9.e+-]+)$", re.MULTILINE)
AT_REST = (
    *("num_requests_running", "num_requests_waiting", "num_requests_queued", "num_tokens_queued"),
    *("kv_pages_used", *(f'media_bytes{{purpose="{p}"}}' for p in ("request", "more", "pixels"))),
    "image_cache_images_in_use",
)


def picture(number: int) -> str:
    file = io.BytesIO()
    Image.new("RGB", (100 + number % 7, 80), (number % 5 * 50, 90, 20)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def request(number: int, rng: random.Random) -> bytes:
    images = [{"type": "base64", "data": picture(number)}] if number % 3 else []
    body = {
        "inputs": QUESTION if images else QUESTION.replace("<image>\n", ""),
        "multimodal_params": {"images": images},
        "parameters": {"max_new_tokens": rng.choice((1, 5, 40, 400)), "ignore_eos": True},
    }
    data = json.dumps(body).encode()
    if number % 11 == 0:
        data += b" " * 70_000  # large enough for a media worker
    path = rng.choice((b"/generate_stream", b"/generate"))
    head = b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (path, len(data))
    return head + data


async def leave(port: int, number: int, rng: random.Random) -> None:
    """Sends a request, all or part of it, reads for a while and goes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = request(number, rng)
    writer.write(data if rng.random() < 0.9 else data[: rng.randrange(len(data))])
    try:
        async with asyncio.timeout(rng.choice((0.0, 0.05, 0.5, 2.0))):
            while await reader.read(rng.choice((1, 100, 10_000))):
                pass
    except (TimeoutError, ConnectionError):
        pass
    if rng.random() < 0.5:
        writer.transport.abort()
    writer.close()


async def crowd(port: int, num_clients: int, seed: int) -> None:
    rng = random.Random(seed)
    await asyncio.gather(*(leave(port, n, random.Random(rng.random())) for n in range(num_clients)))


def gauges(url: str) -> dict[str, float]:
    return {name: float(value) for name, value in GAUGE.findall(httpx.get(url + "/metrics").text)}


def at_rest(server: ServerProcess) -> tuple[dict[str, float], int]:
    """Waits until the gauges are zero; returns them and the front's descriptors."""
    ends_s = time.monotonic() + 60
    while True:
        found = gauges(server.url)
        if "kv_pages_used" not in found:
            continue  # the engine was busy for a second
        num_fds = psutil.Process(server.process.pid).num_fds()
        if not any(found[name] for name in AT_REST):
            return found, num_fds
        assert time.monotonic() < ends_s, {name: found[name] for name in AT_REST}
        time.sleep(0.1)


def run(num_clients: int) -> None:
    environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    flags = ["--max_queued_requests", "2000", "--media_workers", "2"]
    with ServerProcess(*flags, engine=ENGINE, environment=environment) as server:
        port = urlsplit(server.url).port or 0
        asyncio.run(crowd(port, 20, 0))  # what is opened once is open after this
        before, num_fds = at_rest(server)
        asyncio.run(crowd(port, num_clients, 1))
        after, num_fds_later = at_rest(server)
        assert num_fds_later <= num_fds + 2  # the second decoder may have started later
        assert after["event_loop_tasks"] <= before["event_loop_tasks"] + 2  # and its reader, too
        answer = httpx.post(server.url + "/generate", json={"inputs": "Hello"}, timeout=60)
        assert answer.status_code == 200
        assert "failed inside" not in server.log


def test_clients_that_leave_leave_nothing() -> None:
    run(150)


@pytest.mark.soak
def test_a_thousand_clients_that_leave_leave_nothing() -> None:
    run(1000)
