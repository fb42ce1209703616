"""Processes of a running server that are killed: who is told what, and what is left."""

import asyncio
import base64
import io
import json
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image, ImageDraw

from lightvl.testing.server import ENGINE, ServerProcess
from tests.integration.test_disconnects import gauges

NUM_WORKERS = 2
NUM_REQUESTS = 60
LOST = "decoder ended unexpectedly"
QUESTION = "<|im_start|>user\n<image>\nWhat is this?<|im_end|>\n<|im_start|>assistant\n"
COLORS = ("red", "green", "blue", "black")
THREADS = {"OMP_NUM_THREADS": "1"}


def circle(color: str) -> bytes:
    image = Image.new("RGB", (1600, 1600), "white")
    ImageDraw.Draw(image).ellipse((400, 400, 1200, 1200), fill=color)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


PICTURES = [circle(color) for color in COLORS]


def processes_of(server: ServerProcess, module: str) -> list[psutil.Process]:
    found = psutil.Process(server.process.pid).children(recursive=True)
    return [process for process in found if module in command_of(process)]


def command_of(process: psutil.Process) -> list[str]:
    """A process's command line, empty once it has ended."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


async def ask(http: httpx.AsyncClient, number: int) -> tuple[int, str]:
    """Returns the status, and the text or the error.

    Every fourth request has no picture; a picture is never sent twice, though it looks the same.
    """
    body: dict[str, object] = {"inputs": "Hello", "parameters": {"max_new_tokens": 10}}
    if number % 4:
        data = PICTURES[number % 4] + number.to_bytes(4, "little")
        images = [{"type": "base64", "data": base64.b64encode(data).decode()}]
        body["parameters"] = {"max_new_tokens": 10, "image_max_patch_num": 1}
        body |= {"inputs": QUESTION, "multimodal_params": {"images": images}}
    answer = await http.post("/generate", json=body)
    told = answer.json()
    is_good = answer.status_code == 200
    return answer.status_code, told["generated_text"][0] if is_good else told["error"]["message"]


def test_killed_decoders_cost_only_what_they_were_serving() -> None:
    async def right_answers(http: httpx.AsyncClient) -> list[str]:
        return [(await ask(http, 10_000 + number))[1] for number in range(4)]

    async def load(http: httpx.AsyncClient, server: ServerProcess) -> int:
        expected = await right_answers(http)
        assert len(set(expected)) == 4
        answers: list[tuple[int, int, str]] = []
        numbers = iter(range(NUM_REQUESTS))

        async def client() -> None:
            for number in numbers:
                answers.append((number, *await ask(http, number)))

        clients = [asyncio.create_task(client()) for _ in range(8)]
        num_killed = 0
        while not all(task.done() for task in clients):
            await asyncio.sleep(0.3)
            for process in processes_of(server, "lightvl.multimodal.worker")[:1]:
                process.send_signal(signal.SIGKILL)
                num_killed += 1
        await asyncio.gather(*clients)
        assert len(answers) == NUM_REQUESTS
        failed = [(status, told) for _, status, told in answers if status != 200]
        assert all(status == 400 and LOST in told for status, told in failed)
        assert len(failed) <= num_killed  # a decoder serves one request, or none
        for number, status, told in answers:
            assert status != 200 or told == expected[number % 4]
        assert await right_answers(http) == expected
        return len(failed)

    async def run(server: ServerProcess) -> int:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            return await load(http, server)

    flags = ["--media_workers", str(NUM_WORKERS)]
    with ServerProcess(*flags, engine=ENGINE, environment=THREADS) as server:
        num_failed = asyncio.run(run(server))
        assert gauges(server.url)["media_workers_lost_total"] >= max(1, num_failed)
        assert 1 <= len(processes_of(server, "lightvl.multimodal.worker")) <= NUM_WORKERS
        assert "failed inside" not in server.log


def test_a_stopped_decoder_that_is_killed_costs_its_request_alone() -> None:
    async def run(server: ServerProcess) -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            (decoder,) = processes_of(server, "lightvl.multimodal.worker")
            decoder.suspend()
            served = asyncio.create_task(ask(http, 1))
            while not gauges(server.url)['media_bytes{purpose="request"}']:
                await asyncio.sleep(0.01)
            waiting = [asyncio.create_task(ask(http, number)) for number in (5, 9, 4)]
            await asyncio.sleep(0.2)
            decoder.kill()
            status, told = await served
            assert (status, LOST in told) == (400, True)
            others = await asyncio.gather(*waiting)
            assert [status for status, _ in others] == [200, 200, 200]
            assert others[0] == others[1] != others[2]

    with ServerProcess("--media_workers", "1", engine=ENGINE, environment=THREADS) as server:
        asyncio.run(run(server))
        assert gauges(server.url)["media_workers_lost_total"] == 1


LONG = {"inputs": "a b c", "parameters": {"max_new_tokens": 2000, "ignore_eos": True}}


@contextmanager
def at_work(server: ServerProcess) -> Iterator[tuple[Iterator[str], list[int]]]:
    """One stream and one whole answer are under way; gives the stream's lines and the status."""
    statuses: list[int] = []
    thread = threading.Thread(
        target=lambda: statuses.append(
            httpx.post(server.url + "/generate", json=LONG, timeout=60).status_code
        )
    )
    with (
        httpx.Client(base_url=server.url, timeout=60) as http,
        http.stream("POST", "/generate_stream", json=LONG) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        thread.start()
        while gauges(server.url)["num_requests_running"] < 2:
            pass
        yield lines, statuses
        thread.join()


def shared_memory() -> set[str]:
    return (
        {path.name for path in Path("/dev/shm").iterdir()} if Path("/dev/shm").is_dir() else set()
    )


def test_a_killed_engine_leaves_nothing_and_its_port_is_free() -> None:
    before = shared_memory()
    with ServerProcess("--media_workers", "2", engine=ENGINE, environment=THREADS) as server:
        port = int(server.url.rpartition(":")[2])
        family = psutil.Process(server.process.pid).children(recursive=True)
        (engine,) = processes_of(server, "lightvl.engine.worker")
        assert len(family) >= 2
        with at_work(server) as (lines, statuses):
            engine.kill()
            events = [line for line in lines if line]
        assert statuses == [503]
        assert json.loads(events[-1].removeprefix("data:"))["error"]["type"] == "server_error"
        assert server.wait() == 1
        _, alive = psutil.wait_procs(family, timeout=5)
        assert not alive
    assert shared_memory() <= before
    flags = ["--port", str(port)]
    with ServerProcess(*flags, engine=ENGINE, environment=THREADS) as again:
        assert again.url.endswith(f":{port}")
        assert httpx.post(again.url + "/generate", json={"inputs": "a"}).status_code == 200


def test_a_killed_front_leaves_nothing_and_its_port_is_free() -> None:
    before = shared_memory()
    with ServerProcess("--media_workers", "2", engine=ENGINE, environment=THREADS) as server:
        port = int(server.url.rpartition(":")[2])
        family = psutil.Process(server.process.pid).children(recursive=True)
        with httpx.stream("POST", server.url + "/generate_stream", json=LONG, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.process.kill()
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)
        _, alive = psutil.wait_procs(family, timeout=5)
        assert not alive
        with socket.create_server(("127.0.0.1", port)):
            pass
    assert shared_memory() <= before


@pytest.mark.parametrize("loss", ["engine killed", "drained"])
def test_a_request_that_has_not_come_to_the_engine_is_told_too(loss: str) -> None:
    flags = ["--allow_private_media", "--drain_s", "0.2"]
    environment = {"REQUEST_TIMEOUT": "60"}
    with (
        socket.create_server(("127.0.0.1", 0)) as site,
        ServerProcess(*flags, environment=environment) as server,
        ThreadPoolExecutor() as pool,
    ):
        picture = {"type": "url", "data": f"http://127.0.0.1:{site.getsockname()[1]}/"}
        body = {"inputs": "<image>", "multimodal_params": {"images": [picture]}}
        waiting = pool.submit(httpx.post, server.url + "/generate", json=body, timeout=60)
        connection, _ = site.accept()
        with connection:
            if loss == "drained":
                server.process.send_signal(signal.SIGTERM)
            else:
                processes_of(server, "lightvl.testing.stub_engine")[0].kill()
            answer = waiting.result()
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "unavailable"
        assert server.wait() == (0 if loss == "drained" else 1)
        assert "Traceback" not in server.log
