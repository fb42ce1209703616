"""Sampling on the GPU against the CPU operator: edits, log-probabilities, rows that differ."""

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightvl.ops import SampleParams, SampleResult, sample
from lightvl.testing.compare import DTYPES, assert_close
from lightvl.testing.poison import poisoned_memory, strided
from lightvl.testing.sampling_reference import SampleCase, make_logits, make_sample_params
from tests.ops.test_sample import Edit, bias, mask, penalties

BUILT = torch._C._dispatch_has_kernel_for_dispatch_key("lightvl::sample", "CUDA")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not BUILT, reason="this build of lightvl has no CUDA kernels"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]

VOCAB = 151674  # rows that begin at odd multiples of 8 bytes


def on_gpu(params: SampleParams) -> SampleParams:
    tensors: dict[str, Any] = {
        field.name: value.cuda()
        for field in fields(params)
        if isinstance(value := getattr(params, field.name), Tensor)
    }
    return replace(params, **tensors)


def rows_of(params: SampleParams, count: int) -> SampleParams:
    names = ("temperature", "top_k", "top_p", "min_p", "seeds", "offsets")
    return replace(params, **{name: getattr(params, name)[:count] for name in names})


def mixed_params(rows: int, vocab_size: int) -> SampleParams:
    """Settings that differ from row to row, filters off and on."""
    params = make_sample_params(SampleCase(rows, vocab_size))
    row = torch.arange(rows)
    return replace(
        params,
        temperature=torch.tensor([0.0, 1.0, 0.7, 3.0, 50.0])[row % 5],
        top_k=torch.tensor([0, 1, 50, 600, 10**9, 0, 7])[row % 7].int(),
        top_p=torch.tensor([1.0, 0.9, 0.05])[row % 3],
        min_p=torch.tensor([0.0, 0.0, 0.2, 1.0])[row // 2 % 4],
    )


def assert_equals_cpu(logits: Tensor, params: SampleParams) -> SampleResult:
    """Run both operators; the counts of `params` are those after the CPU's draw."""
    moved = on_gpu(params)
    expected = sample(logits, params)
    width = logits.stride(0) if len(logits) > 1 else logits.shape[1]
    wide = torch.full((len(logits), width), torch.nan, dtype=logits.dtype, device="cuda")
    wide[:, : logits.shape[1]] = logits.cuda()
    with poisoned_memory():
        actual = sample(wide[:, : logits.shape[1]], moved)
    assert torch.equal(actual.ids.cpu(), expected.ids)
    if params.counts is not None:
        assert moved.counts is not None
        assert torch.equal(moved.counts.cpu(), params.counts)
    if expected.logprobs is not None:
        assert actual.logprobs is not None
        assert_close(actual.logprobs.cpu(), expected.logprobs.double(), 1e-5)
    if expected.top_ids is not None:
        assert actual.top_ids is not None
        assert actual.top_logprobs is not None
        assert expected.top_logprobs is not None
        assert torch.equal(actual.top_ids.cpu(), expected.top_ids)
        assert_close(actual.top_logprobs.cpu(), expected.top_logprobs.double(), 1e-5)
    return actual


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("edits", "vocab_size"),
    [
        ((penalties,), 111),
        ((penalties,), 8191),
        ((bias,), 111),
        ((bias,), 8191),
        ((mask,), 111),
        ((mask,), 8191),
        ((penalties, bias, mask), 111),
        ((penalties, bias, mask), 8191),
        ((penalties, bias, mask), VOCAB),
    ],
)
def test_edits_equal_the_cpu(edits: tuple[Edit, ...], vocab_size: int, dtype: torch.dtype) -> None:
    rows = 20
    logits = make_logits(SampleCase(rows, vocab_size), dtype)
    for params in (
        mixed_params(rows, vocab_size),
        replace(mixed_params(rows, vocab_size), logprobs=True, num_top=5),
    ):
        for edit in edits:
            params = replace(params, **edit(rows, vocab_size))
        assert_equals_cpu(strided(logits), params)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab_size", [1, 3, 500, 2049, 49152, VOCAB, 400001])
def test_rows_may_differ(vocab_size: int, dtype: torch.dtype) -> None:
    rows = 42 if vocab_size < 50000 else 10
    logits = strided(make_logits(SampleCase(rows, vocab_size), dtype))
    assert_equals_cpu(logits, mixed_params(rows, vocab_size))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "vocab_size"), [(300, 500), (150, 49152), (90, VOCAB)])
def test_rows_may_outnumber_what_runs_at_once(
    rows: int, vocab_size: int, dtype: torch.dtype
) -> None:
    logits = strided(make_logits(SampleCase(rows, vocab_size), dtype))
    params = mixed_params(rows, vocab_size)
    assert_equals_cpu(logits, params)
    for edit in (penalties, bias):
        params = replace(params, **edit(rows, vocab_size))
    assert_equals_cpu(logits, replace(params, logprobs=True, num_top=5))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("top_k", [0, 70, 150, 250])
@pytest.mark.parametrize(
    ("rows", "begin"), [(8, 1000), (8, 18900), (32, 21600), (50, 1000), (50, 25200)]
)
def test_likely_ids_may_be_neighbours(
    rows: int, begin: int, top_k: int, dtype: torch.dtype
) -> None:
    """In one block of a row, or at the end of one and the beginning of the next."""
    logits = torch.full((rows, VOCAB), -20.0)
    noise = torch.randn(rows, 300, generator=torch.Generator().manual_seed(rows))
    logits[:, begin : begin + 300] = noise
    case = SampleCase(rows, VOCAB, temperature=1.0, top_k=top_k, top_p=0.99)
    params = replace(make_sample_params(case), logprobs=True, num_top=20)
    assert_equals_cpu(strided(logits.to(dtype)), params)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_top", [0, 1, 20, 300])
def test_logprobs_equal_the_cpu(num_top: int, dtype: torch.dtype) -> None:
    for rows, vocab_size in ((3, 300), (12, 8191), (2, VOCAB)):
        logits = strided(make_logits(SampleCase(rows, vocab_size), dtype))
        params = replace(mixed_params(rows, vocab_size), logprobs=True, num_top=num_top)
        assert_equals_cpu(logits, params)


def test_ties_outliers_and_rows_with_nothing_to_draw() -> None:
    logits = torch.zeros(9, 6000)
    logits[1] = -torch.inf
    logits[2] = torch.nan
    logits[3, ::7], logits[3, 1::7] = 2.0, torch.nan
    logits[4, 3], logits[4, 900] = torch.inf, 1e38
    logits[5] = torch.linspace(-1e38, 1e38, 6000)
    logits[6], logits[6, 77] = -torch.inf, -1e30
    logits[7] = torch.arange(6000) % 5 * 0.5
    logits[8, ::2] = -0.0
    for case in (
        SampleCase(9, 6000, temperature=0.0),
        SampleCase(9, 6000),
        SampleCase(9, 6000, top_k=3, top_p=0.5, min_p=0.01),
        SampleCase(9, 6000, top_k=3000, top_p=0.5),
        SampleCase(9, 6000, temperature=1e-4, top_p=0.999),
        SampleCase(9, 6000, min_p=1.0),
    ):
        assert_equals_cpu(logits, make_sample_params(case))


def test_a_draw_does_not_depend_on_the_batch() -> None:
    logits = make_logits(SampleCase(40, VOCAB), torch.float32).cuda()
    params = on_gpu(replace(mixed_params(40, VOCAB), temperature=torch.full((40,), 2.0)))
    together = sample(logits, params).ids
    for count in (1, 7, 8, 9, 33):
        ids = sample(logits[:count], rows_of(params, count)).ids
        assert torch.equal(ids, together[:count])


def test_calls_in_a_row_see_each_others_counts() -> None:
    """More rows than run at once, in launches that overlap."""
    case = SampleCase(40, 20000, temperature=0.0)
    logits = make_logits(case, torch.float32)
    params = replace(
        make_sample_params(case),
        penalties=torch.tensor([[1.0, 0.0, 4.0]]).repeat(40, 1),
        counts=torch.zeros(40, 20000).short(),
        count_rows=torch.arange(40).int(),
    )
    moved, on_device = on_gpu(params), logits.cuda()
    expected = [sample(logits, params).ids for _ in range(8)]
    actual = [sample(on_device, moved).ids for _ in range(8)]
    assert torch.equal(torch.stack(actual).cpu(), torch.stack(expected))
    assert len(torch.stack(expected)[:, 0].unique()) > 1


def test_a_graph_replays_other_settings() -> None:
    case = SampleCase(9, 8191)
    logits, params = make_logits(case, torch.bfloat16).cuda(), on_gpu(make_sample_params(case))
    sample(logits, params)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ids = sample(logits, params).ids
    other = mixed_params(9, 8191)
    for name in ("temperature", "top_k", "top_p", "min_p"):
        getattr(params, name).copy_(getattr(other, name))
    params.offsets.add_(1)
    graph.replay()
    expected = sample(logits.cpu(), replace(other, offsets=params.offsets.cpu()))
    assert torch.equal(ids.cpu(), expected.ids)
