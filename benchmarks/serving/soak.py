"""Twenty minutes of mixed load with faults: does memory grow?

`python -m benchmarks.serving.soak [--minutes 20] [--out FILE] [--plot FILE]`

Clients ask, stream, leave in the middle, send pictures that break decoders and requests that are
wrong; now and then a decoder is killed. Every five seconds the memory of front, engine and decoders
(proportional set size without the arena, whose size is fixed) is noted beside the number of
requests so far. After a warm-up a line is fitted to the means of twenty blocks of time (blocks,
since neighbouring samples are no independent ones): its slope is the growth, told for a thousand
requests with its 95 % interval.
"""

import argparse
import asyncio
import base64
import json
import os
import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import linear_regression, mean, variance
from urllib.parse import urlsplit

import httpx
import psutil
from tqdm import tqdm

from benchmarks.serving.footprint import pss_bytes
from benchmarks.serving.report import Report
from benchmarks.serving.workload import make_picture
from lightvl.testing.hostile import File, generated
from lightvl.testing.server import ENGINE, ServerProcess

FLAGS = ["--max_total_token_num", "16384", "--cache_capacity", "24", "--media_workers", "2"]
NUM_CLIENTS = 12
WARM_UP_SHARE = 0.25
SAMPLE_S = 5.0
FAULT_S = 20.0
BLOCKS = 20
STUDENT_95 = 2.101  # two-sided, 18 degrees of freedom
QUESTION = "<|im_start|>user\n<image>\nWhat is this?<|im_end|>\n<|im_start|>assistant\n"


@dataclass
class Tally:
    """What has happened so far."""

    num_requests: int = 0
    statuses: dict[int, int] = field(default_factory=dict)
    num_left: int = 0
    num_kills: int = 0
    samples: list[tuple[int, int]] = field(default_factory=list)  # requests, bytes


class Load:
    """Clients and faults on one server."""

    def __init__(self, server: ServerProcess, ends_s: float) -> None:
        self._server = server
        self._ends_s = ends_s
        self._port = urlsplit(server.url).port or 0
        self.tally = Tally()

    async def run(self) -> None:
        """Keeps on until the time is over."""
        clients = (self._client(random.Random(n)) for n in range(NUM_CLIENTS))
        await asyncio.gather(*clients, self._kill_decoders(), self._sample())

    async def _client(self, rng: random.Random) -> None:
        broken = [f for f in generated(rng.randrange(1000)) if len(f.data) < 1 << 20]
        limits = httpx.Limits(max_keepalive_connections=1)
        async with httpx.AsyncClient(base_url=self._server.url, timeout=120, limits=limits) as http:
            while time.monotonic() < self._ends_s:
                if rng.random() < 0.15:
                    await self._leave(rng)
                else:
                    await self._ask(http, _body(rng, broken), rng)
                self.tally.num_requests += 1

    async def _ask(
        self, http: httpx.AsyncClient, body: dict[str, object], rng: random.Random
    ) -> None:
        path = rng.choice(("/generate", "/generate_stream"))
        answer = await http.post(path, json=body)
        statuses = self.tally.statuses
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1

    async def _leave(self, rng: random.Random) -> None:
        """Sends a request, reads a little and goes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        data = json.dumps(_body(rng, [])).encode()
        head = b"POST /generate_stream HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
        writer.write(head % len(data) + data[: rng.choice((len(data), len(data) // 2))])
        try:
            async with asyncio.timeout(rng.random()):
                await reader.read(rng.choice((1, 10_000)))
        except (TimeoutError, ConnectionError):
            pass
        writer.transport.abort()
        self.tally.num_left += 1

    async def _kill_decoders(self) -> None:
        while time.monotonic() < self._ends_s:
            await asyncio.sleep(FAULT_S)
            for process in _tree(self._server)[1:]:
                if "lightvl.multimodal.worker" in " ".join(process.cmdline()):
                    os.kill(process.pid, signal.SIGKILL)
                    self.tally.num_kills += 1
                    break

    async def _sample(self) -> None:
        with tqdm(total=round(self._ends_s - time.monotonic()), unit="s") as bar:
            while time.monotonic() < self._ends_s:
                await asyncio.sleep(SAMPLE_S)
                bar.update(round(SAMPLE_S))
                total = sum(_memory(process) for process in _tree(self._server))
                self.tally.samples.append((self.tally.num_requests, total))


def _tree(server: ServerProcess) -> list[psutil.Process]:
    front = psutil.Process(server.process.pid)
    return [front, *front.children(recursive=True)]


def _memory(process: psutil.Process) -> int:
    try:
        return pss_bytes(process.pid)
    except (FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess):
        return 0  # a decoder that has just been killed


def _body(rng: random.Random, broken: list[File]) -> dict[str, object]:
    if broken and rng.random() < 0.25:
        data = rng.choice(broken).data
    else:
        data = make_picture(random.Random(rng.randrange(60)))
    images = [{"type": "base64", "data": base64.b64encode(data).decode()}]
    parameters: dict[str, object] = {"max_new_tokens": rng.choice((1, 8, 40)), "n": 1}
    if rng.random() < 0.1:
        parameters["temperature"] = rng.choice((-1, "warm"))
    if rng.random() < 0.3:
        return {"inputs": QUESTION.replace("<image>\n", ""), "parameters": parameters}
    return {
        "inputs": QUESTION,
        "parameters": parameters,
        "multimodal_params": {"images": images},
    }


def growth(samples: list[tuple[int, int]]) -> tuple[float, float]:
    """Returns the growth a thousand requests, as a share of the memory, and its 95 % half-width."""
    kept = samples[int(WARM_UP_SHARE * len(samples)) :]
    size = len(kept) // BLOCKS
    blocks = [kept[i * size : (i + 1) * size] for i in range(BLOCKS)]
    requests = [mean(n for n, _ in block) for block in blocks]
    memory = [mean(m for _, m in block) for block in blocks]
    slope, level = linear_regression(requests, memory)
    squares = sum((m - level - slope * n) ** 2 for n, m in zip(requests, memory, strict=True))
    error = (squares / (BLOCKS - 2) / (variance(requests) * (BLOCKS - 1))) ** 0.5
    scale = 1000 / mean(memory)
    return scale * slope, scale * STUDENT_95 * error


def plot(samples: list[tuple[int, int]], path: Path) -> None:
    """Draws memory over requests."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3))
    axes.plot([n for n, _ in samples], [m / 2**20 for _, m in samples])
    axes.set(xlabel="requests", ylabel="MiB, all processes", ylim=(0, None))
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Runs the load and prints the row."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    with ServerProcess(*FLAGS, engine=ENGINE, environment=threads) as server:
        load = Load(server, time.monotonic() + 60 * options.minutes)
        asyncio.run(load.run())
        alive = httpx.get(server.url + "/health").status_code
    tally = load.tally
    share, half = growth(tally.samples)
    row = {
        "benchmark": "soak",
        "minutes": options.minutes,
        "requests": tally.num_requests,
        "statuses": {str(status): count for status, count in sorted(tally.statuses.items())},
        "left": tally.num_left,
        "decoders_killed": tally.num_kills,
        "health_at_end": alive,
        "memory_mib_at_end": tally.samples[-1][1] / 2**20,
        "growth_percent_per_1000_requests": 100 * share,
        "half_width_95": 100 * half,
    }
    for name, value in row.items():
        print(f"{name:36}{value}")
    Report(options.out, num_threads=1).add_row(**row)
    if options.plot is not None:
        plot(tally.samples, options.plot)


if __name__ == "__main__":
    main()
