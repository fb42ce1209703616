"""Activations in float64; their shapes are those of the norms' rows."""

import torch
from torch import Tensor

from lightvl.testing.norm_reference import RowsCase

# Widths of silu_mul's output and of gelu's input, at the demo model, SmolLM2, an 8B language model
# and the 300M vision tower.
SILU_MUL_SPEED_CASES = (
    RowsCase(1, 768),
    RowsCase(64, 768),
    RowsCase(1, 1536),
    RowsCase(256, 1536),
    RowsCase(1, 12288),
    RowsCase(64, 12288),
)
GELU_SPEED_CASES = (RowsCase(257, 1024), RowsCase(1025, 4096))


def silu_mul_reference(gate_up: Tensor) -> Tensor:
    """Return silu(first half) * second half, over the last dimension."""
    gate, up = gate_up.double().chunk(2, dim=-1)
    return gate / (1 + (-gate).exp()) * up


def gelu_reference(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return y * Phi(y) of y = x + bias; by erfc, which keeps the lower tail."""
    y = x.double() if bias is None else x.double() + bias.double()
    tail: Tensor = torch.special.erfc(-y / 2**0.5)
    return y * tail / 2
