"""What each step computes: continuous batching over KV pages and picture embeddings; torch-free.

Sequences run in order of (priority, their client's turn, arrival). Every decoding one has a row in
every step; prompts are computed in chunks beside them. A sequence that needs a KV page when none
is left takes it from the last one in order, which is computed again later, so the first one in
order always gets on and everything ends. Prefix pages are matched by content when a sequence is
admitted and again before each chunk, so equal prompts that arrive together are computed once too:
pages count as filled as soon as the step that fills them is planned, because steps run in the
order of planning and within a step keys and values are written before they are read.

`plan` may be called again before `apply` has seen the results of the step before: a row without
ids goes on from the id that its slot drew last, wherever that is known.
"""

import logging
from bisect import insort
from dataclasses import dataclass, field
from operator import attrgetter

from lightvl.config import EngineConfig
from lightvl.engine.budget import StepBudget
from lightvl.engine.fair_share import FairShare
from lightvl.engine.grammar import Grammars
from lightvl.engine.grammar_messages import Mask
from lightvl.engine.holdings import Holdings
from lightvl.engine.kv_blocks import PagePool
from lightvl.engine.memory import MemoryPlan
from lightvl.engine.plan import Join, PictureRows, Row, StepPlan, StepResult
from lightvl.engine.sequence import Sequence
from lightvl.messages import (
    AddRequest,
    Encoded,
    NeedPixels,
    Pixels,
    PixelsDone,
    Rejected,
    Started,
    StepOutputs,
    ToFront,
    TokenOutput,
)
from lightvl.types import FinishReason
from lightvl.vision.embedding_cache import EmbeddingCache, PixelRegion
from lightvl.vision.packing import pack_tiles
from lightvl.vision.work import PictureWork, TileWork

logger = logging.getLogger(__name__)

_ORDER = attrgetter("order")
_NOTHING: list[int] = []
_NO_PICTURES: list[PictureRows] = []


@dataclass(slots=True)
class Step:
    """A planned step and what is needed to read its results.

    Attributes:
        drawing: The sequences of the rows that draw an id, in order of rows.
        encoded: Pictures whose last tile is in it.
        num_prefill: Prompt tokens in it.
        room: Prompt tokens that may still be added.
    """

    joins: list[Join] = field(default_factory=list)
    pictures: list[PictureWork] = field(default_factory=list)
    tiles: list[TileWork] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    drawing: list[Sequence] = field(default_factory=list)
    masks: dict[int, bytes] = field(default_factory=dict)
    encoded: list[bytes] = field(default_factory=list)
    num_prefill: int = 0
    room: int = 0

    @property
    def plan(self) -> StepPlan:
        """What the runner executes."""
        return StepPlan(self.joins, self.pictures, self.tiles, self.rows, self.masks)


@dataclass(slots=True)
class Counters:
    """What happened since start."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    preemptions: int = 0
    image_cache_hits: int = 0
    image_cache_misses: int = 0
    vision_tiles: int = 0


class Scheduler:
    """Owns every sequence, KV page, slot and cached picture.

    Messages for the front gather in `outbox`, in order; the caller sends and clears them.

    Args:
        config: The engine's configuration.
        memory: How many pages there are.
    """

    def __init__(self, config: EngineConfig, memory: MemoryPlan) -> None:
        self.config = config
        self.max_total_len = memory.max_req_total_len
        self.pool = PagePool(memory.num_kv_pages)
        self.pictures = EmbeddingCache(memory.num_embedding_pages, config.cache_capacity)
        self.counters = Counters()
        self.outbox: list[ToFront] = []
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self._live: dict[int, Sequence] = {}
        self._free_slots = list(range(config.running_max_req_size - 1, -1, -1))
        self._budget = StepBudget(config)
        self._num_arrived = 0
        self._share = FairShare()
        self.grammars = Grammars(config)
        self._holdings = Holdings(config, self.pool, self.pictures, self.outbox)

    # --- requests ----------------------------------------------------------------------------

    def add(self, request: AddRequest) -> None:
        """Queues a request; one that can never run ends at once with `abort`."""
        seq = self._sequence(request)
        if not self._fits(seq):
            logger.warning("request %d can never fit and is refused", request.request_id)
            self.outbox.append(StepOutputs([TokenOutput(request.request_id, -1, "abort")]))
            return
        self._live[seq.request_id] = seq
        if seq.sampling.constraint is not None:  # it waits once its grammar is known to be good
            self.grammars.open(seq.request_id, seq.sampling)
            return
        insort(self.waiting, seq, key=_ORDER)

    def abort(self, request_id: int) -> None:
        """Ends a request wherever it is; one that has ended already is ignored."""
        seq = self._live.get(request_id)
        if seq is not None:
            self._end(seq)

    def supply(self, pixels: Pixels) -> None:
        """Takes a decoded picture; one that nobody waits for is given back at once."""
        region = PixelRegion(pixels.offset, pixels.width, pixels.height)
        if not self.pictures.supply(pixels.key, region):
            self.outbox.append(PixelsDone(pixels.key, pixels.offset))

    def flush(self) -> None:
        """Drops unreferenced embeddings and prefix pages."""
        self.pool.flush()
        self.pictures.flush()

    def _sequence(self, request: AddRequest) -> Sequence:
        self._num_arrived += 1
        sampling = request.sampling
        endless = sampling.ignore_eos and sampling.constraint is None
        eos_ids = () if endless else self.config.model.eos_ids
        end_ids = frozenset(eos_ids) | frozenset(sampling.stop_token_ids)
        rope = self.config.model.text.rope
        prompt_len = len(request.token_ids)
        # Dynamic NTK turns the keys of a prompt beyond the original context by its length.
        scaled = rope.kind == "dynamic" and prompt_len > rope.original_max_position
        namespace = (request.salt, prompt_len if scaled else 0)
        turn = self._share.line_up(request.client, prompt_len)
        return Sequence(request, turn, self._num_arrived, end_ids, self.max_total_len, namespace)

    def _fits(self, seq: Sequence) -> bool:
        return 0 < seq.prompt_len < self.max_total_len and self._holdings.fit(seq)

    # --- planning ----------------------------------------------------------------------------

    def plan(self) -> Step | None:
        """Plans the next step; None if nothing can be computed until a message comes."""
        if self.grammars.num_pending:
            self._take_masks()
        step = Step()
        num_decoding = sum(seq.is_decoding for seq in self.running)
        self._plan_tiles(step, streaming=num_decoding > 0)
        step.room = self._budget.prefill_tokens(num_decoding, len(step.tiles))
        position = 0
        while position < len(self.running):  # rows may take pages from sequences further back
            self._plan_row(step, self.running[position])
            position += 1
        while self.waiting and self._free_slots and self._admit(step, self.waiting[0]):
            pass
        return step if step.rows or step.tiles else None

    def _take_masks(self) -> None:
        """Takes what the grammars have answered; a moment is worth a row in this step."""
        wait = any(seq.lacks_mask for seq in self.running)
        for answer in self.grammars.receive(wait=wait):
            seq = self._live.get(answer.request_id)
            if seq is None:
                continue
            if isinstance(answer, Mask):
                if not seq.known_good:
                    seq.known_good = True
                    insort(self.waiting, seq, key=_ORDER)
                seq.mask = answer.bits
                continue
            field = seq.sampling.constraint.field if seq.sampling.constraint else None
            message = f"{field}: {answer.message}"
            self.outbox.append(Rejected(seq.request_id, message, field, answer.status))
            self._end(seq)

    def _plan_tiles(self, step: Step, streaming: bool) -> None:
        if self.pictures.encodable:
            max_tiles = self._budget.tiles(streaming)
            max_pictures = self.config.visual_infer_batch_size
            step.pictures, step.tiles = pack_tiles(self.pictures, max_tiles, max_pictures)
            keys = dict.fromkeys(tile.key for tile in step.tiles)
            step.encoded = [key for key in keys if not self.pictures[key].num_tiles_left]

    def _plan_row(self, step: Step, seq: Sequence) -> None:
        if not seq.is_decoding:
            self._plan_chunk(step, seq)
        elif seq.num_tokens < seq.max_len and not seq.lacks_mask:
            self._plan_decode(step, seq)

    def _plan_decode(self, step: Step, seq: Sequence) -> None:
        start = seq.num_computed
        pages = _NOTHING
        if start == len(seq.pages) * self.config.page_size:
            if not self._grow(seq, 1):
                return
            pages = seq.pages[-1:]
            seq.num_sent_pages += 1
        step.rows.append(Row(seq.slot, start, 1, _NOTHING, pages, _NO_PICTURES, True))
        self._draw(step, seq)
        seq.num_computed = start + 1
        self._holdings.publish(seq)

    def _plan_chunk(self, step: Step, seq: Sequence) -> None:
        self._holdings.match(seq)
        start = seq.num_computed
        end = start + self._chunk_len(step, seq)
        if end <= start or not self._grow(seq, self._holdings.num_pages(end) - len(seq.pages)):
            return
        if seq.num_sent_pages == 0:
            step.joins.append(_join(seq))
        draws = end == seq.num_joined
        pages = seq.pages[seq.num_sent_pages :]
        pictures = self._holdings.picture_rows(seq, start, end)
        ids = seq.token_ids[start:end]
        step.rows.append(Row(seq.slot, start, end - start, ids, pages, pictures, draws))
        step.num_prefill += end - start
        step.room -= end - start
        seq.num_sent_pages = len(seq.pages)
        seq.num_computed = end
        if draws:
            self._draw(step, seq)
        self._holdings.let_go(seq, end)
        self._holdings.publish(seq)

    def _draw(self, step: Step, seq: Sequence) -> None:
        step.drawing.append(seq)
        seq.num_tokens += 1
        if seq.mask is not None:
            step.masks[seq.slot] = seq.mask
            seq.mask = None

    def _chunk_len(self, step: Step, seq: Sequence) -> int:
        """Returns how many of its tokens this step computes: those with embeddings and room."""
        wanted = seq.num_joined - seq.num_computed
        readable = self._holdings.readable_end(seq) - seq.num_computed
        if self.config.chunked_prefill_size is not None:
            num_tokens = min(wanted, readable, step.room)
            past_page = (seq.num_computed + num_tokens) % self.config.page_size
            if past_page < num_tokens < wanted:  # equal prompts follow each other page by page
                num_tokens -= past_page
            return num_tokens
        if readable < wanted or (wanted > step.room and step.num_prefill):
            return 0
        return min(wanted, step.room)

    # --- KV pages ----------------------------------------------------------------------------

    def _grow(self, seq: Sequence, num_pages: int) -> bool:
        """Adds pages to a table, preempting others from the last on, in the end itself."""
        while self.pool.num_available < num_pages:
            victim = next(other for other in reversed(self.running) if other.pages or other is seq)
            self._preempt(victim)
            if victim is seq:
                return False
        self._holdings.grow(seq, num_pages)
        return True

    # --- admission and end -------------------------------------------------------------------

    def _admit(self, step: Step, seq: Sequence) -> bool:
        """Gives the first waiting sequence a slot, prefix pages and pictures, or nothing."""
        # an id drawn before its preemption, or the mask of the next one, is to come
        if len(seq.token_ids) < seq.num_tokens or seq.lacks_mask:
            return False
        seq.num_joined = seq.num_tokens
        self._holdings.match(seq)
        num_cached = seq.num_computed
        missing = self._holdings.acquire(seq) if self._has_pages(seq) else None
        if missing is None:
            self._vacate(seq)
            return False
        del self.waiting[0]
        self._share.admit(seq.order[1])
        insort(self.running, seq, key=_ORDER)
        seq.slot = self._free_slots.pop()
        self._announce(seq, num_cached, missing)
        self.outbox += [NeedPixels(seq.request_id, key) for key in missing]
        self._plan_chunk(step, seq)
        return True

    def _has_pages(self, seq: Sequence) -> bool:
        """Whether pages are left for all it knows, beside what others were promised."""
        needed = self._holdings.num_pages(seq.num_tokens + 1) - len(seq.pages)
        for other in self.running:  # the rest of its prompt, and one page to decode into
            needed += max(1, self._holdings.num_pages(other.num_joined + 1) - len(other.pages))
        return needed <= self.pool.num_available

    def _announce(self, seq: Sequence, num_cached: int, missing: list[bytes]) -> None:
        if seq.announced:
            return
        seq.announced = True
        cached_images = [
            image.key not in missing or image.start + image.num_tokens <= num_cached
            for image in seq.images
        ]
        self.outbox.append(Started(seq.request_id, num_cached, cached_images))
        self.counters.prompt_tokens += seq.prompt_len
        self.counters.prefix_cache_queries += seq.prompt_len
        self.counters.prefix_cache_hits += num_cached
        self.counters.image_cache_misses += len(missing)
        self.counters.image_cache_hits += len(seq.held) - len(missing)

    def _vacate(self, seq: Sequence) -> None:
        """Gives back all that running gave a sequence."""
        self._holdings.release(seq)
        if seq.slot >= 0:
            self._free_slots.append(seq.slot)
        seq.leave()

    def _preempt(self, seq: Sequence) -> None:
        self.counters.preemptions += 1
        self.running.remove(seq)
        self._vacate(seq)
        insort(self.waiting, seq, key=_ORDER)

    def _end(self, seq: Sequence) -> None:
        seq.ended = True
        self._share.charge(seq.client, seq.num_generated)
        del self._live[seq.request_id]
        if seq.sampling.constraint is not None:
            self.grammars.close(seq.request_id)
        if seq.known_good:
            (self.running if seq.slot >= 0 else self.waiting).remove(seq)
        self._vacate(seq)
        for image in seq.images:
            other = self.pictures.next_asked(seq.request_id, image.key)
            if other is not None:
                self.outbox.append(NeedPixels(other, image.key))

    # --- results -----------------------------------------------------------------------------

    def apply(self, step: Step, result: StepResult) -> None:
        """Takes a step's results, in the order in which steps were planned."""
        self.outbox += [PixelsDone(w.key, w.offset, result.patches_ago_s) for w in step.pictures]
        if step.encoded:
            self.outbox.append(Encoded(step.encoded, result.text_s))
        self.counters.vision_tiles += len(step.tiles)
        num_decoding = len(step.drawing)
        self._budget.observe(len(step.tiles), step.num_prefill, num_decoding, result)
        outputs = []
        for seq, drawn in zip(step.drawing, result.drawn, strict=True):
            if seq.ended:
                continue
            seq.token_ids.append(drawn.token_id)
            reason = self._end_reason(seq, drawn.token_id)
            outputs.append(
                TokenOutput(
                    seq.request_id, drawn.token_id, reason, drawn.logprob, drawn.top_logprobs
                )
            )
            if reason is not None:
                self._end(seq)
            elif seq.sampling.constraint is not None:
                self.grammars.advance(seq.request_id, drawn.token_id)
        if outputs:
            self.counters.generation_tokens += len(outputs)
            self.outbox.append(StepOutputs(outputs))

    def _end_reason(self, seq: Sequence, token_id: int) -> FinishReason | None:
        if token_id in seq.end_ids:
            return "stop"
        return "length" if len(seq.token_ids) >= seq.max_len else None


def _join(seq: Sequence) -> Join:
    return Join(
        seq.slot, seq.sampling, seq.prompt_len, seq.counted_ids(), seq.num_joined - seq.prompt_len
    )
