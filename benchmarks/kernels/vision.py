"""Rows of the vision towers' attention: 1025 tokens a tile, views of the packed projection."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from benchmarks.kernels.paged import attend
from benchmarks.kernels.row import Row, Target
from benchmarks.kernels.timing import Prepared, random, relative_error

TOKENS = 1025
CHECKED_ROWS = 64
# Heads and head dim; for each number of tiles the target and the best peer where it was set.
TOWERS: dict[str, tuple[int, int, dict[int, tuple[float, float]]]] = {
    "ViT-300M": (16, 64, {1: (17, 18.8), 4: (47, 49), 13: (145, 158), 64: (660, 723)}),
    "ViT-6B": (25, 128, {1: (33, 34), 4: (112, 116), 13: (340, 356), 64: (1640, 1702)}),
}


@dataclass(frozen=True)
class Tiles:
    """The packed projection of a batch of tiles, [tiles * TOKENS, 3, H, D]."""

    qkv: Tensor
    num_tiles: int

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, strided [T, H, D]."""
        q, k, v = self.qkv.unbind(1)
        return q, k, v

    @cached_property
    def cu_lens(self) -> Tensor:
        """Where each tile begins, int32."""
        starts = range(0, (self.num_tiles + 1) * TOKENS, TOKENS)
        return torch.tensor(list(starts), dtype=torch.int32, device="cuda")

    def new_output(self) -> Tensor:
        """An output full of NaN."""
        return torch.full_like(self.parts[0], math.nan, memory_format=torch.contiguous_format)


def check(i: Tiles) -> Callable[[Tensor], float]:
    """Error at the last rows of the last tile, NaN anywhere counting."""
    q, k, v = (x[-TOKENS:] for x in i.parts)
    expected = attend(q[-CHECKED_ROWS:], k, v, None)

    def error(out: Tensor) -> float:
        finite = bool(torch.isfinite(out).all())
        return relative_error(out[-CHECKED_ROWS:], expected) if finite else math.inf

    return error


def ours(i: Tiles) -> Prepared:
    """Our operator."""
    out = i.new_output()
    scale = i.qkv.shape[-1] ** -0.5
    operator = torch.ops.lightvl.vision_attention.default
    return Prepared(lambda: operator(*i.parts, i.cu_lens, TOKENS, scale, out), lambda: out)


def rows() -> Iterator[Row]:
    """Both towers."""
    for tower, (heads, dim, batches) in TOWERS.items():
        for num_tiles, (us, best_us) in batches.items():
            elements = num_tiles * TOKENS * heads * dim
            yield Row(
                group="vision",
                operator="vision_attention",
                shape=f"{tower}, {num_tiles} tile{'s' if num_tiles > 1 else ''}",
                target=Target(us, best_us),
                num_bytes=8 * elements,
                num_flops=4 * elements * TOKENS,
                rate="read",
                set_bytes=8 * elements,
                make=lambda n=num_tiles, h=heads, d=dim: Tiles(random(n * TOKENS, 3, h, d), n),  # type: ignore[misc]
                check=check,
                tolerance=0.004,
                ours=ours,
                most_sets=8,
                quick=num_tiles == 1,
            )
