"""Drives an `InternVLModel` over paged KV without the engine: greedy decoding and logits.

Unused cache rows hold NaN and unused page-table entries a huge number, so that reading what was
never written fails loudly; pages are handed out in a shuffled order.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightvl.layers.context import ForwardContext
from lightvl.models.internvl import InternVLModel

PICTURE_ID = 5
NO_PAGE = 2**30


@dataclass
class Prompt:
    """Token ids, with `PICTURE_ID` where a picture's tokens stand, and the pictures' tiles."""

    ids: list[int]
    patches: Tensor | None = None


@dataclass
class _Sequence:
    ids: list[int]
    prompt_len: int
    arena: Tensor | None
    pages: list[int] = field(default_factory=list)
    num_computed: int = 0


class PagedLoop:
    """A KV cache and the sequences in it.

    Args:
        model: The model.
        page_size: Tokens per KV page.
        num_pages: Pages there are.
    """

    def __init__(self, model: InternVLModel, page_size: int = 16, num_pages: int = 64) -> None:
        text = model.config.text
        shape = (num_pages, text.num_kv_heads, page_size, text.head_dim)
        self.model = model
        self.page_size = page_size
        self.caches = [
            (torch.full(shape, torch.nan), torch.full(shape, torch.nan))
            for _ in range(text.num_layers)
        ]
        self.free = random.Random(0).sample(range(num_pages), num_pages)
        self.sequences: list[_Sequence] = []

    def add(self, prompt: Prompt) -> None:
        arena = None
        if prompt.patches is not None:
            arena = self.model.encode_tiles(prompt.patches).flatten(0, 1)
        self.sequences.append(_Sequence(list(prompt.ids), len(prompt.ids), arena))

    def step(self, chunk: int | None = None) -> Tensor:
        """Computes up to `chunk` tokens of each sequence; returns logits of all of them."""
        counts = []
        for sequence in self.sequences:
            left = len(sequence.ids) - sequence.num_computed
            counts.append(left if chunk is None else min(left, chunk))
            end = sequence.num_computed + counts[-1]
            while len(sequence.pages) * self.page_size < end:
                sequence.pages.append(self.free.pop())
        hidden = self._embed(counts)
        hidden = self.model.forward(hidden, self._context(counts))
        for sequence, count in zip(self.sequences, counts, strict=True):
            sequence.num_computed += count
        return self.model.logits(hidden)

    def decode(self, chunk: int | None = None) -> None:
        """Makes a step; sequences that are computed to their end get one greedy id more."""
        before = [x.num_computed for x in self.sequences]
        logits = self.step(chunk)
        end = 0
        for sequence, start in zip(self.sequences, before, strict=True):
            end += sequence.num_computed - start
            if sequence.num_computed == len(sequence.ids):
                sequence.ids.append(int(logits[end - 1].argmax()))

    def _embed(self, counts: Sequence[int]) -> Tensor:
        ids, rows, arenas, base = [], [], [], 0
        for sequence, count in zip(self.sequences, counts, strict=True):
            start = sequence.num_computed
            seen = sum(x == PICTURE_ID for x in sequence.ids[: min(start, sequence.prompt_len)])
            for i in range(start, start + count):
                is_picture = i < sequence.prompt_len and sequence.ids[i] == PICTURE_ID
                rows.append(base + seen if is_picture and sequence.arena is not None else -1)
                seen += is_picture
                ids.append(sequence.ids[i])
            if sequence.arena is not None:
                arenas.append(sequence.arena)
                base += len(sequence.arena)
        arena = torch.cat(arenas) if arenas else None
        image_rows = torch.tensor(rows, dtype=torch.int32)
        return self.model.embed(torch.tensor(ids), image_rows, arena)

    def _context(self, counts: Sequence[int]) -> ForwardContext:
        positions, effective, slots = [], [], []
        for sequence, count in zip(self.sequences, counts, strict=True):
            for i in range(sequence.num_computed, sequence.num_computed + count):
                positions.append(i)
                effective.append(max(sequence.prompt_len, i + 1))
                page = sequence.pages[i // self.page_size]
                slots.append(page * self.page_size + i % self.page_size)
        widest = max(len(x.pages) for x in self.sequences) + 1
        table = [x.pages + [NO_PAGE] * (widest - len(x.pages)) for x in self.sequences]
        starts = [0, *torch.tensor(counts).cumsum(0).tolist()]
        lens = [x.num_computed + n for x, n in zip(self.sequences, counts, strict=True)]
        cos_sin, rope_rows = self.model.rotary.rows(_int32(positions), _int32(effective))
        return ForwardContext(
            cos_sin=cos_sin,
            rope_rows=rope_rows,
            slots=torch.tensor(slots),
            page_table=torch.tensor(table, dtype=torch.int32),
            cu_q_lens=_int32(starts),
            context_lens=_int32(lens),
            max_q_len=max(counts),
            kv_caches=self.caches,
        )


def greedy(
    model: InternVLModel, prompts: Sequence[Prompt], num_tokens: int, chunk: int | None = None
) -> list[list[int]]:
    """Returns each prompt's greedy continuation, all of them in one batch.

    With a chunk, short prompts decode in the same steps in which long ones are prefilled.
    """
    loop = PagedLoop(model)
    for prompt in prompts:
        loop.add(prompt)
    while any(len(x.ids) < x.prompt_len + num_tokens for x in loop.sequences):
        loop.decode(chunk)
    return [x.ids[x.prompt_len : x.prompt_len + num_tokens] for x in loop.sequences]


def prompt_logits(model: InternVLModel, prompt: Prompt) -> Tensor:
    """Returns the logits [T, V] after every token of the prompt."""
    loop = PagedLoop(model)
    loop.add(prompt)
    return loop.step()


def _int32(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)
