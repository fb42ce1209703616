"""An engine without a model, for tests and benchmarks of the front: it echoes the prompt.

`python -m lightvl.testing.stub_engine --channel-fd N --arena-fd M` speaks `lightvl.messages` as a
rank does. Token i of a sequence is prompt id i, from the start again at its end; the engine's
rules about end tokens, lengths and logprobs hold. Pictures are asked for once each.
"""

import argparse
import contextlib
import select
import signal
import sys
import time
from dataclasses import dataclass, field

from lightvl.messages import (
    Abort,
    AddRequest,
    FlushCaches,
    GetStats,
    Init,
    NeedPixels,
    Pixels,
    PixelsDone,
    Ready,
    Started,
    Stats,
    StepOutputs,
    ToEngine,
    TokenOutput,
)
from lightvl.types import FinishReason
from lightvl.utils.channel import Channel, ChannelClosed
from lightvl.utils.shm import Arena

KV_TOKENS = 65536
MAX_TILES = 100


@dataclass(slots=True)
class _Running:
    request: AddRequest
    num_tokens: int = 0


@dataclass(slots=True)
class _Waiting:
    request: AddRequest
    missing: set[bytes] = field(default_factory=set)
    cached_images: list[bool] = field(default_factory=list)


class StubEngine:
    """Requests, pictures and steps; `handle` and `step` as the engine has them.

    Args:
        channel: To the front.
        pixels: The arena.
        eos_ids: Ids that end a sequence.
        max_running: Sequences that run at once; others wait.
    """

    def __init__(
        self,
        channel: Channel[ToEngine],
        pixels: memoryview,
        eos_ids: tuple[int, ...],
        max_running: int,
    ) -> None:
        self._channel = channel
        self._pixels = pixels
        self._eos_ids = eos_ids
        self._max_running = max_running
        self._waiting: dict[int, _Waiting] = {}
        self._running: dict[int, _Running] = {}
        self._known: set[bytes] = set()
        self._asked: dict[bytes, int] = {}
        self._pixel_sum = 0
        self._num_aborts = 0

    @property
    def is_busy(self) -> bool:
        """Whether a step would produce tokens."""
        return bool(self._running)

    def handle(self, message: ToEngine) -> None:
        """Takes one message of the front."""
        if isinstance(message, AddRequest):
            self._add(message)
        elif isinstance(message, Pixels):
            self._take_pixels(message)
        elif isinstance(message, Abort):
            self._abort(message.request_id)
        elif isinstance(message, FlushCaches):
            self._known.clear()
        elif isinstance(message, GetStats):
            self._channel.send(Stats(self._stats()))

    def step(self) -> None:
        """Gives every running sequence its next token, in one message."""
        outputs = [self._next_token(running) for running in self._running.values()]
        for output in outputs:
            if output.finish_reason is not None:
                del self._running[output.request_id]
        self._channel.send(StepOutputs(outputs))
        self._admit()

    def _add(self, request: AddRequest) -> None:
        keys = [slot.key for slot in request.images]
        waiting = _Waiting(request, set(keys) - self._known, [key in self._known for key in keys])
        self._waiting[request.request_id] = waiting
        self._ask()
        self._admit()

    def _ask(self) -> None:
        """Asks for each missing picture once, on behalf of the first that waits for it."""
        for request_id, waiting in self._waiting.items():
            for key in sorted(waiting.missing - self._asked.keys()):
                self._asked[key] = request_id
                self._channel.send(NeedPixels(request_id, key))

    def _take_pixels(self, message: Pixels) -> None:
        size = 3 * message.width * message.height
        self._pixel_sum = sum(self._pixels[message.offset : message.offset + size])
        self._known.add(message.key)
        self._asked.pop(message.key, None)
        self._channel.send(PixelsDone(message.key, message.offset))
        for waiting in self._waiting.values():
            waiting.missing.discard(message.key)
        self._admit()

    def _admit(self) -> None:
        for request_id, waiting in list(self._waiting.items()):
            if waiting.missing or len(self._running) >= self._max_running:
                continue
            del self._waiting[request_id]
            self._running[request_id] = _Running(waiting.request)
            self._channel.send(Started(request_id, 0, waiting.cached_images))

    def _abort(self, request_id: int) -> None:
        waited, ran = self._waiting.pop(request_id, None), self._running.pop(request_id, None)
        self._num_aborts += waited is not None or ran is not None
        for key in [key for key, asked in self._asked.items() if asked == request_id]:
            del self._asked[key]
        self._ask()
        self._admit()

    def _next_token(self, running: _Running) -> TokenOutput:
        request, sampling = running.request, running.request.sampling
        token_id = request.token_ids[running.num_tokens % len(request.token_ids)]
        running.num_tokens += 1
        ends = token_id in sampling.stop_token_ids or (
            token_id in self._eos_ids and not sampling.ignore_eos
        )
        reason: FinishReason | None = None
        if ends and running.num_tokens >= sampling.min_new_tokens:
            reason = "stop"
        elif running.num_tokens >= sampling.max_new_tokens:
            reason = "length"
        if sampling.num_logprobs < 0:
            return TokenOutput(request.request_id, token_id, reason)
        top = [(token_id + k, -0.5 - k) for k in range(sampling.num_logprobs)]
        return TokenOutput(request.request_id, token_id, reason, -0.5, top or None)

    def _stats(self) -> dict[str, float]:
        used = sum(len(r.request.token_ids) + r.num_tokens for r in self._running.values())
        return {
            "num_requests_running": len(self._running),
            "num_requests_waiting": len(self._waiting),
            "kv_cache_usage_perc": used / KV_TOKENS,
            "aborts_total": self._num_aborts,
            "image_cache_images": len(self._known),
            "last_pixel_sum": self._pixel_sum,
        }


def serve(engine: StubEngine, channel: Channel[ToEngine], step_s: float) -> None:
    """Handles messages and steps every `step_s` seconds until the front goes.

    Raises:
        ChannelClosed: The front is gone.
    """
    next_s = time.monotonic()
    while True:
        if not engine.is_busy:
            engine.handle(channel.recv())
            next_s = time.monotonic() + step_s
            continue
        select.select([channel], [], [], max(0.0, next_s - time.monotonic()))
        for message in channel.recv_ready():
            engine.handle(message)
        if engine.is_busy and time.monotonic() >= next_s:
            engine.step()
            next_s = max(next_s + step_s, time.monotonic())


def main(arguments: list[str] | None = None) -> int:
    """Runs the stub until the front closes the channel."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--channel-fd", type=int, required=True)
    parser.add_argument("--arena-fd", type=int, required=True)
    parser.add_argument("--step-ms", type=float, default=1.0)
    parser.add_argument("--max-running", type=int, default=256)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel: Channel[ToEngine] = Channel.from_fd(options.channel_fd, ToEngine)
    init = channel.recv()
    assert isinstance(init, Init)
    arena = Arena.attach(options.arena_fd, init.config.arena_bytes)
    eos_ids = init.config.model.eos_ids
    engine = StubEngine(channel, arena.buffer, eos_ids, options.max_running)
    most = min(init.config.max_req_total_len, KV_TOKENS)
    channel.send(Ready(KV_TOKENS, most, ["stub engine"], MAX_TILES))
    with contextlib.suppress(ChannelClosed):
        serve(engine, channel, options.step_ms / 1000)
    return 0


if __name__ == "__main__":
    sys.exit(main())
