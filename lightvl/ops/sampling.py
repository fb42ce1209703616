"""Sampling of the next token: penalties, bias, mask, temperature, filters and the draw in one."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightvl.ops.library import out_operator

_sample = out_operator("sample")


@dataclass(frozen=True, slots=True)
class SampleParams:
    """How each of S rows of logits is sampled; V is the vocabulary's size. Contiguous tensors.

    The order is: penalties, bias, mask, temperature, top-k, top-p, min-p, draw. Ties at a filter's
    threshold are all kept.
    """

    temperature: Tensor  # float32 [S]; below 1e-5: greedy, the lowest id on ties
    top_k: Tensor  # int32 [S]; 0 or less: off
    top_p: Tensor  # float32 [S]; smallest set of this mass among what top-k kept; 1: off
    min_p: Tensor  # float32 [S]; least probability relative to the largest; 0: off
    seeds: Tensor  # int64 [S]
    offsets: Tensor  # int64 [S]; index of the token being drawn in its sequence

    penalties: Tensor | None = None  # float32 [S, 3]: repetition, presence, frequency
    counts: Tensor | None = None  # int16 [R, V], occurrences so far; the drawn id is added
    count_rows: Tensor | None = None  # int32 [S], each its own row of counts; -1: no penalties
    bias_offsets: Tensor | None = None  # int32 [S + 1], row s has entries [s] to [s + 1] of:
    bias_ids: Tensor | None = None  # int32 [M]
    bias_values: Tensor | None = None  # float32 [M], added to the logits; -inf forbids
    allowed_mask: Tensor | None = None  # int32 [S, ceil(V / 32)]; bit i % 32 of word i // 32

    logprobs: bool = False
    num_top: int = 0  # most probable ids to return with their log-probabilities


@dataclass(slots=True)  # frozen, it would take half a microsecond more to make
class SampleResult:
    """Drawn ids; log-probabilities are those of the raw logits, before any change to them."""

    ids: Tensor  # int64 [S]
    logprobs: Tensor | None  # float32 [S], of the drawn ids
    top_ids: Tensor | None  # int32 [S, num_top], most probable first, the lowest id on ties
    top_logprobs: Tensor | None  # float32 [S, num_top]


def _new_result(logits: Tensor, params: SampleParams) -> SampleResult:
    top_ids = top_logprobs = None
    if params.num_top > 0:
        num_rows = logits.shape[0]
        top_ids = params.top_k.new_empty(num_rows, params.num_top)
        top_logprobs = params.top_p.new_empty(num_rows, params.num_top)
    logprobs = torch.empty_like(params.temperature) if params.logprobs else None
    return SampleResult(torch.empty_like(params.offsets), logprobs, top_ids, top_logprobs)


def _check_result(out: SampleResult, params: SampleParams) -> None:
    num_top = 0 if out.top_ids is None else out.top_ids.shape[-1]
    if num_top != max(params.num_top, 0) or (out.logprobs is not None) != params.logprobs:
        raise ValueError("sample: out has other log-probabilities than params asks for")


def sample(
    logits: Tensor, params: SampleParams, *, out: SampleResult | None = None
) -> SampleResult:
    """Draw one token id from each row of logits.

    The draw is Gumbel-max with counter-based Philox4x32-10 noise that depends on (seed, offset,
    token id) and on nothing else: not on the batch, not on the row's place in it.
    Sources: Holtzman et al., "The Curious Case of Neural Text Degeneration", 2019 (top-p); Keskar
    et al., "CTRL", 2019 (repetition penalty: l / r for l > 0, else l * r, on ids that occurred);
    Minh et al., "Turning Up the Heat: Min-p Sampling", 2024. Presence subtracts p once from ids
    that occurred, frequency f for each occurrence.

    Args:
        logits: [S, V], row-strided; float32, bfloat16 or float16. NaN is never drawn; a row with
            nothing to draw gives id 0.
        params: How to sample each row.
        out: What to write to; new tensors when absent.

    Returns:
        The drawn ids, and the log-probabilities that `params` asks for; `out` where it was given.

    Raises:
        ValueError: shapes or dtypes do not fit or, checked on the CPU alone, an id or row is not
            there.
    """
    if out is None:
        out = _new_result(logits, params)
    else:
        _check_result(out, params)
    _sample(
        logits,
        params.temperature,
        params.top_k,
        params.top_p,
        params.min_p,
        params.seeds,
        params.offsets,
        params.penalties,
        params.counts,
        params.count_rows,
        params.bias_offsets,
        params.bias_ids,
        params.bias_values,
        params.allowed_mask,
        out.ids,
        out.logprobs,
        out.top_ids,
        out.top_logprobs,
    )
    return out
