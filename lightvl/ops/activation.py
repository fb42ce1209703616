"""Activations; tensors are row-strided, float32, bfloat16 or float16, computed in float32."""

import torch
from torch import Tensor

from lightvl.ops.library import out_operator

_silu_mul = out_operator("silu_mul")
_gelu = out_operator("gelu")


def silu_mul(gate_up: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return silu(gate) * up for the two halves of the fused projection's rows.

    Source: Shazeer, "GLU Variants Improve Transformer", 2020.

    Args:
        gate_up: [T, 2F]: gate, then up.
        out: [T, F] to write to; a new tensor when absent.

    Returns:
        [T, F], `out` where it was given.

    Raises:
        ValueError: the width is odd, or the tensor is not 2-D.
    """
    if out is None:
        shape = gate_up.shape
        out = gate_up.new_empty(shape[0], shape[-1] // 2)
    _silu_mul(gate_up, out)
    return out


def gelu(x: Tensor, bias: Tensor | None = None, *, out: Tensor | None = None) -> Tensor:
    """Return the exact GELU of x + bias: y * Phi(y) with the normal distribution's Phi.

    Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016.

    Args:
        x: [T, C].
        bias: [C], contiguous; of the projection that made x.
        out: [T, C] to write to, which may be `x`; a new tensor when absent.

    Returns:
        [T, C], `out` where it was given.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    if out is None:
        out = torch.empty_like(x)
    _gelu(x, bias, out)
    return out
