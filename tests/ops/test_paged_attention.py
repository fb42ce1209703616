"""paged_attention: the denominator, strides, chunks, threads and errors."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightvl.ops import paged_attention
from lightvl.testing.attention_reference import (
    PAGED_CASES,
    PagedCase,
    PagedInputs,
    make_paged_inputs,
    paged_attention_reference,
)
from lightvl.testing.compare import DTYPES, TOLERANCE, assert_close
from lightvl.testing.poison import gap_is_intact, poisoned


def run_poisoned(inputs: PagedInputs) -> tuple[Tensor, Tensor]:
    """Call the operator on outputs full of NaN whose rows do not adjoin."""
    out = poisoned(*inputs.q.shape, dtype=inputs.q.dtype)
    lse = torch.full(inputs.q.shape[:2], torch.nan)
    torch.ops.lightvl.paged_attention(*inputs.arguments(), out, lse)
    assert gap_is_intact(out)
    return out, lse


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", PAGED_CASES[:-1], ids=str)
def test_the_denominator_and_rows_that_do_not_adjoin(case: PagedCase, dtype: torch.dtype) -> None:
    inputs = make_paged_inputs(case, dtype)
    expected, expected_lse = paged_attention_reference(inputs)
    out, lse = run_poisoned(inputs)
    assert_close(out, expected, TOLERANCE[dtype] * 2)
    assert_close(lse, expected_lse)


def test_no_sequence() -> None:
    inputs = make_paged_inputs(PAGED_CASES[-1], torch.float32)
    assert paged_attention(*inputs.arguments()).shape == (0, 4, 64)


def test_large_scores_do_not_overflow() -> None:
    inputs = make_paged_inputs(PagedCase((1, 70), (900, 70)), torch.float32)
    inputs = replace(inputs, scale=100.0)
    expected, expected_lse = paged_attention_reference(inputs)
    out, lse = run_poisoned(inputs)
    assert_close(out, expected, 1e-3)
    assert_close(lse, expected_lse, 1e-6)


def test_wrapper_returns_what_the_operator_writes() -> None:
    inputs = make_paged_inputs(PagedCase((1, 9), (700, 30)), torch.float32)
    expected_out, expected_lse = run_poisoned(inputs)
    out, lse = paged_attention(*inputs.arguments(), lse=True)
    assert torch.equal(out, expected_out)
    assert torch.equal(lse, expected_lse)
    assert torch.equal(paged_attention(*inputs.arguments()), expected_out)


def one_sequence(inputs: PagedInputs, s: int) -> PagedInputs:
    begin, end = inputs.cu_q_lens[s : s + 2].tolist()
    return replace(
        inputs,
        q=inputs.q[begin:end],
        page_table=inputs.page_table[s : s + 1],
        cu_q_lens=torch.tensor([0, end - begin], dtype=torch.int32),
        context_lens=inputs.context_lens[s : s + 1],
    )


def test_a_sequence_alone_gives_the_same_bits() -> None:
    inputs = make_paged_inputs(PagedCase((1, 40, 1, 200), (1500, 300, 64, 200)), torch.float32)
    together = paged_attention(*inputs.arguments())
    alone = [paged_attention(*one_sequence(inputs, s).arguments()) for s in range(4)]
    assert torch.equal(together, torch.cat(alone))


def test_threads_do_not_change_the_bits() -> None:
    inputs = make_paged_inputs(PagedCase((1, 1, 300), (3000, 700, 900)), torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            results.append(paged_attention(*inputs.arguments()))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("chunk", [1, 63, 64, 65, 100])
def test_chunks_equal_the_whole_prefill(chunk: int) -> None:
    inputs = make_paged_inputs(PagedCase((200,), (200,)), torch.float32)
    whole = paged_attention(*inputs.arguments())
    parts = []
    for begin in range(0, 200, chunk):
        end = min(begin + chunk, 200)
        part = replace(
            inputs,
            q=inputs.q[begin:end],
            cu_q_lens=torch.tensor([0, end - begin], dtype=torch.int32),
            context_lens=torch.tensor([end], dtype=torch.int32),
        )
        parts.append(paged_attention(*part.arguments()))
    assert_close(torch.cat(parts), whole.double(), 2e-6)


def test_opcheck() -> None:
    inputs = make_paged_inputs(PagedCase((1, 9), (70, 30)), torch.float32)
    for name in ("k_cache", "v_cache"):
        inputs = replace(inputs, **{name: getattr(inputs, name).nan_to_num()})
    out, lse = torch.empty(10, 4, 64), torch.empty(10, 4)
    operator = torch.ops.lightvl.paged_attention.default
    torch.library.opcheck(operator, (*inputs.arguments(), out, lse))
    torch.library.opcheck(operator, (*inputs.arguments(), out, None))


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


WRONG: dict[str, dict[str, Any]] = {
    "k_cache is .*expected": {"k_cache": torch.zeros(4, 2, 64, 32)},
    "v_cache is float16, expected float32": {"v_cache": torch.zeros(4, 2, 64, 64).half()},
    "page size must be 16, 32 or 64": dict.fromkeys(
        ("k_cache", "v_cache"), torch.zeros(4, 2, 48, 64)
    ),
    "multiple of KV heads": dict.fromkeys(("k_cache", "v_cache"), torch.zeros(4, 3, 64, 64)),
    "head dim must be a multiple of 8": {
        "q": torch.zeros(10, 4, 12),
        **dict.fromkeys(("k_cache", "v_cache"), torch.zeros(4, 2, 64, 12)),
    },
    "q must be contiguous in its last": {"q": torch.zeros(10, 64, 4).transpose(1, 2)},
    "cu_q_lens is .*expected .3": {"cu_q_lens": int32(0, 10)},
    "cu_q_lens must run from 0": {"cu_q_lens": int32(0, 1, 9)},
    "cu_q_lens must ascend": {"cu_q_lens": int32(0, 11, 10)},
    "by at most max_q_len": {"max_q_len": 8},
    "context_lens must include": {"context_lens": int32(70, 8)},
    "too few columns": {"context_lens": int32(70, 1000)},
    "page out of range": {"page_table": int32(0, 1, 4, 0).view(2, 2)},
    "page_table is int64": {"page_table": torch.zeros(2, 2, dtype=torch.int64)},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(message: str) -> None:
    inputs = make_paged_inputs(PagedCase((1, 9), (70, 30)), torch.float32)
    with pytest.raises(ValueError, match=f"paged_attention: .*{message}"):
        paged_attention(*replace(inputs, **WRONG[message]).arguments())
