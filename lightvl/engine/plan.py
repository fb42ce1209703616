"""One step of work, decided by the scheduler and executed by the runner; torch-free.

Vocabulary: a sequence owns a `slot` (0 .. running_max_req_size-1) from admission to its end or
preemption; device state that lives as long as the sequence (its last token, its page-table row,
its sampling parameters, its token counts) is indexed by slot. The embedding arena is cut into
pages of one tile (`tokens_per_tile` rows).
"""

import msgspec

from lightvl.types import SamplingParams
from lightvl.vision.work import PictureWork, TileWork


class Join(msgspec.Struct, frozen=True):
    """A sequence takes a slot: reset the slot's device state to this.

    Attributes:
        prompt_len: Tokens of the original prompt (rotary variants and penalties need it).
        counted_ids: Ids that count as occurred already: the prompt's when `input_penalty` is
            set, and those generated before a preemption. Empty when nothing is penalized.
        num_generated: Tokens drawn before (preemption); the draw's counter goes on from here.
    """

    slot: int
    sampling: SamplingParams
    prompt_len: int
    counted_ids: list[int]
    num_generated: int


class PictureRows(msgspec.Struct, frozen=True, array_like=True):
    """`count` rows of the step's chunk, from `offset` on, come from the arena at `arena_row`."""

    offset: int
    count: int
    arena_row: int


class Row(msgspec.Struct, frozen=True):
    """One sequence's share of a step.

    Attributes:
        start: Position of the first token computed.
        num_tokens: Tokens computed, 1 for decode.
        token_ids: Their ids; empty means: the slot's last drawn id, which the host need not know.
        new_pages: KV pages appended to the slot's page table before this step.
        pictures: Which of the tokens are picture rows.
        sample: Whether an id is drawn after the last token.
    """

    slot: int
    start: int
    num_tokens: int
    token_ids: list[int]
    new_pages: list[int]
    pictures: list[PictureRows]
    sample: bool


class StepPlan(msgspec.Struct, frozen=True):
    """Executed in this order: joins, pictures, tiles, rows.

    Rows may read what the same step makes: embeddings of its tiles, and KV pages that other rows
    fill. So all rows run in one forward pass, which in each layer writes before it reads. A
    sequence's join comes with its first row. `masks` has, by slot, what constrained sequences may
    draw: a bit for each id, int32 [ceil(V/32)].
    """

    joins: list[Join]
    pictures: list[PictureWork]
    tiles: list[TileWork]
    rows: list[Row]
    masks: dict[int, bytes] = {}


class Drawn(msgspec.Struct, frozen=True, array_like=True):
    """An id drawn for a slot, with logprobs if its parameters ask for them."""

    slot: int
    token_id: int
    logprob: float | None = None
    top_logprobs: list[tuple[int, float]] | None = None


class StepResult(msgspec.Struct, frozen=True):
    """What a step produced: one `Drawn` per row with `sample`, in row order.

    `vision_s` and `text_s` are measured seconds of the two parts, for cost-based cutting;
    `preprocess_s` is how much of the first passed until new pictures were patches.
    """

    drawn: list[Drawn]
    vision_s: float
    text_s: float
    preprocess_s: float = 0.0

    @property
    def patches_ago_s(self) -> float:
        """How long before the step's end its new pictures were patches, in seconds."""
        return self.vision_s - self.preprocess_s + self.text_s
