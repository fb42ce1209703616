"""Rotary embedding with its page write in float64, and the shapes that tests and benchmarks run."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightvl.testing.norm_reference import EPS, rms_norm_reference


@dataclass(frozen=True)
class RopeCase:
    """Tokens, heads and pages of one call; `qk_norm` adds the norms per head."""

    num_tokens: int
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    page_size: int = 64
    qk_norm: bool = False


@dataclass(frozen=True)
class RopeInputs:
    """Arguments of `rope_write_kv` in its order."""

    q: Tensor
    k: Tensor
    v: Tensor
    cos_sin: Tensor
    rows: Tensor
    slots: Tensor
    k_cache: Tensor
    v_cache: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None
    eps: float = EPS

    def arguments(self) -> tuple[Any, ...]:
        """Return them as positional arguments."""
        tensors = (self.q, self.k, self.v, self.cos_sin, self.rows, self.slots)
        return (*tensors, self.k_cache, self.v_cache, self.q_norm, self.k_norm, self.eps)


ROPE_CASES = (
    RopeCase(1),
    RopeCase(111, page_size=16, qk_norm=True),
    RopeCase(7, num_heads=9, num_kv_heads=3, page_size=32),
    RopeCase(500, num_heads=14, num_kv_heads=2, head_dim=128),
    RopeCase(5, head_dim=96, qk_norm=True),
    RopeCase(3, num_heads=3, num_kv_heads=3, head_dim=10, qk_norm=True),
    RopeCase(2, num_heads=1, num_kv_heads=1, head_dim=256),
    RopeCase(0),
)
ROPE_SPEED_CASES = (
    RopeCase(1),
    RopeCase(64),
    RopeCase(1, num_heads=9, num_kv_heads=3),
    RopeCase(256, num_heads=9, num_kv_heads=3),
    RopeCase(1, num_heads=32, num_kv_heads=8, head_dim=128, qk_norm=True),
    RopeCase(256, num_heads=32, num_kv_heads=8, head_dim=128, qk_norm=True),
)


def make_rope_inputs(case: RopeCase, dtype: torch.dtype, seed: int = 0) -> RopeInputs:
    """Random inputs: strided views of a fused projection, caches full of NaN, scattered slots.

    Every third token is not written (slot -1).
    """
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    tokens, heads, kv_heads, dim = (
        case.num_tokens,
        case.num_heads,
        case.num_kv_heads,
        case.head_dim,
    )
    packed = random(tokens, heads + 2 * kv_heads, dim)
    q, k, v = packed.split((heads, kv_heads, kv_heads), dim=1)
    angles = torch.rand((99, dim // 2), generator=generator) * 6.28
    num_pages = tokens // case.page_size + 2
    slots = torch.randperm(num_pages * case.page_size, generator=generator)[:tokens]
    slots[2::3] = -1
    caches = torch.full((2, num_pages, kv_heads, case.page_size, dim), torch.nan, dtype=dtype)
    return RopeInputs(
        q,
        k,
        v,
        torch.cat((angles.cos(), angles.sin()), dim=1),
        torch.randint(99, (tokens,), generator=generator, dtype=torch.int32),
        slots,
        caches[0],
        caches[1],
        random(dim) if case.qk_norm else None,
        random(dim) if case.qk_norm else None,
    )


def rotate_reference(x: Tensor, norm: Tensor | None, cos_sin: Tensor, eps: float) -> Tensor:
    """Return [T, H, D] heads after the optional norm and the rotation by rows [T, D]."""
    x = x.double() if norm is None else rms_norm_reference(x, norm, eps)
    cos, sin = cos_sin.double().unsqueeze(1).chunk(2, dim=-1)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def rope_write_kv_reference(inputs: RopeInputs) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k_cache and v_cache after the call, in float64; takes the inputs before it."""
    angles = inputs.cos_sin[inputs.rows.long()]
    q = rotate_reference(inputs.q, inputs.q_norm, angles, inputs.eps)
    k = rotate_reference(inputs.k, inputs.k_norm, angles, inputs.eps)
    k_cache, v_cache = inputs.k_cache.double(), inputs.v_cache.double()
    page_size = k_cache.shape[2]
    for t, slot in enumerate(inputs.slots.tolist()):
        if slot >= 0:
            k_cache[slot // page_size, :, slot % page_size] = k[t]
            v_cache[slot // page_size, :, slot % page_size] = inputs.v[t].double()
    return q, k_cache, v_cache
