"""Norms with their fused residuals, and the vision tower's scaled residual.

Every tensor is row-strided: the last dimension is contiguous, other strides are free. T is the
number of tokens, C the hidden size; dtypes are float32, bfloat16 or float16, the arithmetic is
float32. Shapes or dtypes that do not fit raise ValueError.
"""

import torch
from torch import Tensor

from lightvl.ops.library import out_operator

_rms_norm = out_operator("rms_norm")
_add_rms_norm = out_operator("add_rms_norm")
_layer_norm = out_operator("layer_norm")
_scale_add = out_operator("scale_add")


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, out: Tensor | None = None) -> Tensor:
    """Scale each row to unit root mean square, then by `weight`.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.

    Args:
        x: [T, C], or [T, H, C] for a norm per head.
        weight: [C], contiguous.
        eps: Added to the mean square.
        out: Of x's shape, to write to; a new tensor when absent.

    Returns:
        A tensor of x's shape, `out` where it was given.
    """
    if out is None:
        out = torch.empty_like(x)
    _rms_norm(x, weight, eps, out)
    return out


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, out: Tensor | None = None
) -> Tensor:
    """Add `x` to `residual` in place, rounded to its dtype, and return the sum's RMS norm.

    Args:
        x: [T, C].
        residual: [T, C], becomes residual + x.
        weight: [C], contiguous.
        eps: Added to the mean square.
        out: [T, C] to write to; a new tensor when absent.

    Returns:
        [T, C], rms_norm(residual, weight, eps) of the new residual, `out` where it was given.
    """
    if out is None:
        out = torch.empty_like(x)
    _add_rms_norm(x, residual, weight, eps, out)
    return out


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, out: Tensor | None = None
) -> Tensor:
    """Shift and scale each row to zero mean and unit variance, then apply `weight` and `bias`.

    Source: Ba, Kiros and Hinton, "Layer Normalization", 2016.

    Args:
        x: [T, C].
        weight: [C], contiguous.
        bias: [C], contiguous.
        eps: Added to the variance.
        out: [T, C] to write to; a new tensor when absent.

    Returns:
        [T, C], `out` where it was given.
    """
    if out is None:
        out = torch.empty_like(x)
    _layer_norm(x, weight, bias, eps, out)
    return out


def scale_add(
    x: Tensor,
    scale: Tensor,
    residual: Tensor,
    bias: Tensor | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Return residual + scale * (x + bias): LayerScale and residual of the vision tower.

    Source: Touvron et al., "Going deeper with Image Transformers", 2021.

    Args:
        x: [T, C].
        scale: [C], contiguous.
        residual: [T, C].
        bias: [C], contiguous; of the projection that made x.
        out: [T, C] to write to, which may be `residual`; a new tensor when absent.

    Returns:
        [T, C], `out` where it was given.
    """
    if out is None:
        out = torch.empty_like(x)
    _scale_add(x, bias, scale, residual, out)
    return out
