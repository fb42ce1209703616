"""Matrix products of few rows in float64, and the shapes that tests and benchmarks run."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightvl.testing.activation_reference import silu_mul_reference

ROW_GAP = 8  # elements of NaN between rows, which keep their alignment


@dataclass(frozen=True)
class LinearCase:
    """Rows and width of x, width of the output, and what follows the product."""

    num_tokens: int
    width: int
    out_width: int
    silu_mul: bool = False
    bias: bool = False
    residual: bool = False


LINEAR_CASES = (
    LinearCase(1, 3584, 3584, residual=True),
    LinearCase(3, 3584, 4608, bias=True),
    LinearCase(9, 8960, 1536, residual=True),
    LinearCase(13, 1544, 2001, bias=True, residual=True),
    LinearCase(8, 8, 37, bias=True),
    LinearCase(16, 40, 1, residual=True),
    LinearCase(5, 1000, 501, bias=True, residual=True),
    LinearCase(11, 104, 1000),
    LinearCase(16, 896, 20001),
    LinearCase(9, 264, 9001, bias=True, residual=True),
    LinearCase(16, 1536, 8960, silu_mul=True),
    LinearCase(1, 896, 4864, silu_mul=True, bias=True),
    LinearCase(7, 72, 133, silu_mul=True, bias=True, residual=True),
    LinearCase(2, 520, 3, silu_mul=True),
    LinearCase(0, 64, 48),
    LinearCase(4, 64, 0),
)

# The decode step's products at InternVL3's 8B, 2B and 1B language models: qkv, o, gate and up,
# down, and the head.
LINEAR_SPEED_CASES = tuple(
    case
    for hidden, qkv, ffn in ((3584, 4608, 18944), (1536, 2048, 8960), (896, 1152, 4864))
    for num_tokens in (1, 16)
    for case in (
        LinearCase(num_tokens, hidden, qkv, bias=True),
        LinearCase(num_tokens, hidden, hidden, residual=True),
        LinearCase(num_tokens, hidden, ffn, silu_mul=True),
        LinearCase(num_tokens, ffn, hidden, residual=True),
        LinearCase(num_tokens, hidden, 151674),
    )
)


@dataclass(frozen=True)
class LinearInputs:
    """What linear_small takes."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    residual: Tensor | None
    silu_mul: bool


def aligned_rows(values: Tensor) -> Tensor:
    """Return a row-strided copy with NaN between its rows, which begin at multiples of 16 bytes."""
    rows, width = values.shape
    whole = torch.full((rows, width + ROW_GAP), torch.nan, dtype=values.dtype)
    return whole[:, :width].copy_(values)


def make_linear_inputs(case: LinearCase, dtype: torch.dtype, seed: int = 0) -> LinearInputs:
    """Random inputs with NaN between the rows; products of about unit size."""
    generator = torch.Generator().manual_seed(seed)
    weight_rows = case.out_width * (2 if case.silu_mul else 1)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    scale = max(case.width, 1) ** -0.5
    return LinearInputs(
        aligned_rows(random(case.num_tokens, case.width)),
        aligned_rows(random(weight_rows, case.width) * scale),
        random(weight_rows) if case.bias else None,
        random(case.num_tokens, case.out_width) if case.residual else None,
        case.silu_mul,
    )


def linear_small_reference(i: LinearInputs) -> Tensor:
    """Return x @ weight.T + bias, then silu(gate) * up, then + residual, of those there are."""
    y = i.x.double() @ i.weight.double().t()
    if i.bias is not None:
        y = y + i.bias.double()
    if i.silu_mul:
        y = silu_mul_reference(y)
    return y if i.residual is None else y + i.residual.double()
