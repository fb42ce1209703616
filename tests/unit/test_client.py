"""The engine client on one end of a channel; the test is the engine on the other."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest

import lightvl
from lightvl.api.admission import Admission, Limits
from lightvl.api.client import EngineClient
from lightvl.api.generation import GenerationRequest, Prepared, TextOptions
from lightvl.api.metrics import Metrics
from lightvl.api.prepare import PromptRules
from lightvl.errors import EngineLostError, RequestError
from lightvl.messages import (
    Abort,
    AddRequest,
    NeedPixels,
    Pixels,
    PixelsDone,
    Started,
    StepOutputs,
    ToEngine,
    ToFront,
    TokenOutput,
)
from lightvl.multimodal.pool import LoadedImage, MediaPool, PixelRegion, RequestMedia
from lightvl.tokenizer.tokenizer import Tokenizer, load_tokenizer
from lightvl.types import ImageSlot, SamplingParams, TileGrid
from lightvl.utils.channel import AsyncChannel, channel_pair

MODEL_DIR = Path(next(iter(lightvl.__path__)), "demo")
KEY = b"k" * 32
MessageT = TypeVar("MessageT")


@dataclass
class FakeMedia:
    """Decodes when told to; remembers what was freed."""

    decoded: asyncio.Event = field(default_factory=asyncio.Event)
    error: RequestError | None = None
    freed: list[int] = field(default_factory=list)
    cancelled: int = 0

    async def decode(self, image: LoadedImage) -> PixelRegion:
        try:
            await self.decoded.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return PixelRegion(4096, 3, 2, cast(Any, None))

    def free(self, pixels: PixelRegion) -> None:
        self.freed.append(pixels.offset)


class FakeHeld:
    """What a request holds in the arena."""

    released = 0

    def release(self) -> None:
        self.released += 1


@dataclass
class Rig:
    """A client, the engine's end of its channel, and the media it uses."""

    client: EngineClient
    engine: AsyncChannel[ToEngine]
    media: FakeMedia
    tokenizer: Tokenizer

    async def sent(self, kind: type[MessageT]) -> MessageT:
        """Returns the client's next message, which is of this kind."""
        message = await asyncio.wait_for(self.engine.recv(), 5)
        assert isinstance(message, kind), message
        return message

    def prepared(self, *, picture: bool = False, n: int = 1, **fields: Any) -> Prepared:
        sampling = SamplingParams(seed=fields.pop("seed", 7))
        request = GenerationRequest(prompt=[1, 2], sampling=sampling, num_sequences=n, **fields)
        slots = [ImageSlot(KEY, 1, 4, TileGrid(1, 1, False), 3, 2)] if picture else []
        images = [cast(LoadedImage, object())] if picture else []
        held = cast(RequestMedia, FakeHeld())
        return Prepared(request, sampling, [1, 2], slots, images, held)


@asynccontextmanager
async def rig() -> AsyncIterator[Rig]:
    ours, theirs = channel_pair()
    engine: AsyncChannel[ToEngine] = await AsyncChannel.open(theirs, ToEngine)
    channel: AsyncChannel[ToFront] = await AsyncChannel.open(ours, ToFront)
    media = FakeMedia()
    tokenizer = load_tokenizer(MODEL_DIR, eos_ids=(0,))
    rules = PromptRules(max_req_total_len=100, max_images=2, max_request_tiles=9, tiling=None)
    client = EngineClient(channel, cast(MediaPool, media), tokenizer, rules, Metrics())
    yield Rig(client, engine, media, tokenizer)
    await client.close()
    await engine.close()


def run(test: Callable[[Rig], Awaitable[None]]) -> None:
    """Runs a test with a rig on an event loop."""

    async def main() -> None:
        async with rig() as made:
            await test(made)

    asyncio.run(main())


def test_sequences_get_the_next_seeds_and_their_own_tokens() -> None:
    async def test(r: Rig) -> None:
        generation = r.client.start(r.prepared(n=3, seed=2**63 - 2))
        added = [await r.sent(AddRequest) for _ in range(3)]
        assert [a.sampling.seed for a in added] == [2**63 - 2, 2**63 - 1, -(2**63)]
        outputs = [TokenOutput(a.request_id, 300 + i, "length") for i, a in enumerate(added)]
        r.engine.send(StepOutputs(outputs[::-1]))
        await generation.finished()
        ids = [[event.token_id for event in s.events] for s in generation.sequences]
        assert ids == [[300], [301], [302]]
        assert r.client.num_live == 0

    run(test)


def test_only_what_still_runs_is_aborted_and_held_bytes_are_released() -> None:
    async def test(r: Rig) -> None:
        prepared = r.prepared(n=2)
        generation = r.client.start(prepared)
        first, second = await r.sent(AddRequest), await r.sent(AddRequest)
        r.engine.send(StepOutputs([TokenOutput(first.request_id, 300, "stop")]))
        while r.client.num_live == 2:
            await asyncio.sleep(0)
        generation.close()
        assert (await r.sent(Abort)).request_id == second.request_id
        assert cast(FakeHeld, prepared.held).released == 1
        r.engine.send(StepOutputs([TokenOutput(second.request_id, 301)]))  # was on its way
        other = r.client.start(r.prepared())
        added = await r.sent(AddRequest)
        r.engine.send(StepOutputs([TokenOutput(added.request_id, 302, "length")]))
        await other.finished()
        assert len(generation.sequences[1].events) == 0

    run(test)


def test_a_stop_string_aborts_the_sequence() -> None:
    async def test(r: Rig) -> None:
        options = TextOptions(stop_strings=("b",), keep_stop=False)
        generation = r.client.start(r.prepared(text=options))
        added = await r.sent(AddRequest)
        ids = r.tokenizer.encode("a b", add_special_tokens=False)
        for token_id in ids:
            r.engine.send(StepOutputs([TokenOutput(added.request_id, token_id)]))
        await generation.finished()
        assert (await r.sent(Abort)).request_id == added.request_id
        assert generation.sequences[0].text == "a "
        assert generation.sequences[0].finish_reason == "stop"

    run(test)


def test_pixels_are_sent_when_asked_for_and_freed_when_done() -> None:
    async def test(r: Rig) -> None:
        generation = r.client.start(r.prepared(picture=True))
        added = await r.sent(AddRequest)
        r.media.decoded.set()
        r.engine.send(NeedPixels(added.request_id, KEY))
        assert await r.sent(Pixels) == Pixels(KEY, 4096, 3, 2)
        assert r.media.freed == []
        r.engine.send(PixelsDone(KEY, 4096))
        r.engine.send(StepOutputs([TokenOutput(added.request_id, 300, "length")]))
        await generation.finished()
        assert r.media.freed == [4096]

    run(test)


def test_a_picture_broken_inside_fails_its_request() -> None:
    async def test(r: Rig) -> None:
        generation = r.client.start(r.prepared(picture=True))
        added = await r.sent(AddRequest)
        r.media.error = RequestError("images[0]: broken")
        r.media.decoded.set()
        r.engine.send(NeedPixels(added.request_id, KEY))
        with pytest.raises(RequestError, match=r"images\[0\]: broken"):
            await generation.finished()
        assert (await r.sent(Abort)).request_id == added.request_id

    run(test)


def test_decoding_ends_with_the_request_and_late_questions_are_ignored() -> None:
    async def test(r: Rig) -> None:
        generation = r.client.start(r.prepared(picture=True))
        added = await r.sent(AddRequest)
        r.engine.send(NeedPixels(added.request_id, KEY), Started(added.request_id, 0, [False]))
        while generation.started_s is None:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        generation.close()
        assert (await r.sent(Abort)).request_id == added.request_id
        await asyncio.sleep(0)
        assert r.media.cancelled == 1
        r.engine.send(NeedPixels(added.request_id, KEY))
        other = r.client.start(r.prepared())
        assert isinstance(await r.sent(AddRequest), AddRequest)
        other.close()

    run(test)


def test_a_lost_engine_fails_everything() -> None:
    async def test(r: Rig) -> None:
        generation = r.client.start(r.prepared())
        await r.sent(AddRequest)
        await r.engine.close()
        with pytest.raises(EngineLostError):
            await generation.finished()
        assert r.client.lost.is_set()
        with pytest.raises(EngineLostError):
            r.client.start(r.prepared())
        assert r.client.num_live == 0
        assert await r.client.stats() == {}

    run(test)


def test_usage_comes_from_the_first_sequence_that_starts() -> None:
    async def test(r: Rig) -> None:
        admission = Admission(Limits(max_requests=1, max_tokens=100))
        generation = r.client.start(r.prepared(picture=True, n=2), admission.arrive())
        first, second = await r.sent(AddRequest), await r.sent(AddRequest)
        assert admission.waiting_requests == 1
        r.engine.send(Started(first.request_id, 5, [True]), Started(second.request_id, 9, [False]))
        r.engine.send(
            StepOutputs([TokenOutput(a.request_id, 300, "length") for a in (first, second)])
        )
        await generation.finished()
        assert admission.waiting_requests == 0
        assert generation.cached_tokens == 5
        assert generation.num_cached_image_tokens == 4

    run(test)
