"""Attention of the language model over paged keys and values, and of the vision tower."""

from typing import Literal, overload

import torch
from torch import Tensor

from lightvl.ops.library import out_operator

_paged_attention = out_operator("paged_attention")
_vision_attention = out_operator("vision_attention")


@overload
def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    page_table: Tensor,
    cu_q_lens: Tensor,
    context_lens: Tensor,
    scale: float,
    max_q_len: int,
    lse: Literal[False] = ...,
    *,
    out: Tensor | None = None,
) -> Tensor: ...


@overload
def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    page_table: Tensor,
    cu_q_lens: Tensor,
    context_lens: Tensor,
    scale: float,
    max_q_len: int,
    lse: Literal[True],
    *,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]: ...


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    page_table: Tensor,
    cu_q_lens: Tensor,
    context_lens: Tensor,
    scale: float,
    max_q_len: int,
    lse: bool = False,
    *,
    out: Tensor | tuple[Tensor, Tensor] | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attend causally from each sequence's new tokens to all its tokens in the KV pages.

    Decode, prefill and chunks of a prefill may be mixed in one call. New token i of a sequence
    stands at position `context_len - q_len + i` and sees the keys up to its own. A sequence's
    result depends on nothing else in the call; on a GPU its rounding does, since the lengths of
    all decide where a sequence's keys are cut. On a GPU q is bfloat16 or float16 and D 64, 96 or
    128; `LIGHTVL_ATTENTION=sm80` in the environment keeps to the kernels that every GPU from sm_80
    on can run.

    Source: Kwon et al., "Efficient Memory Management for Large Language Model Serving with
    PagedAttention", 2023; Milakov and Gimelshein, "Online normalizer calculation for softmax",
    2018.

    Args:
        q: [T, H, D] queries of all sequences end to end, row-strided; float32, bfloat16 or
            float16; D a multiple of 8 up to 256, H a multiple of K.
        k_cache: [N, K, P, D] pages of keys, dtype of q, row-strided; P is 16, 32 or 64. The new
            tokens' keys are already in it.
        v_cache: [N, K, P, D] pages of values.
        page_table: int32 [S, M], the pages of each sequence in order; what lies behind its last
            page is not read.
        cu_q_lens: int32 [S + 1], where each sequence's new tokens begin in q.
        context_lens: int32 [S], tokens of each sequence with the new ones.
        scale: factor of the scores before the softmax.
        max_q_len: bound of the new tokens of one sequence.
        lse: also return the logarithm of the softmax's denominator.
        out: [T, H, D] to write to, with `lse` a tuple of that and float32 [T, H]; new tensors when
            absent.

    Returns:
        [T, H, D] in q's dtype; with `lse` also float32 [T, H], natural logarithms. `out` where it
        was given.

    Raises:
        ValueError: shapes, dtypes, lengths or page numbers do not fit.
    """
    if out is None:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        if lse:
            out = out, q.new_empty(q.shape[:2], dtype=torch.float32)
    attended, log_sums = out if isinstance(out, tuple) else (out, None)
    if (log_sums is not None) != lse:
        raise ValueError("paged_attention: out is a tuple of two with lse and only then")
    _paged_attention(
        q,
        k_cache,
        v_cache,
        page_table,
        cu_q_lens,
        context_lens,
        scale,
        max_q_len,
        attended,
        log_sums,
    )
    return out


def vision_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_lens: Tensor,
    max_len: int,
    scale: float,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Attend without a mask within each segment of a packed batch.

    Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", 2020.

    Args:
        q: [T, H, D] queries of all segments end to end, row-strided, such as a view of a fused
            projection; float32, bfloat16 or float16; D a multiple of 8 up to 256.
        k: [T, H, D] keys, dtype of q, row-strided.
        v: [T, H, D] values, dtype of q, row-strided.
        cu_lens: int32 [S + 1], where each segment begins, from 0 to T.
        max_len: bound of the tokens of one segment.
        scale: factor of the scores before the softmax.
        out: [T, H, D] to write to, row-strided; a new tensor when absent.

    Returns:
        [T, H, D] in q's dtype, contiguous if new, `out` where it was given.

    Raises:
        ValueError: shapes, dtypes or lengths do not fit.
    """
    if out is None:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
    _vision_attention(q, k, v, cu_lens, max_len, scale, out)
    return out
