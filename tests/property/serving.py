"""A front and an engine in one thread, for tests of the scheduler: nothing runs by itself."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

from lightvl.config import EngineConfig, ModelConfig, RopeConfig, TextConfig, TilingConfig
from lightvl.engine.memory import MemoryPlan
from lightvl.engine.plan import StepResult
from lightvl.engine.scheduler import Scheduler, Step
from lightvl.messages import (
    AddRequest,
    NeedPixels,
    Pixels,
    PixelsDone,
    Started,
    StepOutputs,
)
from lightvl.testing.fake_runner import FakeRunner, reference
from lightvl.types import ImageSlot, SamplingParams, TileGrid
from lightvl.vision.packing import MICRO_BATCH_TILES

TILE_LEN = 2
EOS_ID = 1


@dataclass(frozen=True)
class Setting:
    """What the tests vary of an engine."""

    num_pages: int = 64
    page_size: int = 4
    num_tiles: int = 32
    capacity: int = 8
    num_slots: int = 4
    max_total_len: int = 64
    chunk: int | None = 8
    max_tokens: int = 64
    max_itl_ms: float = 0.0
    prefix_cache: bool = True
    max_pictures: int | None = None
    rope: RopeConfig = field(default_factory=RopeConfig)

    def config(self) -> EngineConfig:
        """Returns the engine's configuration."""
        model = ModelConfig(
            architecture="Fake",
            layout="native",
            text=text_config(self.rope),
            vision=None,
            tiling=tiling_config(),
            downsample_ratio=0.5,
            template=None,
            data_type="fp32",
            eos_ids=(EOS_ID,),
            bos_id=None,
            generation={},
        )
        return EngineConfig(
            model_dir="",
            model=model,
            device="cpu",
            data_type="fp32",
            mem_fraction=0.9,
            page_size=self.page_size,
            max_total_token_num=None,
            max_req_total_len=self.max_total_len,
            running_max_req_size=self.num_slots,
            chunked_prefill_size=self.chunk,
            max_itl_ms=self.max_itl_ms,
            batch_max_tokens=self.max_tokens,
            prefix_cache=self.prefix_cache,
            cache_capacity=self.capacity,
            cache_bytes=None,
            visual_infer_batch_size=self.max_pictures,
            load_workers=1,
            arena_bytes=0,
        )

    def memory(self) -> MemoryPlan:
        """Returns how many pages there are."""
        return MemoryPlan(self.num_pages, self.num_tiles, self.max_total_len, ())


def text_config(rope: RopeConfig) -> TextConfig:
    """Returns a text configuration of which the scheduler reads only the rope."""
    return TextConfig(
        family="qwen2",
        hidden_size=8,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        ffn_size=8,
        vocab_size=40,
        max_position=64,
        norm_eps=1e-6,
        rope=rope,
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        qk_norm=False,
        tied_head=False,
    )


def tiling_config() -> TilingConfig:
    """Returns a tiling of which the scheduler reads only the tokens per tile."""
    return TilingConfig(
        tile_size=8,
        tokens_per_tile=TILE_LEN,
        min_tiles=1,
        max_tiles=4,
        use_thumbnail=True,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )


def key_of(number: int) -> bytes:
    """Returns the key of picture `number`."""
    return number.to_bytes(32, "little")


def grid_of(number: int) -> TileGrid:
    """Returns the grid of picture `number`: 1, 3 or 7 tiles."""
    return (TileGrid(1, 1, False), TileGrid(2, 1, True), TileGrid(3, 2, True))[number % 3]


def add_request(
    request_id: int,
    prompt: Sequence[int | tuple[int]],
    sampling: SamplingParams | None = None,
    priority: int = 0,
    salt: bytes = b"",
) -> AddRequest:
    """Returns a request; an entry `(n,)` of the prompt stands for picture `n`."""
    ids: list[int] = []
    images = []
    for entry in prompt:
        if isinstance(entry, int):
            ids.append(entry)
            continue
        number, grid = entry[0], grid_of(entry[0])
        num_tokens = grid.num_tiles * TILE_LEN
        images.append(ImageSlot(key_of(number), len(ids), num_tokens, grid, 8, 8))
        ids += [request_id % 5] * num_tokens  # a filler says nothing
    return AddRequest(request_id, ids, sampling or SamplingParams(), images, priority, salt)


class Answer(NamedTuple):
    """What a request got."""

    token_ids: list[int]
    finish_reason: str | None


class Server:
    """Drives a scheduler as the engine and the front do.

    Args:
        setting: The engine's.
        lag: Steps that are planned ahead of the results, 0 or 1.
        costs: Seconds of vision and of text that a step is said to have taken.
    """

    def __init__(
        self,
        setting: Setting,
        lag: int = 0,
        costs: Callable[[Step], tuple[float, float]] = lambda step: (0.001, 0.001),
    ) -> None:
        self.setting = setting
        self.scheduler = Scheduler(setting.config(), setting.memory())
        self.arena: dict[int, bytes] = {}
        self.runner = FakeRunner(setting.page_size, TILE_LEN, self.arena)
        self.requests: dict[int, AddRequest] = {}
        self.answers: dict[int, Answer] = {}
        self.started: list[Started] = []
        self.needs: deque[NeedPixels] = deque()
        self.steps: list[Step] = []
        self.num_asked = 0
        self.aborted: set[int] = set()
        self._in_flight: deque[Step] = deque()
        self._lag = lag
        self._costs = costs
        self._offsets = count(0, 64)

    @property
    def live(self) -> list[int]:
        """Requests that have not ended."""
        return [
            i for i, a in self.answers.items() if a.finish_reason is None and i not in self.aborted
        ]

    def add(self, request: AddRequest) -> None:
        self.requests[request.request_id] = request
        self.answers[request.request_id] = Answer([], None)
        self.scheduler.add(request)
        self._receive()

    def abort(self, request_id: int) -> None:
        self.aborted.add(request_id)
        self.scheduler.abort(request_id)
        self._receive()

    def answer_need(self, position: int = 0, late: bool = False) -> None:
        """Decodes one of the pictures asked for; if its request has ended, only when `late`."""
        need = self.needs[position]
        del self.needs[position]
        if need.request_id not in self.live and not late:
            return
        offset = next(self._offsets)
        self.arena[offset] = need.key
        self.scheduler.supply(Pixels(need.key, offset, 8, 8))
        self._receive()

    def step(self) -> bool:
        """Plans a step and reads the results that are due; False if there was nothing to do."""
        step = self.scheduler.plan()
        self._receive()
        if step is not None:
            self._check(step)
            self.steps.append(step)
            self._in_flight.append(step)
        elif not self._in_flight:
            return False
        if step is None or len(self._in_flight) > self._lag:
            done = self._in_flight.popleft()
            result = self.runner.execute(done.plan)
            vision_s, text_s = self._costs(done)
            self.scheduler.apply(done, StepResult(result.drawn, vision_s, text_s))
            self._receive()
        return True

    def run_steps(self, num_steps: int) -> None:
        """Plans and executes so many steps."""
        for _ in range(num_steps):
            self.step()

    def run(self, max_steps: int = 5000) -> None:
        """Serves until every request has ended."""
        for _ in range(max_steps):
            while self.needs:
                self.answer_need()
            if not self.step() and not self.needs:
                break
        assert not self.live, "requests wait for ever"

    def check_answers(self) -> None:
        """Compares what every request got with what it must get."""
        for request_id, request in self.requests.items():
            expected = reference(request, [EOS_ID], self.setting.max_total_len)
            token_ids, reason = self.answers[request_id]
            if not self._can_fit(request):
                assert (token_ids, reason) == ([], "abort")
                continue
            if request_id in self.aborted:
                assert token_ids == expected[: len(token_ids)]
                continue
            assert token_ids == expected
            stops = {*request.sampling.stop_token_ids}
            if not request.sampling.ignore_eos:
                stops.add(EOS_ID)
            assert reason == ("stop" if expected[-1] in stops else "length")

    def check_nothing_is_held(self) -> None:
        """Checks, after the last request, that everything is given back."""
        scheduler = self.scheduler
        assert not scheduler.waiting
        assert not scheduler.running
        assert not scheduler._live
        assert sorted(scheduler._free_slots) == list(range(self.setting.num_slots))
        assert scheduler.pool.num_available == self.setting.num_pages
        assert not self.arena, "pixels are never given back"
        assert not self.runner.patches, "a picture is begun and never finished"
        scheduler.flush()
        assert scheduler.pool.num_cached == 0
        assert scheduler.pool.num_available == self.setting.num_pages
        assert len(scheduler.pictures) == 0
        assert scheduler.pictures.num_used_pages == 0

    def _can_fit(self, request: AddRequest) -> bool:
        tiles = {image.key: image.grid.num_tiles for image in request.images}
        return (
            len(request.token_ids) < self.setting.max_total_len
            and len(tiles) <= self.setting.capacity
            and sum(tiles.values()) <= self.setting.num_tiles
        )

    def _check(self, step: Step) -> None:
        setting = self.setting
        assert len(step.tiles) <= MICRO_BATCH_TILES
        assert len({tile.key for tile in step.tiles}) <= (setting.max_pictures or setting.capacity)
        assert len({row.slot for row in step.rows}) == len(step.rows)
        assert all(row.start + row.num_tokens < setting.max_total_len for row in step.rows)
        num_decoding = sum(not row.token_ids for row in step.rows)
        num_prefill = sum(row.num_tokens for row in step.rows) - num_decoding
        assert num_prefill == step.num_prefill
        assert num_prefill + num_decoding <= max(setting.max_tokens, num_decoding + 1)
        assert setting.chunk is None or num_prefill <= setting.chunk

    def _receive(self) -> None:
        for message in self.scheduler.outbox:
            match message:
                case StepOutputs():
                    self._output(message)
                case NeedPixels():
                    assert message.request_id in self.live, "an ended request is asked for pixels"
                    keys = [image.key for image in self.requests[message.request_id].images]
                    assert message.key in keys
                    self.num_asked += 1
                    self.needs.append(message)
                case PixelsDone():
                    assert self.arena.pop(message.offset) == message.key
                case Started():
                    self.started.append(message)
        self.scheduler.outbox.clear()

    def _output(self, message: StepOutputs) -> None:
        for output in message.outputs:
            token_ids, reason = self.answers[output.request_id]
            assert reason is None, "a token after the end"
            assert output.request_id not in self.aborted
            if output.token_id >= 0:
                token_ids.append(output.token_id)
            self.answers[output.request_id] = Answer(token_ids, output.finish_reason)
