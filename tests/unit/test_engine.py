"""The engine's loop over a channel: one message a step, asleep when idle, ended with the front."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from lightvl.engine.engine import Engine, serve
from lightvl.messages import (
    Abort,
    AddRequest,
    Encoded,
    FlushCaches,
    GetStats,
    Init,
    NeedPixels,
    Pixels,
    PixelsDone,
    Started,
    Stats,
    StepOutputs,
    ToEngine,
    ToFront,
)
from lightvl.testing.fake_runner import FakeRunner, reference
from lightvl.types import SamplingParams
from lightvl.utils.channel import Channel, ChannelClosed, channel_pair
from tests.property.serving import EOS_ID, TILE_LEN, Setting, add_request, key_of

SETTING = Setting(num_pages=200, max_total_len=200, num_slots=8)


class Front:
    """The front's end, with an engine in a thread behind it."""

    def __init__(self, setting: Setting) -> None:
        self.pixels: dict[int, bytes] = {}
        ours, theirs = channel_pair()
        self.channel: Channel[ToFront] = Channel(ours, ToFront)
        self.engine_channel: Channel[ToEngine] = Channel(theirs, ToEngine)
        runner = FakeRunner(setting.page_size, TILE_LEN, self.pixels)
        send = self.engine_channel.send
        self.engine = Engine(setting.config(), setting.memory(), runner, send)
        self.cpu_s = 0.0
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def stop(self) -> None:
        self.channel.close()
        self.thread.join(10)
        assert not self.thread.is_alive()
        self.engine_channel.close()

    def collect(self, num_requests: int) -> tuple[dict[int, list[int]], list[ToFront]]:
        """Returns the tokens of so many requests once all have ended, and all other messages."""
        tokens: dict[int, list[int]] = {}
        others: list[ToFront] = []
        while num_requests:
            message = self.channel.recv()
            if not isinstance(message, StepOutputs):
                others.append(message)
                if isinstance(message, NeedPixels):
                    self.pixels[64] = message.key
                    self.channel.send(Pixels(message.key, 64, 8, 8))
                continue
            ids = [output.request_id for output in message.outputs]
            assert len(set(ids)) == len(ids)
            for output in message.outputs:
                tokens.setdefault(output.request_id, []).append(output.token_id)
                num_requests -= output.finish_reason is not None
        return tokens, others

    def _serve(self) -> None:
        with pytest.raises(ChannelClosed):
            serve(self.engine, self.engine_channel)
        self.cpu_s = time.thread_time()


@pytest.fixture
def front() -> Iterator[Front]:
    front = Front(SETTING)
    yield front
    front.stop()


def test_requests_over_a_channel_get_their_tokens(front: Front) -> None:
    requests = [
        add_request(i, [i, 7, 8], SamplingParams(max_new_tokens=20, seed=i)) for i in range(5)
    ]
    front.channel.send(*requests)
    tokens, others = front.collect(5)
    for request in requests:
        assert tokens[request.request_id] == reference(request, [EOS_ID], 200)
    assert [m for m in others if not isinstance(m, Started)] == []
    assert len(others) == 5


def test_a_picture_is_asked_for_read_and_given_back(front: Front) -> None:
    request = add_request(3, [1, (0,), 2], SamplingParams(max_new_tokens=4))
    front.channel.send(request)
    tokens, others = front.collect(1)
    assert tokens[3] == reference(request, [EOS_ID], 200)
    *before, done, encoded = others
    assert before == [Started(3, 0, [False]), NeedPixels(3, key_of(0))]
    assert isinstance(done, PixelsDone)
    assert (done.key, done.offset) == (key_of(0), 64)
    assert isinstance(encoded, Encoded)
    assert encoded.keys == [key_of(0)]
    assert done.ago_s is not None
    assert done.ago_s > encoded.ago_s  # patches come before the tower


def test_stats_count_what_happened_and_flush_forgets(front: Front) -> None:
    front.channel.send(add_request(1, [5, (1,), *range(6)], SamplingParams(max_new_tokens=4)))
    tokens, _ = front.collect(1)
    front.channel.send(GetStats(), FlushCaches(), GetStats())
    before, after = front.channel.recv(), front.channel.recv()
    assert isinstance(before, Stats)
    assert isinstance(after, Stats)
    assert before.values["prompt_tokens_total"] == 7 + 3 * TILE_LEN
    assert before.values["generation_tokens_total"] == len(tokens[1])
    assert before.values["vision_tiles_total"] == 3
    assert before.values["image_cache_misses_total"] == before.values["image_cache_images"] == 1
    assert before.values['image_cache_bytes{tier="host"}'] == 3 * TILE_LEN * 8 * 4
    assert before.values["num_requests_running"] == before.values["kv_pages_used"] == 0
    assert before.values["kv_pages_cached"] > 0
    assert after.values["kv_pages_cached"] == after.values["image_cache_images"] == 0
    assert after.values["image_cache_evictions_total"] == 0


def test_an_aborted_request_is_not_answered(front: Front) -> None:
    endless = SamplingParams(max_new_tokens=10**6, ignore_eos=True)
    waiting = add_request(1, [1, (0,), 2], endless)
    front.channel.send(waiting)
    assert isinstance(front.channel.recv(), Started)
    assert isinstance(front.channel.recv(), NeedPixels)
    front.channel.send(Abort(1), add_request(2, [5], SamplingParams(max_new_tokens=3)))
    tokens, _ = front.collect(1)
    assert list(tokens) == [2]


def test_an_idle_engine_sleeps() -> None:
    front = Front(SETTING)
    front.channel.send(add_request(1, [1, (0,), 2]))  # it waits for pixels that don't come
    front.channel.recv()
    front.channel.recv()
    time.sleep(0.5)
    front.stop()
    assert front.cpu_s < 0.1


def test_the_first_message_is_not_for_the_engine() -> None:
    setting = replace(SETTING, num_slots=1)
    engine = Engine(
        setting.config(), setting.memory(), FakeRunner(4, TILE_LEN, {}), lambda *messages: None
    )
    with pytest.raises(ValueError, match="Init"):
        engine.handle(Init(setting.config()))


def test_a_step_is_one_message(front: Front) -> None:
    same = SamplingParams(max_new_tokens=10, ignore_eos=True)
    requests: list[AddRequest] = [add_request(i, [i], same) for i in range(6)]
    front.channel.send(*requests)
    num_outputs: list[int] = []
    while sum(num_outputs) < 60:
        message = front.channel.recv()
        if isinstance(message, StepOutputs):
            num_outputs.append(len(message.outputs))
    assert len(num_outputs) <= 12
