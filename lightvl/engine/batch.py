"""From a plan's rows to the tensors of one forward pass.

Buffers are allocated once, at the largest step's size, and each step fills and hands out views of
their heads: the addresses never change. All that the host knows (positions, pages, pictures) is
computed in numpy on those same buffers; the last drawn ids alone stay with the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightvl.engine.plan import Join, Row

IntArray = NDArray[np.signedinteger[Any]]


@dataclass(frozen=True, slots=True)
class StepBatch:
    """The inputs of one forward pass over T tokens of S sequences.

    Attributes:
        ids: int64 [T].
        image_rows: int32 [T], row of the embedding arena or -1 for text.
        positions: int32 [T].
        effective_lens: int32 [T], the length that length-dependent rotary variants go by.
        kv_slots: int64 [T], page * P + offset.
        page_table: int32 [S, max pages of a sequence].
        cu_q_lens: int32 [S+1].
        context_lens: int32 [S], this step's tokens included.
        max_q_len: The most tokens of one sequence.
        has_pictures: Whether any image row is set.
    """

    ids: Tensor
    image_rows: Tensor
    positions: Tensor
    effective_lens: Tensor
    kv_slots: Tensor
    page_table: Tensor
    cu_q_lens: Tensor
    context_lens: Tensor
    max_q_len: int
    has_pictures: bool


class BatchBuilder:
    """Page tables and last ids of all slots, and the buffers that a step's inputs are built in."""

    def __init__(self, num_slots: int, max_tokens: int, max_seq_len: int, page_size: int) -> None:
        """Allocates for steps of up to `max_tokens` tokens in up to `num_slots` sequences.

        Args:
            num_slots: Sequences that hold a slot at once.
            max_tokens: Tokens of the largest step.
            max_seq_len: Tokens of the longest sequence.
            page_size: Tokens per KV page.
        """
        self._page_size = page_size
        max_pages = -(-max_seq_len // page_size)
        self.last_ids = torch.zeros(num_slots, dtype=torch.int64)
        self._pages = np.zeros((num_slots, max_pages), dtype=np.int32)
        self._num_slot_pages = [0] * num_slots
        self._prompt_lens = np.zeros(num_slots, dtype=np.int32)

        max_tokens = max(max_tokens, num_slots)
        self._ids = torch.zeros(max_tokens, dtype=torch.int64)
        self._image_rows = torch.full((max_tokens,), -1, dtype=torch.int32)
        self._positions = torch.zeros(max_tokens, dtype=torch.int32)
        self._effective_lens = torch.zeros(max_tokens, dtype=torch.int32)
        self._kv_slots = torch.zeros(max_tokens, dtype=torch.int64)
        self._page_table = torch.zeros((num_slots, max_pages), dtype=torch.int32)
        self._cu_q_lens = torch.zeros(num_slots + 1, dtype=torch.int32)
        self._context_lens = torch.zeros(num_slots, dtype=torch.int32)
        self._arange = np.arange(max_tokens, dtype=np.int32)

    def join(self, join: Join) -> None:
        """Empties a slot's page table for the sequence that takes it."""
        self._num_slot_pages[join.slot] = 0
        self._prompt_lens[join.slot] = join.prompt_len

    def build(self, rows: Sequence[Row]) -> StepBatch:
        """Appends the rows' new pages and returns the step's inputs, valid until the next call."""
        for row in rows:
            if row.new_pages:
                self._append_pages(row)
        slots = np.array([row.slot for row in rows])
        starts = np.array([row.start for row in rows], dtype=np.int32)
        lens = np.array([row.num_tokens for row in rows], dtype=np.int32)
        num_rows, max_q_len = len(rows), int(lens.max())
        cu_q_lens = self._cu_q_lens.numpy()[: num_rows + 1]
        np.cumsum(lens, out=cu_q_lens[1:])
        num_tokens = int(cu_q_lens[-1])
        np.add(starts, lens, out=self._context_lens.numpy()[:num_rows])
        self._page_table.numpy()[:num_rows] = self._pages[slots]
        if max_q_len == 1:
            self._fill_positions(slots, starts)
        else:
            shifts = np.repeat(starts - cu_q_lens[:-1], lens)
            self._fill_positions(np.repeat(slots, lens), self._arange[:num_tokens] + shifts)
        self._fill_ids(rows, slots, cu_q_lens)
        has_pictures = self._fill_image_rows(rows, cu_q_lens)
        return self._views(num_rows, num_tokens, max_q_len, has_pictures)

    def _append_pages(self, row: Row) -> None:
        begin = self._num_slot_pages[row.slot]
        end = begin + len(row.new_pages)
        self._pages[row.slot, begin:end] = row.new_pages
        self._num_slot_pages[row.slot] = end

    def _fill_positions(self, token_slots: IntArray, positions: IntArray) -> None:
        head = slice(len(positions))
        pages = self._pages[token_slots, positions // self._page_size].astype(np.int64)
        self._kv_slots.numpy()[head] = pages * self._page_size + positions % self._page_size
        self._positions.numpy()[head] = positions
        np.maximum(
            self._prompt_lens[token_slots], positions + 1, out=self._effective_lens.numpy()[head]
        )

    def _fill_ids(self, rows: Sequence[Row], slots: IntArray, cu_q_lens: IntArray) -> None:
        """Takes given ids from the rows and the others from the slots' last ids."""
        carried = [i for i, row in enumerate(rows) if not row.token_ids]
        if len(carried) < len(rows):
            ids = self._ids.numpy()
            for row, begin in zip(rows, cu_q_lens, strict=False):
                if row.token_ids:
                    ids[begin : begin + row.num_tokens] = row.token_ids
        if carried:
            tokens = torch.from_numpy(cu_q_lens[carried])
            self._ids[tokens] = self.last_ids[torch.from_numpy(slots[carried])]

    def _fill_image_rows(self, rows: Sequence[Row], cu_q_lens: IntArray) -> bool:
        image_rows = self._image_rows.numpy()
        image_rows[: cu_q_lens[-1]] = -1
        pictures = [(i, picture) for i, row in enumerate(rows) for picture in row.pictures]
        for i, picture in pictures:
            begin = cu_q_lens[i] + picture.offset
            end = begin + picture.count
            image_rows[begin:end] = self._arange[: picture.count] + picture.arena_row
        return bool(pictures)

    def _views(
        self, num_rows: int, num_tokens: int, max_q_len: int, has_pictures: bool
    ) -> StepBatch:
        return StepBatch(
            ids=self._ids[:num_tokens],
            image_rows=self._image_rows[:num_tokens],
            positions=self._positions[:num_tokens],
            effective_lens=self._effective_lens[:num_tokens],
            kv_slots=self._kv_slots[:num_tokens],
            page_table=self._page_table[:num_rows],
            cu_q_lens=self._cu_q_lens[: num_rows + 1],
            context_lens=self._context_lens[:num_rows],
            max_q_len=max_q_len,
            has_pictures=has_pictures,
        )
