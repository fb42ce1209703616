"""The front alone: streamed tokens a second and the event loop's lag, against the stub engine.

`python -m benchmarks.serving.front` starts the server with the stub engine, the front pinned to
one core, and prints one JSON row (`--out` appends it to a file):

* `streams`, `chats`: 64 connections read `/generate_stream` or streamed chats with logprobs, at
  the rate that the stub sets; tokens a second and the front's CPU time a token.
* `bodies`: the same streams at half that rate while 8 MB bodies arrive; the longest single
  callback of the event loop in CPU time of its thread, and how late a timer of 1 ms comes in wall
  time. Here the front runs on asyncio's own loop, whose callbacks can be timed one by one.
"""

import argparse
import asyncio
import base64
import json
import os
import platform
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

NUM_STREAMS = 64
TOKENS_PER_STREAM = 500
BODY_BYTES = 8 << 20
PROMPT = "The quick brown fox jumps over the lazy dog and goes on to see the world. " * 2


def main() -> int:
    """Runs both loads and prints the row."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--step-ms", type=float, default=2.5, help="of the stub; 64 tokens each")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", nargs="*", help=argparse.SUPPRESS)
    options, _ = parser.parse_known_args()
    if options.serve is not None:
        return _serve_probed(options.serve)
    row: dict[str, object] = {
        "benchmark": "serving",
        "load": f"front alone, {NUM_STREAMS} streams",
        "server": "lightvl",
        "model": "stub engine",
        "device": f"{_processor()}, front and media worker on one core, {_versions()}",
        "streams": asyncio.run(_measure_streams("native", options.step_ms, options.seconds)),
        "chats": asyncio.run(_measure_streams("chat", options.step_ms, options.seconds)),
        "bodies": asyncio.run(_measure_bodies(2 * options.step_ms, options.seconds)),
        "commit": _commit(),
        "command": " ".join(["python -m benchmarks.serving.front", *sys.argv[1:]]),
    }
    print(json.dumps(row))
    if options.out is not None:
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
    return 0


# --- the server ------------------------------------------------------------------------------


def _serve_probed(arguments: list[str]) -> int:
    """Runs the server; with a file named, a probe writes what it measures there."""
    from lightvl import launch

    step_ms, report, port = arguments
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if report != "-":
        build_app = getattr(launch, "build_app")  # noqa: B009

        def probed(*args: Any) -> Any:  # noqa: ANN401
            _Probe(Path(report)).start()
            return build_app(*args)

        setattr(launch, "build_app", probed)  # noqa: B010
        setattr(getattr(launch, "uvloop"), "run", asyncio.run)  # noqa: B009, B010
    command = ("-c", _STUB_ON_OTHER_CORES, "--step-ms", step_ms)
    return launch.main(["--port", port], command=command)


_STUB_ON_OTHER_CORES = (
    "import os, sys; "
    "os.sched_setaffinity(0, set(range(os.cpu_count())) - {min(os.sched_getaffinity(0))}); "
    "from lightvl.testing.stub_engine import main; sys.exit(main())"
)


class _Probe:
    """Times every callback of the loop in its thread's CPU time, and the loop's lag."""

    def __init__(self, report: Path) -> None:
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._callbacks_s: list[float] = []
        self._lags_s: list[float] = []

    def start(self) -> None:
        """Begins to measure; a row is written every second."""
        run = asyncio.events.Handle._run
        callbacks_s = self._callbacks_s

        def timed(handle: asyncio.Handle) -> None:
            begun_s = time.thread_time()
            run(handle)
            callbacks_s.append(time.thread_time() - begun_s)

        asyncio.events.Handle._run = timed  # type: ignore[method-assign, assignment]
        self._loop.call_later(_TICK_S, self._tick, self._loop.time() + _TICK_S)
        self._loop.call_later(1.0, self._write)

    def _tick(self, due_s: float) -> None:
        self._lags_s.append(self._loop.time() - due_s)
        self._loop.call_later(_TICK_S, self._tick, self._loop.time() + _TICK_S)

    def _write(self) -> None:
        row = {
            "callbacks": len(self._callbacks_s),
            "cpu_max_ms": max(self._callbacks_s) * 1e3,
            "lags_ms": [round(lag_s * 1e3, 3) for lag_s in self._lags_s],
        }
        with self._report.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self._callbacks_s.clear()
        self._lags_s.clear()
        self._loop.call_later(1.0, self._write)


_TICK_S = 0.001


@asynccontextmanager
async def _server(step_ms: float, report: str) -> AsyncIterator[tuple[int, psutil.Process]]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    arguments = ["--serve", str(step_ms), report, str(port)]
    process = subprocess.Popen([sys.executable, __file__, *arguments])
    try:
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            except OSError:
                await asyncio.sleep(0.1)
        for route in ROUTES:
            await _read_stream(route, port, 8)  # warm
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(40)


# --- the loads -------------------------------------------------------------------------------


async def _measure_streams(route: str, step_ms: float, seconds: float) -> dict[str, float]:
    async with _server(step_ms, "-") as (port, front):
        before, begun_s = _cpu_s(front), time.monotonic()
        counts = await _run_streams(route, port, seconds)
        elapsed_s, cpu_s = time.monotonic() - begun_s, _cpu_s(front) - before
        return {
            "offered_tokens_per_s": NUM_STREAMS / step_ms * 1e3,
            "output_tokens_per_s": sum(counts) / elapsed_s,
            "front_cpu_us_per_token": cpu_s / sum(counts) * 1e6,
            "front_cpu_share": cpu_s / elapsed_s,
        }


async def _measure_bodies(step_ms: float, seconds: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "probe")
        async with _server(step_ms, str(report)) as (port, _):
            await asyncio.sleep(2.0)
            report.write_text("")
            bodies = asyncio.create_task(_send_bodies(port, seconds))
            counts = await _run_streams("native", port, seconds)
            num_bodies = await bodies
        rows = [json.loads(line) for line in report.read_text().splitlines()]
    lags_ms = sorted(lag for row in rows for lag in row["lags_ms"])
    return {
        "output_tokens_per_s": sum(counts) / seconds,
        "bodies": num_bodies,
        "callbacks": sum(row["callbacks"] for row in rows),
        "longest_callback_cpu_ms": max(row["cpu_max_ms"] for row in rows),
        "lag_p50_ms": lags_ms[len(lags_ms) // 2],
        "lag_p999_ms": lags_ms[int(len(lags_ms) * 0.999)],
        "lag_max_ms": lags_ms[-1],
    }


async def _run_streams(route: str, port: int, seconds: float) -> list[int]:
    ends_s = time.monotonic() + seconds

    async def repeat() -> int:
        total = 0
        while time.monotonic() < ends_s:
            total += await _read_stream(route, port, TOKENS_PER_STREAM)
        return total

    return await asyncio.gather(*(repeat() for _ in range(NUM_STREAMS)))


async def _read_stream(route: str, port: int, num_tokens: int) -> int:
    """Returns how many tokens a stream had; a chat's first and last event carry none."""
    path, fields = ROUTES[route]
    body = fields(num_tokens)
    reader, writer = await _post(port, path, json.dumps(body).encode())
    events = 0
    while chunk := await reader.read(1 << 16):
        events += chunk.count(b"data:")
    writer.close()
    num_others = 2 if route == "chat" else 0
    assert events == num_tokens + num_others, f"{events} events for {num_tokens} tokens"
    return num_tokens


def _native_body(num_tokens: int) -> dict[str, Any]:
    return {"inputs": PROMPT, "parameters": {"max_new_tokens": num_tokens, "ignore_eos": True}}


def _chat_body(num_tokens: int) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": num_tokens,
        "ignore_eos": True,
        "stream": True,
        "logprobs": True,
    }


ROUTES = {
    "native": ("/generate_stream", _native_body),
    "chat": ("/v1/chat/completions", _chat_body),
}


async def _send_bodies(port: int, seconds: float) -> int:
    """Sends 8 MB bodies with a picture that no decoder accepts; returns how many."""
    data = base64.b64encode(random.Random(0).randbytes(BODY_BYTES * 3 // 4)).decode()
    images = [{"type": "base64", "data": data}]
    body = {"inputs": "<image>", "parameters": {}, "multimodal_params": {"images": images}}
    encoded = json.dumps(body).encode()
    ends_s, count = time.monotonic() + seconds, 0
    while time.monotonic() < ends_s:
        reader, writer = await _post(port, "/generate", encoded)
        answer = await reader.read()
        assert b" 400 " in answer.split(b"\r\n")[0], answer[:300]
        writer.close()
        count += 1
    return count


async def _post(
    port: int, path: str, body: bytes
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await writer.drain()
    return reader, writer


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _versions() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("uvicorn", "uvloop", "msgspec"))
    return f"Python {platform.python_version()}, {packages}"


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
