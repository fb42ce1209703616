"""Norms and the scaled residual in float64, and the shapes that tests and benchmarks run."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightvl.testing.poison import strided

EPS = 1e-5


@dataclass(frozen=True)
class RowsCase:
    """Tokens, heads (0: a 2-D input without them) and width of a row-wise operator's input."""

    num_tokens: int
    width: int
    num_heads: int = 0


ROWS_CASES = (
    RowsCase(1, 256),
    RowsCase(500, 576),
    RowsCase(111, 111),
    RowsCase(7, 500),
    RowsCase(3, 8191),
    RowsCase(4, 7),
    RowsCase(2, 1),
    RowsCase(0, 64),
)
PER_HEAD_CASES = (RowsCase(33, 64, num_heads=9), RowsCase(2, 7, num_heads=3), RowsCase(0, 64, 4))
NORM_SPEED_CASES = (
    RowsCase(1, 256),
    RowsCase(64, 256),
    RowsCase(1, 576),
    RowsCase(256, 576),
    RowsCase(1, 4096),
    RowsCase(256, 4096),
)
VISION_SPEED_CASES = (RowsCase(257, 256), RowsCase(1028, 256), RowsCase(1025, 1024))


@dataclass(frozen=True)
class NormInputs:
    """What the operators of this family take; each uses some of it."""

    x: Tensor
    residual: Tensor
    weight: Tensor
    bias: Tensor


def make_norm_inputs(case: RowsCase, dtype: torch.dtype, seed: int = 0) -> NormInputs:
    """Random row-strided inputs with NaN between the rows, shifted off zero mean."""
    generator = torch.Generator().manual_seed(seed)
    heads = (case.num_heads,) if case.num_heads else ()

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).add_(0.3).to(dtype)

    rows = (case.num_tokens, *heads, case.width)
    return NormInputs(
        strided(random(*rows)), strided(random(*rows)), random(case.width), random(case.width)
    )


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x / sqrt(mean(x^2) + eps) * weight, over the last dimension."""
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def add_rms_norm_reference(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the norm, and the sum in residual's dtype: the norm is that of the rounded sum."""
    total = (residual.double() + x.double()).to(residual.dtype)
    return rms_norm_reference(total, weight, eps), total


def layer_norm_reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return (x - mean) / sqrt(variance + eps) * weight + bias, over the last dimension."""
    x = x.double()
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    return centred * scale * weight.double() + bias.double()


def scale_add_reference(
    x: Tensor, scale: Tensor, residual: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Return residual + scale * (x + bias)."""
    biased = x.double() if bias is None else x.double() + bias.double()
    return residual.double() + scale.double() * biased
