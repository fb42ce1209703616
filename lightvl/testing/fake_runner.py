"""A runner without a model: what it draws is a pure function of all that a sequence has seen.

It keeps pages, slots and an embedding arena as the real one does, so a token that was computed from
the wrong page, picture row, position or slot state changes the output. `reference` draws the same
tokens from the request alone.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from lightvl.engine.plan import Drawn, Join, PictureRows, Row, StepPlan, StepResult
from lightvl.messages import AddRequest
from lightvl.types import ImageSlot, SamplingParams
from lightvl.vision.work import PictureWork, TileWork

VOCAB_SIZE = 100

Input = int | tuple[bytes, int]
"""A token's id, or a picture's key and the row of its embeddings."""


@dataclass(slots=True)
class Entry:
    """What a KV slot holds: a token as the first layer and as a later one sees it."""

    first: int
    later: int | None = None


@dataclass(slots=True)
class Slot:
    """Device state of a sequence."""

    join: Join
    num_drawn: int
    counts: Counter[int]
    pages: list[int] = field(default_factory=list)
    num_tokens: int = 0
    last_id: int | None = None


class FakeRunner:
    """Executes plans and checks that they are possible.

    Args:
        page_size: Tokens per KV page.
        tile_len: Embedding rows per tile.
        pixels: Keys of the pictures that lie at an offset of the shared-memory arena now.
    """

    def __init__(self, page_size: int, tile_len: int, pixels: dict[int, bytes]) -> None:
        self.patches: dict[bytes, set[int]] = {}
        self._page_size = page_size
        self._tile_len = tile_len
        self._pixels = pixels
        self._kv: dict[tuple[int, int], Entry] = {}
        self._arena: dict[int, tuple[bytes, int]] = {}
        self._slots: dict[int, Slot] = {}

    def execute(self, plan: StepPlan) -> StepResult:
        """Runs one step; each layer writes for all rows before any row reads."""
        for join in plan.joins:
            self._slots[join.slot] = Slot(join, join.num_generated, Counter(join.counted_ids))
        self._encode(plan.pictures, plan.tiles)
        starts = [self._write_first(row) for row in plan.rows]
        for row, start in zip(plan.rows, starts, strict=True):
            self._write_later(self._slots[row.slot], start)
        drawn = [self._draw(row.slot) for row in plan.rows if row.sample]
        return StepResult(drawn, 0.001 * len(plan.tiles), 0.001 * len(plan.rows))

    def _encode(self, pictures: Iterable[PictureWork], tiles: Iterable[TileWork]) -> None:
        for work in pictures:
            assert self._pixels[work.offset] == work.key, "the pixels are another picture's"
            assert work.key not in self.patches, "the picture is begun twice"
            self.patches[work.key] = set(range(work.grid.num_tiles))
        for tile in tiles:
            self.patches[tile.key].remove(tile.tile)
            if not self.patches[tile.key]:
                del self.patches[tile.key]
            self._arena[tile.page] = (tile.key, tile.tile)

    def _write_first(self, row: Row) -> int:
        slot = self._slots[row.slot]
        slot.pages += row.new_pages
        assert row.start >= slot.num_tokens, "a token is computed twice"
        assert row.start + row.num_tokens <= len(slot.pages) * self._page_size
        if row.token_ids:
            assert len(row.token_ids) == row.num_tokens
            inputs: list[Input] = list(row.token_ids)
        else:
            assert row.num_tokens == 1
            assert slot.last_id is not None
            inputs = [slot.last_id]
        for picture in row.pictures:
            for i in range(picture.count):
                inputs[picture.offset + i] = self._embedding(picture, i)
        for i, token in enumerate(inputs):
            position = row.start + i
            self._kv[self._place(slot, position)] = Entry(hash((token, position)))
        slot.num_tokens = row.start + row.num_tokens
        return row.start

    def _embedding(self, picture: PictureRows, i: int) -> Input:
        page, row = divmod(picture.arena_row + i, self._tile_len)
        key, tile = self._arena[page]
        return key, tile * self._tile_len + row

    def _write_later(self, slot: Slot, start: int) -> None:
        history = 0
        for position in range(slot.num_tokens):
            entry = self._kv[self._place(slot, position)]
            history = hash((history, entry.first))
            if position >= start:
                entry.later = history

    def _draw(self, number: int) -> Drawn:
        slot = self._slots[number]
        entries = [self._kv[self._place(slot, i)] for i in range(slot.num_tokens)]
        token_id = _draw(
            [entry.later for entry in entries], slot.join.sampling, slot.num_drawn, slot.counts
        )
        slot.num_drawn += 1
        slot.counts[token_id] += 1
        slot.last_id = token_id
        return Drawn(number, token_id)

    def _place(self, slot: Slot, position: int) -> tuple[int, int]:
        return slot.pages[position // self._page_size], position % self._page_size


def reference(request: AddRequest, end_ids: Sequence[int], max_total_len: int) -> list[int]:
    """Returns the tokens that a request must get, however it is served."""
    inputs: list[Input] = list(request.token_ids)
    for image in request.images:
        for i in range(image.num_tokens):
            inputs[image.start + i] = (image.key, i)
    counts = Counter(_counted(request))
    ends = {*request.sampling.stop_token_ids, *(() if request.sampling.ignore_eos else end_ids)}
    later: list[int | None] = []
    history = 0
    drawn: list[int] = []
    while True:
        for position in range(len(later), len(inputs)):
            history = hash((history, hash((inputs[position], position))))
            later.append(history)
        token_id = _draw(later, request.sampling, len(drawn), counts)
        drawn.append(token_id)
        inputs.append(token_id)
        counts[token_id] += 1
        full = len(inputs) >= max_total_len or len(drawn) >= request.sampling.max_new_tokens
        if full or token_id in ends:
            return drawn


def _counted(request: AddRequest) -> list[int]:
    if not (request.sampling.penalized and request.sampling.input_penalty):
        return []
    pictured = {p for image in request.images for p in _positions(image)}
    return [token for i, token in enumerate(request.token_ids) if i not in pictured]


def _positions(image: ImageSlot) -> range:
    return range(image.start, image.start + image.num_tokens)


def _draw(
    later: Sequence[int | None], sampling: SamplingParams, index: int, counts: Counter[int]
) -> int:
    assert None not in later, "a page is read before it is written"
    counted = tuple(sorted(counts.items())) if sampling.penalized else ()
    return hash((tuple(later), sampling.seed, index, counted)) % VOCAB_SIZE
