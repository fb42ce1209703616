"""The server at three times what it can do: who is served, how soon, and how soon others are told.

`python -m benchmarks.serving.overload [--seconds 40] [--out FILE] [--plot FILE]`

First, as many requests as the server takes at once give its capacity. Then requests come at random
times (Poisson) at 0.8 of that rate, which gives the time to first token that a client may expect:
its median becomes `--max_queue_wait_s`. With that flag the server then gets three times its
capacity. A request counts as good if it ends within three times the 99th percentile of the time to
first token at 0.8; the share whose first token comes in that time is told beside it. The engine is
the bundled model's, at nice 10, so that front and client get their turn; how late the client itself
was is told beside the time of a refusal, which counts from sending.
"""

import argparse
import asyncio
import base64
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import msgspec
import psutil

from benchmarks.serving.report import Report
from benchmarks.serving.workload import make_picture, spread
from lightvl.testing.server import ENGINE, ServerProcess

QUESTION = "<|im_start|>user\n<image>\nWhat is this?<|im_end|>\n<|im_start|>assistant\n"
NUM_TOKENS = 16
NUM_PICTURES = 4000
AT_ONCE = 24


@dataclass
class Outcome:
    """One request.

    Attributes:
        status: Of the answer.
        late_s: How much later than planned it was sent: the client's own doing.
        first_s: From sending to the first event, or to the refusal's end.
        last_s: From sending to the end.
    """

    status: int
    late_s: float
    first_s: float
    last_s: float


class Client:
    """Sends one-tile requests with pictures that are all different."""

    def __init__(self, url: str) -> None:
        host, _, port = url.removeprefix("http://").rpartition(":")
        self._address = host, int(port)

    async def ask(self, body: bytes, planned_s: float) -> Outcome:
        """Sends a request now and reads the answer."""
        sent_s = time.perf_counter()
        reader, writer = await asyncio.open_connection(*self._address)
        head = b"POST /generate_stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        writer.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        status = int((await reader.readline()).split()[1])
        await reader.readuntil(b"\r\n\r\n")
        if status == 200:
            await reader.readuntil(b"\n\n")
        else:
            await reader.read()
        first_s = time.perf_counter() - sent_s
        while await reader.read(65536):
            pass
        writer.close()
        return Outcome(status, sent_s - planned_s, first_s, time.perf_counter() - sent_s)

    async def closed(self, bodies: Sequence[bytes], seconds: float) -> float:
        """Keeps `AT_ONCE` requests under way and returns how many end a second."""
        ends_s = time.perf_counter() + seconds
        waiting = iter(bodies)
        num_done = 0

        async def one() -> None:
            nonlocal num_done
            while time.perf_counter() < ends_s:
                outcome = await self.ask(next(waiting), time.perf_counter())
                num_done += outcome.status == 200 and time.perf_counter() < ends_s
                if outcome.status != 200:
                    await asyncio.sleep(0.1)

        await asyncio.gather(*(one() for _ in range(AT_ONCE)))
        return num_done / seconds

    async def open(self, bodies: Sequence[bytes], rate: float, seconds: float) -> list[Outcome]:
        """Sends requests at random times, `rate` a second, and waits for all answers."""
        rng = random.Random(1)
        waiting = iter(bodies)
        begin_s = at_s = time.perf_counter()
        tasks = []
        while at_s < begin_s + seconds:
            at_s += rng.expovariate(rate)
            await asyncio.sleep(max(0.0, at_s - time.perf_counter()))
            tasks.append(asyncio.create_task(self.ask(next(waiting), at_s)))
        return await asyncio.gather(*tasks)


def make_bodies(count: int, seed: int) -> list[bytes]:
    """Returns request bodies: a question about a picture that nobody has seen."""
    rng = random.Random(seed)
    template = make_picture(rng)
    bodies = []
    for number in range(count):
        # A comment behind the end makes other bytes of the same picture: another key, same work.
        data = template + number.to_bytes(8, "little") + rng.randbytes(8)
        image = {"type": "base64", "data": base64.b64encode(data).decode()}
        parameters = {"max_new_tokens": NUM_TOKENS, "ignore_eos": True, "image_max_patch_num": 1}
        pictures = {"images": [image]}
        bodies.append(
            msgspec.json.encode(
                {"inputs": QUESTION, "parameters": parameters, "multimodal_params": pictures}
            )
        )
    return bodies


def serving(*flags: str) -> ServerProcess:
    """Returns a server whose engine is at nice 10."""
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    return ServerProcess(*flags, engine=ENGINE, environment=threads)


def yield_to_front(server: ServerProcess) -> None:
    """Puts the engine at nice 10."""
    for child in psutil.Process(server.process.pid).children():
        if "lightvl.engine.worker" in " ".join(child.cmdline()):
            child.nice(10)


def percentile(values: Sequence[float], share: float) -> float:
    """Returns a percentile."""
    return quantiles(values, n=1000)[round(1000 * share) - 1] if len(values) > 1 else values[0]


def measure(seconds: float) -> tuple[dict[str, object], dict[str, list[float]]]:
    """Runs the three loads; returns the row, and the times of its requests in seconds."""
    bodies = make_bodies(NUM_PICTURES, seed=1)
    warm, full, below_full, warm_again = (bodies[i::8] for i in range(4))
    above_full = [body for i in range(4, 8) for body in bodies[i::8]]
    with serving() as server:
        yield_to_front(server)
        client = Client(server.url)
        asyncio.run(client.closed(warm, 5))
        capacity = asyncio.run(client.closed(full, seconds / 2))
        below = asyncio.run(client.open(below_full, 0.8 * capacity, seconds))
    ttft = [o.first_s for o in below if o.status == 200]
    wait_s, p99_s = median(ttft), percentile(ttft, 0.99)
    with serving("--max_queue_wait_s", f"{wait_s:.4f}") as server:
        yield_to_front(server)
        client = Client(server.url)
        asyncio.run(client.closed(warm_again, 5))
        above = asyncio.run(client.open(above_full, 3 * capacity, seconds))
    served = [o for o in above if o.status == 200]
    refused = [o for o in above if o.status == 429]
    good = sum(o.last_s <= 3 * p99_s for o in served) / seconds
    begun = sum(o.first_s <= 3 * p99_s for o in served) / seconds
    times = {
        "first token at 0.8 of the capacity": ttft,
        "first token at 3": [o.first_s for o in served],
        "refusal at 3": [o.first_s for o in refused],
    }
    row: dict[str, object] = {
        "benchmark": "overload",
        "capacity_per_s": capacity,
        "ttft_ms_at_0.8": spread(ttft),
        "goodput_share": good / capacity,
        "first_tokens_share": begun / capacity,
        "refusal_ms_p95": 1000 * percentile([o.first_s for o in refused], 0.95),
        "client_late_ms_p95": 1000 * percentile([max(0.0, o.late_s) for o in above], 0.95),
        "ttft_ms_at_3": spread([o.first_s for o in served]),
        "ttft_p99_ratio": percentile([o.first_s for o in served], 0.99) / p99_s,
        "served": len(served),
        "refused": len(refused),
        "others": len(above) - len(served) - len(refused),
    }
    return row, times


def plot(times: dict[str, list[float]], path: Path) -> None:
    """Draws which share of the requests had their answer after how long."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3))
    for name, values in times.items():
        axes.ecdf([1000 * value for value in values], label=name)
    axes.set(xscale="log", xlabel="milliseconds", ylabel="share of requests", ylim=(0, 1))
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Measures and prints the row."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    row, times = measure(options.seconds)
    for name, value in row.items():
        print(f"{name:24}{value}")
    Report(options.out, num_threads=1).add_row(**row)
    if options.plot is not None:
        plot(times, options.plot)


if __name__ == "__main__":
    main()
