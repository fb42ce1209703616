"""Media workers that die, hang or are cancelled; a full arena; a front that is killed."""

import asyncio
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import psutil
import pytest

from lightvl.errors import RequestError
from lightvl.multimodal.pool import ImageSource, LoadedImage, MediaPool, RequestMedia
from tests.integration.media_helpers import (
    CONFIG,
    MIB,
    expected_pixels,
    inline,
    native_body,
    pieces,
    pixels_in,
    png,
    until,
    with_pool,
)

ONE_WORKER = msgspec.structs.replace(CONFIG, num_workers=1)


async def loaded(pool: MediaPool, data: bytes) -> tuple[RequestMedia, LoadedImage]:
    media = pool.open()
    try:
        (image,) = await media.load([inline(data)])
    except RequestError:
        media.release()
        raise
    return media, image


async def decode_once(pool: MediaPool, data: bytes) -> None:
    media, image = await loaded(pool, data)
    try:
        pixels = await pool.decode(image)
        assert pixels_in(pool, pixels) == expected_pixels(data)
        pool.free(pixels)
    finally:
        media.release()


def test_killing_a_worker_costs_one_request() -> None:
    async def test(pool: MediaPool) -> None:
        await asyncio.gather(*(decode_once(pool, png(seed=n)) for n in range(4)))
        stuck, other = pool.workers.pids
        os.kill(stuck, signal.SIGSTOP)
        tasks = [asyncio.create_task(decode_once(pool, png(300, 200, n))) for n in range(20)]
        await until(lambda: sum(task.done() for task in tasks) == 19)
        os.kill(stuck, signal.SIGKILL)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        failures = [result for result in results if result is not None]
        assert [str(f) for f in failures] == [
            "images[0]: can't be decoded: its decoder ended unexpectedly"
        ]
        await asyncio.gather(*(decode_once(pool, png(seed=n)) for n in range(6)))
        assert len(pool.workers.pids) == 2
        assert other in pool.workers.pids

    with_pool(test)


def test_an_idle_worker_that_died_costs_nothing() -> None:
    async def test(pool: MediaPool) -> None:
        await decode_once(pool, png())
        (pid,) = pool.workers.pids
        os.kill(pid, signal.SIGKILL)
        await until(lambda: psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
        await decode_once(pool, png())
        assert pid not in pool.workers.pids

    with_pool(test, ONE_WORKER)


def test_a_worker_that_hangs_is_replaced() -> None:
    async def test(pool: MediaPool) -> None:
        media, image = await loaded(pool, png())
        (pid,) = pool.workers.pids
        pool.workers.job_timeout_s = 0.5  # starting may take longer
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(RequestError, match=r"images\[0\]: takes longer than 0.5 s"):
            await pool.decode(image)
        assert not psutil.pid_exists(pid)
        media.release()

    with_pool(test, ONE_WORKER)


def test_room_stays_taken_while_a_cancelled_job_may_write_to_it() -> None:
    async def test(pool: MediaPool) -> None:
        media, image = await loaded(pool, png())
        (pid,) = pool.workers.pids
        os.kill(pid, signal.SIGSTOP)
        waiting = asyncio.create_task(pool.decode(image))
        queued = asyncio.create_task(pool.decode(image))
        size = 3 * image.width * image.height
        await until(lambda: pool.allocator.used_bytes("pixels") == 2 * size)
        waiting.cancel()
        queued.cancel()
        media.release()
        await asyncio.wait([waiting, queued])
        assert pool.allocator.used_bytes("pixels") == size
        assert pool.allocator.used_bytes("request") == image.num_bytes
        os.kill(pid, signal.SIGCONT)
        await decode_once(pool, png(seed=1))
        assert pool.allocator.used_bytes("pixels") == 0

    with_pool(test, ONE_WORKER)


def test_a_closing_pool_fails_what_is_under_way() -> None:
    async def run() -> None:
        pool = MediaPool(ONE_WORKER)
        await pool.start()
        media, image = await loaded(pool, png())
        os.kill(pool.workers.pids[0], signal.SIGSTOP)
        tasks = [asyncio.create_task(pool.decode(image)) for _ in range(3)]
        await asyncio.sleep(0.05)
        await pool.close()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, RequestError)
        media.release()

    asyncio.run(run())


def test_workers_are_limited() -> None:
    async def test(pool: MediaPool) -> None:
        await decode_once(pool, png())
        (pid,) = pool.workers.pids
        memory = psutil.Process(pid).memory_info().vms
        for kind, most in [
            (resource.RLIMIT_AS, memory + 32 * CONFIG.max_image_pixels + 300 * MIB),
            (resource.RLIMIT_NOFILE, 40),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_CPU, 60),
        ]:
            assert resource.prlimit(pid, kind)[0] <= most

    with_pool(test, ONE_WORKER)


def test_a_body_that_needs_too_much_memory_is_refused() -> None:
    config = msgspec.structs.replace(
        ONE_WORKER,
        arena_bytes=128 * MIB,
        bytes_in_flight=100 * MIB,
        max_body_bytes=40 * MIB,
        max_image_pixels=1_000_000,
    )
    body = b"[" + b"{}," * (13 * MIB) + b"1]"

    async def test(pool: MediaPool) -> None:
        media = pool.open()
        with pytest.raises(RequestError, match="the body needs too much memory"):
            await media.parse_body(pieces(body, MIB), len(body))
        media.release()
        await decode_once(pool, png())

    with_pool(test, config)


def test_many_large_bodies_wait_for_room_and_all_are_served() -> None:
    body = native_body([png(1000, 800, 9)] * 4)  # three at a time
    assert 4 * len(body) > CONFIG.bytes_in_flight - CONFIG.max_body_bytes

    async def serve(pool: MediaPool, number: int) -> None:
        media = pool.open()
        try:
            parsed = msgspec.json.decode(await media.parse_body(pieces(body), len(body)))
            inside = parsed["multimodal_params"]["images"][0]["data"]
            sources = [ImageSource("base64", inside)]
            if number % 2:
                sources.append(inline(png(100, 100, number)))
            images = await media.load(sources)
            for image in images:
                pixels = await pool.decode(image)
                await asyncio.sleep(0.01)
                pool.free(pixels)
        finally:
            media.release()

    async def test(pool: MediaPool) -> None:
        await asyncio.gather(*(serve(pool, number) for number in range(12)))

    with_pool(test)


async def visit(pool: MediaPool, rng: random.Random, body: bytes, data: bytes) -> None:
    """A request of a random kind that dallies everywhere."""
    media = pool.open()
    try:
        sources = [inline(data) for _ in range(rng.randrange(3))]
        if rng.random() < 0.7:
            parsed = msgspec.json.decode(await media.parse_body(pieces(body), len(body)))
            inside = parsed["multimodal_params"]["images"]
            sources += [ImageSource("base64", image["data"]) for image in inside]
        for image in await media.load(sources):
            await asyncio.sleep(rng.random() / 50)
            pixels = await pool.decode(image)
            try:
                await asyncio.sleep(rng.random() / 50)
            finally:
                pool.free(pixels)
    finally:
        media.release()


@pytest.mark.parametrize("seed", range(3))
def test_any_mixture_of_requests_ends_also_when_some_are_cancelled(seed: int) -> None:
    config = msgspec.structs.replace(
        CONFIG,
        arena_bytes=9 * MIB,
        bytes_in_flight=6 * MIB,
        max_body_bytes=3 * MIB,
        max_image_pixels=MIB,
    )
    rng = random.Random(seed)
    data = png(650, 500)
    body = native_body([data, data])
    assert 2 * len(body) > 3 * MIB > len(body)  # one at a time

    async def test(pool: MediaPool) -> None:
        tasks = [asyncio.create_task(visit(pool, rng, body, data)) for _ in range(24)]
        for task in rng.sample(tasks, 9):
            await asyncio.sleep(rng.random() / 20)
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        ended = [r for r in results if r is None or isinstance(r, asyncio.CancelledError)]
        assert len(ended) == 24
        await decode_once(pool, data)

    with_pool(test, config)


def test_no_orphans_when_the_front_is_killed() -> None:
    code = """
import asyncio, sys
from lightvl.multimodal.pool import MediaPool
from tests.integration.test_media_faults import decode_once
from tests.integration.media_helpers import CONFIG, png

async def main():
    pool = MediaPool(CONFIG)
    await pool.start()
    await asyncio.gather(*(decode_once(pool, png(seed=n)) for n in range(4)))
    print(*pool.workers.pids, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""
    root = Path(__file__).parents[2]
    front = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code], cwd=root, stdout=subprocess.PIPE, text=True
    )
    assert front.stdout is not None
    pids = [int(word) for word in front.stdout.readline().split()]
    assert len(pids) == 2
    os.kill(pids[0], signal.SIGSTOP)  # also one that can't notice the closed channel
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(pids[1], number)
    time.sleep(0.1)
    assert psutil.pid_exists(pids[1])  # it drains with the front
    front.kill()
    front.wait()
    front.stdout.close()
    gone, alive = psutil.wait_procs(
        [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=10
    )
    assert not alive, gone
