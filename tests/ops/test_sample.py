"""Sampling: the draw's distribution, the filters' exact sets, edits, log-probabilities, errors."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightvl.ops import SampleParams, sample
from lightvl.testing.compare import DTYPES, assert_close
from lightvl.testing.poison import strided
from lightvl.testing.sampling_reference import (
    SampleCase,
    edited_logits,
    make_logits,
    make_sample_params,
    philox_reference,
    sample_reference,
    survivors_reference,
)

Edit = Callable[[int, int], dict[str, Any]]


def draws(logits: Tensor, case: SampleCase, num_draws: int) -> Tensor:
    """Ids of many draws from one row of logits, each with a seed of its own."""
    case = replace(case, num_rows=num_draws, vocab_size=logits.numel())
    return sample(logits.expand(num_draws, -1), make_sample_params(case)).ids


def test_philox_reference_gives_the_published_vectors() -> None:
    zeros = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    ones = (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    assert philox_reference(0, (0, 0, 0, 0)) == zeros
    assert philox_reference(2**64 - 1, (2**32 - 1,) * 4) == ones


@pytest.mark.parametrize("case", [SampleCase(0, 0), SampleCase(0, 0, temperature=2.5)], ids=str)
def test_draws_follow_the_distribution(case: SampleCase) -> None:
    logits = make_logits(SampleCase(1, 200), torch.float32)[0]
    num_draws = 40000
    expected = (logits.double() / case.temperature).softmax(0) * num_draws
    counts = draws(logits, case, num_draws).bincount(minlength=200).double()
    # Rare ids share one cell; chi-square of df cells is below df + 5 sqrt(2 df) but for one in 1e5.
    common = expected >= 8
    statistic = ((counts - expected)[common].square() / expected[common]).sum()
    rare, rare_expected = counts[~common].sum(), expected[~common].sum()
    statistic += (rare - rare_expected).square() / rare_expected.clamp(min=1)
    cells = int(common.sum())
    assert cells > 20
    assert statistic < cells + 5 * (2 * cells) ** 0.5


@pytest.mark.parametrize(
    "case",
    [
        SampleCase(0, 500, top_k=1),
        SampleCase(0, 500, top_k=50, temperature=4.0),
        SampleCase(0, 500, top_k=499, temperature=4.0),
        SampleCase(0, 500, top_p=0.3, temperature=3.0),
        SampleCase(0, 500, top_p=0.75, temperature=3.0),
        SampleCase(0, 500, min_p=0.2, temperature=3.0),
        SampleCase(0, 500, top_k=40, top_p=0.6, temperature=3.0),
        SampleCase(0, 500, top_k=40, top_p=0.8, min_p=0.3, temperature=3.0),
        SampleCase(0, 8191, top_k=111, temperature=3.0),
        SampleCase(0, 8191, top_p=0.2, temperature=2.0),
    ],
    ids=str,
)
def test_filters_keep_exactly_the_reference_set(case: SampleCase) -> None:
    logits = make_logits(replace(case, num_rows=1), torch.float32)
    params = make_sample_params(replace(case, num_rows=1))
    expected = survivors_reference(logits[0].double(), params, 0).nonzero().flatten()
    assert torch.equal(draws(logits[0], case, 60 * len(expected) + 1000).unique(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_ties_at_the_threshold_are_all_kept(dtype: torch.dtype) -> None:
    logits = torch.zeros(700, dtype=dtype)
    logits[::100] = 5.0
    logits[3::100] = 3.0
    assert draws(logits, SampleCase(0, 0, top_k=2), 2000).unique().tolist() == [*range(0, 700, 100)]
    kept = draws(logits, SampleCase(0, 0, top_k=8, temperature=3.0), 4000).unique().tolist()
    assert kept == sorted([*range(0, 700, 100), *range(3, 700, 100)])
    flat = draws(torch.zeros(300, dtype=dtype), SampleCase(0, 0, top_p=0.1), 9000)
    assert len(flat.unique()) == 300


def test_extreme_logits() -> None:
    logits = torch.full((5, 1000), -torch.inf)
    logits[0, 7] = -1e30
    logits[1, 3], logits[1, 900] = torch.inf, 1e38
    logits[2] = torch.nan
    logits[2, 500] = -4.0
    logits[4] = torch.linspace(-1e38, 1e38, 1000)
    for case in (
        SampleCase(5, 1000, temperature=0.0),
        SampleCase(5, 1000),
        SampleCase(5, 1000, top_k=3, top_p=0.5, min_p=0.01),
        SampleCase(5, 1000, temperature=1e-4, top_p=0.999),
    ):
        ids = sample(logits, make_sample_params(case)).ids
        assert ids.tolist() == [7, 3, 500, 0, 999], case


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_greedy_takes_the_lowest_id_on_ties(dtype: torch.dtype) -> None:
    logits = strided(make_logits(SampleCase(5, 8191), dtype))
    logits[:, [8190, 3000, 1023]] = 50.0
    params = make_sample_params(SampleCase(5, 8191, temperature=0.0))
    assert sample(logits, params).ids.tolist() == [1023] * 5
    assert sample(logits, replace(params, logprobs=True)).ids.tolist() == [1023] * 5


def test_a_draw_depends_on_seed_and_offset_alone() -> None:
    logits = make_logits(SampleCase(1, 5000), torch.float32).expand(64, -1)
    params = make_sample_params(SampleCase(64, 5000, temperature=20.0))
    together = sample(logits, params).ids
    assert len(together.unique()) > 30
    for row in (0, 17, 63):
        names = ("temperature", "top_k", "top_p", "min_p", "seeds", "offsets")
        one = SampleParams(*(getattr(params, name)[row : row + 1] for name in names))
        assert sample(logits[:1], one).ids.item() == together[row]
        later = replace(one, offsets=one.offsets + 1)
        assert sample(logits[:1], later).ids.item() != together[row]


def penalties(rows: int, vocab_size: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    counts = torch.randint(-3, 4, (rows + 2, vocab_size), generator=generator).clamp(min=0)
    count_rows = torch.arange(rows, dtype=torch.int32) + 1
    count_rows[1::3] = -1
    values = torch.tensor([[1.7, 0.0, 0.0], [1.0, 1.5, 0.0], [0.8, -0.5, 0.9]])
    return {
        "penalties": values.repeat(rows, 1)[:rows],
        "counts": counts.short(),
        "count_rows": count_rows,
    }


def bias(rows: int, vocab_size: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(2)
    lens = [3 * (row % 3) for row in range(rows)]
    values = torch.randn(sum(lens), generator=generator) * 5
    values[::4] = -torch.inf
    ids = torch.randint(vocab_size, (sum(lens),), generator=generator, dtype=torch.int32)
    offsets = torch.tensor([0, *lens]).cumsum(0).int()
    return {"bias_offsets": offsets, "bias_ids": ids, "bias_values": values}


def mask(rows: int, vocab_size: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    words = torch.randint(-(2**31), 2**31 - 1, (rows, -(-vocab_size // 32)), generator=generator)
    return {"allowed_mask": words.int()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("edits", [(penalties,), (bias,), (mask,), (penalties, bias, mask)])
@pytest.mark.parametrize("vocab_size", [111, 1000])
def test_edits_equal_the_reference(
    edits: tuple[Edit, ...], vocab_size: int, dtype: torch.dtype
) -> None:
    rows = 20
    for case in (
        SampleCase(rows, vocab_size, temperature=0.0),
        SampleCase(rows, vocab_size, temperature=1.3, top_k=20, top_p=0.9),
    ):
        params = make_sample_params(case)
        for edit in edits:
            params = replace(params, **edit(rows, vocab_size))
        logits = make_logits(case, dtype)
        expected = sample_reference(logits, params)
        before = params.counts.clone() if params.counts is not None else None
        ids = sample(logits, params).ids
        assert torch.equal(ids, expected)
        if before is not None:
            assert params.count_rows is not None
            assert params.counts is not None
            for row, count_row in enumerate(params.count_rows.tolist()):
                if count_row >= 0:
                    before[count_row, ids[row]] += 1
            assert torch.equal(params.counts, before)


def test_a_mask_of_one_id_leaves_no_choice() -> None:
    words = torch.zeros(2, 16, dtype=torch.int32)
    words[0, 15], words[1, 0] = 1 << 19, -(2**31)
    params = replace(make_sample_params(SampleCase(2, 500)), allowed_mask=words, logprobs=True)
    logits = make_logits(SampleCase(2, 500), torch.float32)
    result = sample(logits, params)
    assert result.ids.tolist() == [499, 31]
    assert result.logprobs is not None
    assert_close(result.logprobs, logits.double().log_softmax(1)[[0, 1], [499, 31]])


def test_counts_saturate() -> None:
    counts = torch.full((1, 4), 32767, dtype=torch.int16)
    params = replace(
        make_sample_params(SampleCase(1, 4)),
        counts=counts,
        count_rows=torch.zeros(1, dtype=torch.int32),
    )
    sample(torch.zeros(1, 4), params)
    assert counts.tolist() == [[32767] * 4]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logprobs_are_those_of_the_raw_logits(dtype: torch.dtype, temperature: float) -> None:
    case = SampleCase(7, 8191, temperature, top_k=5)
    logits = strided(make_logits(case, dtype))
    params = replace(make_sample_params(case), **penalties(7, 8191), logprobs=True, num_top=20)
    expected = logits.double().log_softmax(1)
    result = sample(logits, params)
    assert result.logprobs is not None
    assert result.top_ids is not None
    assert result.top_logprobs is not None
    assert_close(result.logprobs, expected.gather(1, result.ids[:, None])[:, 0])
    assert_close(result.top_logprobs, expected.sort(descending=True).values[:, :20])
    order = logits.float().argsort(dim=1, descending=True, stable=True)[:, :20]
    assert torch.equal(result.top_ids.long(), order)


def test_all_of_a_small_vocabulary_can_be_listed() -> None:
    params = replace(make_sample_params(SampleCase(1, 3)), num_top=3)
    result = sample(torch.tensor([[1.0, -torch.inf, 2.0]]), params)
    assert result.top_ids is not None
    assert result.top_logprobs is not None
    assert result.top_ids[0, :2].tolist() == [2, 0]
    assert result.top_logprobs[0, 2] == -torch.inf


def test_edited_logits_do_not_change_the_input() -> None:
    logits = make_logits(SampleCase(3, 111), torch.float32)
    before = logits.clone()
    params = replace(make_sample_params(SampleCase(3, 111)), **penalties(3, 111), **mask(3, 111))
    assert not torch.equal(edited_logits(logits, params, 0), before[0].double())
    sample(logits, params)
    assert torch.equal(logits, before)


def test_threads_do_not_change_the_draw() -> None:
    case = SampleCase(33, 3000, temperature=2.0, top_p=0.9)
    logits, params = make_logits(case, torch.float32), make_sample_params(case)
    before = torch.get_num_threads()
    try:
        results = []
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            results.append(sample(logits, params).ids)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def arguments(params: SampleParams, logits: Tensor) -> tuple[Any, ...]:
    names = SampleParams.__dataclass_fields__
    tensors = [getattr(params, name) for name in names if name not in ("logprobs", "num_top")]
    rows = logits.shape[0]
    outputs = (torch.zeros(rows), torch.zeros(rows, 4, dtype=torch.int32), torch.zeros(rows, 4))
    return (logits, *tensors, torch.zeros(rows, dtype=torch.int64), *outputs)


def test_opcheck() -> None:
    case = SampleCase(3, 111)
    logits, params = make_logits(case, torch.float32), make_sample_params(case)
    operator = torch.ops.lightvl.sample.default
    plain = arguments(params, logits)
    torch.library.opcheck(operator, (*plain[:-3], None, None, None))
    edited = replace(params, **penalties(3, 111), **bias(3, 111), **mask(3, 111))
    torch.library.opcheck(operator, arguments(edited, logits))


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


WRONG: dict[str, dict[str, Any]] = {
    r"temperature is \[2\], expected \[S=3\]": {"temperature": torch.zeros(2)},
    "top_k is int64, expected int32": {"top_k": torch.zeros(3, dtype=torch.int64)},
    "offsets must be contiguous": {"offsets": torch.zeros(6, dtype=torch.int64)[::2]},
    r"penalties is \[3, 2\], expected \[S=3, 3\]": {"penalties": torch.zeros(3, 2)},
    r"counts is \[1, 9\], expected \[R, V=111\]": {"counts": torch.zeros(1, 9).short()},
    "counts is float32, expected int16": {"counts": torch.zeros(1, 111)},
    "counts and count_rows go together": {"counts": None},
    "penalties need counts": {"counts": None, "count_rows": None},
    "count_rows has 5 at 2, expected -1 to 4": {"count_rows": int32(0, 1, 5)},
    r"bias_offsets is \[2\], expected \[4\]": {"bias_offsets": int32(0, 0)},
    "bias_offsets has 10 at 3": {"bias_offsets": int32(0, 0, 0, 10)},
    "bias_ids has 111 at 0, expected 0 to 110": {"bias_ids": int32(*[111] * 9)},
    r"bias_values is \[4\], expected \[M=9\]": {"bias_values": torch.zeros(4)},
    "bias_offsets, bias_ids and bias_values go together": {"bias_values": None},
    r"allowed_mask is \[3, 3\], expected \[S=3, 4\]": {"allowed_mask": int32(*[0] * 9).view(3, 3)},
    "top_ids asks for more ids": {"num_top": 112},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(message: str) -> None:
    params = make_sample_params(SampleCase(3, 111))
    params = replace(params, **penalties(3, 111), **bias(3, 111), **mask(3, 111))
    with pytest.raises(ValueError, match=f"sample: {message}"):
        sample(torch.zeros(3, 111), replace(params, **WRONG[message]))
