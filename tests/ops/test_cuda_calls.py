"""How the CUDA kernels are called: streams, captured graphs, the operators' declarations."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from lightvl import ops
from lightvl.ops import norm
from lightvl.testing.attention_reference import (
    VISION_CASES,
    PagedCase,
    make_paged_inputs,
    make_vision_inputs,
)
from tests.ops.gpu import ALL, Calls, captured, larger_case, needs_gpu, tensors, to_gpu

pytestmark = needs_gpu

BF16 = torch.bfloat16
A_WHILE = 100_000_000  # cycles: longer than launching any operator takes

# Decode of a short and a long batch, a prefill in chunks, and both in one call.
PAGED = (
    PagedCase((1,) * 5, (2049, 1, 65, 700, 64), num_heads=14, num_kv_heads=2, head_dim=128),
    PagedCase((1,) * 33, (130,) * 33, num_heads=6, num_kv_heads=1),
    PagedCase((300, 40), (300, 1100), num_heads=7, num_kv_heads=1, head_dim=128),
    PagedCase((1, 130, 1, 65), (900, 333, 20, 65), page_size=16),
)


@pytest.mark.parametrize("name", ALL)
def test_opcheck(name: str) -> None:
    operator = ALL[name]
    inputs = to_gpu(operator.make(operator.cases[1], BF16))
    with Calls() as calls:
        operator.run(inputs)
    assert calls.made
    for func, args in calls.made:
        torch.library.opcheck(func, args)


@pytest.mark.parametrize("name", ALL)
def test_a_graph_replays_an_operator(name: str) -> None:
    operator = ALL[name]
    case = larger_case(name)
    inputs = to_gpu(operator.make(case, BF16))
    before = [x.clone() for x in tensors(inputs)]

    def restore() -> None:
        for x, y in zip(tensors(inputs), before, strict=True):
            x.copy_(y)

    expected = operator.run(inputs).clone()
    restore()
    graph, out = captured(lambda: operator.run(inputs))
    for _ in range(2):
        out.zero_()
        restore()  # out, too, where it is one of the inputs
        graph.replay()
        assert torch.equal(out, expected)


@pytest.mark.parametrize("name", ALL)
def test_an_operator_runs_on_the_gpu_of_its_tensors(name: str) -> None:
    """Whichever is the current one."""
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU alone")
    operator = ALL[name]
    case = larger_case(name)
    expected = operator.run(to_gpu(operator.make(case, BF16))).cpu()
    with torch.cuda.device(1):
        inputs = to_gpu(operator.make(case, BF16))
    for device in (0, 1, 0):
        again = inputs if device == 1 else to_gpu(operator.make(case, BF16))
        actual = operator.run(again)
        assert actual.get_device() == device
        assert torch.equal(actual.cpu(), expected)
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("name", ALL)
def test_an_operator_runs_on_the_current_stream(name: str) -> None:
    operator = ALL[name]
    case = larger_case(name)
    inputs = to_gpu(operator.make(case, BF16))
    expected = operator.run(to_gpu(operator.make(case, BF16))).clone()
    side, slept = torch.cuda.Stream(), torch.cuda.Event()
    with torch.cuda.stream(side):
        operator.run(to_gpu(operator.make(case, BF16)))  # takes memory from the driver
    torch.cuda.synchronize()
    torch.cuda._sleep(A_WHILE)  # on the default stream, which the other doesn't wait for
    slept.record()
    with torch.cuda.stream(side):
        actual = operator.run(inputs)
    side.synchronize()
    assert not slept.query()
    assert torch.equal(actual, expected)


def test_a_thread_that_has_not_used_the_gpu_may_call() -> None:
    x, weight = torch.randn(2, 8, device="cuda", dtype=BF16)[:, None].unbind()
    out, expected = torch.empty_like(x), ops.rms_norm(x, weight[0], 1e-6)
    for function in (norm._rms_norm, torch.ops.lightvl.rms_norm.default):
        out.zero_()
        with ThreadPoolExecutor(1) as new_thread:
            new_thread.submit(function, x, weight[0], 1e-6, out).result()
        torch.cuda.synchronize()
        assert torch.equal(out, expected)


def test_attention_on_two_streams_at_once() -> None:
    """Their blocks share the GPU; nothing that they count or leave behind may be shared."""
    inputs = [to_gpu(make_paged_inputs(case, BF16, seed)) for seed, case in enumerate(PAGED)]
    expected = [ops.paged_attention(*i.arguments()) for i in inputs]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    for begin in range(len(PAGED)):
        outs = []
        for turn in range(20):
            which = (begin + turn % 2) % len(PAGED)
            with torch.cuda.stream(streams[turn % 2]):
                outs.append((which, ops.paged_attention(*inputs[which].arguments())))
        torch.cuda.synchronize()
        assert all(torch.equal(out, expected[which]) for which, out in outs)


def test_vision_attention_on_two_streams_at_once() -> None:
    cases = [case for case in VISION_CASES if case.head_dim in (64, 128) and case.lens][:2]
    inputs = [to_gpu(make_vision_inputs(case, BF16)) for case in cases]
    expected = [ops.vision_attention(*i.arguments()) for i in inputs]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    outs = []
    for turn in range(40):
        with torch.cuda.stream(streams[turn % 2]):
            outs.append(ops.vision_attention(*inputs[turn % 2].arguments()))
    torch.cuda.synchronize()
    assert all(torch.equal(out, expected[turn % 2]) for turn, out in enumerate(outs))


@pytest.mark.parametrize("head_dim", [64, 128])
def test_a_graph_replays_other_lengths(head_dim: int) -> None:
    case = PagedCase((1, 1), (2000, 1500), head_dim=head_dim)
    long = to_gpu(make_paged_inputs(case, BF16))
    ops.paged_attention(*long.arguments())
    graph, out = captured(lambda: ops.paged_attention(*long.arguments()))
    for lens in ([700, 3], [1, 1], [2000, 64]):
        short = torch.tensor(lens, dtype=torch.int32, device="cuda")
        expected = ops.paged_attention(*replace(long, context_lens=short).arguments())
        long.context_lens.copy_(short)
        graph.replay()
        assert torch.equal(out, expected)


def test_nothing_to_do_is_no_error() -> None:
    table = torch.empty(3, 8, device="cuda", dtype=BF16)
    no_rows = torch.empty(0, 8, device="cuda", dtype=BF16)
    no_heads = torch.empty(0, 4, 64, device="cuda", dtype=BF16)
    no_ids = torch.empty(0, device="cuda", dtype=torch.int64)
    cache = torch.empty(2, 2, 64, 64, device="cuda", dtype=BF16)
    starts = torch.zeros(1, device="cuda", dtype=torch.int32)
    none = torch.empty(0, device="cuda", dtype=torch.int32)
    paged = (no_heads, cache, cache, none.view(0, 3), starts, none, 1.0, 0)
    assert ops.rms_norm(no_rows, table[0], 1e-5).shape == (0, 8)
    assert ops.silu_mul(no_rows).shape == (0, 4)
    assert ops.gather_embeddings(no_ids, table, none, None).shape == (0, 8)
    assert ops.paged_attention(*paged).shape == (0, 4, 64)
    assert ops.vision_attention(no_heads, no_heads, no_heads, starts, 0, 1.0).shape == (0, 4, 64)
    torch.cuda.synchronize()
