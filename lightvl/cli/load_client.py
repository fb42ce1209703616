"""The client of `lightvl bench`: sends prepared bodies, reads the streams, notes when what came."""

import asyncio
import json
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field

import aiohttp

ROUTE = "/v1/chat/completions"


@dataclass
class Result:
    """One request; times are seconds of `time.perf_counter`.

    Attributes:
        start_s: When it was sent.
        event_s: When each event that carried text came.
        tokens: Drawn, as the server counts, or else the events with text.
        prompt_tokens: As the server counts, or 0.
        image_tokens: Of these, pictures', where the server tells.
        error: What went wrong, or empty.
    """

    start_s: float
    event_s: list[float] = field(default_factory=list)
    tokens: int = 0
    prompt_tokens: int = 0
    image_tokens: int = 0
    error: str = ""

    @property
    def ttft_s(self) -> float:
        """Time to the first text."""
        return self.event_s[0] - self.start_s

    @property
    def e2e_s(self) -> float:
        """Time to the last text."""
        return self.event_s[-1] - self.start_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time of a token after the first, or None if there was one only."""
        if self.tokens < 2:
            return None
        return (self.event_s[-1] - self.event_s[0]) / (self.tokens - 1)

    @property
    def gaps_s(self) -> list[float]:
        """Times between neighbouring events."""
        return [late - early for early, late in zip(self.event_s, self.event_s[1:], strict=False)]


@dataclass(frozen=True)
class Target:
    """The server under load.

    Attributes:
        url: Up to where `/v1/…` follows.
        api_key: Its key, or None.
        timeout_s: After which a request counts as failed.
    """

    url: str
    api_key: str | None
    timeout_s: float


async def send_all(
    target: Target,
    bodies: Sequence[bytes],
    *,
    concurrency: int,
    rate: float | None = None,
    seed: int = 0,
    done: Callable[[Result], None] = lambda _: None,
) -> list[Result]:
    """Sends every body once and returns the results, a failed request's too.

    Args:
        target: The server.
        bodies: Of the requests.
        concurrency: Requests under way at once, in a closed loop.
        rate: Mean arrivals a second; then arrivals are a Poisson process, however many wait.
        seed: Of the arrivals.
        done: Told each result as it comes.
    """
    headers = {"Content-Type": "application/json"}
    if target.api_key:
        headers["Authorization"] = f"Bearer {target.api_key}"
    results: list[Result] = []
    async with aiohttp.ClientSession(
        headers=headers,
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=target.timeout_s),
    ) as session:

        async def one(body: bytes) -> None:
            result = await _send(session, target.url + ROUTE, body)
            results.append(result)
            done(result)

        if rate is not None:
            await _open_loop(one, bodies, rate, seed)
        else:
            await _closed_loop(one, bodies, concurrency)
    return results


async def first_model(target: Target) -> str:
    """Returns the first model that the server lists.

    Raises:
        OSError: There is no server, or its answer has no list of models.
    """
    headers = {"Authorization": f"Bearer {target.api_key}"} if target.api_key else {}
    url = f"{target.url}/v1/models"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session,
            session.get(url, headers=headers) as response,
        ):
            if response.status != 200:
                raise OSError(f"{url} answers {response.status}")
            models = await response.json()
            return str(models["data"][0]["id"])
    except (aiohttp.ClientError, TimeoutError) as error:
        raise OSError(f"no answer from {url}: {error}") from error
    except (LookupError, TypeError, ValueError) as error:
        raise OSError(f"{url} has no list of models; name one with --model") from error


def take_event(result: Result, payload: bytes, now_s: float) -> None:
    """Books one event of a stream."""
    event = json.loads(payload)
    if event.get("error"):
        result.error = str(event["error"])[:300]
        return
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        if delta.get("content") or delta.get("reasoning_content"):
            result.event_s.append(now_s)
            result.tokens += 1
            break
    if usage := event.get("usage"):
        result.tokens = usage.get("completion_tokens") or result.tokens
        result.prompt_tokens = usage.get("prompt_tokens") or 0
        details = usage.get("prompt_tokens_details") or {}
        result.image_tokens = details.get("image_tokens") or 0


async def _closed_loop(
    one: Callable[[bytes], Coroutine[None, None, None]], bodies: Sequence[bytes], concurrency: int
) -> None:
    todo = iter(bodies)

    async def worker() -> None:
        for body in todo:  # one iterator, shared by all workers
            await one(body)

    await asyncio.gather(*(worker() for _ in range(min(concurrency, len(bodies)))))


async def _open_loop(
    one: Callable[[bytes], Coroutine[None, None, None]],
    bodies: Sequence[bytes],
    rate: float,
    seed: int,
) -> None:
    begin_s = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for body, due_s in zip(bodies, arrivals(len(bodies), rate, seed), strict=True):
            await asyncio.sleep(max(0.0, begin_s + due_s - time.perf_counter()))
            group.create_task(one(body))


def arrivals(count: int, rate: float, seed: int) -> list[float]:
    """Returns the times of a Poisson process from 0 on, in seconds; the first comes at once."""
    generator = random.Random(seed)
    times = [0.0]
    while len(times) < count:
        times.append(times[-1] + generator.expovariate(rate))
    return times[:count]


async def _send(session: aiohttp.ClientSession, url: str, body: bytes) -> Result:
    result = Result(time.perf_counter())
    try:
        async with session.post(url, data=body) as response:
            if response.status != 200:
                text = (await response.text())[:200]
                result.error = f"HTTP {response.status}: {text}"
                return result
            await _read(response, result)
    except TimeoutError:
        result.error = "timed out"
    except (aiohttp.ClientError, OSError, ValueError) as error:
        result.error = f"{type(error).__name__}: {error}"[:300]
    if not result.event_s and not result.error:
        result.error = "an answer without text"
    return result


async def _read(response: aiohttp.ClientResponse, result: Result) -> None:
    rest = b""
    async for chunk in response.content.iter_any():
        now_s = time.perf_counter()
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            payload = line.removeprefix(b"data:").strip()
            if line.startswith(b"data:") and payload != b"[DONE]":
                take_event(result, payload, now_s)
