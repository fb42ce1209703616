"""FlashInfer's kernels. Plans are made outside the calls, as an engine makes them once a step."""

import math
from functools import cache

import flashinfer
import torch
from flashinfer.decode import xqa_batch_decode_with_kv_cache
from torch import Tensor

from benchmarks.kernels.elementwise import Rope
from benchmarks.kernels.paged import DIM, Paged
from benchmarks.kernels.peers import Missing
from benchmarks.kernels.sampling import Sampling
from benchmarks.kernels.timing import Prepared, keeping
from benchmarks.kernels.vision import TOKENS, Tiles
from lightvl.testing.norm_reference import EPS, NormInputs

BF16 = torch.bfloat16
LAYOUT = "NHD"


@cache
def _workspace(use: str) -> Tensor:
    return torch.zeros(256 << 20, dtype=torch.uint8, device="cuda")


def _pages(i: Paged) -> tuple[Tensor, Tensor, Tensor]:
    """The page table in compressed rows: row starts, pages, tokens in each last page."""
    used = [-(-length // i.page_size) for length in i.lens]
    starts = torch.tensor([0, *used], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    last = [length - (u - 1) * i.page_size for length, u in zip(i.lens, used, strict=True)]
    pages = torch.cat([i.table[s, :u] for s, u in enumerate(used)])
    return starts, pages, torch.tensor(last, dtype=torch.int32)


def _heads(i: Paged) -> tuple[int, int, int]:
    return i.q.shape[1], i.kv.shape[2], DIM


def decode(i: Paged) -> Prepared:
    """Its tensor-core decode kernel, with the balanced split of its plan."""
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        _workspace("plans"), LAYOUT, use_tensor_cores=True, backend="fa2"
    )
    wrapper.plan(*_pages(i), *_heads(i), i.page_size, q_data_type=BF16, kv_data_type=BF16)
    kv, out = i.tokens_first, torch.full_like(i.q, math.nan)
    return Prepared(lambda: wrapper.run(i.q, kv, out=out), lambda: out)


def decode_xqa(i: Paged) -> Prepared:
    """TensorRT-LLM's decode kernel."""
    if i.page_size != 64:
        raise Missing("measured with pages of 64 alone")
    workspace = _workspace("xqa").zero_()
    kv, out = i.tokens_first, torch.full_like(i.q, math.nan)
    lens = i.context_lens.to(torch.uint32)

    def call() -> None:
        xqa_batch_decode_with_kv_cache(
            i.q,
            (kv[:, 0], kv[:, 1]),
            workspace,
            i.table,
            lens,
            max(i.lens),
            bmm1_scale=DIM**-0.5,
            bmm2_scale=1.0,
            out=out,
            kv_layout=LAYOUT,
        )

    return Prepared(call, lambda: out)


def prefill(i: Paged) -> Prepared:
    """Its Hopper prefill kernel on pages."""
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(
        _workspace("plans"), LAYOUT, backend="fa3"
    )
    wrapper.plan(
        i.cu_q_lens.cpu(),
        *_pages(i),
        *_heads(i),
        i.page_size,
        causal=True,
        q_data_type=BF16,
        kv_data_type=BF16,
    )
    kv, out = i.tokens_first, torch.full_like(i.q, math.nan)
    return Prepared(lambda: wrapper.run(i.q, kv, out=out), lambda: out)


def vision(i: Tiles) -> Prepared:
    """Its Hopper kernel, which wants contiguous tensors: the copies are not timed."""
    heads, dim = i.qkv.shape[2:]
    wrapper = flashinfer.BatchPrefillWithRaggedKVCacheWrapper(
        _workspace("plans"), LAYOUT, backend="fa3"
    )
    starts = torch.arange(0, i.num_tiles * TOKENS + 1, TOKENS, dtype=torch.int32)
    wrapper.plan(
        starts, starts, heads, heads, dim, causal=False, q_data_type=BF16, kv_data_type=BF16
    )
    q, k, v = (x.contiguous() for x in i.parts)
    out = i.new_output()
    return Prepared(lambda: wrapper.run(q, k, v, out=out), lambda: out)


def rms_norm(i: NormInputs) -> Prepared:
    """RMS norm."""
    out = torch.full_like(i.x, math.nan)
    return Prepared(lambda: flashinfer.norm.rmsnorm(i.x, i.weight, EPS, out=out), lambda: out)


def add_rms_norm(i: NormInputs) -> Prepared:
    """Residual and RMS norm, both in place."""
    x, residual = i.x.clone(), i.residual.clone()
    return Prepared(
        lambda: flashinfer.norm.fused_add_rmsnorm(x, residual, i.weight, EPS), lambda: x
    )


def layer_norm(i: NormInputs) -> Prepared:
    """Layer norm, with weights in float32."""
    weight, bias = i.weight.float(), i.bias.float()
    return keeping(lambda: flashinfer.norm.layernorm(i.x, weight, bias, EPS))


def silu_mul(gate_up: Tensor) -> Prepared:
    """Gated activation."""
    out = gate_up.new_full((gate_up.shape[0], gate_up.shape[1] // 2), math.nan)
    return Prepared(lambda: flashinfer.activation.silu_and_mul(gate_up, out=out), lambda: out)


def rope_write_kv(i: Rope) -> Prepared:
    """Rotary in place, then the write of keys and values to pages, which it names in rows."""
    q, k, v = (x.contiguous() for x in i.parts())
    heads, kv_heads = i.heads
    kv = i.new_cache(64, kv_heads, i.qkv.shape[2])
    tokens, dim = q.shape[0], q.shape[2]
    rows, cells = (i.slots // 64).int(), (i.slots % 64).int()  # a "request" a page
    pages = torch.arange(i.num_pages, dtype=torch.int32, device="cuda")
    starts = torch.arange(i.num_pages + 1, dtype=torch.int32, device="cuda")
    last = torch.full_like(pages, 64)
    flat_q, flat_k = q.view(tokens, heads * dim), k.view(tokens, kv_heads * dim)

    def call() -> None:
        flashinfer.rope.apply_rope_with_cos_sin_cache_inplace(
            i.positions, flat_q, flat_k, dim, i.cos_sin, True
        )
        flashinfer.append_paged_kv_cache(k, v, rows, cells, kv, pages, starts, last, LAYOUT)

    return Prepared(call, lambda: i.joined(q, kv[:, 0], kv[:, 1]))


def sample(i: Sampling) -> Prepared:
    """Its rejection sampling from logits; without min-p."""
    return keeping(
        lambda: flashinfer.sampling.top_k_top_p_sampling_from_logits(
            i.logits, i.top_k, i.top_p, deterministic=True
        )
    )
