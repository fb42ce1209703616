"""FlashAttention-3 in the build that vLLM ships, called as torch operators."""

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.paged import DIM, Paged
from benchmarks.kernels.peers import Missing
from benchmarks.kernels.timing import Prepared
from benchmarks.kernels.vision import TOKENS, Tiles

BF16 = torch.bfloat16


def vllm_file(name: str) -> Path:
    """A file of the installed vLLM, whose package is not imported.

    Raises:
        Missing: there is none.
    """
    spec = find_spec("vllm")
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        if (path := Path(folder) / name).exists():
            return path
    raise Missing(f"no vllm with {name} is installed")


torch.ops.load_library(vllm_file("vllm_flash_attn/_vllm_fa3_C.abi3.so"))
OPS = torch.ops._vllm_fa3_C


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    cu_q_lens: Tensor,
    max_lens: tuple[int, int],
    causal: bool,
    *,
    cu_k_lens: Tensor | None = None,
    lens: Tensor | None = None,
    table: Tensor | None = None,
    plan: Any = None,  # noqa: ANN401
) -> None:
    no = None
    OPS.fwd(
        *(q, k, v, no, no, no, out, cu_q_lens, cu_k_lens, no, no, lens, *max_lens, table),
        *(no, no, no, no, no, no, no, no, q.shape[-1] ** -0.5, causal),
        *(-1, -1, 0.0, True, plan, 0, no, 0, no, 1, 0, no),
    )


def _paged(i: Paged) -> Prepared:
    kv, out = i.tokens_first, torch.full_like(i.q, math.nan)
    longest = max(i.lens)
    heads, kv_heads = i.q.shape[1], i.kv.shape[2]
    plan = OPS.get_scheduler_metadata(
        *(len(i.lens), i.q_len, longest, heads, kv_heads, DIM, DIM, BF16, i.context_lens),
        *(i.cu_q_lens, None, None, None, None, i.page_size, 0, True, -1, -1, False, 0, None, 0),
    )

    def call() -> None:
        _forward(
            *(i.q, kv[:, 0], kv[:, 1], out, i.cu_q_lens, (i.q_len, longest), True),
            lens=i.context_lens,
            table=i.table,
            plan=plan,
        )

    return Prepared(call, lambda: out)


def decode(i: Paged) -> Prepared:
    """Split-KV decode and the kernel that combines."""
    return _paged(i)


def prefill(i: Paged) -> Prepared:
    """Causal, on pages."""
    return _paged(i)


def prefill_contiguous(i: Paged) -> Prepared:
    """Causal, on keys and values without pages: what pages cost."""
    parts = [i.contiguous(s) for s in range(len(i.lens))]
    k, v = (torch.cat(x) for x in zip(*parts, strict=True))
    starts = torch.tensor([0, *i.lens], dtype=torch.int32).cumsum(0, dtype=torch.int32).cuda()
    out = torch.full_like(i.q, math.nan)
    lens = (i.q_len, max(i.lens))
    return Prepared(
        lambda: _forward(i.q, k, v, out, i.cu_q_lens, lens, True, cu_k_lens=starts), lambda: out
    )


def vision(i: Tiles) -> Prepared:
    """Without a mask, on views of the packed projection."""
    out = i.new_output()
    lens = (TOKENS, TOKENS)
    return Prepared(
        lambda: _forward(*i.parts, out, i.cu_lens, lens, False, cu_k_lens=i.cu_lens), lambda: out
    )
