"""Attention in float64, and the shapes that its tests and benchmarks run."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

NO_PAGE = 2**30  # what unused page-table entries hold: reading that page fails


def attention_reference(
    q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    """Softmax attention of one sequence.

    Args:
        q: [Tq, H, D]; with `causal` its last row stands at the last key's position.
        k: [Tk, K, D], H a multiple of K.
        v: [Tk, K, D].
        scale: factor of the scores.
        causal: query i sees no key behind its own position.

    Returns:
        float64 [Tq, H, D] and the natural log of the denominator, [Tq, H].
    """
    group = q.shape[1] // k.shape[1]
    keys = k.double().repeat_interleave(group, dim=1)
    values = v.double().repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q.double(), keys) * scale
    if causal:
        seen = torch.ones(q.shape[0], k.shape[0], dtype=torch.bool).tril(k.shape[0] - q.shape[0])
        scores = scores.masked_fill(~seen, -torch.inf)
    out = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)
    return out, scores.logsumexp(-1).T


@dataclass(frozen=True)
class PagedCase:
    """Sequences of one paged attention call; `q_lens` are the last of `context_lens` tokens."""

    q_lens: tuple[int, ...]
    context_lens: tuple[int, ...]
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    page_size: int = 64


@dataclass(frozen=True)
class PagedInputs:
    """Arguments of `paged_attention` in its order; see `make_paged_inputs`."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    page_table: Tensor
    cu_q_lens: Tensor
    context_lens: Tensor
    scale: float
    max_q_len: int

    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, float, int]:
        """Return them as positional arguments."""
        tables = (self.page_table, self.cu_q_lens, self.context_lens)
        return self.q, self.k_cache, self.v_cache, *tables, self.scale, self.max_q_len


def cumulative(lens: tuple[int, ...]) -> Tensor:
    """Return int32 [len + 1]: where each of the lengths begins, and their sum."""
    return torch.tensor((0, *lens)).cumsum(0).to(torch.int32)


def make_paged_inputs(case: PagedCase, dtype: torch.dtype, seed: int = 0) -> PagedInputs:
    """Random inputs: strided, pages in random order, everything that must not be read poisoned.

    Queries are a view of a packed projection, both caches views of one tensor. Slots that hold no
    token are NaN, page-table entries without a page `NO_PAGE`.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    dim, kv_heads = case.head_dim, case.num_kv_heads
    packed = random(sum(case.q_lens), case.num_heads + 2 * kv_heads, dim)
    pages = [-(-length // case.page_size) for length in case.context_lens]
    order = torch.randperm(sum(pages) + 1, generator=generator).tolist()
    cache = torch.full((len(order), 2, kv_heads, case.page_size, dim), torch.nan, dtype=dtype)
    page_table = torch.full((len(pages), max(pages, default=0) + 1), NO_PAGE, dtype=torch.int32)
    for s, length in enumerate(case.context_lens):
        for i in range(pages[s]):
            page = page_table[s, i] = order.pop()
            used = min(length - i * case.page_size, case.page_size)
            cache[page, :, :, :used] = random(2, kv_heads, used, dim)
    return PagedInputs(
        q=packed[:, : case.num_heads],
        k_cache=cache[:, 0],
        v_cache=cache[:, 1],
        page_table=page_table,
        cu_q_lens=cumulative(case.q_lens),
        context_lens=torch.tensor(case.context_lens, dtype=torch.int32),
        scale=dim**-0.5,
        max_q_len=max(case.q_lens, default=0),
    )


def paged_attention_reference(inputs: PagedInputs) -> tuple[Tensor, Tensor]:
    """Return output [T, H, D] and log of the denominator [T, H] of the inputs, in float64."""
    outs, lses = [], []
    for s, (begin, end) in enumerate(pairwise(inputs.cu_q_lens.tolist())):
        length = int(inputs.context_lens[s])
        page_size = inputs.k_cache.shape[2]
        pages = inputs.page_table[s, : -(-length // page_size)].long()
        k, v = (
            cache[pages].transpose(1, 2).flatten(0, 1)[:length]
            for cache in (inputs.k_cache, inputs.v_cache)
        )
        out, lse = attention_reference(inputs.q[begin:end], k, v, inputs.scale, causal=True)
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs), torch.cat(lses)


DECODE_LENS = (1, 63, 64, 65, 500, 1000, 2049)
PAGED_CASES = (
    PagedCase((1,) * 7, DECODE_LENS),
    PagedCase((1,) * 7, DECODE_LENS, page_size=16),
    PagedCase((1, 1), (700, 33), num_heads=9, num_kv_heads=3, page_size=32),
    PagedCase((1, 1, 1), (1300, 1, 64), num_heads=14, num_kv_heads=2, head_dim=128),
    PagedCase((1, 1), (100, 600), num_heads=2, num_kv_heads=2, head_dim=96),
    PagedCase((1, 1), (100, 600), num_heads=16, num_kv_heads=1, head_dim=32),
    PagedCase((64, 65, 1, 63), (64, 65, 1, 63)),
    PagedCase((111, 7, 500), (111, 7, 500), num_heads=6, num_kv_heads=3, head_dim=96),
    PagedCase((40, 1, 130, 3), (1100, 900, 333, 3), page_size=16),
    PagedCase((5, 0, 1, 33), (70, 10, 128, 800), num_heads=7, num_kv_heads=1, head_dim=128),
    PagedCase((2, 19), (600, 700), num_heads=2, num_kv_heads=1, head_dim=72, page_size=32),
    PagedCase((9, 1), (17, 65), num_heads=3, num_kv_heads=1, head_dim=256),
    PagedCase((3,), (5,), num_heads=1, num_kv_heads=1, head_dim=8),
    PagedCase((), ()),
)
PAGED_SPEED_CASES = (
    PagedCase((1,), (300,)),
    PagedCase((1,), (4000,)),
    PagedCase((1,) * 16, (1000,) * 16),
    PagedCase((1,) * 64, (300,) * 64, num_heads=9, num_kv_heads=3),
    PagedCase((1,) * 16, (1000,) * 16, num_heads=12, num_kv_heads=2, head_dim=128),
    PagedCase((256,), (256,)),
    PagedCase((1024,), (1024,), num_heads=9, num_kv_heads=3),
    PagedCase((256,), (2048,), num_heads=12, num_kv_heads=2, head_dim=128),
    PagedCase((1,) * 15 + (256,), (300,) * 15 + (256,)),
)


@dataclass(frozen=True)
class VisionCase:
    """Segments of one vision attention call."""

    lens: tuple[int, ...]
    num_heads: int = 4
    head_dim: int = 64


@dataclass(frozen=True)
class VisionInputs:
    """Arguments of `vision_attention` in its order."""

    q: Tensor
    k: Tensor
    v: Tensor
    cu_lens: Tensor
    max_len: int
    scale: float

    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor, int, float]:
        """Return them as positional arguments."""
        return self.q, self.k, self.v, self.cu_lens, self.max_len, self.scale


def make_vision_inputs(case: VisionCase, dtype: torch.dtype, seed: int = 0) -> VisionInputs:
    """Random inputs, views of one packed projection."""
    generator = torch.Generator().manual_seed(seed)
    shape = (sum(case.lens), 3, case.num_heads, case.head_dim)
    q, k, v = torch.randn(shape, generator=generator).to(dtype).unbind(1)
    max_len = max(case.lens, default=0)
    return VisionInputs(q, k, v, cumulative(case.lens), max_len, case.head_dim**-0.5)


def vision_attention_reference(inputs: VisionInputs) -> Tensor:
    """Return the output [T, H, D] of the inputs, in float64."""
    outs = []
    for begin, end in pairwise(inputs.cu_lens.tolist()):
        q, k, v = (x[begin:end] for x in (inputs.q, inputs.k, inputs.v))
        outs.append(attention_reference(q, k, v, inputs.scale, causal=False)[0])
    return torch.cat(outs)


VISION_CASES = (
    VisionCase((257,)),
    VisionCase((257, 257, 257), num_heads=2),
    VisionCase((1025,), num_heads=2),
    VisionCase((1, 0, 7, 64, 65, 320, 321)),
    VisionCase((500, 111), num_heads=1, head_dim=128),
    VisionCase((50, 3), num_heads=25, head_dim=32),
    VisionCase((17,), num_heads=3, head_dim=72),
    VisionCase((130,), num_heads=1, head_dim=256),
    VisionCase(()),
)
VISION_SPEED_CASES = (
    *(VisionCase((257,) * tiles) for tiles in (1, 4, 13)),
    *(VisionCase((257,) * tiles, num_heads=16) for tiles in (1, 4, 13)),
    *(VisionCase((1025,) * tiles, num_heads=16) for tiles in (1, 4)),
    VisionCase((1025,), num_heads=25, head_dim=128),
)
