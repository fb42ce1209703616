"""paged_attention on a GPU: every group, split pairs, graphs, streams at once, many sequences."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lightvl.ops import paged_attention
from lightvl.testing.attention_reference import (
    NO_PAGE,
    PagedCase,
    PagedInputs,
    make_paged_inputs,
    paged_attention_reference,
)
from lightvl.testing.compare import TOLERANCE, assert_close
from tests.ops.gpu import BUILT, captured, to_gpu

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not BUILT, reason="this build of lightvl has no CUDA kernels"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]

DTYPE = torch.bfloat16
LENS = (1, 15, 16, 17, 63, 64, 65, 127, 500, 1000, 2049)
HEADS = (*((group * kv, kv) for group in range(1, 17) for kv in (1, 2)), (28, 4), (48, 8))


def check(case: PagedCase, dtype: torch.dtype = DTYPE) -> None:
    inputs = make_paged_inputs(case, dtype)
    expected, expected_lse = paged_attention_reference(inputs)
    moved: PagedInputs = to_gpu(inputs)
    out, lse = paged_attention(*moved.arguments(), lse=True)
    assert_close(out.cpu(), expected, TOLERANCE[dtype] * 2)
    assert_close(lse.cpu(), expected_lse, 1e-3)


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_every_group(heads: tuple[int, int]) -> None:
    check(PagedCase((1,) * len(LENS), LENS, *heads, head_dim=128))


@pytest.mark.parametrize("page_size", [16, 32, 64])
@pytest.mark.parametrize("head_dim", [64, 96, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_page_size(page_size: int, head_dim: int, dtype: torch.dtype) -> None:
    check(PagedCase((1,) * len(LENS), LENS, 7, 1, head_dim, page_size), dtype)
    check(PagedCase((40, 1, 2, 300), (900, 33, 1700, 300), 7, 1, head_dim, page_size), dtype)


@pytest.mark.parametrize("q_lens", [(2, 2), (1, 2), (4, 3), (16, 5), (1, 40), (8, 9)], ids=str)
@pytest.mark.parametrize("heads", [(1, 1), (2, 1), (7, 1), (28, 4)], ids=str)
def test_few_new_tokens(q_lens: tuple[int, int], heads: tuple[int, int]) -> None:
    check(PagedCase(q_lens, (1500, 41), *heads, head_dim=128))


@pytest.mark.parametrize("length", [1, 1024, 16383])
def test_one_sequence(length: int) -> None:
    check(PagedCase((1,), (length,), 28, 4, 128))


def test_more_sequences_than_one_launch_holds() -> None:
    lens = tuple(1 + i % 37 for i in range(2500))
    check(PagedCase((1,) * len(lens), lens, 2, 1, 64, 16))


def test_sequences_without_new_tokens() -> None:
    check(PagedCase((0, 1, 0, 0, 1, 0), (9, 300, 0, 64, 1, 2), 7, 1, 128, 16))


@pytest.mark.parametrize("num_seqs", [32, 33])
def test_many_lengths_and_kinds_of_sequences(num_seqs: int) -> None:
    lens = tuple(1 + 97 * i % 700 for i in range(num_seqs))
    q_lens = tuple(min((1, 1, 0, 2, 40)[i % 5], length) for i, length in enumerate(lens))
    check(PagedCase(q_lens, lens, 14, 2, 128))


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(
    ("q_lens", "lens"),
    [
        ((130,), (9000,)),  # fewer tiles than blocks, long: divided
        ((300, 40, 1, 17), (300, 5000, 700, 2500)),  # long and short ones: some divided
        ((20,) * 30, (150,) * 30),  # many short ones, alike: whole
        ((20,) * 29 + (21,), (150,) * 29 + (6000,)),  # one of them long
    ],
    ids=["one", "mixed", "alike", "unlike"],
)
def test_prefill_is_shared_out(
    q_lens: tuple[int, ...], lens: tuple[int, ...], head_dim: int
) -> None:
    check(PagedCase(q_lens, lens, 14, 2, head_dim))


def test_scores_that_rise_from_block_to_block() -> None:
    """Blocks are taken from the last key to the first: maxima are raised at every one."""
    case = PagedCase((70,), (1500,), 7, 1, 128)
    inputs = make_paged_inputs(case, DTYPE)
    rows = torch.arange(1500, 0, -1).to(DTYPE) / 15
    inputs.q[..., 0] = 40
    for i, page in enumerate(inputs.page_table[0, : -(-1500 // case.page_size)].tolist()):
        part = rows[i * case.page_size : (i + 1) * case.page_size]
        inputs.k_cache[page, 0, : len(part), 0] = part
    expected, expected_lse = paged_attention_reference(inputs)
    moved: PagedInputs = to_gpu(inputs)
    out, lse = paged_attention(*moved.arguments(), lse=True)
    assert_close(out.cpu(), expected, TOLERANCE[DTYPE] * 2)
    assert_close(lse.cpu(), expected_lse, 1e-3)


def replay_other_lengths(inputs: PagedInputs, lengths: Iterable[tuple[int, ...]]) -> None:
    """Capture a call and replay it with other context lengths: the bits of a call of its own."""
    paged_attention(*inputs.arguments())
    graph, out = captured(lambda: paged_attention(*inputs.arguments()))
    for lens in lengths:
        other = with_lens(inputs, lens)
        expected = paged_attention(*other.arguments())
        inputs.context_lens.copy_(other.context_lens)
        out.fill_(torch.nan)
        graph.replay()
        assert torch.equal(out, expected)


def test_a_prefill_graph_replays_other_lengths() -> None:
    inputs: PagedInputs = to_gpu(make_paged_inputs(PagedCase((200, 64, 17), (4000,) * 3), DTYPE))
    replay_other_lengths(
        inputs, ((4000, 4000, 4000), (200, 64, 17), (300, 4000, 20), (4000, 65, 3999))
    )


def make_long() -> PagedInputs:
    inputs: PagedInputs = to_gpu(make_paged_inputs(PagedCase((1,) * 5, (3000,) * 5), DTYPE))
    return inputs


def with_lens(inputs: PagedInputs, lens: tuple[int, ...]) -> PagedInputs:
    return replace(inputs, context_lens=torch.tensor(lens, dtype=torch.int32, device="cuda"))


def test_a_graph_replays_many_lengths() -> None:
    lengths = ((3000,) * 5, (1,) * 5, (1, 3000, 64, 65, 2999), (17, 1, 1, 1, 1), (3000,) * 5)
    replay_other_lengths(make_long(), lengths)


@pytest.mark.parametrize("priority", [0, -1])
def test_streams_do_not_disturb_each_other(priority: int) -> None:
    calls = [with_lens(make_long(), lens) for lens in ((3000,) * 5, (2900, 1, 700, 64, 2000))]
    expected = [paged_attention(*call.arguments()) for call in calls]
    streams = [torch.cuda.Stream(), torch.cuda.Stream(priority=priority)]
    torch.cuda.synchronize()
    results: list[list[Tensor]] = [[], []]
    for _ in range(50):
        for call, stream, into in zip(calls, streams, results, strict=True):
            with torch.cuda.stream(stream):
                into.append(paged_attention(*call.arguments()))
    torch.cuda.synchronize()
    for outs, right in zip(results, expected, strict=True):
        assert all(torch.equal(out, right) for out in outs)


def test_graphs_that_replay_at_once() -> None:
    calls = [make_long(), make_long()]
    expected = [paged_attention(*call.arguments()) for call in calls]

    def capture(call: PagedInputs) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        return captured(lambda: paged_attention(*call.arguments()))

    graphs = [capture(call) for call in calls]
    streams = [torch.cuda.Stream() for _ in calls]
    torch.cuda.synchronize()
    for _ in range(30):
        for (graph, _), stream in zip(graphs, streams, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
    torch.cuda.synchronize()
    for (_, out), right in zip(graphs, expected, strict=True):
        assert torch.equal(out, right)


def test_entries_behind_the_last_page_are_not_read() -> None:
    inputs = make_long()
    table = inputs.page_table.clone()
    table[:, 1:] = NO_PAGE
    short = with_lens(replace(inputs, page_table=table), (64, 1, 33, 64, 2))
    whole = with_lens(inputs, (64, 1, 33, 64, 2))
    assert torch.equal(paged_attention(*short.arguments()), paged_attention(*whole.arguments()))
