"""Channels deliver every message whole, in order, and notice the end of the other side."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator

import pytest

from lightvl.messages import Abort, AddRequest, GetStats, Pixels, StepOutputs, ToEngine, TokenOutput
from lightvl.messages import ToFront as ToFrontMessage
from lightvl.types import ImageSlot, SamplingParams, TileGrid
from lightvl.utils.channel import AsyncChannel, Channel, ChannelClosed, channel_pair

REQUEST = AddRequest(
    7,
    [1, 2, 3],
    SamplingParams(temperature=0.5, stop_token_ids=(4,), logit_bias={3: -1.0}),
    [ImageSlot(b"\xff" * 32, 1, 1, TileGrid(1, 1, False), 10, 20)],
)


Pair = tuple[Channel[ToEngine], Channel[ToFrontMessage]]


@pytest.fixture
def pair() -> Iterator[Pair]:
    left, right = channel_pair()
    engine: Channel[ToEngine] = Channel(left, ToEngine)
    front: Channel[ToFrontMessage] = Channel(right, ToFrontMessage)
    yield engine, front
    engine.close()
    front.close()


def test_messages_arrive_whole_and_in_order(pair: Pair) -> None:
    engine, front = pair
    sent = [REQUEST, Abort(7), Pixels(b"k" * 32, 64, 10, 20)]
    front.send(*sent)
    front.send(GetStats())
    assert [engine.recv() for _ in range(4)] == [*sent, GetStats()]


def test_ready_messages_come_without_blocking(pair: Pair) -> None:
    engine, front = pair
    assert engine.recv_ready() == []
    front.send(Abort(1), Abort(2), Abort(3))
    assert engine.recv() == Abort(1)
    assert engine.recv_ready() == [Abort(2), Abort(3)]
    assert engine.recv_ready() == []


def test_part_of_a_message_waits_for_the_rest() -> None:
    source, capture = channel_pair()
    with source, capture:
        Channel[ToFrontMessage](source, ToFrontMessage).send(REQUEST)
        data = capture.recv(1 << 16)
    left, right = channel_pair()
    with left, right:
        engine: Channel[ToEngine] = Channel(left, ToEngine)
        for at in range(len(data)):
            assert engine.recv_ready() == []
            right.send(data[at : at + 1])
        assert engine.recv_ready() == [REQUEST]


def test_messages_larger_than_the_socket_buffer(pair: Pair) -> None:
    engine, front = pair
    long = AddRequest(1, list(range(400_000)), SamplingParams())
    sender = threading.Thread(target=front.send, args=(long,))
    sender.start()
    assert engine.recv() == long
    sender.join()


def test_end_of_the_other_side_is_an_error_in_every_call(pair: Pair) -> None:
    engine, front = pair
    front.close()
    with pytest.raises(ChannelClosed):
        engine.recv()
    with pytest.raises(ChannelClosed):
        engine.recv_ready()
    with pytest.raises(ChannelClosed):
        engine.send(GetStats())


def test_a_killed_process_closes_the_channel() -> None:
    ours, theirs = channel_pair()
    with ours:
        with theirs:
            child = subprocess.Popen(
                [sys.executable, "-c", "import sys; sys.stdin.read()"],
                stdin=subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
            )
        engine: Channel[ToEngine] = Channel(ours, ToEngine)
        assert engine.recv_ready() == []
        child.kill()
        with pytest.raises(ChannelClosed):
            engine.recv()
        child.communicate()


def test_an_inherited_descriptor_becomes_a_channel() -> None:
    left, right = channel_pair()
    with right:
        engine: Channel[ToEngine] = Channel.from_fd(left.detach(), ToEngine)
        Channel[ToFrontMessage](right, ToFrontMessage).send(Abort(1))
        assert engine.recv() == Abort(1)
        engine.close()


def run(body: Callable[[], Awaitable[None]], loop_factory: Callable[[], object] | None) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:  # type: ignore[arg-type]
        runner.run(body())  # type: ignore[arg-type]


def loop_factories() -> list[Callable[[], object] | None]:
    uvloop = pytest.importorskip("uvloop")
    return [None, uvloop.new_event_loop]


@pytest.mark.parametrize("kind", [0, 1], ids=["asyncio", "uvloop"])
def test_async_end_talks_to_the_blocking_end(kind: int) -> None:
    async def body() -> None:
        left, right = channel_pair()
        engine: Channel[ToEngine] = Channel(left, ToEngine)
        front: AsyncChannel[ToFrontMessage] = await AsyncChannel.open(right, ToFrontMessage)
        front.send(REQUEST, Abort(1))
        front.send(Abort(2))
        received = await asyncio.to_thread(lambda: [engine.recv() for _ in range(3)])
        assert received == [REQUEST, Abort(1), Abort(2)]
        outputs = StepOutputs([TokenOutput(7, 5, "stop", -0.5, [(5, -0.5)])])
        engine.send(outputs, outputs)
        assert await front.recv() == outputs
        assert await front.recv() == outputs
        engine.close()
        with pytest.raises(ChannelClosed):
            await front.recv()
        with pytest.raises(ChannelClosed):
            front.send(Abort(3))
        await front.close()

    run(body, loop_factories()[kind])


@pytest.mark.parametrize("kind", [0, 1], ids=["asyncio", "uvloop"])
def test_async_send_never_blocks_and_keeps_order(kind: int) -> None:
    async def body() -> None:
        left, right = channel_pair()
        engine: Channel[ToEngine] = Channel(left, ToEngine)
        front: AsyncChannel[ToFrontMessage] = await AsyncChannel.open(right, ToFrontMessage)
        big = [AddRequest(i, [i] * 100_000, SamplingParams()) for i in range(8)]
        for message in big:  # nobody reads yet
            front.send(message)
        assert await asyncio.to_thread(lambda: [engine.recv() for _ in big]) == big
        await front.close()
        with pytest.raises(ChannelClosed):
            await asyncio.to_thread(engine.recv)
        engine.close()

    run(body, loop_factories()[kind])
