"""Rows of the memory-bound operators: norms, activations, rotary with the page write, gather."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.row import Row, Target
from benchmarks.kernels.timing import Prepared, random, relative_error
from lightvl.testing import activation_reference, norm_reference
from lightvl.testing.embedding_reference import GatherInputs, gather_embeddings_reference
from lightvl.testing.norm_reference import EPS, NormInputs

TOLERANCE = 0.004  # of results rounded to bfloat16
OPS = torch.ops.lightvl

# Tokens and width: target and the best peer where it was set, or None without a target.
RMS_NORM = {
    (1, 3584): (1.5, 1.6),
    (32, 3584): (1.7, 1.7),
    (256, 3584): (2.7, 3.0),
    (4096, 3584): (21, 21.7),
    (16384, 3584): (80, 80.4),
}
ADD_RMS_NORM = {
    (1, 3584): (1.7, 1.75),
    (32, 3584): (1.9, 1.9),
    (256, 3584): (3.7, 4.1),
    (4096, 3584): (41, 41.6),
    (16384, 3584): (159, 159),
}
LAYER_NORM = {(13325, 1024): (20, 33.7), (13325, 3200): (61, 77)}
SILU_MUL = {
    (1, 18944): (1.4, 1.4),
    (32, 18944): (3.5, 4.8),
    (256, 18944): (12, 12.6),
    (4096, 18944): (155.7, 155.7),
    (4096, 8960): (75.2, 75.2),
}
GELU = {(13325, 4096): (76, 78)}
SCALE_ADD = {(13325, 1024): None, (13325, 3200): None}
GATHER = {(32, 3584): None, (4096, 3584): None}
ROPE = {1: (1.7, 3.5), 32: (2.0, 3.9), 256: (3.6, 6.5), 4096: (27, 34), 16384: (108, 131)}


def norm_inputs(tokens: int, width: int) -> NormInputs:
    """Contiguous inputs of the row-wise operators."""
    return NormInputs(random(tokens, width), random(tokens, width), random(width), random(width))


def _against(reference: Callable[[Any], Tensor]) -> Callable[[Any], Callable[[Tensor], float]]:
    def check(inputs: Any) -> Callable[[Tensor], float]:  # noqa: ANN401
        expected = reference(inputs)
        return lambda out: relative_error(out, expected)

    return check


def _into(run: Callable[[Any, Tensor], object], columns: int = 1) -> Callable[[Any], Prepared]:
    """Our operator writing to an output of the input's rows, 1/columns as wide."""

    def prepare(inputs: Any) -> Prepared:  # noqa: ANN401
        x = inputs.x if isinstance(inputs, NormInputs) else inputs
        out = x.new_full((x.shape[0], x.shape[1] // columns), torch.nan)
        return Prepared(lambda: run(inputs, out), lambda: out)

    return prepare


def _add_rms_norm(i: NormInputs) -> Prepared:
    residual, out = i.residual.clone(), torch.full_like(i.x, torch.nan)
    operator = OPS.add_rms_norm.default
    return Prepared(lambda: operator(i.x, residual, i.weight, EPS, out), lambda: out)


@dataclass(frozen=True)
class _Kind:
    """A row-wise operator: passes over its [T, C], and how it is run and checked."""

    shapes: Mapping[tuple[int, int], tuple[float, float] | None]
    passes: int
    ours: Callable[[Any], Prepared]
    reference: Callable[[Any], Tensor]
    make: Callable[[int, int], Any] = norm_inputs
    in_place: bool = False


KINDS = {
    "rms_norm": _Kind(
        RMS_NORM,
        2,
        _into(lambda i, out: OPS.rms_norm.default(i.x, i.weight, EPS, out)),
        lambda i: norm_reference.rms_norm_reference(i.x, i.weight, EPS),
    ),
    "add_rms_norm": _Kind(
        ADD_RMS_NORM,
        4,
        _add_rms_norm,
        lambda i: norm_reference.add_rms_norm_reference(i.x, i.residual, i.weight, EPS)[0],
        in_place=True,
    ),
    "layer_norm": _Kind(
        LAYER_NORM,
        2,
        _into(lambda i, out: OPS.layer_norm.default(i.x, i.weight, i.bias, EPS, out)),
        lambda i: norm_reference.layer_norm_reference(i.x, i.weight, i.bias, EPS),
    ),
    "silu_mul": _Kind(
        SILU_MUL,
        3,
        _into(lambda x, out: OPS.silu_mul.default(x, out), columns=2),
        activation_reference.silu_mul_reference,
        make=lambda tokens, width: random(tokens, 2 * width),
    ),
    "gelu": _Kind(
        GELU,
        2,
        _into(lambda i, out: OPS.gelu.default(i.x, i.bias, out)),
        lambda i: activation_reference.gelu_reference(i.x, i.bias),
    ),
    "scale_add": _Kind(
        SCALE_ADD,
        3,
        _into(lambda i, out: OPS.scale_add.default(i.x, i.bias, i.weight, i.residual, out)),
        lambda i: norm_reference.scale_add_reference(i.x, i.weight, i.residual, i.bias),
    ),
}


def rows() -> Iterator[Row]:
    """The row-wise operators and the gather."""
    for name, kind in KINDS.items():
        for (tokens, width), aim in kind.shapes.items():
            num_bytes = 2 * kind.passes * tokens * width
            yield Row(
                group=name,
                operator=name,
                shape=f"{tokens} x {width}",
                target=Target(*aim) if aim else None,
                num_bytes=num_bytes,
                num_flops=0,
                rate="copy",
                set_bytes=num_bytes,
                make=lambda make=kind.make, t=tokens, w=width: make(t, w),  # type: ignore[misc]
                check=_against(kind.reference),
                tolerance=TOLERANCE,
                ours=kind.ours,
                in_place=kind.in_place,
                quick=(tokens, width) == next(iter(kind.shapes)),
            )
    for tokens, width in GATHER:
        yield _gather_row(tokens, width)


def _gather_inputs(tokens: int, width: int) -> GatherInputs:
    image = torch.arange(tokens, device="cuda") % 4 != 0  # three of four rows are a picture's
    return GatherInputs(
        torch.randint(151674, (tokens,), device="cuda").masked_fill(image, 0),
        random(151674, width),
        torch.arange(tokens, device="cuda").masked_fill(~image, -1).int(),
        random(tokens, width),
    )


def _gather_ours(i: GatherInputs) -> Prepared:
    out = i.table.new_full((i.ids.shape[0], i.table.shape[1]), torch.nan)
    operator = OPS.gather_embeddings.default
    return Prepared(lambda: operator(*i.arguments(), out), lambda: out)


def _gather_row(tokens: int, width: int) -> Row:
    return Row(
        group="gather_embeddings",
        operator="gather_embeddings",
        shape=f"{tokens} x {width}",
        target=None,
        num_bytes=4 * tokens * width,
        num_flops=0,
        rate="copy",
        set_bytes=4 * tokens * width,
        make=lambda: _gather_inputs(tokens, width),
        check=_against(gather_embeddings_reference),
        tolerance=0.0,
        ours=_gather_ours,
        most_sets=4,  # the table is large
        quick=tokens == 32,
    )


@dataclass(frozen=True)
class Rope:
    """Views of a fused projection, and a cache of 64-token pages.

    Attributes:
        qkv: [T, H + 2K, D].
        heads: H and K.
        cos_sin: float32 [R, D].
        positions: int64 [T].
        slots: int64 [T].
        num_pages: Of the cache.
    """

    qkv: Tensor
    heads: tuple[int, int]
    cos_sin: Tensor
    positions: Tensor
    slots: Tensor
    num_pages: int

    @cached_property
    def rows(self) -> Tensor:
        """The positions as int32, as our operator takes them."""
        return self.positions.int()

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (a copy, since they are rotated in place), keys and values."""
        heads, kv_heads = self.heads
        q, k, v = self.qkv.clone().split((heads, kv_heads, kv_heads), dim=1)
        return q, k, v

    def new_cache(self, *order: int) -> Tensor:
        """A cache full of NaN, [N, 2, ...] with `order` as the other dimensions."""
        return self.qkv.new_full((self.num_pages, 2, *order), torch.nan)

    def joined(self, q: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        """What is compared: queries, and the written keys and values, caches [N, P, K, D]."""
        pages, cells = self.slots // 64, self.slots % 64
        return torch.cat((q, k_cache[pages, cells], v_cache[pages, cells]), dim=1)


def make_rope(tokens: int) -> Rope:
    """The 8B model's heads."""
    heads, kv_heads, dim = 28, 4, 128
    frequencies = 1e6 ** (-torch.arange(0, dim, 2, device="cuda") / dim)
    angles = torch.arange(32768, device="cuda")[:, None] * frequencies
    num_pages = max(1024, 2 * tokens // 64)
    return Rope(
        random(tokens, heads + 2 * kv_heads, dim),
        (heads, kv_heads),
        torch.cat((angles.cos(), angles.sin()), dim=1).float(),
        torch.randint(32768, (tokens,), device="cuda"),
        torch.randperm(num_pages * 64, device="cuda")[:tokens],
        num_pages,
    )


def _rope_check(i: Rope) -> Callable[[Tensor], float]:
    q, k, v = i.parts()
    cos, sin = i.cos_sin[i.positions].double()[:, None].chunk(2, dim=-1)

    def rotated(x: Tensor) -> Tensor:
        a, b = x.double().chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

    expected = torch.cat((rotated(q), rotated(k), v.double()), dim=1)
    return lambda out: relative_error(out, expected)


def _rope_ours(i: Rope) -> Prepared:
    q, k, v = i.parts()
    k_cache, v_cache = (
        x.contiguous() for x in i.new_cache(i.heads[1], 64, i.qkv.shape[2]).unbind(1)
    )
    operator = OPS.rope_write_kv.default
    tables = (i.cos_sin, i.rows, i.slots)
    return Prepared(
        lambda: operator(q, k, v, *tables, k_cache, v_cache, None, None, EPS),
        lambda: i.joined(q, k_cache.transpose(1, 2), v_cache.transpose(1, 2)),
    )


def rope_rows() -> Iterator[Row]:
    """Rotary with the page write at the 8B model's heads."""
    for tokens, aim in ROPE.items():
        num_bytes = 2 * tokens * (28 + 4 + 4) * 128 * 2
        yield Row(
            group="rope_write_kv",
            operator="rope_write_kv",
            shape=f"8B, {tokens} token{'s' if tokens > 1 else ''}",
            target=Target(*aim),
            num_bytes=num_bytes,
            num_flops=0,
            rate="copy",
            set_bytes=num_bytes,
            make=lambda t=tokens: make_rope(t),  # type: ignore[misc]
            check=_rope_check,
            tolerance=TOLERANCE,
            ours=_rope_ours,
            in_place=True,
            most_sets=16,
            quick=tokens == 1,
        )
