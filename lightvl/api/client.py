"""The front's end of the engine: requests in, tokens out; no HTTP here.

The HTTP routes use it, and so does offline `LLM`. All traffic runs on one event loop.
"""

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from lightvl.api.admission import Ticket
from lightvl.api.generation import (
    Generation,
    GenerationRequest,
    Prepared,
    Sequence,
    TextOptions,
)
from lightvl.api.metrics import Metrics
from lightvl.api.pixels import PixelSupply
from lightvl.api.prepare import Preparer, PromptRules
from lightvl.api.timings import stage_seconds
from lightvl.errors import EngineLostError, RequestError
from lightvl.messages import (
    Abort,
    AddRequest,
    Encoded,
    FlushCaches,
    GetStats,
    NeedPixels,
    PixelsDone,
    Rejected,
    Started,
    Stats,
    StepOutputs,
    ToFront,
)
from lightvl.multimodal.pool import MediaPool, RequestMedia
from lightvl.tokenizer.stream import TextStream
from lightvl.tokenizer.tokenizer import Tokenizer
from lightvl.types import FinishReason
from lightvl.utils.channel import AsyncChannel, ChannelClosed

log = logging.getLogger(__name__)

_STATS_WAIT_S = 1.0


class EngineClient:
    """Sends requests to the engine and gives each its tokens.

    Args:
        channel: To the engine, which has said `Ready`.
        media: Loads and decodes pictures.
        tokenizer: The model's.
        rules: What one request may ask for.
        metrics: Counts what passes.

    Attributes:
        lost: Set once the engine is gone.
    """

    def __init__(
        self,
        channel: AsyncChannel[ToFront],
        media: MediaPool,
        tokenizer: Tokenizer,
        rules: PromptRules,
        metrics: Metrics,
    ) -> None:
        self._channel = channel
        self._tokenizer = tokenizer
        self._ids = itertools.count(1)
        self._live: dict[int, tuple[Generation, Sequence]] = {}
        self._supply = PixelSupply(media, self._send)
        self._stats: deque[asyncio.Future[dict[str, float]]] = deque()
        self._handlers: dict[type, Callable[[Any], None]] = {
            StepOutputs: self._on_outputs,
            Started: self._on_started,
            Rejected: self._on_rejected,
            NeedPixels: self._on_need_pixels,
            Encoded: self._on_encoded,
            PixelsDone: self._on_pixels_done,
            Stats: self._on_stats,
        }
        self.preparer = Preparer(media, tokenizer, rules)
        self.metrics = metrics
        self.lost = asyncio.Event()
        self._receiver = asyncio.create_task(self._receive())

    @property
    def num_live(self) -> int:
        """Sequences that wait or run."""
        return len(self._live)

    @property
    def num_live_tokens(self) -> int:
        """Tokens that the live sequences may come to hold: prompt plus `max_new_tokens`."""
        return sum(
            generation.num_prompt_tokens + generation.prepared.sampling.max_new_tokens
            for generation, _ in self._live.values()
        )

    async def prepare(
        self, request: GenerationRequest, held: RequestMedia | None = None
    ) -> Prepared:
        """Loads the pictures and expands the prompt; `start` or `release` what it returns.

        Args:
            request: What is asked for.
            held: What the request holds in the arena already; the result owns it.

        Raises:
            RequestError: A picture is bad, or the prompt doesn't fit; nothing is held then.
        """
        return await self.preparer.prepare(request, held)

    def start(
        self, prepared: Prepared, ticket: Ticket | None = None, *, streaming: bool = False
    ) -> Generation:
        """Sends a request to the engine.

        Args:
            prepared: The generation owns it from now on.
            ticket: Its place in the queue, given back with the first token.
            streaming: Whether `Generation.events` will be read.

        Raises:
            EngineLostError: The engine is gone; the request is discarded.
        """
        generation = Generation(prepared, self._finish, ticket, streaming)
        request, sampling = prepared.request, prepared.sampling
        messages = []
        for index in range(request.num_sequences):
            sequence = self._sequence(index, request.text)
            generation.sequences.append(sequence)
            self._live[sequence.request_id] = (generation, sequence)
            messages.append(
                AddRequest(
                    sequence.request_id,
                    prepared.token_ids,
                    msgspec.structs.replace(sampling, seed=_nth_seed(sampling.seed, index)),
                    prepared.slots,
                    request.priority,
                    request.salt,
                    request.client,
                )
            )
        try:
            self._send(*messages)
        except EngineLostError:
            generation.close()
            raise
        if request.deadline_s is not None:
            generation.set_deadline(request.deadline_s)
        return generation

    async def stats(self) -> dict[str, float]:
        """Returns the engine's gauges and counters; empty if it doesn't answer in a second."""
        future = asyncio.get_running_loop().create_future()
        try:
            self._send(GetStats())
            self._stats.append(future)
            return await asyncio.wait_for(future, _STATS_WAIT_S)
        except (EngineLostError, TimeoutError):
            return {}

    def flush(self) -> None:
        """Drops what the engine's caches hold and nobody uses."""
        self._send(FlushCaches())

    def fail_all(self, error: RequestError) -> None:
        """Ends every live request with an error."""
        for generation, _ in list(self._live.values()):
            generation.fail(error)

    async def close(self) -> None:
        """Fails what is live and closes the channel, which ends the engine."""
        self.fail_all(EngineLostError())
        self._receiver.cancel()
        await self._channel.close()

    def _sequence(self, index: int, options: TextOptions) -> Sequence:
        stream = TextStream(
            self._tokenizer,
            skip_special_tokens=options.skip_special_tokens,
            stop_strings=options.stop_strings,
            stop_ids=options.stop_ids,
            keep_stop=options.keep_stop,
        )
        shown_ids = self._tokenizer.eos_ids if options.print_eos_token else frozenset[int]()
        return Sequence(index, next(self._ids), stream, shown_ids)

    # --- messages ----------------------------------------------------------------------------

    def _send(self, *messages: object) -> None:
        try:
            self._channel.send(*messages)
        except ChannelClosed:
            raise EngineLostError("the engine is gone") from None

    async def _receive(self) -> None:
        try:
            while True:
                message = await self._channel.recv()
                handler = self._handlers.get(type(message))
                if handler is not None:
                    handler(message)
        except ChannelClosed:
            self.lost.set()
            self.fail_all(EngineLostError("the engine was lost"))

    def _on_outputs(self, message: StepOutputs) -> None:
        now_s = time.monotonic()
        stopped = []
        for output in message.outputs:
            live = self._live.get(output.request_id)
            if live is None:
                continue  # aborted while this was on its way
            generation, sequence = live
            event = sequence.push(output)
            self._observe(generation, sequence, now_s)
            if event.finish_reason is not None:
                self._end(generation, sequence, event.finish_reason, now_s)
                if output.finish_reason is None:
                    stopped.append(Abort(output.request_id))
            generation.take(event)
            if generation.num_unfinished == 0:
                generation.ended_s = now_s
                self.metrics.observe_stages(stage_seconds([generation]))
        if stopped:
            self._channel.send(*stopped)

    def _on_started(self, message: Started) -> None:
        live = self._live.get(message.request_id)
        if live is None or live[0].started_s is not None:
            return
        generation = live[0]
        generation.started(message)
        self.metrics.queue_time.observe(time.monotonic() - generation.arrived_s)
        self.metrics.request_prompt_tokens.observe(generation.num_prompt_tokens)

    def _on_rejected(self, message: Rejected) -> None:
        live = self._live.get(message.request_id)
        if live is not None:
            live[0].fail(RequestError(message.message, message.status, param=message.param))

    def _on_need_pixels(self, message: NeedPixels) -> None:
        live = self._live.get(message.request_id)
        if live is None:
            return  # aborted; the engine asks the next one that waits
        prepared = live[0].prepared
        for slot, image in zip(prepared.slots, prepared.images, strict=True):
            if slot.key == message.key:
                self._supply.supply(message, image, live[0].fail, live[0].decoded)
                return

    def _on_pixels_done(self, message: PixelsDone) -> None:
        self._supply.done(message.offset)
        if message.ago_s is not None:
            when_s = time.monotonic() - message.ago_s
            for generation in self._waiting_for([message.key]):
                generation.preprocessed_s = when_s

    def _on_encoded(self, message: Encoded) -> None:
        when_s = time.monotonic() - message.ago_s
        for generation in self._waiting_for(message.keys):
            generation.encoded_s = when_s

    def _waiting_for(self, keys: Iterable[bytes]) -> Iterator[Generation]:
        wanted = set(keys)
        for generation, _ in self._live.values():
            if generation.prepared.slots and generation.waits_for(wanted):
                yield generation

    def _on_stats(self, message: Stats) -> None:
        future = self._stats.popleft()
        if not future.done():
            future.set_result(message.values)

    def _observe(self, generation: Generation, sequence: Sequence, now_s: float) -> None:
        if sequence.num_tokens == 1:
            self.metrics.time_to_first_token.observe(now_s - generation.arrived_s)
            generation.begun(now_s)
        else:
            self.metrics.inter_token_latency.observe(now_s - sequence.last_s)
        sequence.last_s = now_s

    def _end(
        self, generation: Generation, sequence: Sequence, reason: FinishReason, now_s: float
    ) -> None:
        del self._live[sequence.request_id]
        self._supply.cancel(sequence.request_id)
        self.metrics.finished.labels(reason).inc()
        self.metrics.latency.observe(now_s - generation.arrived_s)
        self.metrics.request_generation_tokens.observe(sequence.num_tokens)

    def _finish(self, generation: Generation) -> None:
        """Aborts what still runs of a generation and frees what it holds."""
        now_s = time.monotonic()
        live = [s for s in generation.sequences if s.request_id in self._live]
        for sequence in live:
            self._end(generation, sequence, "abort", now_s)
        generation.prepared.release()
        if live and not self.lost.is_set():
            try:
                self._channel.send(*(Abort(s.request_id) for s in live))
            except ChannelClosed:
                log.debug("the engine went before an abort reached it")


def _nth_seed(seed: int, index: int) -> int:
    """Returns `seed + index`, wrapped to 64 bits."""
    return (seed + index + 2**63) % 2**64 - 2**63
