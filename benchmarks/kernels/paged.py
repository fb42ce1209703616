"""Rows of paged attention: decode and chunked prefill of three models."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from benchmarks.kernels.row import Row, Target
from benchmarks.kernels.timing import Prepared, random, relative_error

DIM = 128
HEADS = {"8B": (28, 4), "2B": (12, 2), "26B": (48, 8)}  # query and KV heads
COLD_BYTES = 300_000_000  # smaller KV could stay in the cache between calls
TOLERANCE = 0.0025
CHECKED_ROWS = 64  # last queries of the first and the last sequence


@dataclass(frozen=True)
class Paged:
    """Queries over a paged cache; sequences have `q_len` new tokens each.

    Attributes:
        q: [T, H, D].
        kv: [N, 2, K, P, D], keys and values of the pages.
        table: int32 [S, M], pages in random order.
        lens: Tokens of each sequence.
        q_len: New tokens of each sequence.
    """

    q: Tensor
    kv: Tensor
    table: Tensor
    lens: tuple[int, ...]
    q_len: int

    @property
    def page_size(self) -> int:
        """Tokens in a page."""
        return self.kv.shape[3]

    @cached_property
    def context_lens(self) -> Tensor:
        """Tokens of each sequence, int32 [S]."""
        return torch.tensor(self.lens, dtype=torch.int32, device="cuda")

    @cached_property
    def cu_q_lens(self) -> Tensor:
        """Where each sequence's queries begin, int32 [S + 1]."""
        starts = range(0, (len(self.lens) + 1) * self.q_len, self.q_len)
        return torch.tensor(list(starts), dtype=torch.int32, device="cuda")

    @cached_property
    def tokens_first(self) -> Tensor:
        """A copy of the cache in the other common layout, [N, 2, P, K, D]."""
        return self.kv.transpose(2, 3).contiguous()

    def contiguous(self, s: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one sequence, [length, K, D]."""
        pages = self.table[s, : -(-self.lens[s] // self.page_size)].long()
        k, v = self.kv[pages].transpose(2, 3).unbind(1)
        return tuple(x.flatten(0, 1)[: self.lens[s]] for x in (k, v))  # type: ignore[return-value]


def make(model: str, lens: tuple[int, ...], q_len: int, page_size: int) -> Paged:
    """Random queries and pages."""
    heads, kv_heads = HEADS[model]
    pages = [-(-length // page_size) for length in lens]
    order = torch.randperm(sum(pages), device="cuda").int()
    table = torch.zeros((len(lens), max(pages)), dtype=torch.int32, device="cuda")
    for s, end in enumerate(accumulate(pages)):
        table[s, : pages[s]] = order[end - pages[s] : end]
    return Paged(
        random(len(lens) * q_len, heads, DIM),
        random(sum(pages), 2, kv_heads, page_size, DIM),
        table,
        lens,
        q_len,
    )


def attend(q: Tensor, k: Tensor, v: Tensor, first: int | None) -> Tensor:
    """Attention of one sequence in float64, or float32 where that is large; [Tq, H, D].

    Args:
        q: [Tq, H, D].
        k: [Tk, K, D].
        v: [Tk, K, D].
        first: Position of the first query, or None without a mask.
    """
    group = q.shape[1] // k.shape[1]
    many = q.shape[0] * k.shape[0] * q.shape[1] > 2e8
    dtype = torch.float32 if many else torch.float64
    keys, values = (x.to(dtype).repeat_interleave(group, 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.to(dtype), keys) / math.sqrt(q.shape[2])
    if first is not None:
        rows = torch.arange(q.shape[0], device="cuda")[:, None] + first
        hidden = torch.arange(k.shape[0], device="cuda") > rows
        scores = scores.masked_fill(hidden, -math.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)


def check(i: Paged) -> Callable[[Tensor], float]:
    """Error at the last queries of the first and the last sequence, NaN anywhere counting."""
    rows = min(i.q_len, CHECKED_ROWS)
    expected = {}
    for s in {0, len(i.lens) - 1}:
        end = (s + 1) * i.q_len
        k, v = i.contiguous(s)
        expected[end] = attend(i.q[end - rows : end], k, v, i.lens[s] - rows)

    def error(out: Tensor) -> float:
        if not bool(torch.isfinite(out).all()):
            return math.inf
        return max(relative_error(out[end - rows : end], y) for end, y in expected.items())

    return error


def ours(i: Paged) -> Prepared:
    """Our operator."""
    out = torch.full_like(i.q, math.nan)
    k, v = i.kv.unbind(1)
    tables = (i.table, i.cu_q_lens, i.context_lens)
    operator = torch.ops.lightvl.paged_attention.default
    return Prepared(
        lambda: operator(i.q, k, v, *tables, DIM**-0.5, i.q_len, out, None), lambda: out
    )


def _row(
    group: str,
    shape: str,
    model: str,
    lens: tuple[int, ...],
    q_len: int,
    target: Target | None,
    page_size: int = 64,
    quick: bool = False,
) -> Row:
    heads, kv_heads = HEADS[model]
    kv_bytes = 2 * sum(lens) * kv_heads * DIM * 2
    pairs = sum(q_len * length - q_len * (q_len - 1) // 2 for length in lens)
    return Row(
        group=group,
        operator="paged_attention",
        shape=shape,
        target=target,
        num_bytes=kv_bytes,
        num_flops=4 * heads * DIM * pairs if group == "prefill" else 0,
        rate="read",
        set_bytes=kv_bytes,
        make=lambda: make(model, lens, q_len, page_size),
        check=check,
        tolerance=TOLERANCE,
        ours=ours,
        cold=group == "decode" and kv_bytes < COLD_BYTES,
        most_sets=1,
        quick=quick,
    )


# Model, context, and for each batch the target and the best peer where the targets were set.
DECODE = (
    (
        "8B",
        1024,
        {1: (8.5, 8.5), 8: (14.5, 14.8), 32: (27, 26.7), 128: (93, 93.6), 256: (181, 181)},
    ),
    ("8B", 4096, {1: (11, 11.2), 8: (30, 30.5), 32: (92, 91), 128: (353, 351), 256: (703, 702)}),
    (
        "8B",
        16384,
        {1: (20.5, 21.2), 8: (94, 95.5), 32: (350, 346), 128: (1401, 1385), 256: (2783, 2783)},
    ),
    ("2B", 1024, {1: (8.5, 8.5), 8: (10.8, 10.8), 32: (19, 19.8), 128: (49, 49)}),
    ("2B", 16384, {1: (14, 14.5), 8: (52, 52), 32: (180, 180)}),
    ("26B", 4096, {1: (14.5, 14.9), 8: (52, 52), 32: (178, 179)}),
)
# The longest of lengths that are spread evenly from a sixteenth of it, in random order.
DECODE_MIXED = (
    (16384, {8: (53, 58.4), 32: (195, 206), 128: (770, 805)}),
    (4096, {8: (22, 24.2), 32: (55, 60.7), 128: (196, 208)}),
)
DECODE_PAGE_16 = ((4096, 32), (1024, 128))
QUICK_DECODE = (("8B", 4096, 32),)

# Model, sequences, new tokens and context of each; target, best peer.
PREFILL = (
    ("8B", 1, 512, 512, 12.5, 12.7),
    ("8B", 1, 512, 8192, 100, 95),
    ("8B", 1, 512, 32768, 385, 365),
    ("8B", 1, 2048, 2048, 66, 63),
    ("8B", 1, 2048, 8192, 350, 336),
    ("8B", 1, 2048, 32768, 1510, 1439),
    ("8B", 1, 8192, 8192, 765, 699),
    ("8B", 1, 8192, 32768, 5200, 4956),
    ("8B", 4, 2048, 2048, 240, 235),
    ("8B", 8, 512, 4096, 365, 356),
    ("8B", 16, 256, 2048, 220, 216),
    ("2B", 1, 512, 8192, 65, 78),
    ("2B", 1, 512, 32768, 225, 270),
)
QUICK_PREFILL = (0,)


def spread(longest: int, batch: int) -> tuple[int, ...]:
    """Lengths from a sixteenth of the longest to the longest, in random order."""
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(0)).tolist()
    least = longest // 16
    return tuple(least + (longest - least) * i // max(batch - 1, 1) for i in order)


def decode_rows() -> Iterator[Row]:
    """One query a sequence."""
    for model, context, batches in DECODE:
        for batch, (us, best_us) in batches.items():
            yield _row(
                "decode",
                f"{model}, batch {batch}, context {context}",
                model,
                (context,) * batch,
                1,
                Target(us, best_us),
                quick=(model, context, batch) in QUICK_DECODE,
            )
    for longest, batches in DECODE_MIXED:
        for batch, (us, best_us) in batches.items():
            shape = f"8B, batch {batch}, contexts {longest // 16} to {longest}"
            lens, target = spread(longest, batch), Target(us, best_us)
            yield _row("decode", shape, "8B", lens, 1, target, quick=(longest, batch) == (4096, 8))
    for context, batch in DECODE_PAGE_16:
        shape = f"8B, batch {batch}, context {context}, pages of 16"
        yield _row("decode", shape, "8B", (context,) * batch, 1, None, page_size=16)


def prefill_rows() -> Iterator[Row]:
    """Many queries a sequence, the last of its context."""
    for n, (model, batch, q_len, context, us, best_us) in enumerate(PREFILL):
        shape = f"{model}, {batch} x {q_len} of {context}"
        yield _row(
            "prefill",
            shape,
            model,
            (context,) * batch,
            q_len,
            Target(us, best_us),
            quick=n in QUICK_PREFILL,
        )
