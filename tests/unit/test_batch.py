"""Step inputs against a per-token loop that says what each of them means."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightvl.engine.batch import BatchBuilder, StepBatch
from lightvl.engine.plan import Join, PictureRows, Row
from lightvl.types import SamplingParams

PAGE_SIZE = 16
NUM_SLOTS = 6


def builder(max_tokens: int = 512) -> BatchBuilder:
    return BatchBuilder(NUM_SLOTS, max_tokens, max_seq_len=256, page_size=PAGE_SIZE)


def join(slot: int, prompt_len: int) -> Join:
    return Join(slot, SamplingParams(), prompt_len, [], 0)


def expected(
    rows: list[Row], pages: dict[int, list[int]], prompt_lens: dict[int, int], last_ids: list[int]
) -> list[list[int]]:
    """The step's inputs, token by token."""
    tokens = []
    for row in rows:
        for i in range(row.num_tokens):
            position = row.start + i
            picture = [p for p in row.pictures if p.offset <= i < p.offset + p.count]
            tokens.append(
                (
                    row.token_ids[i] if row.token_ids else last_ids[row.slot],
                    picture[0].arena_row + i - picture[0].offset if picture else -1,
                    position,
                    max(prompt_lens[row.slot], position + 1),
                    pages[row.slot][position // PAGE_SIZE] * PAGE_SIZE + position % PAGE_SIZE,
                )
            )
    return [list(column) for column in zip(*tokens, strict=True)]


def columns(batch: StepBatch) -> list[list[int]]:
    tensors = (
        batch.ids,
        batch.image_rows,
        batch.positions,
        batch.effective_lens,
        batch.kv_slots,
    )
    return [tensor.tolist() for tensor in tensors]


@st.composite
def steps(draw: st.DrawFn) -> list[tuple[Row, int]]:
    """Rows of distinct slots with the prompt length of each."""
    slots = draw(st.permutations(range(NUM_SLOTS)))[: draw(st.integers(1, NUM_SLOTS))]
    rows = []
    for slot in slots:
        start, num_tokens = draw(st.integers(0, 100)), draw(st.integers(1, 60))
        carried = num_tokens == 1 and draw(st.booleans())
        ids = (
            []
            if carried
            else draw(st.lists(st.integers(0, 9), min_size=num_tokens, max_size=num_tokens))
        )
        pictures = []
        if num_tokens > 3 and draw(st.booleans()):
            offset = draw(st.integers(0, num_tokens - 2))
            count = draw(st.integers(1, num_tokens - offset))
            pictures = [PictureRows(offset, count, draw(st.integers(0, 500)))]
        num_pages = -(-(start + num_tokens) // PAGE_SIZE)
        pages = draw(st.lists(st.integers(0, 99), min_size=num_pages, max_size=num_pages))
        rows.append(
            (Row(slot, start, num_tokens, ids, pages, pictures, True), draw(st.integers(1, 200)))
        )
    return rows


@settings(max_examples=150, deadline=None)
@given(steps())
def test_inputs_equal_the_token_loop(step: list[tuple[Row, int]]) -> None:
    rows = [row for row, _ in step]
    build = builder()
    build.last_ids.copy_(torch.arange(NUM_SLOTS) + 1000)
    for row, prompt_len in step:
        build.join(join(row.slot, prompt_len))
    batch = build.build(rows)
    pages = {row.slot: row.new_pages for row in rows}
    prompt_lens = {row.slot: prompt_len for row, prompt_len in step}
    assert columns(batch) == expected(rows, pages, prompt_lens, list(range(1000, 1000 + NUM_SLOTS)))
    lens = [row.num_tokens for row in rows]
    assert batch.cu_q_lens.tolist() == [0, *np.cumsum(lens)]
    assert batch.context_lens.tolist() == [row.start + row.num_tokens for row in rows]
    assert batch.max_q_len == max(lens)
    assert batch.has_pictures == any(row.pictures for row in rows)
    for i, row in enumerate(rows):
        assert batch.page_table[i, : len(row.new_pages)].tolist() == row.new_pages


def test_pages_accumulate_until_the_slot_is_taken_again() -> None:
    build = builder()
    build.join(join(3, 5))
    build.build([Row(3, 0, 20, [7] * 20, [40, 41], [], False)])
    batch = build.build([Row(3, 32, 1, [7], [42], [], True)])
    assert batch.page_table[0, :3].tolist() == [40, 41, 42]
    assert batch.kv_slots.tolist() == [42 * PAGE_SIZE]
    build.join(join(3, 5))
    batch = build.build([Row(3, 0, 1, [7], [9], [], True)])
    assert batch.page_table[0, 0] == 9
    assert batch.kv_slots.tolist() == [9 * PAGE_SIZE]


def test_image_rows_of_one_step_do_not_leak_into_the_next() -> None:
    build = builder()
    build.join(join(0, 5))
    build.build([Row(0, 0, 4, [1] * 4, [0], [PictureRows(0, 4, 64)], False)])
    batch = build.build([Row(0, 4, 4, [1] * 4, [], [], False)])
    assert batch.image_rows.tolist() == [-1] * 4
    assert not batch.has_pictures


def test_buffers_keep_their_addresses() -> None:
    build = builder()
    build.join(join(0, 5))
    first = build.build([Row(0, 0, 4, [1] * 4, [0], [], False)])
    addresses = [getattr(first, name).data_ptr() for name in ("ids", "kv_slots", "page_table")]
    second = build.build([Row(0, 4, 1, [1], [], [], False)])
    assert [getattr(second, n).data_ptr() for n in ("ids", "kv_slots", "page_table")] == addresses


def test_a_step_of_the_full_size_fits() -> None:
    build = builder(max_tokens=250)
    build.join(join(0, 250))
    batch = build.build([Row(0, 0, 250, [1] * 250, list(range(16)), [], False)])
    assert batch.positions.tolist() == list(range(250))
    with pytest.raises((ValueError, IndexError)):
        build.build([Row(0, 0, 251, [1] * 251, [], [], False)])
